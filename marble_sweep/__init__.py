"""Train tiny language models in sweeps and watch their weights move on the bfloat16 lattice.

    import marble_sweep as ms

    run = ms.train(["experiment=quick"])

`ms.compose`, `ms.train`, `ms.load_run`, `ms.load_runs`, `ms.compare_pairs`, `ms.sweep`, `ms.search`, `ms.frontier` and
`ms.inspect` are the public functions.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marble_sweep.api import (
        Frontier,
        Search,
        Sweep,
        compare_pairs,
        compose,
        frontier,
        inspect,
        load_run,
        load_runs,
        search,
        sweep,
        train,
    )
    from marble_sweep.census.census import Census
    from marble_sweep.config import Config
    from marble_sweep.groups import ModelConfig
    from marble_sweep.loaded_run import Run

__version__ = "0.1.0"

__all__ = [
    "Census",
    "Config",
    "Frontier",
    "ModelConfig",
    "Run",
    "Search",
    "Sweep",
    "compare_pairs",
    "compose",
    "frontier",
    "inspect",
    "load_run",
    "load_runs",
    "search",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the API, and torch with it, only when it is asked for: the command line starts without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from marble_sweep import api, config

    return getattr(api if hasattr(api, name) else config, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
