"""The transformer against the notebook's own TinyLM, as benchmarks/notebook_loop.py has it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from bounds import gamma, likely
from notebook_loop import TinyLM
from operators import Operators
from torch import nn

from marble_sweep.groups import AdamWConfig
from marble_sweep.model import products, transformer
from marble_sweep.model.loss import linear_cross_entropy
from marble_sweep.model.products import MATMULS, Products
from marble_sweep.model.transformer import Block, Transformer, causal_attention
from marble_sweep.training.optimizer import FlatOptimizer
from marble_sweep.training.precision import POLICIES

Size = tuple[int, int, int, int, int]  # vocab, seq_len, layers, width, heads
SIZES: list[Size] = [
    (50, 8, 0, 16, 1),
    (50, 8, 1, 4, 1),
    (97, 16, 2, 64, 2),
    (300, 32, 4, 128, 4),
    (40, 12, 3, 24, 3),
]


def build(size: Size, seed: int = 0) -> Transformer:
    vocab_size, seq_len, num_layers, hidden_dim, num_heads = size
    return Transformer(vocab_size, seq_len, num_layers, hidden_dim, num_heads, 4 * hidden_dim, seed)


def shaken(size: Size) -> Transformer:
    """A model none of whose parameters is at its start: biases of 0 and gains of 1 hide mistakes."""
    model = build(size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def notebook_twin(model: Transformer, size: Size) -> TinyLM:
    """The notebook's model with copies of our weights."""
    vocab_size, seq_len, num_layers, hidden_dim, num_heads = size
    twin = TinyLM(vocab_size, hidden_dim, num_layers, num_heads, seq_len)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = [
        (twin.embedding.weight, model.embedding.weight),
        (twin.pos_embedding.weight, model.positions.weight),
        (twin.ln_f.weight, model.final_norm.weight),
        (twin.ln_f.bias, model.final_norm.bias),
    ]
    for layer, block in zip(twin.layers, model.blocks, strict=True):
        assert isinstance(layer, nn.TransformerEncoderLayer)
        assert isinstance(block, Block)
        pairs += [
            (layer.self_attn.in_proj_weight, block.qkv.weight),
            (layer.self_attn.in_proj_bias, block.qkv.bias),
            (layer.self_attn.out_proj.weight, block.projection.weight),
            (layer.self_attn.out_proj.bias, block.projection.bias),
            (layer.linear1.weight, block.mlp_up.weight),
            (layer.linear1.bias, block.mlp_up.bias),
            (layer.linear2.weight, block.mlp_down.weight),
            (layer.linear2.bias, block.mlp_down.bias),
            (layer.norm1.weight, block.attention_norm.weight),
            (layer.norm1.bias, block.attention_norm.bias),
            (layer.norm2.weight, block.mlp_norm.weight),
            (layer.norm2.bias, block.mlp_norm.bias),
        ]
    assert len(pairs) == len(list(twin.parameters())) == len(list(model.parameters()))
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    return twin


def roundings(size: Size) -> int:
    """As many as stand one behind another between a token and a final hidden state; a sum of n terms has n."""
    _, seq_len, num_layers, width, heads = size
    of_layer = 2 * 2 * width + width + width // heads + seq_len + width + width + 4 * width
    return num_layers * of_layer + 2 * width + 1


def random_tokens(vocab_size: int, *shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------- architecture


def test_the_notebooks_model_has_2089728_parameters() -> None:
    assert sum(each.numel() for each in build((10_000, 128, 4, 128, 4)).parameters()) == 2_089_728


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_parameters_as_many_as_the_notebooks(size: Size) -> None:
    ours, theirs = build(size), TinyLM(size[0], size[3], size[2], size[4], size[1])
    assert sum(each.numel() for each in ours.parameters()) == sum(each.numel() for each in theirs.parameters())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_equal_the_notebooks(size: Size) -> None:
    model = shaken(size)
    twin = notebook_twin(model, size)
    tokens = random_tokens(size[0], 3, size[1])
    logits, hidden = twin(tokens)
    # Relative to the longest of the vectors: LayerNorm keeps an error's share of a vector about as it is.
    far = gamma(roundings(size)) * hidden.norm(dim=-1).max().item()
    torch.testing.assert_close(model(tokens), hidden, rtol=0, atol=far)
    of_logits = (far + gamma(size[3]) * hidden.norm(dim=-1).max().item()) * model.embedding.weight.norm(
        dim=1
    ).max().item()
    torch.testing.assert_close(model(tokens) @ model.embedding.weight.T, logits, rtol=0, atol=of_logits)


def test_no_layers_are_embeddings_and_the_final_norm() -> None:
    model = shaken(SIZES[0])
    tokens = random_tokens(50, 2, 8)
    summed = model.embedding.weight[tokens] + model.positions.weight[:8]
    centred = summed - summed.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = normed * model.final_norm.weight + model.final_norm.bias
    far = gamma(roundings(SIZES[0])) * expected.norm(dim=-1).max().item()
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_later_token_changes_nothing_before_it(dtype: torch.dtype) -> None:
    size = SIZES[2]
    model = shaken(size).to(dtype)
    tokens = random_tokens(size[0], 2, size[1])
    hidden = model(tokens)
    for position in range(size[1]):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % size[0]
        after = model(changed)
        assert torch.equal(after[:, :position], hidden[:, :position])
        assert not torch.equal(after[:, position], hidden[:, position])
    changed = tokens.clone()
    changed[:, 0] += 1
    assert not torch.equal(model(changed)[:, -1], hidden[:, -1]), "context reaches the last token"


def test_a_shorter_window_is_a_prefix() -> None:
    model = shaken(SIZES[2])
    tokens = random_tokens(97, 2, 16)
    hidden = model(tokens)[:, :5]
    far = gamma(roundings(SIZES[2])) * hidden.norm(dim=-1).max().item()
    torch.testing.assert_close(model(tokens[:, :5]), hidden, rtol=0, atol=far)


# -------------------------------------------------------------------------- attention


def exact_attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


def with_gradients(
    attention: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], dtype: torch.dtype
) -> list[torch.Tensor]:
    tensors = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors]
    attended = attention(*tensors)
    grads = torch.autograd.grad(attended, tensors, torch.ones_like(attended).tril())
    return [attended.detach(), *grads]


def test_attention_in_float32_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 3, 20, 8, generator=generator) for _ in range(3)]
    measured = with_gradients(causal_attention, tensors, torch.float32)
    for ours, truth in zip(measured, with_gradients(exact_attention, tensors, torch.float64), strict=True):
        # Sums of 8 dimensions and 20 tokens, forward and back; the scores' errors enter through an exponential.
        torch.testing.assert_close(
            ours.double(), truth, rtol=0, atol=gamma(3 * (8 + 20)) * truth.norm(dim=-1).max().item()
        )


@pytest.mark.parametrize("matmul", MATMULS)
def test_attention_in_bfloat16_is_as_good_as_torchs_own(matmul: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, 2, 64, 32, generator=generator).bfloat16() for _ in range(3)]
    truths = with_gradients(exact_attention, tensors, torch.float64)
    with products.using(Products(matmul, head="float32")):
        ours = with_gradients(causal_attention, tensors, torch.bfloat16)
    theirs = with_gradients(partial(F.scaled_dot_product_attention, is_causal=True), tensors, torch.bfloat16)
    for name, our, their, truth in zip(("out", "queries", "keys", "values"), ours, theirs, truths, strict=True):
        assert our.dtype == torch.bfloat16
        scale = truth.norm()
        error, reference = ((each.double() - truth).norm() / scale for each in (our, their))
        assert error < 2.0**-6, name  # two units in bfloat16's last place
        assert error < 3 * reference + 2.0**-9, name


# --------------------------------------------------------------------- initialisation


def same(first: Transformer, second: Transformer) -> bool:
    return all(map(torch.equal, first.parameters(), second.parameters()))


def test_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build(SIZES[2], seed=7)
    torch.manual_seed(2)
    torch.rand(5)
    assert same(first, build(SIZES[2], seed=7))
    other = build(SIZES[2], seed=8)
    drawn = [name for name, each in first.named_parameters() if not torch.equal(each, other.get_parameter(name))]
    per_block = ("qkv.weight", "projection.weight", "mlp_up.weight", "mlp_up.bias", "mlp_down.weight", "mlp_down.bias")
    blocks = [f"blocks.{block}.{name}" for block in range(2) for name in per_block]
    assert sorted(drawn) == sorted(["embedding.weight", "positions.weight", *blocks])


def test_seed_0_is_a_seed() -> None:
    assert same(build(SIZES[2], seed=0), build(SIZES[2], seed=0))
    assert not same(build(SIZES[2], seed=0), build(SIZES[2], seed=1))


def test_distributions_are_the_notebooks() -> None:
    """Standard deviations and bounds of each weight, against those that torch's modules come with."""
    size = (2_000, 64, 1, 128, 4)
    torch.manual_seed(0)
    model, twin = build(size), TinyLM(2_000, 128, 1, 4, 64)
    for embedding in (model.embedding.weight, model.positions.weight):
        assert embedding.std().item() == pytest.approx(0.02, rel=0.03)
        assert abs(embedding.mean().item()) < 0.001
    (block,), (layer,) = model.blocks, twin.layers
    assert isinstance(block, Block)
    assert isinstance(layer, nn.TransformerEncoderLayer)
    for ours, theirs in (
        (block.qkv.weight, layer.self_attn.in_proj_weight),
        (block.projection.weight, layer.self_attn.out_proj.weight),
        (block.mlp_up.weight, layer.linear1.weight),
        (block.mlp_up.bias, layer.linear1.bias),
        (block.mlp_down.weight, layer.linear2.weight),
        (block.mlp_down.bias, layer.linear2.bias),
    ):
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05)
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.15)
    for ours, theirs in (
        (block.qkv.bias, layer.self_attn.in_proj_bias),
        (block.projection.bias, layer.self_attn.out_proj.bias),
        (block.attention_norm.weight, layer.norm1.weight),
        (block.attention_norm.bias, layer.norm1.bias),
        (model.final_norm.weight, twin.ln_f.weight),
    ):
        assert torch.equal(ours, theirs)


# ----------------------------------------------------------------------- the notebook's loop


@pytest.mark.parametrize("size", [(200, 24, 2, 64, 2), (200, 24, 0, 32, 1)], ids=str)
def test_20_steps_give_the_losses_of_the_notebooks_loop(size: Size) -> None:
    vocab_size, seq_len, *_ = size
    lr, weight_decay = 1e-3, 0.01
    model = build(size, seed=3)
    twin = notebook_twin(model, size).train()
    # Zipf-like tokens: something to learn in twenty steps.
    draws = torch.rand(20, 8, seq_len, generator=torch.Generator().manual_seed(4))
    batches = (vocab_size**draws).long() - 1

    optimizer = torch.optim.AdamW(twin.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    expected = []
    for input_ids in batches:
        logits, _ = twin(input_ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())

    flat_optimizer = FlatOptimizer(model, AdamWConfig(lr=lr, weight_decay=weight_decay), POLICIES["fp32"], seed=0)
    losses = []
    for tokens in batches:
        with POLICIES["fp32"].autocast(tokens.device):
            hidden = model(tokens)
        loss = linear_cross_entropy(hidden[:, :-1].flatten(0, 1), model.embedding.weight, tokens[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        flat_optimizer.step(lr)
        losses.append(loss.item())

    # A gradient may be off by its share, and Adam's step with it, which moves every loss by that share of the descent.
    share = likely(2 * roundings(size) + len(batches))
    descent = losses[0] - losses[-1]
    assert descent > 0.1, "it learns, so the comparison says something"
    assert losses == pytest.approx(expected, rel=0, abs=share * (losses[0] + descent))
    ours, theirs = model.embedding.weight, twin.embedding.weight
    assert (ours - theirs).norm() < len(batches) * share * (theirs - build(size, seed=3).embedding.weight).norm()


# ------------------------------------------------------------------- what backward works out again


def counting() -> tuple[Operators, Counter[str]]:
    """A mode, and how often every operator was called in it."""
    calls: Counter[str] = Counter()
    return Operators(lambda name, *_: calls.update([name.removeprefix("aten::")])), calls


def block_and_back(dtype: torch.dtype) -> tuple[list[torch.Tensor], Counter[str]]:
    """What one block puts out, and all its gradients; and the operators that were called."""
    generator = torch.Generator().manual_seed(5)
    block = Block(8, 2, 32, generator).to(dtype)
    hidden = torch.randn(2, 6, 8, generator=generator).to(dtype).requires_grad_()
    mode, calls = counting()
    with mode:
        outputs = block(hidden)
        gradients = torch.autograd.grad(outputs.square().sum(), [hidden, *block.parameters()])
    return [outputs.detach(), *gradients], calls


def test_what_is_worked_out_again_changes_no_bit_and_repeats_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, calls = block_and_back(torch.float32)
    monkeypatch.setattr(transformer, "LARGE", 0)
    recomputed, calls_again = block_and_back(torch.float32)
    assert all(map(torch.equal, recomputed, kept))
    more = {name: number - calls[name] for name, number in calls_again.items() if number != calls[name]}
    assert (more.pop("gelu"), more.pop("native_layer_norm")) == (1, 2)
    # Copies, room for them, and no work at all.
    assert more.keys() <= {"clone", "empty.memory_format", "_unsafe_view", "detach", "t", "transpose", "view"}


def test_nothing_is_worked_out_again_in_bfloat16_or_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the memory, and not the bottleneck, is not worth the time."""
    monkeypatch.setattr(transformer, "LARGE", 0)
    assert block_and_back(torch.bfloat16)[1]["gelu"] == 1
    mode, calls = counting()
    with torch.no_grad(), mode:
        Block(8, 2, 32, torch.Generator())(torch.ones(2, 6, 8))
    assert calls["gelu"] == 1
    mode, calls = counting()
    with torch.autocast("cpu", torch.bfloat16), mode:
        outputs = Block(8, 2, 32, torch.Generator())(torch.ones(2, 6, 8))
    with mode:
        outputs.sum().backward()
    assert calls["gelu"] == 1
