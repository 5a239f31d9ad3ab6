"""Train tiny language models in sweeps and watch their weights move on the bfloat16 lattice."""

__version__ = "0.1.0"
