"""`hydra/sweeper=grid`, the default: every combination of the values given, a job each."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """The adapter between Hydra and marble_sweep.hydra_app.grid, which is imported once a sweep starts."""

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins  # late: it imports this module

        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def overrides(self, arguments: Sequence[str]) -> list[str]:
        """The sweeper's own overrides, and then the command line's."""
        return [*(f"{key}={value}" for key, value in (self.params or {}).items()), *arguments]

    def sweep(self, arguments: list[str]) -> Any:
        from marble_sweep.hydra_app.grid import launch_grid

        return launch_grid(self, self.overrides(arguments), self.max_batch_size)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: marble_sweep.hydra_app.callbacks has checked every job, in a hundredth of the time."""
