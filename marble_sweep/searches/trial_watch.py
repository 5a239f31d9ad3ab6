"""Watches one trial while it trains: reports its evaluations to the study, and heartbeats while its worker lives."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from marble_sweep.config import Config
from marble_sweep.early_stopping import EarlyStopping, lacks_context, margin, margin_df, shortfall
from marble_sweep.humanize import finite
from marble_sweep.metrics.margin import Outcome, measured
from marble_sweep.runs import layout
from marble_sweep.runs.renamed import NUM_ALL_WINDOWS
from marble_sweep.runs.run import read_sound_evals
from marble_sweep.runs.status import RunStatus, read_metadata
from marble_sweep.runs.steps import last_step
from marble_sweep.search_config import CertifyConfig
from marble_sweep.searches.storage import StorageError
from marble_sweep.searches.study import HEARTBEAT, HEARTBEATS_PER_TIMEOUT, Result
from marble_sweep.searches.study_products import StudyProducts

POLL_SECONDS = 0.2
JOIN_SECONDS = 5.0  # to wait for the reporting thread, once the run has ended


class TrialWatch:
    """Reports the interim evaluations of a running trial, and heartbeats, to the study from a thread."""

    def __init__(
        self, trial: Trial, config: Config, directory: Path, timeout: float, show: Callable[[int], None]
    ) -> None:
        """`show` is called with the run's last step every POLL_SECONDS; a trial is stale after `timeout` seconds."""
        self.trial = trial
        self.config = config
        self.directory = directory
        self.heartbeat_interval = timeout / HEARTBEATS_PER_TIMEOUT
        self.show = show
        # Workers of one directory share its choices there, others through the study.
        one_directory = config.search.storage is None and config.search.serve is None
        self.products = None if one_directory else StudyProducts(trial, directory.parent)
        self.early_stopping = EarlyStopping(config)
        self.reported: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "TrialWatch":
        if self.products is not None:
            self.products.take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)  # it may be waiting for the storage; `result` reports what it did not

    def _watch(self) -> None:
        started = last_heartbeat = time.monotonic()
        while not self._stop.wait(POLL_SECONDS):
            # Heartbeats go on whatever is wrong with the run or the storage: `result` raises it at the end.
            with contextlib.suppress(Exception):
                self.report_evaluations(self.directory)
            if (now := time.monotonic()) - last_heartbeat >= self.heartbeat_interval:
                last_heartbeat = now
                with contextlib.suppress(UpdateFinishedTrialError, StorageError):
                    self.trial.set_user_attr(HEARTBEAT, now - started)

    def report_evaluations(self, directory: Path) -> list[dict[str, float]]:
        """Report the evaluations that are new; returns the rows of evals.csv.

        Reports nothing where another worker has ended the trial as stale.
        """
        if self.products is not None:
            self.products.give()
        evals = read_sound_evals(directory)
        for row in evals:
            if (step := int(row["step"])) not in self.reported:
                missing = shortfall(self.config.certify, row, self.early_stopping.errors_needed)
                if math.isfinite(missing):
                    with contextlib.suppress(UpdateFinishedTrialError):
                        self.trial.report(missing, step)
                self.reported.add(step)
        self.show(last_step(directory / layout.METRICS))
        return evals

    def result(self, run_dir: Path | str) -> Result:
        """How the run ended. `run_dir` is its directory, or why there is none."""
        if isinstance(run_dir, str):
            directory = str(self.directory)
            return Result(RunStatus.FAILED, directory, 0, 0, 0.0, None, None, None, None, reason=run_dir, stage="start")
        evals = self.report_evaluations(run_dir)
        metadata = read_metadata(run_dir)
        status, step = metadata["status"], metadata.get("step") or 0
        row = next(iter(evals[-1:]), {})  # the last evaluation
        if status == RunStatus.FINISHED:  # not certified, or it would have ended as that
            status = self.early_stopping.outcome(row) or Outcome.UNDECIDED
        several = bool(self.config.certify.thresholds) and status != RunStatus.FAILED
        return Result(
            outcome=status,
            directory=str(run_dir),
            step=step,
            tokens=step * self.config.trainer.batch_size * self.config.trainer.seq_len,
            seconds=metadata.get("seconds") or 0.0,
            steps_per_minute=metadata.get("steps_per_minute"),
            **self._measured(self.config.certify, row),
            reason=metadata.get("reason"),
            field=metadata.get("field"),
            stage="training" if "corpus" in metadata else "setup",  # written once the run is ready to train
            device=device_settings(metadata),
            thresholds=self._thresholds(status, evals) if several else None,
        )

    def _measured(self, certify: CertifyConfig, row: dict[str, float]) -> dict[str, Any]:
        """Loss and margin of a row of evals.csv, as fields of a Result."""
        (value, error), df = margin(certify, row), margin_df(certify, row)
        return {
            "val_loss": finite(measured(row, "val_loss")[0]),
            "margin": finite(value),
            "margin_se": finite(error),
            "num_windows": _whole(row.get(NUM_ALL_WINDOWS, math.nan)),
            "margin_df": df if math.isfinite(df) else None,
            "lacks_context": lacks_context(certify, row, self.early_stopping.errors_needed),
        }

    def _thresholds(self, status: str, evals: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
        """What the evaluations show of every threshold that the search asks of.

        Of a run that does not end early the last one alone decides.
        """
        entries = {}
        evals = evals if self.config.certify.stop else evals[-1:]
        for certify in self.early_stopping.thresholds:
            outcome, number = self.early_stopping.standing(certify, evals)
            if status in (RunStatus.DIVERGED, RunStatus.TOO_SLOW) and outcome != RunStatus.CERTIFIED:
                outcome = RunStatus(status)
            row = evals[number - 1] if number else {}
            shown = self._measured(certify, row)
            lacks = {row["step"]: shortfall(certify, row, self.early_stopping.errors_needed) for row in evals[:number]}
            entries[certify.threshold] = shown | {
                "outcome": outcome,
                "step": int(row.get("step", 0)),
                "shortfalls": {int(step): missing for step, missing in lacks.items() if math.isfinite(missing)},
            }
        return entries


def _whole(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None


def device_settings(metadata: Mapping[str, Any]) -> dict[str, str | int] | None:
    """`matmul`, `head` and `num_threads` of a run on a CPU: what fixes its numbers to the last bit."""
    if not metadata.get("products"):
        return None
    return {**metadata["products"], "num_threads": metadata["machine"]["num_threads"]}
