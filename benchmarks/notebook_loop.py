"""The notebook's model and training loop, written plainly: what marble_sweep is measured against.

Everything is as the notebook has it: torch's own encoder layers, all parameters in bfloat16 under autocast, all
logits at once, torch's AdamW, and its metrics at every step. So are its variables: what lives on in them until the next
step is part of what a step costs there (a third, docs/LOG.md).
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.01


class TinyLM(nn.Module):
    """The notebook's model. Its stack of no layers at all is written as what it stands for."""

    def __init__(self, vocab_size: int, hidden_dim: int, num_layers: int, num_heads: int, seq_len: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_dim)
        self.pos_embedding = nn.Embedding(seq_len, hidden_dim)
        self.transformer = None
        if num_layers:
            layer = nn.TransformerEncoderLayer(
                d_model=hidden_dim,
                nhead=num_heads,
                dim_feedforward=hidden_dim * 4,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            # The notebook leaves enable_nested_tensor as it is, and gets a warning that norm_first turns it off.
            self.transformer = nn.TransformerEncoder(layer, num_layers=num_layers, enable_nested_tensor=False)
        self.ln_f = nn.LayerNorm(hidden_dim)
        nn.init.normal_(self.embedding.weight, mean=0.0, std=0.02)
        nn.init.normal_(self.pos_embedding.weight, mean=0.0, std=0.02)

    @property
    def layers(self) -> Iterable[nn.Module]:
        return self.transformer.layers if self.transformer is not None else ()

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids (B, T) -> logits (B, T, V), and h (B, T, D)."""
        seq_len = input_ids.shape[1]
        pos_ids = torch.arange(seq_len, device=input_ids.device).unsqueeze(0)
        hidden = self.embedding(input_ids) + self.pos_embedding(pos_ids)
        if self.transformer is not None:
            mask = nn.Transformer.generate_square_subsequent_mask(seq_len, device=input_ids.device)
            hidden = self.transformer(hidden, mask=mask, is_causal=True)
        hidden = self.ln_f(hidden)
        return hidden @ self.embedding.weight.T, hidden


def fraction_moving(before: Tensor, after: Tensor, mask: Tensor) -> float:
    """The fraction of the mask's tokens whose row moved on the bfloat16 lattice; before, after (V, D) bfloat16."""
    before, after = before[mask], after[mask]
    exponent = (before.view(torch.uint16).to(torch.int32) >> 7) & 0xFF
    exponent = torch.where(exponent == 0, torch.ones_like(exponent), exponent)
    ulp = torch.pow(2.0, (exponent - 134).float())
    displacement = (after.float() - before.float()) / ulp
    return (displacement.abs().sum(dim=1) > 0).float().mean().item()


def train(
    model: TinyLM, windows: Tensor, batch_size: int, dead_mask: Tensor, device: str, on_step: Callable[[], bool]
) -> None:
    """The notebook's loop over windows (num_windows, T) int64, until on_step, called after each step, says False."""
    model = model.to(device).to(torch.bfloat16).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY
    )
    rows = cast("Dataset[Tensor]", list(windows))  # a list is all that a DataLoader needs
    loader = DataLoader(rows, batch_size=batch_size, shuffle=True, drop_last=True)
    loss_fn = nn.CrossEntropyLoss()
    vocab_size = model.embedding.num_embeddings
    h_mean_before, W_before = None, None  # noqa: N806 (the notebook's name)
    log = []
    while True:
        for batch in loader:
            input_ids = batch.to(device)
            with torch.autocast(device_type=device if device != "mps" else "cpu", dtype=torch.bfloat16):
                logits, hidden = model(input_ids)
                shift_logits = logits[:, :-1, :].contiguous()
                shift_labels = input_ids[:, 1:].contiguous()
                loss = loss_fn(shift_logits.view(-1, vocab_size), shift_labels.view(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            W = model.embedding.weight.detach().cpu().to(torch.bfloat16)  # noqa: N806
            h_mean = hidden.mean(dim=(0, 1)).cpu().float()
            row = {"loss": loss.item(), "top3": torch.topk(h_mean @ W.float().T, k=3).indices.tolist()}
            if h_mean_before is not None and W_before is not None:
                norms = torch.norm(h_mean) * torch.norm(h_mean_before)
                row["h_autocorr"] = (torch.dot(h_mean, h_mean_before) / norms).item()
                row["dead_moving"] = fraction_moving(W_before, W, dead_mask)
            log.append(row)
            # On the CPU the notebook's W is the live weight itself, which the next step would change.
            h_mean_before, W_before = h_mean, W.clone()  # noqa: N806
            if not on_step():
                return
