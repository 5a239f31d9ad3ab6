"""One trial's run: its config put together, launched by Hydra's launcher, watched while it trains."""

import contextlib
import copy
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from marble_sweep import config as schema
from marble_sweep.early_stopping import margin, shortfall
from marble_sweep.hydra_app.callbacks import without_hydra
from marble_sweep.metrics.margin import errors_needed, look_steps
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import read_metadata
from marble_sweep.searches.space import Value
from marble_sweep.searches.storage import StorageError
from marble_sweep.searches.study import HEARTBEAT, HEARTBEATS_PER_TIMEOUT, Result

POLL_SECONDS = 0.2
JOIN_SECONDS = 5.0  # to wait for the thread that reports, once the run has ended
OUTCOMES = {"finished": "refuted"}  # a run's status as a trial's outcome, where it has another name


class Composer:
    """Configs of trials. Hydra composes one for each choice of options; numbers are then put in, which is quick."""

    def __init__(self, loader: ConfigLoader, master: DictConfig, fixed: Sequence[str]) -> None:
        self.loader = loader
        self.master = master
        self.fixed = list(fixed)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._resolved: dict[tuple[str, ...], schema.Config] = {}

    def words(self, params: Mapping[str, Value]) -> list[str]:
        """The overrides that make this trial's config."""
        return [*self.fixed, *(f"{key}={value}" for key, value in params.items())]

    def compose(self, params: Mapping[str, Value]) -> DictConfig:
        """A trial's whole config, Hydra's part included."""
        options, numbers = self._split(params)
        config = copy.deepcopy(self._base(options))
        for key, value in numbers.items():
            OmegaConf.update(config, key, value)
        return config

    def resolve(self, params: Mapping[str, Value]) -> schema.Config:
        """A trial's checked config. Raises ValueError for what cannot be."""
        options, numbers = self._split(params)
        if options not in self._resolved:
            self._resolved[options] = schema.resolve(without_hydra(self._base(options)))
        config: Any = self._resolved[options]
        for key, value in numbers.items():
            group, _, name = key.rpartition(".")
            if group:
                config = replace(config, **{group: replace(getattr(config, group), **{name: value})})
            else:
                config = replace(config, **{name: value})
        return config

    def _base(self, options: tuple[str, ...]) -> DictConfig:
        if options not in self._composed:
            self._composed[options] = self.loader.load_sweep_config(self.master, [*self.fixed, *options])
        return self._composed[options]

    @staticmethod
    def _split(params: Mapping[str, Value]) -> tuple[tuple[str, ...], dict[str, Value]]:
        """Words that Hydra must read (options of a group, null, strings), and numbers that can be put in."""
        words = tuple(f"{key}={value}" for key, value in params.items() if isinstance(value, str))
        return words, {key: value for key, value in params.items() if not isinstance(value, str)}


class Runner:
    """Runs trials through the launcher that the user chose."""

    def __init__(self, composer: Composer, launcher: Launcher, context: HydraContext, task: TaskFunction) -> None:
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
