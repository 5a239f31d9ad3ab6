"""`hydra/sweeper=smallest`: the adapter between Hydra and the search for the smallest model."""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class SmallestSweeperConf:
    _target_: str = "hydra_plugins.marble_sweeper.smallest_sweeper.SmallestSweeper"
    max_batch_size: int | None = None  # jobs launched together, in a grid
    params: dict[str, Any] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="smallest_schema", node=SmallestSweeperConf, provider="marble_sweep"
)


class SmallestSweeper(BasicSweeper):
    """Searches marble_sweep's models; another program's parameters, which have no size, it lays out as a grid."""

    def __init__(self, max_batch_size: int | None, params: DictConfig | None = None) -> None:
        super().__init__(max_batch_size, params)  # type: ignore[arg-type]  # Hydra gives what the config holds

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        if OmegaConf.select(self.config, "certify.threshold") is None:
            return super().sweep(arguments)
        from marble_sweep.hydra_app.search import search

        words = [*(f"{key}={value}" for key, value in (self.params or {}).items()), *arguments]
        code = search(self.config, words, self.hydra_context, self.task_function, self.launcher)
        if code:
            raise SystemExit(code)
        return None
