"""The training loop: one step after the other, in a fixed order, with everything else hung on it.

Three generators, three purposes: the weights' at the start, the batches' order, stochastic rounding.
Evaluation draws from none, so turning it on or off leaves the training losses bit-identical.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marble_sweep.config import Config
from marble_sweep.data.batches import Batches
from marble_sweep.early_stopping import EarlyStopping
from marble_sweep.metrics.lattice import black_holes
from marble_sweep.metrics.step import MEASURED, Pending, StepMetrics
from marble_sweep.model.loss import linear_cross_entropy
from marble_sweep.model.transformer import Transformer
from marble_sweep.runs import layout
from marble_sweep.runs.checkpoints import EmbeddingSnapshots
from marble_sweep.runs.csv_log import CsvLog
from marble_sweep.runs.state import Stateful, identity, load_state, read_info, save_state
from marble_sweep.runs.status import RunStatus
from marble_sweep.runs.tensors import write_tensors
from marble_sweep.training.evaluation import EVAL_COLUMNS, Evaluator
from marble_sweep.training.optimizer import FlatOptimizer
from marble_sweep.training.precision import POLICIES
from marble_sweep.training.progress import Progress
from marble_sweep.training.schedule import lr_scale

# The notebook's eight first, then what it could not see.
STEP_COLUMNS = (
    *("step", "epoch", "loss", "top1", "top2", "top3", "h_autocorr", "dead_moving", "lr"),
    *MEASURED[MEASURED.index("grad_norm") :],
    "tokens_per_second",
)
ESTIMATE_TOKENS = 4096  # that a CPU tries before the first step, to say how long the run will take
FLUSH_SECONDS = 1.0  # how long a measured row may wait on the device before it is written


def autocorrelation_lag(config: Config) -> int:
    """Steps between the h_means that h_autocorr_lag compares; a quarter of a run too short for the wish."""
    return max(1, min(config.verdict.direction_lag, config.trainer.total_steps // 4))


class Trainer:
    """Trains `model` on `batches` inside `directory`; `train` returns how it ended."""

    def __init__(
        self,
        config: Config,
        model: Transformer,
        batches: Batches,
        evaluator: Evaluator | None,
        dead_mask: Tensor,
        directory: Path,
        progress: Progress,
        *,
        resume: bool = False,
    ) -> None:
        self.config = config
        self.model = model
        self.batches = batches
        self.evaluator = evaluator
        self.progress = progress
        self.directory = directory
        self.policy = POLICIES[config.precision.name]
        self.updater = FlatOptimizer(model, config.optimizer, self.policy, config.seed)
        self.metrics = StepMetrics(dead_mask, config.model.hidden_dim, autocorrelation_lag(config))
        self.checkpoints = EmbeddingSnapshots(directory / layout.SNAPSHOTS, dead_mask)
        self.step = 0
        self.train_seconds = 0.0
        self.last_loss: float | None = None
        self.early_stopping = EarlyStopping(config)
        self.evaluation_steps = frozenset(self.early_stopping.steps if evaluator else ())
        self.pending = Pending()
        self.parts: dict[str, Stateful] = {"model": model, "updater": self.updater, "batches": batches}
        self.parts["metrics"] = self.metrics
        hashes = self.load_state() if resume else {}
        self.step_rows = CsvLog(
            directory / layout.METRICS,
            STEP_COLUMNS,
            self.step,
            steps=range(1, self.step + 1),
            sha256=hashes.get(layout.METRICS),
        )
        self.eval_rows = CsvLog(
            directory / layout.EVALS,
            EVAL_COLUMNS,
            self.step,
            steps=[int(row["step"]) for row in self.early_stopping.rows],
            sha256=hashes.get(layout.EVALS),
        )

    @property
    def state_path(self) -> Path:
        return self.directory / layout.STATE

    def train(self, should_stop: Callable[[], bool]) -> RunStatus:
        """Run to the last step: `finished`, or `interrupted` by should_stop, or `diverged`.

        Or to the first look at which early stopping ends the run: `certified`, `pruned` or `too_slow`.
        """
        try:
            return self._train(should_stop)
        finally:
            self.progress.close()
            try:
                self.step_rows.write(self.fetch())
            finally:
                self.step_rows.close()
                self.eval_rows.close()

    def _train(self, should_stop: Callable[[], bool]) -> RunStatus:
        settings = self.config.trainer
        if self.step == 0:
            self.checkpoints.take(0, self.model.embedding.weight, torch.zeros(self.config.model.hidden_dim))
        if self.early_stopping.ruling != RunStatus.DIVERGED:
            self.save_state()
        self.progress.start(self.step)
        last_flush = last_save = time.monotonic()
        if self.early_stopping.ruling == RunStatus.TOO_SLOW:
            self.early_stopping.ruling = None  # of an earlier start, perhaps on a busier machine
        while self.step < settings.total_steps and self.early_stopping.ruling is None:
            started = time.perf_counter()
            self.take_step()
            elapsed = time.perf_counter() - started
            self.train_seconds += elapsed
            self.pending.seconds.append(elapsed)

            is_last = self.step == settings.total_steps
            evaluates = self.step in self.evaluation_steps
            checkpoints = self.step % settings.checkpoint_interval == 0
            now = time.monotonic()
            saves = checkpoints or is_last or now - last_save >= settings.state_interval or should_stop()
            epoch_ends = self.step % self.batches.steps_per_epoch == 0
            if evaluates or saves or epoch_ends or now - last_flush >= FLUSH_SECONDS:
                last_flush = now
                if not self.flush():
                    # The state then says that nothing is left to train. The model stays as it was last saved.
                    self.early_stopping.ruling = RunStatus.DIVERGED
                    self.save_state(model=False)
                    break
            if evaluates and self.evaluator is not None:
                row = self.evaluator.evaluate(self.model, self.step)
                self.eval_rows.write([row])
                self.progress.evaluated(row)
                self.early_stopping.look(row, self.steps_per_minute())
            if checkpoints:
                self.checkpoints.take(self.step, self.model.embedding.weight, self.metrics.latest_mean)
            if saves or self.early_stopping.ruling:
                last_save = now
                self.save_state()
                if should_stop() and not is_last and not self.early_stopping.ruling:
                    return RunStatus.INTERRUPTED
        return self.early_stopping.ruling or RunStatus.FINISHED

    def take_step(self) -> None:
        """One step, in the notebook's order: forward, backward, update, measure. Never waits for the device."""
        self.step += 1
        tokens = self.batches.next()  # (B, T)
        loss, hidden = self.loss(tokens)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        lr = self.config.optimizer.lr * lr_scale(self.config.schedule, self.step, self.config.trainer.total_steps)
        self.updater.step(lr)
        before, after = self.updater.before["embedding.weight"], self.model.embedding.weight.detach()
        updates_lost = self.updater.updates_lost()
        self.pending.device.append(
            self.metrics.measure(loss, hidden, self.updater.gradient, before, after, updates_lost)
        )
        self.pending.host.append({"step": self.step, "epoch": self.batches.epoch, "lr": lr})

    def loss(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean next-token loss of tokens (B, T) int64 in nats, and the hidden states (B, T, D)."""
        with self.policy.autocast(tokens.device):
            hidden = self.model(tokens)
        contexts = hidden[:, :-1].flatten(0, 1).to(self.policy.compute_dtype)
        weight = self.model.embedding.weight.to(self.policy.compute_dtype)
        return linear_cross_entropy(contexts, weight, tokens[:, 1:].flatten()), hidden

    def fetch(self) -> list[dict[str, float]]:
        """The rows measured since the last fetch."""
        rows, waited = self.pending.fetch(self.config.trainer.batch_size * self.config.trainer.seq_len)
        self.train_seconds += waited
        return rows

    def flush(self) -> bool:
        """Write the pending rows; False where a loss is no number, whose row is the last one written."""
        rows = self.fetch()
        for index, row in enumerate(rows):
            if not math.isfinite(row["loss"]):
                self.step, self.last_loss = int(row["step"]), None
                self.step_rows.write(rows[: index + 1])
                return False
        self.step_rows.write(rows)
        if rows:
            self.last_loss = rows[-1]["loss"]
            self.progress.stepped(rows[-1])
        return True

    def load_state(self) -> dict[str, str]:
        """Take up the saved state; returns the hashes of the rows it counts on, by file name.

        Raises ValueError where anything in the directory is not what this run would have left there.
        """
        info = read_info(self.state_path, self.config)
        blank = {name: part.state_dict() for name, part in self.parts.items()}
        load_state(self.state_path, self.parts, blank | {"updater": self.updater.blank_state_dict(info["step"])})
        self.step, self.train_seconds = info["step"], info["train_seconds"]
        self.last_loss, self.early_stopping.rows = info["last_loss"], info["evals"]
        self.early_stopping.ruling = None if info["ruling"] is None else RunStatus(info["ruling"])
        diverged = self.early_stopping.ruling == RunStatus.DIVERGED  # the model then went on for a few steps
        taken = (self.batches.epoch - 1) * self.batches.steps_per_epoch + self.batches.state_dict()["position"]
        if not diverged and not taken == self.metrics.step == self.step:
            counts = f"batches {taken}, metrics {self.metrics.step}"
            raise ValueError(f"{self.state_path}: must be of one step: it says step {self.step}, {counts}")
        taken_steps = range(0, self.step + (not diverged), self.config.trainer.checkpoint_interval)
        self.checkpoints.resume(taken_steps, self.config.model.hidden_dim)
        return info.get("rows", {})

    def save_state(self, *, model: bool = True) -> None:
        """What `resume` needs. All that it counts on is on the disk before it: the rows up to this step, the model."""
        self.step_rows.sync()
        self.eval_rows.sync()
        info = {
            "step": self.step,
            "train_seconds": self.train_seconds,
            "last_loss": self.last_loss,
            "evals": self.early_stopping.rows,
            "ruling": self.early_stopping.ruling,
            "config": identity(self.config),
            "rows": {layout.METRICS: self.step_rows.hash.hexdigest(), layout.EVALS: self.eval_rows.hash.hexdigest()},
        }
        if model:
            write_tensors(self.directory / layout.MODEL, dict(self.model.state_dict()))
        save_state(self.state_path, self.parts, info)

    def summary(self) -> dict[str, Any]:
        """How far the run has come, as metadata.json has it; the last evaluation's numbers with it."""
        holes = black_holes(self.model.embedding.weight.detach().bfloat16())
        return {
            "step": self.step,
            "n_black_holes": len(holes),
            "n_black_hole_tokens": sum(map(len, holes)),
            "final_loss": self.last_loss,
            "total_epochs": self.batches.epoch,
            "n_checkpoints": len(self.checkpoints.steps),
            "train_seconds": self.train_seconds,
            "steps_per_minute": self.steps_per_minute() if self.step else None,
            "last_evaluation": {
                name: value if math.isfinite(value) else None for name, value in self.early_stopping.rows[-1].items()
            }
            if self.early_stopping.rows
            else {},
        }

    def steps_per_minute(self) -> float:
        """The speed so far, inside training steps alone."""
        return 60 * self.step / self.train_seconds

    def seconds_per_step(self) -> float:
        """The time of one forward and backward pass, the second of two that touch no state; seconds.

        On a CPU, whose time is that of the arithmetic, of a part of the batch.
        """
        windows, seq_len = self.config.trainer.batch_size, self.config.trainer.seq_len
        device = self.updater.weights.device
        timed = min(windows, max(1, ESTIMATE_TOKENS // seq_len)) if device.type == "cpu" else windows
        tokens = torch.zeros((timed, seq_len), dtype=torch.int64, device=device)
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            loss, _ = self.loss(tokens)
            loss.backward()
            loss.item()
        elapsed = time.perf_counter() - started
        self.model.zero_grad(set_to_none=True)
        return elapsed * windows / timed
