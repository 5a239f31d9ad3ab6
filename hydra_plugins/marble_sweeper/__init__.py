"""Hydra finds sweepers only below the namespace hydra_plugins; the thinking is in marble_sweep.searches."""

from hydra_plugins.marble_sweeper.smallest_sweeper import SmallestSweeper

__all__ = ["SmallestSweeper"]
