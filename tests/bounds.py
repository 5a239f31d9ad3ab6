"""Error bounds of floating-point sums, from which tests take their tolerances (Higham 2002, chapter 3).

A kernel may add up in any order, with or without fused multiply-adds, on any number of threads: these bounds hold for
all of them, so a test that keeps to them rests on no CPU.
"""

import math

FLOAT32 = 2.0**-24  # half a unit in the last place, relative
BFLOAT16 = 2.0**-8


def likely(roundings: int, unit: float = FLOAT32) -> float:
    """What so many roundings of independent signs leave, but once in some thousand times (Higham and Mary 2019)."""
    return 4 * math.sqrt(roundings) * unit


def gamma(roundings: int, unit: float = FLOAT32) -> float:
    """The relative error that so many roundings leave at most.

    A sum of n terms has n of them, a dot product n + 1; its error is relative to the sum of the terms' sizes.
    """
    return roundings * unit / (1 - roundings * unit)
