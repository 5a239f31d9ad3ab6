"""The training loop: one step after the other, in a fixed order. Whatever else a run does is handed to it.

Three generators, three purposes: the initial weights, the order of the batches, stochastic rounding. Evaluation draws
from none, so turning it on or off leaves the training losses bit-identical.
"""

import json
import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from marble_sweep.checks import CheckError
from marble_sweep.config import Config
from marble_sweep.data.batches import Batches
from marble_sweep.early_stopping import EarlyStopping
from marble_sweep.metrics.step import Pending, StepMetrics
from marble_sweep.model import products
from marble_sweep.model.loss import linear_cross_entropy
from marble_sweep.model.transformer import Transformer
from marble_sweep.runs import layout
from marble_sweep.runs.renamed import NUM_ALL_WINDOWS
from marble_sweep.runs.state import Stateful, identity, load_state, read_info, save_state
from marble_sweep.runs.status import BY_EVALUATION, RunStatus
from marble_sweep.runs.tensors import write_tensors
from marble_sweep.training.evaluation import AllWindows, Evaluator
from marble_sweep.training.intended import IntendedUpdate
from marble_sweep.training.optimizer import FlatOptimizer
from marble_sweep.training.precision import POLICIES
from marble_sweep.training.products import as_metadata
from marble_sweep.training.progress import Progress
from marble_sweep.training.recorder import Recorder
from marble_sweep.training.schedule import evaluation_steps, lr_scale
from marble_sweep.training.writer import RunWriter

FLUSH_SECONDS = 1.0  # how long a measured row may stay on the device before it is written


class Trainer:
    """Trains `model` on `batches`; `train` returns how the run ended."""

    def __init__(
        self,
        config: Config,
        model: Transformer,
        batches: Batches,
        dead_mask: Tensor,
        writer: RunWriter,
        progress: Progress,
        *,
        evaluator: Evaluator | None = None,  # None: nothing is held out
        all_windows: AllWindows | None = None,  # None: the evaluator has all of them
        early_stopping: EarlyStopping | None = None,  # None: the run goes on to its last step
        recorder: Recorder | None = None,
        resume: bool = False,
    ) -> None:
        """`resume` continues from the saved state. Raises ValueError where that is not of this run."""
        self.config = config
        self.model = model
        self.batches = batches
        self.writer = writer
        self.progress = progress
        self.evaluator = evaluator
        self.all_windows = all_windows
        self.early_stopping = early_stopping
        self.recorder = recorder
        self.policy = POLICIES[config.precision.name]
        self.optimizer = FlatOptimizer(model, config.optimizer, self.policy, config.seed)
        self.metrics = StepMetrics(dead_mask, config.model.hidden_dim, config.autocorrelation_lag)
        self.intended = IntendedUpdate(self.optimizer, config.optimizer, dead_mask) if recorder is not None else None
        self.pending = Pending()
        self.parts: dict[str, Stateful] = {"model": model, "optimizer": self.optimizer, "batches": batches}
        self.parts["metrics"] = self.metrics
        self.step = 0
        self.train_seconds = 0.0
        self.last_loss: float | None = None
        self.evals: list[dict[str, float]] = []  # the rows of evals.csv so far
        self.stop_reason: RunStatus | None = None  # why the run ends before its last step
        self.open_files(self.load_state() if resume else {})

    def open_files(self, hashes: Mapping[str, str]) -> None:
        """Start the files, or continue them after the loaded step, with the hashes of the rows up to there."""
        self.writer.open(self.step, [int(row["step"]) for row in self.evals], hashes)
        if self.recorder is not None:
            self.recorder.open(self.step, has_diverged=self.stop_reason == RunStatus.DIVERGED)
        if (
            NUM_ALL_WINDOWS not in self.writer.eval_rows.columns
        ):  # a run of an earlier version keeps the columns of its file
            self.all_windows = None

    def train(self, should_stop: Callable[[], bool]) -> RunStatus:
        """Train to the last step: `finished`, or `interrupted` by should_stop, or `diverged`.

        Or to the first evaluation at which early stopping ends the run: `certified`, `pruned` or `too_slow`.
        """
        try:
            return self._train(should_stop)
        finally:
            self.progress.close()
            if self.recorder is not None:
                self.recorder.close()
            try:
                self.writer.step_rows.write(self.fetch())
            finally:
                self.writer.close()

    def _train(self, should_stop: Callable[[], bool]) -> RunStatus:
        trainer = self.config.trainer
        eval_steps = {*evaluation_steps(trainer.total_steps, trainer.num_evals, trainer.eval_spacing)}
        self.start()
        last_flush = last_save = time.monotonic()
        while self.step < trainer.total_steps and self.stop_reason is None:
            started = time.perf_counter()
            self.take_step()
            elapsed = time.perf_counter() - started
            self.train_seconds += elapsed
            self.pending.seconds.append(elapsed)

            is_last = self.step == trainer.total_steps
            evaluates = self.evaluator is not None and self.step in eval_steps
            snapshots = self.step % trainer.checkpoint_interval == 0
            epoch_ends = self.step % self.batches.steps_per_epoch == 0
            now = time.monotonic()
            saves = snapshots or is_last or now - last_save >= trainer.state_interval or should_stop()
            if evaluates or saves or epoch_ends or now - last_flush >= FLUSH_SECONDS:
                last_flush = now
                if not self.flush():
                    self.stop_reason = RunStatus.DIVERGED
                    self.save_state(model=False)  # the model stays as it was last saved
                    break
            if evaluates:
                self.evaluate()
            if snapshots:
                self.take_snapshot(self.metrics.latest_mean)
            if saves or self.stop_reason:
                last_save = now
                self.save_state()
                if should_stop() and not is_last and not self.stop_reason:
                    return RunStatus.INTERRUPTED
        return self.stop_reason or RunStatus.FINISHED

    def start(self) -> None:
        """Leave a state from which the run can be continued, whatever happens next."""
        if self.step == 0:
            self.take_snapshot(torch.zeros(self.config.model.hidden_dim))
            if self.recorder is not None:
                self.recorder.record(0, None, None)
        if self.stop_reason != RunStatus.DIVERGED:
            self.save_state()
        if self.stop_reason == RunStatus.TOO_SLOW:
            self.stop_reason = None  # of an earlier start, perhaps on a busier machine
        self.progress.start(self.step)

    def take_step(self) -> None:
        """One step, in the notebook's order: forward, backward, update, measure. Never waits for the device."""
        self.step += 1
        tokens = next(self.batches)  # (B, T)
        self.optimizer.zero_grad()  # first: what lies between blocks of memory keeps them apart
        loss, hidden = self.loss(tokens)
        loss.backward()
        lr = self.config.optimizer.lr * lr_scale(self.config.schedule, self.step, self.config.trainer.total_steps)
        self.optimizer.step(lr)
        values = self.metrics.measure(
            loss,
            hidden,
            self.optimizer.gradient,
            self.optimizer.prev_params_by_name["embedding.weight"],
            self.model.embedding.weight.detach(),
            self.optimizer.updates_lost(),
            head=None if self.model.head is None else self.model.head.detach(),
            norm_before_clipping=self.optimizer.norm_before_clipping,
        )
        if self.recorder is not None and self.intended is not None:
            self.recorder.record(self.step, self.metrics.latest_mean, self.intended.shares)
        self.pending.device.append(values)
        self.pending.host.append({"step": self.step, "epoch": self.batches.epoch, "lr": lr})

    def loss(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean next-token loss of tokens (B, T) int64 in nats, and the hidden states (B, T, D)."""
        with self.policy.autocast(tokens.device):
            hidden = self.model(tokens)
        contexts = hidden[:, :-1].flatten(0, 1).to(self.policy.compute_dtype)
        weight = self.model.head_weight.to(self.policy.compute_dtype)
        return linear_cross_entropy(contexts, weight, tokens[:, 1:].flatten()), hidden

    def fetch(self) -> list[dict[str, float]]:
        """The rows measured since the last fetch."""
        rows, waited = self.pending.fetch(self.config.trainer.batch_size * self.config.trainer.seq_len)
        self.train_seconds += waited
        return rows

    def flush(self) -> bool:
        """Write the pending rows; False where a loss is NaN or infinite, whose row is the last one written."""
        rows = self.fetch()
        for index, row in enumerate(rows):
            if not math.isfinite(row["loss"]):
                self.step, self.last_loss = int(row["step"]), None
                self.writer.step_rows.write(rows[: index + 1])
                return False
        self.writer.step_rows.write(rows)
        if rows:
            self.last_loss = rows[-1]["loss"]
            self.progress.stepped(rows[-1])
        return True

    def evaluate(self) -> None:
        """Measure the model on the held-out windows, and ask early stopping whether the run ends here."""
        assert self.evaluator is not None
        row, window_losses = self.evaluator.evaluate(self.model, self.step)
        if self.all_windows is not None and self.needs_all_windows(row):
            self.progress.evaluating(len(self.all_windows.stretches))
            row |= self.all_windows.evaluate(self.model)
        self.evals.append(row)
        self.writer.write_evaluation(row, window_losses)
        self.progress.evaluated(row)
        if self.early_stopping is not None:
            self.stop_reason = self.early_stopping.stop_reason(self.evals, self.steps_per_minute())

    def needs_all_windows(self, row: dict[str, float]) -> bool:
        """Whether all windows are evaluated: for the verdict of a whole run, or where early stopping needs them."""
        if not math.isfinite(row["val_loss"]):
            return False
        if self.early_stopping is None:
            return self.step == self.config.trainer.total_steps
        return self.early_stopping.needs_all_windows(row)

    def take_snapshot(self, h_mean: Tensor) -> None:
        self.writer.snapshots.take(self.step, self.model.embedding.weight, h_mean)

    def load_state(self) -> dict[str, str]:
        """Continue from the saved state; returns the hashes of the rows it counts on, by file name.

        Raises ValueError where anything in the directory is not what this run would have left there.
        """
        path = self.writer.directory / layout.STATE
        info = read_info(path, self.config)
        self.require_same_products(info.get("products"))
        blank = {name: part.state_dict() for name, part in self.parts.items()}
        load_state(path, self.parts, blank | {"optimizer": self.optimizer.blank_state_dict(info["step"])})
        self.step, self.train_seconds = info["step"], info["train_seconds"]
        self.last_loss, self.evals = info["last_loss"], info["evals"]
        self.stop_reason = None if info["stop_reason"] is None else RunStatus(info["stop_reason"])
        if self.early_stopping is not None and self.stop_reason in BY_EVALUATION:
            # It ended for its threshold, and may be continued for another one.
            self.stop_reason = self.early_stopping.stop_reason(self.evals, math.inf)
        diverged = self.stop_reason == RunStatus.DIVERGED  # the model then went on for a few steps
        num_batches = (self.batches.epoch - 1) * self.batches.steps_per_epoch + self.batches.state_dict()["position"]
        if not diverged and not num_batches == self.metrics.step == self.step:
            counts = f"batches {num_batches}, metrics {self.metrics.step}"
            raise CheckError(f"{path}: must be of one step: it says step {self.step}, {counts}")
        snapshot_steps = range(0, self.step + (not diverged), self.config.trainer.checkpoint_interval)
        self.writer.snapshots.resume(snapshot_steps, self.config.model.hidden_dim)
        return info.get("rows", {})

    def products(self) -> dict[str, str] | None:
        """How this process multiplies, as metadata.json and the state have it."""
        return as_metadata(products.current(), self.optimizer.weights.device)

    def require_same_products(self, saved: object) -> None:
        """Raise ValueError where metadata.json, by which the run goes on, names others than the state has.

        A state of an earlier version, or of a GPU, has none.
        """
        now = self.products()
        if saved is not None and saved != now:
            path = self.writer.directory / layout.METADATA
            was = f"{json.dumps(saved)[:100]}, as when {layout.STATE} was saved"
            raise CheckError(f"{path}: products = {json.dumps(now)}: must be {was}")

    def save_state(self, *, model: bool = True) -> None:
        """Save what `resume` needs, once the rows, the record and the model that it counts on are on the disk."""
        if self.recorder is not None:
            self.recorder.sync(self.step)
        info = {
            "step": self.step,
            "train_seconds": self.train_seconds,
            "last_loss": self.last_loss,
            "evals": self.evals,
            "stop_reason": self.stop_reason,
            "config": identity(self.config),
            "products": self.products(),
            "rows": self.writer.sync(),
        }
        if model:
            write_tensors(self.writer.directory / layout.MODEL, dict(self.model.state_dict()))
        save_state(self.writer.directory / layout.STATE, self.parts, info)

    def steps_per_minute(self) -> float:
        """The speed so far, inside training steps alone."""
        return 60 * self.step / self.train_seconds
