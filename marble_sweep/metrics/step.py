"""The metrics of a training step, computed on the device as one vector and fetched for many steps at once."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from marble_sweep.kernels.step_metrics import CompiledMetrics, compiled_metrics
from marble_sweep.metrics.hidden import cosines, summarise
from marble_sweep.metrics.lattice import moving, regimes, token_motion

# What a step's vector holds, in this order. docs/run_directory.md gives each one's unit and source.
MEASURED = (
    "loss",
    "top1",
    "top2",
    "top3",
    "h_autocorr",
    "dead_moving",
    "grad_norm",
    "h_norm",
    "h_spread",
    "h_autocorr_lag",
    "live_moving",
    "dead_l1_mean",
    "dead_linf_max",
    "dead_early",
    "dead_midlife",
    "dead_late",
    "dead_frozen",
    "updates_lost",
)

WITHOUT_FLOAT64 = ("mps",)  # kinds of devices
NORM_CHUNK = 1 << 20  # entries that are converted to float64 at a time


def exact_norm(values: Tensor) -> Tensor:
    """The L2 norm of millions of entries, a scalar.

    A dot product in float32 is off by 1e-4 on some CPUs and loses entries below 1e-19, whose squares it cannot
    hold. float64 does neither. A device without float64 adds float32 squares up pairwise.
    """
    if values.device.type in WITHOUT_FLOAT64:
        return values.float().square().sum().sqrt()
    parts = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in values.split(NORM_CHUNK)]
    return torch.linalg.vector_norm(torch.stack(parts))


def top_tokens(weight: Tensor, mean: Tensor) -> Tensor:
    """The three tokens (3,) whose rows of weight (V, D), rounded to bfloat16, have the largest products with a mean."""
    return (weight.bfloat16().float() @ mean).topk(3).indices


class StepTensors(NamedTuple):
    """What a step is measured by, as StepMetrics.measure describes it."""

    loss: Tensor
    hidden: Tensor
    gradient: Tensor
    prev_embedding: Tensor
    embedding: Tensor
    updates_lost: Tensor
    head: Tensor | None
    norm_before_clipping: Tensor | None


class StepMetrics:
    """Remembers the h_means it compares with; `measure` never waits for a GPU.

    On the CPU compiled code measures all of it in one pass where a compiler is found; else torch does, as everywhere.
    """

    def __init__(self, dead_mask: Tensor, hidden_dim: int, lag: int) -> None:
        device = dead_mask.device
        self.is_dead = dead_mask
        # The dead tokens first, then the live ones.
        self.tokens = torch.cat([dead_mask.nonzero().flatten(), (~dead_mask).nonzero().flatten()])
        self.num_dead = int(dead_mask.sum())
        self.hidden_dim = hidden_dim
        self.history = torch.full((lag, hidden_dim), torch.nan, device=device)  # h_mean of the last `lag` steps
        self.step = 0
        self.compiled = compiled_metrics(device)  # None: torch measures

    def measure(
        self,
        loss: Tensor,
        hidden: Tensor,
        gradient: Tensor,
        prev_embedding: Tensor,
        embedding: Tensor,
        updates_lost: Tensor,
        *,
        head: Tensor | None = None,
        norm_before_clipping: Tensor | None = None,
    ) -> Tensor:
        """One step's values, in MEASURED's order: (len(MEASURED),) float32 on the device.

        hidden (B, T, D) and loss are those of the forward pass, gradient is that of all weights, flat; prev_embedding
        and embedding (V, D) are from before and after the update. Weights in float32 are rounded to bfloat16 first.
        `head` (V, D) is the head's own weight, by which the top tokens are predicted; None where it is the embedding.
        The norm is that of the gradient, or `norm_before_clipping` where it was clipped.
        """
        step = StepTensors(loss, hidden, gradient, prev_embedding, embedding, updates_lost, head, norm_before_clipping)
        values = self._measure_compiled(self.compiled, step) if self.compiled else self._measure_with_torch(step)
        self.step += 1
        return values

    def _measure_compiled(self, compiled: CompiledMetrics, step: StepTensors) -> Tensor:
        """On the CPU."""
        mean, norm, cosine = compiled.summarise(step.hidden)
        autocorrelations = compiled.remember(self.history, self.step, mean)
        motion = compiled.embedding_motion(step.prev_embedding, step.embedding, self.is_dead, mean)
        num_live = len(self.tokens) - self.num_dead
        before = step.norm_before_clipping
        grad_norm = compiled.norm(step.gradient) if before is None else before.item()
        # Shares of no tokens at all are NaN, as torch has them.
        dead = [motion.dead_moving, motion.l1, motion.early, motion.midlife, motion.late, motion.frozen]
        dead_means = [value / self.num_dead if self.num_dead else math.nan for value in dead]
        values = [
            step.loss.item(),
            *(motion.tokens if step.head is None else top_tokens(step.head, mean).tolist()),
            *(autocorrelations[0], dead_means[0], grad_norm, norm, 1 - cosine),
            *(autocorrelations[1], motion.live_moving / num_live if num_live else math.nan),
            *(dead_means[1], motion.linf if self.num_dead else math.nan),
            *dead_means[2:],
            step.updates_lost.item(),
        ]
        return torch.tensor(values, dtype=torch.float32)

    @torch.no_grad()
    def _measure_with_torch(self, step: StepTensors) -> Tensor:
        """On any device."""
        summary = summarise(step.hidden)
        lag = len(self.history)
        compared = self.history[(self.step - 1) % lag], self.history[self.step % lag]
        autocorrelations = cosines(torch.stack(compared), summary.mean)
        prev_rows, rows = (
            weight.index_select(0, self.tokens).bfloat16() for weight in (step.prev_embedding, step.embedding)
        )
        motion = token_motion(prev_rows[: self.num_dead], rows[: self.num_dead])
        regime = regimes(motion, self.hidden_dim)
        # (6, number of dead tokens) float32; means over no tokens at all are NaN, as torch has them.
        dead_values = torch.stack([motion.l1 > 0, motion.l1, regime.early, regime.midlife, regime.late, regime.frozen])
        dead_means = dead_values.mean(dim=1)
        dead_linf_max = motion.linf.amax() if self.num_dead else torch.full_like(step.loss, torch.nan)
        live_moving = moving(prev_rows[self.num_dead :], rows[self.num_dead :]).float().mean()
        before = step.norm_before_clipping
        grad_norm = exact_norm(step.gradient).float() if before is None else before
        values = torch.cat(
            [
                step.loss.view(1),
                top_tokens(step.embedding if step.head is None else step.head, summary.mean).float(),
                torch.stack([autocorrelations[0], dead_means[0], grad_norm, summary.norm, summary.spread]),
                torch.stack([autocorrelations[1], live_moving, dead_means[1], dead_linf_max]),
                dead_means[2:],
                step.updates_lost.view(1),
            ]
        )
        self.history[self.step % lag] = summary.mean
        return values

    @property
    def latest_mean(self) -> Tensor:
        """h_mean (D,) of the last step measured."""
        return self.history[(self.step - 1) % len(self.history)]

    def state_dict(self) -> dict[str, Tensor]:
        return {"history": self.history, "step": torch.tensor(self.step)}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        self.history.copy_(state_dict["history"])
        self.step = int(state_dict["step"])


@dataclass
class Pending:
    """Rows measured on the device and not yet fetched."""

    host: list[dict[str, float]] = field(default_factory=list)  # what the host knows of each step
    device: list[Tensor] = field(default_factory=list)  # MEASURED of each step
    seconds: list[float] = field(default_factory=list)  # that the host spent on each finished step

    def fetch(self, num_tokens: int) -> tuple[list[dict[str, float]], float]:
        """The complete rows, in one transfer, and the seconds it waited for the device; none remain.

        `num_tokens` are those of a step. A GPU is still at work when the host is done with a step, so
        the wait belongs to all steps of the block.
        """
        if not self.seconds:
            return [], 0.0
        started = time.perf_counter()
        measured = [dict(zip(MEASURED, values, strict=True)) for values in torch.stack(self.device).tolist()]
        waited = time.perf_counter() - started
        spread = waited / len(measured)
        speeds = [{"tokens_per_second": num_tokens / (seconds + spread)} for seconds in self.seconds]
        rows = [known | values | speed for known, values, speed in zip(self.host, measured, speeds, strict=False)]
        self.host, self.device, self.seconds = [], [], []
        return rows, waited
