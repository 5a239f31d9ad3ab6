"""One trial is watched while it trains: its evaluations go to the study, and so does the news that its worker lives."""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from marble_sweep.config import Config
from marble_sweep.early_stopping import EarlyStopping, margin, shortfall
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import RunStatus, read_metadata
from marble_sweep.searches.storage import StorageError
from marble_sweep.searches.study import HEARTBEAT, HEARTBEATS_PER_TIMEOUT, Result

POLL_SECONDS = 0.2
JOIN_SECONDS = 5.0  # to wait for the thread that reports, once the run has ended
OUTCOMES = {RunStatus.FINISHED: "refuted"}  # a run's status as a trial's outcome, where it has another name


class TrialWatch:
    """Reports a trial's looks to the study while it runs, and that its worker lives."""

    def __init__(
        self, trial: Trial, config: Config, directory: Path, timeout: float, show: Callable[[int], None]
    ) -> None:
        """`show` is told the step that the run has reached, every POLL_SECONDS."""
        self.trial = trial
        self.config = config
        self.directory = directory
        self.between_beats = timeout / HEARTBEATS_PER_TIMEOUT
        self.show = show
        self.errors = EarlyStopping(config).errors_needed
        self.reported: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "TrialWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)  # it may be waiting for the storage; what it has to tell `result` tells too

    def _watch(self) -> None:
        started = last_beat = time.monotonic()
        while not self._stop.wait(POLL_SECONDS):
            # Whatever is wrong with the run or the storage, this goes on: `result` says it once the run has ended.
            with contextlib.suppress(Exception):
                self.look(self.directory)
            if (now := time.monotonic()) - last_beat >= self.between_beats:
                last_beat = now
                with contextlib.suppress(UpdateFinishedTrialError, StorageError):
                    self.trial.set_user_attr(HEARTBEAT, now - started)

    def look(self, directory: Path) -> None:
        """Report the looks that are new. Where another worker has ended the trial, taking this one for dead, none."""
        run = Run.read(directory)
        for step, row in run.eval_at.items():
            if step not in self.reported:
                lacking = shortfall(self.config.certify, row, self.errors)
                if math.isfinite(lacking):
                    with contextlib.suppress(UpdateFinishedTrialError):
                        self.trial.report(lacking, step)
                self.reported.add(step)
        self.show(run.steps.last_step)

    def result(self, run_dir: Path | str) -> Result:
        """How the run ended, from its directory."""
        if isinstance(run_dir, str):
            directory = str(self.directory)
            return Result(RunStatus.FAILED, directory, 0, 0, 0.0, None, None, None, None, reason=run_dir, stage="start")
        self.look(run_dir)
        metadata = read_metadata(run_dir)
        status, step, last = metadata["status"], metadata.get("step") or 0, Run.read(run_dir).evals[-1:]
        value, error = margin(self.config.certify, last[0]) if last else (None, None)
        return Result(
            outcome=OUTCOMES.get(status, status),
            directory=str(run_dir),
            step=step,
            tokens=step * self.config.trainer.batch_size * self.config.trainer.seq_len,
            seconds=metadata.get("seconds") or 0.0,
            steps_per_minute=metadata.get("steps_per_minute"),
            val_loss=last[0]["val_loss"] if last else None,
            margin=value,
            margin_se=error,
            reason=metadata.get("reason"),
            stage="training" if "corpus" in metadata else "setup",  # written when all is ready to train
        )
