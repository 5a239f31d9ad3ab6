"""The charts of the page as PNGs for print: 200 dots an inch, on white."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, NoNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray
from tqdm import tqdm

from marble_sweep.lifecycle.choose import choose_tokens
from marble_sweep.lifecycle.frames import Frames
from marble_sweep.lifecycle.panels import (
    CLOSE_UP,
    COLOURS,
    LABELS,
    LINES,
    UNDECIDED,
    Panel,
    axis_labels,
    curves,
    panels,
)
from marble_sweep.lifecycle.result import CONTRACTION, EXPANSION, PHASES, Lifecycle
from marble_sweep.runs.files import atomic_write
from marble_sweep.terminal import printable

DPI = 200
MAX_LABEL = 44  # characters of a curve's label: three of them fit side by side
WIDTH = 7.0  # inches: a page's text width
INK, SOFT = "#222222", "#5c5c5c"
COLD_FIRST = ("frozen", UNDECIDED, "late", "midlife", "early")  # from the foot of a stack upwards
EPOCHS = {CONTRACTION: (LINES[0], "radius contracts"), EXPANSION: (LINES[1], "radius grows")}
CLOUD_STEPS = 6
STRATA_DOTS = (1_000, 1_400)  # of the stratigraphy: about those down and across
STEP_LABEL = "training step (square-root scale)"
BAR_AFTER = 1.0  # seconds
WITH_COMMAS = FuncFormatter(lambda value, _: f"{value:,.10g}")


def draw_figures(folder: Path, lifecycle: Lifecycle, frames: Frames, title: str, *, show: bool = False) -> list[Path]:
    """Write the figures into `folder` as PNGs and return their paths.

    These are `stratigraphy`, `populations`, `cooling`, `centroid`, `spread`, `moving`, `intended`, `lost`, `holes`
    and `cloud`. Those for which the record has no numbers are left out. `show` shows progress on standard error. Raises
    OSError where they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = printable(title)
    figures: dict[str, Callable[[], Figure]] = {"stratigraphy": lambda: stratigraphy_figure(lifecycle, name)}
    for panel in panels(lifecycle):
        known = curves(lifecycle, panel)
        if len(known):
            figures[panel.name] = partial(panel_figure, lifecycle, panel, known, name)
    if np.isfinite(frames.positions).any():
        figures["cloud"] = lambda: cloud_figure(lifecycle, frames, name)
    paths = []
    for file_name, draw in tqdm(figures.items(), unit="figure", leave=False, delay=BAR_AFTER, disable=not show):
        path = folder / f"{file_name}.png"
        with atomic_write(path) as temporary:
            draw().savefig(temporary, format="png", dpi=DPI)
        paths.append(path)
    return paths


def new_figure(height: float, heading: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(heading, x=0.012, ha="left", fontsize=11)
    axes = figure.subplots()
    axes.set_title(title, fontsize=8, color=SOFT, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(WITH_COMMAS)
    return figure, axes


def step_axis(axes: Axes, last_step: int) -> None:
    """An axis of steps in their square root, as on the page: most happens early."""
    axes.set_xscale("function", functions=(lambda step: np.sqrt(np.maximum(step, 0)), np.square))
    axes.set_xlim(0, last_step)
    axes.xaxis.set_major_locator(FixedLocator(step_ticks(last_step)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(WITH_COMMAS)
    axes.set_xlabel(STEP_LABEL)


def step_ticks(last_step: int) -> list[float]:
    """0 and round steps that are far enough apart on the square-root scale, powers of ten first."""
    ticks = [0.0]
    powers = 10.0 ** np.arange(np.floor(np.log10(max(1, last_step))), -1, -1)
    for step in (factor * power for factor in (1, 5, 2) for power in powers):
        is_free = all(abs(np.sqrt(step) - np.sqrt(tick)) > 0.075 * np.sqrt(last_step) for tick in ticks)
        if step <= last_step and is_free:
            ticks.append(float(step))
    return sorted(ticks)


def phase_key(
    figure: Figure, names: tuple[str, ...], place: Literal["outside lower left", "lower left"] = "outside lower left"
) -> None:
    handles = [Patch(color=COLOURS[name], label=LABELS[name]) for name in names]
    figure.legend(handles=handles, loc=place, ncols=2, fontsize=7.5, frameon=False)


def stratigraphy_figure(lifecycle: Lifecycle, title: str) -> Figure:
    """Token x step: a row is a dead token, its colour the phase, sorted by freeze step."""
    tokens = choose_tokens(lifecycle.tokens)
    dead = tokens[tokens["is_dead"].astype(bool)]
    last_step = int(lifecycle.steps.index[-1])
    total = int(lifecycle.tokens["is_dead"].sum())
    shown = f"{total:,} dead tokens" if total == len(dead) else f"{len(dead):,} of the {total:,} dead tokens"
    figure, axes = new_figure(5.2, f"Stratigraphy of {shown}", title)
    down, across = STRATA_DOTS
    rows = dead.iloc[np.linspace(0, len(dead) - 1, min(len(dead), down)).astype(np.int64)]
    root = np.sqrt(last_step)  # an image needs an even scale, so the axis is one of roots
    image = strata(rows, ((np.arange(across) + 0.5) / across * root) ** 2)
    names = (*PHASES, UNDECIDED)
    axes.imshow(
        image,
        cmap=ListedColormap([COLOURS[name] for name in names]),
        norm=NoNorm(),
        extent=(0, root, len(dead), 0),
        aspect="auto",
        interpolation="nearest",
    )
    ticks = step_ticks(last_step)
    axes.set_xticks(np.sqrt(ticks), [f"{step:,.0f}" for step in ticks])
    axes.set_xlabel(STEP_LABEL)
    axes.set_ylabel("dead tokens, the first to stop at the top")
    phase_key(figure, names if (image == len(PHASES)).any() else PHASES)
    return figure


def strata(rows: pd.DataFrame, steps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(tokens, steps) the number of the phase at each step; len(PHASES) where it is undecided."""
    lasts = rows[["last_early", "last_midlife", "last_motion"]].fillna(-1).to_numpy()
    ends = np.maximum.accumulate(lasts, axis=1)
    image = (steps[None, :, None] > ends[:, None, :]).sum(axis=2).astype(np.uint8)
    stopped = image == PHASES.index("frozen")
    image[stopped & rows["censored"].to_numpy(dtype=bool)[:, None]] = len(PHASES)
    return image


def panel_figure(lifecycle: Lifecycle, panel: Panel, known: pd.DataFrame, title: str) -> Figure:
    """One chart over the steps."""
    figure, axes = new_figure(3.4, panel.title, title)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    if panel.stacked:
        names = [name for name in COLD_FIRST if name in known and known[name].any()]
        axes.stackplot(known.index, known[names].T, colors=[COLOURS[name] for name in names], linewidth=0)
        phase_key(figure, tuple(name for name in LABELS if name in names))
    else:
        draw_lines(axes, panel, known)
        if panel.has_epochs:
            shade_epochs(axes, lifecycle)
        longest = max(len(label) for name, label in panel.columns.items() if name in known)
        figure.legend(loc="outside lower left", ncols=3 if longest <= MAX_LABEL else 2, fontsize=8, frameon=False)
    step_axis(axes, int(lifecycle.steps.index[-1]))
    axes.set_ylabel(panel.unit)
    if panel.to_one:
        axes.set_ylim(0, 1.02)
    elif panel.from_zero:
        axes.set_ylim(min(0, known.min().min()), known.sum(axis=1).max() if panel.stacked else None)
        if not known.to_numpy().any():
            axes.set_ylim(0, 1)
    return figure


def draw_lines(axes: Axes, panel: Panel, known: pd.DataFrame) -> None:
    """The curves of a panel. On a logarithmic axis, what is 0 lies on its foot, which says so."""
    for number, (name, label) in enumerate(panel.columns.items()):
        if name in known:
            style = (0, (3, 2)) if name in panel.dashed else "-"
            colour = LINES[number % len(LINES)]
            axes.plot(known.index, known[name], color=colour, linestyle=style, linewidth=1.4, label=label)
    if panel.line_at is not None:
        axes.axhline(panel.line_at, color=INK, linewidth=1, linestyle="--", label=panel.line_text)
    positive = known.where(known > 0)
    low, high = positive.min().min(), positive.max().max()
    if panel.log and np.isfinite(low):
        axes.set_yscale("symlog", linthresh=low, linscale=0.4)
        axes.set_ylim(bottom=0)
        powers = 10.0 ** np.arange(np.ceil(np.log10(low)), np.log10(high) + 1)
        axes.yaxis.set_major_locator(FixedLocator([0, *powers]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(WITH_COMMAS)


def shade_epochs(axes: Axes, lifecycle: Lifecycle) -> None:
    """The epochs behind the curves, as on the page: blue where the radius contracts, red where it grows."""
    for kind, (colour, label) in EPOCHS.items():
        of_kind = lifecycle.epochs[lifecycle.epochs["kind"] == kind]
        for number, (start, end) in enumerate(of_kind[["start", "end"]].to_numpy(dtype=np.float64).tolist()):
            axes.axvspan(start, end, color=colour, alpha=0.13, linewidth=0, label="" if number else label)


def cloud_figure(lifecycle: Lifecycle, frames: Frames, title: str) -> Figure:
    """The dead tokens around their centroid at a few steps, all on the same axes."""
    tokens = lifecycle.tokens.set_index("token").loc[frames.tokens]
    dead = tokens["is_dead"].to_numpy(dtype=bool)
    wanted = frames.frame_steps[-1] * (np.arange(CLOUD_STEPS) / (CLOUD_STEPS - 1)) ** 2
    places = np.unique(np.abs(frames.frame_steps[:, None] - wanted).argmin(axis=0))
    positions = frames.positions[places][:, dead].astype(np.float64)
    centroids = np.nanmean(positions, axis=1)
    around = positions - centroids[:, None]
    figure = Figure(figsize=(WIDTH, 5.6), dpi=DPI)
    grid = figure.subplots(2, CLOUD_STEPS // 2, sharex=True, sharey=True, squeeze=False).flatten()
    figure.subplots_adjust(left=0.105, right=0.985, top=0.87, bottom=0.22, hspace=0.2, wspace=0.08)
    for axes, place, points, centroid in zip(grid, places, around, centroids, strict=False):
        step = int(frames.frame_steps[place])
        scatter_phases(axes, points, strata(tokens[dead], np.array([step]))[:, 0])
        axes.set_title(f"step {step:,}, centroid at {centroid[0]:.3g}", fontsize=8)
    reach = 1.05 * float(np.nanquantile(np.abs(around), CLOSE_UP)) or 1.0  # a black hole of all has no extent
    grid[0].set_xlim(-reach, reach)
    grid[0].set_ylim(-reach, reach)
    for axes in grid[len(places) :]:
        axes.set_visible(False)
    figure.suptitle("The dead tokens around their centroid", x=0.012, ha="left", fontsize=11)
    figure.text(0.012, 0.93, title, fontsize=8, color=SOFT, parse_math=False)
    along, across = axis_labels(lifecycle)
    figure.text(0.545, 0.145, along, fontsize=9, ha="center")
    figure.text(0.015, 0.545, across, fontsize=9, va="center", rotation="vertical")
    phase_key(figure, (*PHASES, UNDECIDED), "lower left")
    return figure


def scatter_phases(axes: Axes, points: NDArray[np.float64], phases: NDArray[np.uint8]) -> None:
    """Points (N, 2) in their phases' colours, the hottest on top."""
    names = (*PHASES, UNDECIDED)
    for name in COLD_FIRST:
        along, across = points[phases == names.index(name)].T
        axes.scatter(along, across, s=2.2, color=COLOURS[name], linewidths=0)
    axes.tick_params(labelsize=7)
    axes.set_aspect("equal")
