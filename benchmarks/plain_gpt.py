"""GPT-2's shape in plain torch, and a loop that does nothing but train it: a peer without metrics or files.

Pre-norm blocks, fused attention, a tied head, one fused AdamW; the loss is torch's cross_entropy of all logits at once,
or torch's own linear_cross_entropy, which never has them all.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.01


class PlainBlock(nn.Module):
    """x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x)); x is (B, T, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention_in(self.norms[0](x)).unflatten(2, (3, self.num_heads, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class PlainGPT(nn.Module):
    """Token ids (B, T) in, the final hidden states (B, T, D) out; the embedding is the head's weight too."""

    def __init__(self, vocab_size: int, width: int, num_layers: int, num_heads: int, seq_len: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(seq_len, width)
        self.blocks = nn.Sequential(*(PlainBlock(width, num_heads) for _ in range(num_layers)), nn.LayerNorm(width))
        for embedding in (self.embedding, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks(self.embedding(tokens) + self.positions.weight[: tokens.shape[1]])


def all_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets)


def torchs_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Chunked as torch chooses itself. Raises AttributeError before torch 2.13."""
    return F.linear_cross_entropy(hidden, weight, targets, options=nn.LinearCrossEntropyOptions())


def train(
    model: PlainGPT,
    windows: Tensor,
    batch_size: int,
    device: str,
    on_step: Callable[[], bool],
    *,
    bf16: bool,
    head: Callable[[Tensor, Tensor, Tensor], Tensor] = all_logits,
) -> None:
    """Train on windows (num_windows, T) int64 in random order until on_step, called after each step, says False."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    windows = windows.to(device)
    going = True
    while going:
        rows = windows[torch.randint(len(windows), (batch_size,), device=device)]
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            hidden = model(rows)[:, :-1].flatten(0, 1)
            weight = model.embedding.weight
            # Under autocast a product's operands are bfloat16; a head that is not known to it gets them so.
            operands = (hidden.bfloat16(), weight.bfloat16()) if bf16 else (hidden, weight)
            loss = head(*operands, rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        going = on_step()
