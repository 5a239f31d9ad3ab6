"""Train tiny language models in sweeps and watch their weights move on the bfloat16 lattice."""

import os

__version__ = "0.1.0"

# OpenMP's threads spin for milliseconds while they wait for each other. On a machine that does anything
# else besides, a small model then trains twenty times slower; a shorter spin costs little where it does not
# (docs/LOG.md). Read when torch is loaded, so set here.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
