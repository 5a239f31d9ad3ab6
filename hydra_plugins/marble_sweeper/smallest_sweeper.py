"""`hydra/sweeper=smallest`: the adapter between Hydra and the search for the smallest model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from hydra_plugins.marble_sweeper.grid_sweeper import GridSweeper


@dataclass
class SmallestSweeperConf:
    _target_: str = "hydra_plugins.marble_sweeper.smallest_sweeper.SmallestSweeper"
    max_batch_size: int | None = None  # jobs launched together, in a grid
    params: dict[str, Any] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="smallest_schema", node=SmallestSweeperConf, provider="marble_sweep"
)


class SmallestSweeper(GridSweeper):
    """Searches marble_sweep's models; another program's parameters, which have no size, it lays out as a grid."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        if OmegaConf.select(self.config, "certify.threshold") is None:
            return super().sweep(arguments)
        from marble_sweep.hydra_app.search import search

        code = search(self.config, self.overrides(arguments), self.hydra_context, self.task_function, self.launcher)
        if code:
            raise SystemExit(code)
        return None

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """As Hydra does it: nobody has checked the jobs of another program."""
        Sweeper.validate_batch_is_legal(self, batch)
