"""The charts over the steps, which the page and the PNGs both draw: what is in them and how they are labelled."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from marble_sweep.lifecycle.recorded import SOME_DEAD
from marble_sweep.lifecycle.result import PHASES, Lifecycle

# Hot to cold, from Matplotlib's inferno. Lightness falls from phase to phase, so that readers who see no colours, and
# printers that print none, can tell them apart. What is undecided is no temperature, and grey.
UNDECIDED = "undecided"
COLOURS = dict(zip((*PHASES, UNDECIDED), ("#fba40a", "#e05536", "#84206b", "#150b37", "#c3cad6"), strict=True))
LIVE = "#7f93ad"
LABELS = {
    "early": "early: jumps of many cells (L2 > √D)",
    "midlife": "midlife: local but vigorous (L∞ > 1 cell)",
    "late": "late: to a neighbouring cell",
    "frozen": "frozen: has moved for the last time",
    UNDECIDED: "undecided: stands still, too near the end to tell",
}
# Okabe and Ito's colours, which colour-blind readers can tell apart.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8B6914")
PREDICTED = "dead_predicted_moving"  # of each step, and of all dead tokens of the run
OF_MASTERS = "share predicted to move on the lattice"  # the masters themselves move at any update
HALF_CELL = 0.5
CLOSE_UP = 0.998  # of the dead tokens' coordinates, over all frames, are within the close-up of the cloud


@dataclass(frozen=True)
class Panel:
    """One chart over the steps. `columns` are those of `Lifecycle.steps`, or UNDECIDED, with their labels."""

    name: str
    title: str
    hint: str
    unit: str
    columns: dict[str, str]
    dashed: tuple[str, ...] = ()  # columns that may lie on top of others
    stacked: bool = False
    log: bool = False
    from_zero: bool = False
    to_one: bool = False  # shares: the axis goes from 0 to 1
    line_at: float | None = None
    line_text: str = ""
    has_epochs: bool = False


POPULATIONS = Panel(
    "populations",
    "Phases of the dead tokens",
    "A phase ends at its last showing: a token counts as early up to its last early step, and never goes back.",
    "dead tokens",
    LABELS,
    stacked=True,
    from_zero=True,
)
COOLING = Panel(
    "cooling",
    "Cooling curve",
    "How far the median dead token moves. A cell is the distance to the next bfloat16 number.",
    "cells",  # in a step, or in as many as lie between two records
    {"l1_median": "L1: sum over the dimensions", "linf_median": "L∞: the farthest dimension"},
    log=True,
)
CENTROID = Panel(
    "centroid",
    "Centroid of the dead tokens",
    "Their mean: its place along −h̄, which points away from the last step's mean hidden state, and its distance "
    "from that axis.",
    "weight units",
    {
        "centroid_along": "along −h̄",
        "centroid_across": "distance from the axis",
        "live_distance": "distance from the live tokens' centroid",
    },
)
SPREAD = Panel(
    "spread",
    "Size of the cloud",
    "Root mean square distance from the centroid. Blue: epochs in which the radius contracts; red: in which it grows.",
    "weight units",
    {"radius": "radius", "spread_along": "spread along −h̄", "spread_across": "spread across"},
    from_zero=True,
    has_epochs=True,
)
MOVING = Panel(
    "moving",
    "Do they move, and together?",
    "Coherence: the mean cosine of a token's displacement with the mean displacement; 1 where all move alike. What is "
    "predicted follows from the intended update.",
    "share; cosine",
    {
        "moving": "share that moves",
        "masters_moving": "share whose float32 masters change",
        "coherence": "coherence",
        PREDICTED: "share predicted to move",
    },
    dashed=(PREDICTED,),
    to_one=True,
)
INTENDED = Panel(
    "intended",
    "Intended update, before it is rounded",
    "How far the optimizer meant to move a weight. Rounding to nearest moves it only from half a cell on.",
    "cells",
    {
        "dead_cells_median": "dead: median weight",
        "dead_cells_p95": "dead: 95th percentile",
        "live_cells_median": "live: median weight",
        "live_cells_p95": "live: 95th percentile",
    },
    log=True,
    line_at=HALF_CELL,
    line_text="half a cell",
)
LOST = Panel(
    "lost",
    "What does not reach half a cell",
    "Shares of the weights. A decay is lost where the weight ends as it would have without it.",
    "share",
    {
        "dead_below_half": "dead: update below half a cell",
        "dead_gradient_below_half": "dead: its gradient part",
        "live_below_half": "live: update below half a cell",
        "dead_decay_lost": "dead: decay lost",
    },
    dashed=("dead_gradient_below_half",),
    to_one=True,
)
HOLES = Panel(
    "holes",
    "Black holes",
    "Groups of dead tokens whose rows are identical, bit for bit; counted at sampled steps.",
    "number",
    {"groups": "black holes", "largest_group": "tokens in the largest"},
    from_zero=True,
)


def panels(lifecycle: Lifecycle) -> list[Panel]:
    """All charts. One of which a record has no columns is listed too, so that it can say so."""
    cooling = replace(COOLING, unit=cells_in(lifecycle))
    moving = replace(MOVING, columns=moving_columns(lifecycle))
    return [POPULATIONS, cooling, CENTROID, SPREAD, moving, INTENDED, LOST, HOLES]


def moving_columns(lifecycle: Lifecycle) -> dict[str, str]:
    """Those of MOVING. The prediction is of a single step: where transitions are longer, it is of another motion."""
    columns, every = dict(MOVING.columns), lifecycle.summary["every"]
    if every > 1:
        del columns[PREDICTED]
        return columns | {"moving": f"share that moves in {every} steps"}
    if "masters_moving" in lifecycle.steps:
        columns[PREDICTED] = OF_MASTERS
    if lifecycle.summary["kind"] == SOME_DEAD:
        columns[PREDICTED] += ", of all dead tokens"
    return columns


def axis_labels(lifecycle: Lifecycle) -> tuple[str, str]:
    """What the positions of `Frames` are along; a record without a hidden state has no h̄."""
    if np.isnan(lifecycle.axis).any():
        return "first principal component (weight units)", "second principal component (weight units)"
    return "along −h̄ (weight units)", "across (weight units)"


def cells_in(lifecycle: Lifecycle) -> str:
    """The unit of a displacement: a transition is as many steps long as lie between two recorded ones."""
    every = lifecycle.summary["every"]
    return "cells in a step" if every == 1 else f"cells in {every} steps"


def curves(lifecycle: Lifecycle, panel: Panel) -> pd.DataFrame:
    """The panel's columns, those that hold a number somewhere, at the steps at which they do; index `step`."""
    steps = with_undecided(lifecycle) if panel.stacked else lifecycle.steps
    known = steps[[name for name in panel.columns if name in steps]].replace([np.inf, -np.inf], np.nan)
    return known.dropna(axis="columns", how="all").dropna(how="all")


def with_undecided(lifecycle: Lifecycle) -> pd.DataFrame:
    """`Lifecycle.steps`, with those of the frozen apart of whom it is not known whether they will move again."""
    steps, tokens = lifecycle.steps, lifecycle.tokens
    censored = tokens[tokens["is_dead"].astype(bool) & tokens["censored"].astype(bool)]
    last_motion = np.sort(censored["last_motion"].fillna(-1).to_numpy())
    undecided = np.searchsorted(last_motion, steps.index.to_numpy(), side="left")
    return steps.assign(undecided=undecided, frozen=steps["frozen"] - undecided)
