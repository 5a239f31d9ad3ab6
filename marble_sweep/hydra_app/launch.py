"""One trial's run: its config put together, and launched by Hydra's launcher or, where several run at once, here."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from marble_sweep import config as schema
from marble_sweep.hydra_app import private
from marble_sweep.hydra_app.composer import Composer
from marble_sweep.searches.space import Value
from marble_sweep.searches.worker import Train
from marble_sweep.sweeps.jobs import train_job
from marble_sweep.training.signals import stop_requests

NO_FURTHER_JOB = "no further job is started (sweep.max_failures)"


class TrialComposer:
    """Configs of trials: what is fixed and what a trial tries, put together. Threads may share it."""

    def __init__(self, composer: Composer, fixed: Sequence[str]) -> None:
        self.composer = composer
        self.fixed = list(fixed)
        self._lock = threading.Lock()

    def overrides(self, params: Mapping[str, Value]) -> list[str]:
        """The overrides that make this trial's config."""
        return [*self.fixed, *(f"{key}={value}" for key, value in params.items())]

    def compose(self, params: Mapping[str, Value]) -> DictConfig:
        """A trial's whole config, Hydra's part included."""
        with self._lock:
            return self.composer.compose(self.overrides(params))

    def resolve(self, params: Mapping[str, Value]) -> schema.Config:
        """A trial's checked config. Raises CheckError for what cannot be."""
        with self._lock:
            return self.composer.resolve(self.overrides(params))


class Runner:
    """Runs trials through the launcher that the user chose."""

    def __init__(self, composer: TrialComposer, launcher: Launcher, context: HydraContext, task: TaskFunction) -> None:
        self.composer = composer
        self.launcher = launcher
        self.context = context
        self.task = task

    def run(self, number: int, params: Mapping[str, Value]) -> Path | str:
        """Train; returns the run directory, or why there is none. Raises KeyboardInterrupt as train_job does."""
        if private.launches_here(self.composer.composer.sweep_config):
            returned = private.run_here(self.composer.compose(params), number, self.context, self.task)
        else:
            returned = self.launcher.launch([self.composer.overrides(params)], initial_job_idx=number)[0]
        try:
            directory = returned.return_value
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return Path(directory) if directory else NO_FURTHER_JOB


class LocalRunner:
    """Runs trials on this machine, several at once where threads call it."""

    def __init__(
        self, composer: TrialComposer, sweep_dir: Path, threads: int | None, should_stop: Callable[[], bool]
    ) -> None:
        """`threads` are the CPU's for a trial; `should_stop` asks all trials to stop, their states saved."""
        self.composer = composer
        self.sweep_dir = sweep_dir
        self.threads = threads
        self.should_stop = should_stop

    def run(self, number: int, params: Mapping[str, Value]) -> Path | str:
        """Train; returns the run directory, or why there is none. Raises KeyboardInterrupt as train_job does."""
        try:
            config = self.composer.resolve(params)
            directory = train_job(config, self.sweep_dir, number, self.threads, self.should_stop)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return NO_FURTHER_JOB if directory is None else directory


def lone_train(composer: TrialComposer, sweep_dir: Path) -> Train:
    """What trains one trial after the other on this machine, without Hydra: it copies a config many times over."""

    def train(number: int, params: Mapping[str, Value]) -> Path | str:
        with stop_requests() as should_stop:
            return LocalRunner(composer, sweep_dir, None, should_stop).run(number, params)

    return train
