"""The notebook's transformer: tied embeddings (or not), learned positions, pre-norm GELU blocks, final LayerNorm.

Shapes: B windows, T tokens, D width, H heads, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from marble_sweep.model.linear import Linear, needs_float32_matmul

EMBEDDING_STD = 0.02
LARGE = 2**20  # numbers; for fewer the bookkeeping takes longer than the memory is worth


def save_as_bf16(saved: Tensor) -> Tensor:
    """What backward keeps of widened attention: its operands and output as bfloat16, half the memory."""
    return saved.bfloat16() if saved.ndim == 4 else saved


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention of each position to itself and what precedes it; all (B, H, T, D/H)."""
    if needs_float32_matmul(queries):
        with torch.autocast("cpu", enabled=False), saved_tensors_hooks(save_as_bf16, Tensor.float):
            attended = F.scaled_dot_product_attention(queries.float(), keys.float(), values.float(), is_causal=True)
        return attended.to(queries.dtype)
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16:
        # The CPU flash kernel's bfloat16 backward is several times slower than the plain formula.
        num_tokens, head_dim = queries.shape[-2:]
        future = torch.full((num_tokens, num_tokens), -math.inf, dtype=queries.dtype).triu(1)
        keys = keys.flatten(0, 1).transpose(1, 2)
        # Scaled inside the product: scaling the bfloat16 queries would round them once more.
        scores = torch.baddbmm(future, queries.flatten(0, 1), keys, alpha=head_dim**-0.5)  # (B*H, T, T)
        return (scores.softmax(-1) @ values.flatten(0, 1)).view_as(queries)
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)


def recompute_operand(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """function(inputs), something cheap and a product of it. Where all is float32 and large, only inputs are kept.

    Backward then does what is cheap once more, to the same bits, but not the product.
    """
    is_large = inputs.numel() >= LARGE and inputs.dtype == torch.float32 and torch.is_grad_enabled()
    if not is_large or torch.is_autocast_enabled(inputs.device.type):
        return function(inputs)
    return cast("Tensor", checkpoint(function, inputs, use_reentrant=False, preserve_rng_state=False))


class Block(nn.Module):
    """x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x))."""

    def __init__(self, hidden_dim: int, num_heads: int, mlp_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_dim)
        self.qkv = Linear(hidden_dim, 3 * hidden_dim)
        self.projection = Linear(hidden_dim, hidden_dim)
        self.mlp_norm = nn.LayerNorm(hidden_dim)
        self.mlp_up = Linear(hidden_dim, mlp_dim)
        self.mlp_down = Linear(mlp_dim, hidden_dim)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator) -> None:
        """The distributions that nn.TransformerEncoderLayer draws from."""
        nn.init.xavier_uniform_(self.qkv.weight, generator=generator)
        nn.init.zeros_(self.qkv.bias)
        for linear in (self.projection, self.mlp_up, self.mlp_down):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
        nn.init.zeros_(self.projection.bias)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, T, D)
        shape = batch_size, num_tokens, _ = hidden.shape
        qkv = recompute_operand(lambda hidden: self.qkv(self.attention_norm(hidden)), hidden)
        qkv = qkv.view(batch_size, num_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        attended = causal_attention(*qkv.unbind(0)).transpose(1, 2)  # (B, T, H, D/H)
        hidden = hidden + recompute_operand(lambda heads: self.projection(heads.reshape(shape)), attended)
        up = recompute_operand(lambda hidden: self.mlp_up(self.mlp_norm(hidden)), hidden)
        return hidden + recompute_operand(lambda up: self.mlp_down(F.gelu(up)), up)


class Transformer(nn.Module):
    """Token ids in, final hidden states out; the logits are hidden @ head_weight.T and left to the loss.

    Weights are drawn in float32 on the CPU from `seed` alone, so every device starts from the same ones. Embeddings,
    and a head that is not tied, are normal with EMBEDDING_STD; `embedding_std` is that of the token embedding. The
    head is drawn last, so that all other weights are those of the tied model.
    The notebook's layers all start as copies of one draw, a side effect of nn.TransformerEncoder; here
    each layer has its own.
    """

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        mlp_dim: int,
        seed: int,
        *,
        tied: bool = True,
        embedding_std: float | None = None,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(vocab_size, hidden_dim)
        self.positions = nn.Embedding(seq_len, hidden_dim)
        self.blocks = nn.ModuleList(Block(hidden_dim, num_heads, mlp_dim, generator) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(hidden_dim)
        nn.init.normal_(self.embedding.weight, std=embedding_std or EMBEDDING_STD, generator=generator)
        nn.init.normal_(self.positions.weight, std=EMBEDDING_STD, generator=generator)
        self.head = None if tied else nn.Parameter(torch.empty(vocab_size, hidden_dim))
        if self.head is not None:
            nn.init.normal_(self.head, std=EMBEDDING_STD, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the token embedding where it is tied, else the head's own weight."""
        return self.embedding.weight if self.head is None else self.head

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> hidden (B, T, D), the output of the final LayerNorm."""
        hidden = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.final_norm(hidden)
