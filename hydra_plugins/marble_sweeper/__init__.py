"""Hydra finds sweepers only below the namespace hydra_plugins; the thinking is in marble_sweep."""
