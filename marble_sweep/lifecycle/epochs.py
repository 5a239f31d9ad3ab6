"""Epochs of the cloud's radius: contraction, expansion, standstill."""

from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from marble_sweep.lifecycle.result import CONTRACTION, EXPANSION, STANDSTILL

Numbers = NDArray[np.float64]
TOLERANCE = 0.01  # of the largest radius: what the broken line may miss
NOISE_TOLERANCE = 8.0  # standard deviations of the noise: a line may begin at one extreme of it and miss the other
MAX_SMOOTHING = 0.05  # of the record
STANDSTILL_SPEED = 0.1  # of the broken line's mean speed
MIN_STANDSTILL = 0.05  # of the record: a shorter one is the rounded corner of a turning point
MAD_TO_SD = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Epoch:
    """From the transition `start` to `end`, at which the next one starts."""

    start: int
    end: int
    kind: str


def find_epochs(steps: NDArray[np.int64], radius: Numbers) -> list[Epoch]:
    """The epochs of a curve, in order; together they cover it. Both arrays are (n,); none where n < 2 or on NaN.

    A noisy curve is smoothed first. A broken line is fitted that misses no radius by more than the tolerance: TOLERANCE
    of the largest radius, more where noise is left. A piece of it is a standstill where it changes by no
    more than the tolerance, or more slowly than STANDSTILL_SPEED of the mean speed of the whole line. Neighbours of one
    kind are joined; a standstill shorter than MIN_STANDSTILL of the record joins its longer neighbour.
    """
    if len(steps) < 2 or not np.isfinite(radius).all():
        return []
    radius, tolerance = smoothed(radius)
    corners = broken_line(steps, radius, tolerance)
    change = np.diff(radius[corners])
    length = np.diff(steps[corners])
    mean_speed = np.abs(change).sum() / length.sum()
    is_still = (np.abs(change) <= tolerance) | (np.abs(change) < STANDSTILL_SPEED * mean_speed * length)
    kinds = np.where(is_still, STANDSTILL, np.where(change < 0, CONTRACTION, EXPANSION))
    ends = steps[corners].tolist()
    epochs = [Epoch(start, end, str(kind)) for (start, end), kind in zip(pairwise(ends), kinds, strict=True)]
    return without_short_standstills(joined(epochs), MIN_STANDSTILL * float(length.sum()))


def noise(radius: Numbers) -> float:
    """The standard deviation of white noise on a smooth curve: from second differences, by their median."""
    if len(radius) < 3:
        return 0.0
    second = radius[2:] - 2 * radius[1:-1] + radius[:-2]
    return MAD_TO_SD * float(np.median(np.abs(second))) / 6**0.5


def smoothed(radius: Numbers) -> tuple[Numbers, float]:
    """The curve as moving averages over as few steps as its noise asks for, and the tolerance for a line through it.

    The window is the shortest that brings NOISE_TOLERANCE standard deviations of the noise below TOLERANCE of the
    largest radius, at most MAX_SMOOTHING of the record; what noise is then left raises the tolerance.
    """
    tolerance, deviation = TOLERANCE * float(radius.max()), NOISE_TOLERANCE * noise(radius)
    if deviation <= tolerance:
        return radius, tolerance
    window = min(int((deviation / tolerance) ** 2) + 1, int(MAX_SMOOTHING * len(radius)) + 1)
    counts = np.convolve(np.ones(len(radius)), np.ones(window), mode="same")  # fewer at the ends
    averages = np.convolve(radius, np.ones(window), mode="same") / counts
    return averages, max(tolerance, deviation / window**0.5)


def broken_line(steps: NDArray[np.int64], radius: Numbers, tolerance: float) -> list[int]:
    """The places of the corners of a line through points of the curve that misses none by more than the tolerance.

    A piece that misses one is broken at the one that it misses most (Ramer 1972; Douglas and Peucker 1973).
    """
    corners = {0, len(steps) - 1}
    pieces = [(0, len(steps) - 1)]
    while pieces:
        first, last = pieces.pop()
        inner = slice(first, last + 1)
        line = np.interp(steps[inner], steps[[first, last]], radius[[first, last]])
        missed = np.abs(radius[inner] - line)
        farthest = first + int(missed.argmax())
        if missed[farthest - first] > tolerance:
            corners.add(farthest)
            pieces += [(first, farthest), (farthest, last)]
    return sorted(corners)


def joined(epochs: list[Epoch]) -> list[Epoch]:
    """Neighbours of one kind made one."""
    parts = [list(part) for _, part in groupby(epochs, key=lambda epoch: epoch.kind)]
    return [Epoch(part[0].start, part[-1].end, part[0].kind) for part in parts]


def without_short_standstills(epochs: list[Epoch], min_steps: float) -> list[Epoch]:
    """Standstills shorter than `min_steps` join their longer neighbour, the shortest first."""
    while len(epochs) > 1:
        short = [epoch for epoch in epochs if epoch.kind == STANDSTILL and epoch.end - epoch.start < min_steps]
        if not short:
            break
        place = epochs.index(min(short, key=lambda epoch: epoch.end - epoch.start))
        neighbours = epochs[max(0, place - 1) : place] + epochs[place + 1 : place + 2]
        kind = max(neighbours, key=lambda epoch: epoch.end - epoch.start).kind
        changed = Epoch(epochs[place].start, epochs[place].end, kind)
        epochs = joined([*epochs[:place], changed, *epochs[place + 1 :]])
    return epochs
