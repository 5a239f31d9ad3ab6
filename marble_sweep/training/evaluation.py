"""Held-out evaluation: every number comes with the standard error that says what it is worth."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marble_sweep.data.baselines import Baselines
from marble_sweep.model.loss import token_losses
from marble_sweep.model.transformer import Transformer
from marble_sweep.runs.renamed import ADDED_COLUMNS, NUM_ALL_WINDOWS, OF_ALL_WINDOWS, ON_ALL_WINDOWS, PARTS
from marble_sweep.training.precision import PrecisionPolicy
from marble_sweep.uncertainty.clusters import clustered_mean

WITH_ERROR = ("val_loss", "unigram_margin", "oracle_margin", "bigram_margin", "context_gain")
# What a standard error rests on; earlier versions have no such columns, and errors of independent windows.
ERROR_COLUMNS = tuple(f"{name}{part}" for name in WITH_ERROR for part in PARTS if part not in ("", "_se"))

EVAL_COLUMNS = (
    "step",
    "val_loss",
    "val_loss_se",
    "unigram_margin",
    "unigram_margin_se",
    "oracle_margin",
    "oracle_margin_se",
    "bigram_margin",
    "bigram_margin_se",
    "accuracy",
    "bits_per_byte",
    "context_gain",
    "context_gain_se",
    "non_unigram_top1",
    *ERROR_COLUMNS,
    *ADDED_COLUMNS,
)
UNIGRAM_TOP = 3  # predictions outside the unigram's three most frequent tokens count as non-unigram


def mean_columns(name: str, values: Tensor, documents: NDArray[np.int64] | None) -> dict[str, float]:
    """The columns of one of WITH_ERROR: the mean of per-window values (num_windows,), and what it is worth.

    `documents` (num_windows,) numbers the document of each window. There is no error for a single window.
    """
    estimate = clustered_mean(values.numpy(), documents)
    return {
        name: values.mean().item(),
        f"{name}_se": estimate.error,
        f"{name}_df": estimate.df,
        f"{name}_se_factor": estimate.factor,
        f"{name}_clusters": estimate.num_clusters,
        f"{name}_by_document": int(estimate.by_document),
    }


@dataclass
class Evaluator:
    """Evaluates a model on fixed windows (num_windows, T). It draws no random numbers at all."""

    windows: Tensor  # on the device
    baselines: Baselines
    num_bytes: int  # of UTF-8, in all the targets together; 0 where tokens stand for no text
    policy: PrecisionPolicy
    batch_size: int
    documents: NDArray[np.int64] | None = None  # (num_windows,), the number of each window's; None: unknown

    def __post_init__(self) -> None:
        targets = self.windows[:, 1:]
        # A window's other context is that of the window half the split away; a single window has none.
        self.shift = len(self.windows) // 2
        self.unigram_top = self.baselines.unigram_log_probs.topk(UNIGRAM_TOP).indices.to(targets.device)

    def evaluate(self, model: Transformer, step: int) -> tuple[dict[str, float], Tensor]:
        """One row of evals.csv, and the loss of each window (num_windows,) float64, in nats per token.

        Margins are baseline - model, paired by window.
        """
        losses = self.losses(model)
        targets = self.windows[:, 1:]
        row: dict[str, float] = {"step": step}
        for name, values in self.values(losses).items():
            row |= mean_columns(name, values, self.documents)
        row["accuracy"] = (losses.predicted == targets).float().mean().item()
        nats = losses.own.sum().item() * targets.shape[1]
        row["bits_per_byte"] = nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan
        row["non_unigram_top1"] = (~torch.isin(losses.predicted, self.unigram_top)).float().mean().item()
        return {column: row.get(column, math.nan) for column in EVAL_COLUMNS}, losses.own

    def values(self, losses: "WindowLosses") -> dict[str, Tensor]:
        """What is known of each window, (num_windows,) float64, by the name of its mean."""
        margins = {f"{name}_margin": each - losses.own for name, each in self.baselines.per_window().items()}
        # A single window has no other context.
        gain = losses.other_context - losses.own if self.shift else torch.full_like(losses.own, math.nan)
        return {"val_loss": losses.own, **margins, "context_gain": gain}

    @torch.no_grad()
    def losses(self, model: Transformer) -> "WindowLosses":
        inputs = self.windows
        # Row i: the targets of window i, then those of the window whose other context window i is.
        targets = torch.stack([inputs[:, 1:], inputs.roll(-self.shift, 0)[:, 1:]], dim=-1).long()
        own, swapped, top = [], [], []
        weight = model.head_weight.to(self.policy.compute_dtype)
        for start in range(0, len(inputs), self.batch_size):
            batch = slice(start, start + self.batch_size)
            with self.policy.autocast(inputs.device):
                hidden = model(inputs[batch].long())[:, :-1].to(self.policy.compute_dtype)
            num_windows, num_targets, hidden_dim = hidden.shape
            row_losses, row_top = token_losses(hidden.reshape(-1, hidden_dim), weight, targets[batch].flatten(0, 1))
            per_window = row_losses.view(num_windows, num_targets, 2).cpu().double().mean(dim=1)
            own.append(per_window[:, 0])
            swapped.append(per_window[:, 1])
            top.append(row_top.view(num_windows, num_targets))
        return WindowLosses(torch.cat(own), torch.cat(swapped).roll(self.shift, 0), torch.cat(top))


@dataclass(frozen=True)
class WindowLosses:
    """How a model does on each window. Losses are in nats per token, (num_windows,) float64 on the CPU."""

    own: Tensor
    other_context: Tensor  # of the same targets behind another window's context
    predicted: Tensor  # (num_windows, T - 1): the most probable token at every place, on the device


@dataclass
class AllWindows:
    """Evaluates a model on all windows of a held-out part, where those that are evaluated as a rule decide too little.

    Each evaluated window stands for a stretch of the text. Its values become the means over the windows of that
    stretch. So the mean keeps its meaning, and clusters are formed as before; only the noise within stretches shrinks.
    """

    build: Callable[[], Evaluator]  # on all windows; called when they are needed for the first time
    stretches: Tensor  # (num_all,) int64, ascending: the position of the evaluated window that each one belongs to
    documents: NDArray[np.int64] | None = None  # (num_windows,), of the evaluated windows

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        return self.build()

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """The columns of evals.csv that are of all windows."""
        values = self.evaluator.values(self.evaluator.losses(model))
        sizes = torch.bincount(self.stretches).double()
        row: dict[str, float] = {NUM_ALL_WINDOWS: len(self.stretches)}
        for name in ON_ALL_WINDOWS:
            sums = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, self.stretches, values[name])
            of_all = f"{OF_ALL_WINDOWS}{name}"
            row |= mean_columns(of_all, sums / sizes, self.documents)
            # Means of stretches are no independent windows to compare with.
            naive = values[name].std().item() / math.sqrt(len(self.stretches))
            row[f"{of_all}_se_factor"] = row[f"{of_all}_se"] / naive if naive > 0 else math.nan
        return row
