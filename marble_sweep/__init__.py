"""Train tiny language models in sweeps and watch their weights move on the bfloat16 lattice."""

import os

__version__ = "0.1.0"

# OpenMP's threads would otherwise spin while they wait for each other: on a machine that does anything
# else besides, a small model then trains twenty times slower. Read when torch is loaded, so set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
