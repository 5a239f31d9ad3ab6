"""One trial's run: its config put together, and launched by Hydra's launcher."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from marble_sweep import config as schema
from marble_sweep.hydra_app import private
from marble_sweep.hydra_app.composer import Composer
from marble_sweep.searches.space import Value


class TrialComposer:
    """Configs of trials: what is fixed and what a trial tries, put together."""

    def __init__(self, composer: Composer, fixed: Sequence[str]) -> None:
        self.composer = composer
        self.fixed = list(fixed)

    def overrides(self, params: Mapping[str, Value]) -> list[str]:
        """The overrides that make this trial's config."""
        return [*self.fixed, *(f"{key}={value}" for key, value in params.items())]

    def compose(self, params: Mapping[str, Value]) -> DictConfig:
        """A trial's whole config, Hydra's part included."""
        return self.composer.compose(self.overrides(params))

    def resolve(self, params: Mapping[str, Value]) -> schema.Config:
        """A trial's checked config. Raises CheckError for what cannot be."""
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
        return Path(directory) if directory else "no further job is started (sweep.max_failures)"
