"""One trial's run: its config put together, launched by Hydra's launcher, watched while it trains."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from marble_sweep import config as schema
from marble_sweep.early_stopping import margin, shortfall
from marble_sweep.hydra_app.composer import Composer
from marble_sweep.metrics.margin import errors_needed, look_steps
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import read_metadata
from marble_sweep.searches.space import Value
from marble_sweep.searches.storage import StorageError
from marble_sweep.searches.study import HEARTBEAT, HEARTBEATS_PER_TIMEOUT, Result

POLL_SECONDS = 0.2
JOIN_SECONDS = 5.0  # to wait for the thread that reports, once the run has ended
OUTCOMES = {"finished": "refuted"}  # a run's status as a trial's outcome, where it has another name


class TrialComposer:
    """Configs of trials: what is fixed and what a trial tries, put together."""

    def __init__(self, composer: Composer, fixed: Sequence[str]) -> None:
        self.composer = composer
        self.fixed = list(fixed)

    def words(self, params: Mapping[str, Value]) -> list[str]:
        """The overrides that make this trial's config."""
        return [*self.fixed, *(f"{key}={value}" for key, value in params.items())]

    def compose(self, params: Mapping[str, Value]) -> DictConfig:
        """A trial's whole config, Hydra's part included."""
        return self.composer.compose(self.words(params))

    def resolve(self, params: Mapping[str, Value]) -> schema.Config:
        """A trial's checked config. Raises ValueError for what cannot be."""
        return self.composer.resolve(self.words(params))


class Runner:
    """Runs trials through the launcher that the user chose."""

    def __init__(self, composer: TrialComposer, launcher: Launcher, context: HydraContext, task: TaskFunction) -> None:
        self.composer = composer
        self.launcher = launcher
        self.context = context
        self.task = task

    def run(self, number: int, params: Mapping[str, Value]) -> Path | str:
        """Train; returns the run directory, or why there is none. Raises KeyboardInterrupt as train_job does."""
        if isinstance(self.launcher, BasicLauncher):
            returned = self._run_here(number, self.composer.compose(params))
        else:
            returned = self.launcher.launch([self.composer.words(params)], initial_job_idx=number)[0]
        try:
            directory = returned.return_value
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return Path(directory) if directory else "no further job is started (sweep.max_failures)"

    def _run_here(self, number: int, config: DictConfig) -> JobReturn:
        """What Hydra's basic launcher does, without composing the config anew: that takes 0.1 s."""
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            configure_logging=False,
        )


class TrialWatch:
    """Reports a trial's looks to the study while it runs, and that its worker lives."""

    def __init__(
        self, trial: Trial, config: schema.Config, directory: Path, timeout: float, show: Callable[[int], None]
    ) -> None:
        """`show` is told the step that the run has reached, every POLL_SECONDS."""
        self.trial = trial
        self.config = config
        self.directory = directory
        self.between_beats = timeout / HEARTBEATS_PER_TIMEOUT
        self.show = show
        looks = look_steps(config.certify.looks, config.trainer.total_steps)
        self.errors = errors_needed(config.verdict.min_standard_errors, len(looks))
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
            return Result("failed", directory, 0, 0, 0.0, None, None, None, None, reason=run_dir, stage="start")
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
