"""What a training step costs in floating-point operations, from shapes alone."""

FLOPS_PER_MULTIPLICATION = 2  # of numbers in a matrix product: it is added up too
PASSES = 3  # the forward pass, and backward's two products for each of its: of the inputs and of the weights


def training_flops_per_token(*, vocab_size: int, seq_len: int, num_layers: int, hidden_dim: int, mlp_dim: int) -> float:
    """FLOPs of forward and backward for each token of a window, matrix products alone.

    With V, T, L, D and M for the arguments: 3 · 2 · [L · (4·D² + 2·D·M + 2·T·D) + D·V·(T - 1) / T]. In a block,
    queries, keys and values take 3·D², their projection D², the MLP 2·D·M; scores and their sums of values T·D each,
    for all T positions, also those that the causal mask leaves out. The last token of a window has no target, so T - 1
    of T go through the head. The counts are those of Kaplan et al. 2020, "Scaling Laws for Neural Language Models"
    (table 1), with the head and, as in Hoffmann et al. 2022 (appendix F), with attention to all positions. What a
    kernel works out twice to save memory is not counted, nor is the optimizer.
    """
    block = 4 * hidden_dim**2 + 2 * hidden_dim * mlp_dim + 2 * seq_len * hidden_dim
    window = num_layers * block * seq_len + hidden_dim * vocab_size * (seq_len - 1)
    return PASSES * FLOPS_PER_MULTIPLICATION * window / seq_len
