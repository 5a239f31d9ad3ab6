"""The plots of one run: loss against the baselines, dead tokens on the lattice, the hidden state."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from marble_sweep.runs import layout
from marble_sweep.runs.files import atomic_write
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import RunStatus
from marble_sweep.terminal import printable

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, INK = "#767676", "#222222"
REGIMES = {  # column: (label, colour), the quietest first
    "dead_frozen": ("frozen: did not move", "#C9C9C9"),
    "dead_late": ("late: to a neighbouring cell", SKY),
    "dead_midlife": ("midlife: local, vigorous", ORANGE),
    "dead_early": ("early: jumps many cells", RED),
}
DPI = 120
WIDTH = 9.5  # inches, LABELS of them for the labels on the right
LABELS = 2.3
OFF_SCALE = 1.2  # a diverging loss is drawn up to this many times the first loss or the highest baseline


def draw_figures(directory: Path, status: str | None = None) -> dict[str, Figure]:
    """The figures `loss`, `lattice` and `hidden` of what a run has recorded so far; none before its first step.

    What was not measured (no held-out text, no dead tokens, one step only) is left out or labelled as missing.
    `status` overrides the one in metadata.json, which a run writes after its plots.
    """
    run = Run.read(directory)
    if status is not None:
        run = replace(run, metadata=run.metadata | {"status": status})
    steps, evals = run.steps.table(), pd.DataFrame(run.evals)
    if not len(steps):
        return {}
    return {
        "loss": loss_figure(run, steps, evals),
        "lattice": lattice_figure(run, steps),
        "hidden": hidden_figure(run, steps),
    }


def draw_plots(directory: Path, status: str | None = None) -> None:
    """Draw the figures into `directory`/plots as PNG."""
    folder = directory / layout.PLOTS
    for name, figure in draw_figures(directory, status).items():
        folder.mkdir(exist_ok=True)
        with atomic_write(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)


def loss_figure(run: Run, steps: pd.DataFrame, evals: pd.DataFrame) -> Figure:
    """Training and held-out loss over the steps, with the baselines as horizontal lines."""
    figure, (axes,) = panels([5.4], steps)
    labels: list[Label] = []
    if len(evals):
        measured, loss, error = evals["step"], evals["val_loss"], evals["val_loss_se"].fillna(0)
        axes.fill_between(measured, loss - error, loss + error, color=RED, alpha=0.25, linewidth=0)
        axes.plot(measured, loss, color=RED, linewidth=2, marker="o", markersize=3 if len(evals) < 60 else 0, zorder=3)
        labels.append((loss.iloc[-1], f"held-out loss {loss.iloc[-1]:.3f}", RED))
    best = "unigram_tempered" if "unigram_tempered" in run.baselines else "unigram_fitted"  # of earlier versions
    lines = [
        (run.baselines.get(best), f"unigram, {best.removeprefix('unigram_')}", "-"),
        (run.baselines.get("unigram_oracle"), "unigram, oracle", "--"),
        (run.baselines.get("bigram"), "bigram", "-."),
        (run.corpus.get("entropy_rate"), "entropy rate", ":"),
    ]
    for level, text, style in lines:
        if level is not None:
            axes.axhline(level, color=INK, linestyle=style, linewidth=1, zorder=1)
            labels.append((level, f"{text} {level:.3f}", None))
    highest = max([steps["loss"].iloc[0], *(level for level, _, _ in lines if level is not None)])
    on_scale = steps["loss"] <= OFF_SCALE * highest
    text = "training loss" if on_scale.all() else "training loss before\nit left the scale"
    on_scale_steps = steps.assign(loss=steps["loss"].where(on_scale))
    labels.append(draw_series(axes, on_scale_steps, "loss", BLUE, text, "{:.3f}"))
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title(run, "loss, and what is reached without a model"), parse_math=False)
    label_right(axes, labels)
    return figure


def lattice_figure(run: Run, steps: pd.DataFrame) -> Figure:
    """How many tokens move in a step, how dead tokens move, how far, and how much of the updates is rounded away."""
    figure, (moving, regimes, distance, lost) = panels([2.6, 2.8, 2.2, 2.2], steps)
    moving.set_title(title(run, "motion of tokens on the bfloat16 lattice"), parse_math=False)
    as_share(moving, "share of tokens\nmoving in a step")
    live = draw_series(moving, steps, "live_moving", BLUE, "live tokens", "{:.0%}")
    label_right(moving, [live, draw_series(moving, steps, "dead_moving", RED, "dead tokens", "{:.0%}")])

    as_share(regimes, "dead tokens\nby regime")
    shares = steps[list(REGIMES)].rolling(window(steps), min_periods=1).mean()
    if shares.notna().to_numpy().any():
        colours = [colour for _, colour in REGIMES.values()]
        edges = np.concatenate([[0], steps["step"]])  # the first step's column reaches back to step 0
        heights = shares.fillna(0).to_numpy()[[0, *range(len(shares))]]
        regimes.stackplot(edges, heights.T, colors=colours, linewidth=0)
        middles = shares.iloc[-1].cumsum() - shares.iloc[-1] / 2
        label_right(regimes, [(middles[name], text, colour) for name, (text, colour) in REGIMES.items()])
    else:
        regimes.text(0.5, 0.5, "there are no dead tokens", transform=regimes.transAxes, ha="center", color=GREY)

    if (steps["dead_l1_mean"] > 0).any():
        distance.set_yscale("log")
    far = steps.assign(dead_l1_mean=steps["dead_l1_mean"].where(steps["dead_l1_mean"] > 0))
    number = "{:.3g}" if steps["dead_l1_mean"].iloc[-1] > 0 else "(now 0)"
    label = draw_series(distance, far, "dead_l1_mean", RED, "mean L1 norm of a\ndead token's step", number)
    distance.set_ylabel("cells of the\nlattice a step")
    label_right(distance, [label])

    as_share(lost, "share of weight\nupdates lost")
    label_right(lost, [draw_series(lost, steps, "updates_lost", PURPLE, "updates rounded away", "{:.0%}")])
    return figure


def hidden_figure(run: Run, steps: pd.DataFrame) -> Figure:
    """How the mean hidden state turns, how far single states spread around it, and how long they are."""
    figure, (turn, spread, norm) = panels([3.0, 2.4, 2.4], steps)
    turn.set_title(title(run, "the hidden state"), parse_math=False)
    lag = run.metadata.get("h_autocorr_lag")
    before = f"{lag:,} steps before" if lag else "many steps before"
    turn.set_ylabel("cosine of the\nmean hidden state")
    labels = [
        draw_series(turn, steps, "h_autocorr", BLUE, "with that of\none step before", "{:.4f}"),
        draw_series(turn, steps, "h_autocorr_lag", ORANGE, f"with that of\n{before}", "{:.4f}"),
    ]
    label_right(turn, labels)
    spread.set_ylabel("spread (1 − cosine)")
    label_right(spread, [draw_series(spread, steps, "h_spread", GREEN, "single states\naround their mean", "{:.3f}")])
    norm.set_ylabel("length (L2 norm)")
    label_right(norm, [draw_series(norm, steps, "h_norm", PURPLE, "mean of single states", "{:.1f}")])
    return figure


Label = tuple[float, str, str | None]  # height in data units, text, colour of the mark beside it


def panels(heights: Sequence[float], steps: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """Panels stacked over a shared axis of steps, with room for labels on the right; heights in inches."""
    height = sum(heights) + 0.9 + 0.2 * len(heights)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    figure.subplots_adjust(
        left=0.105, right=1 - LABELS / WIDTH, top=1 - 0.42 / height, bottom=0.55 / height, hspace=0.16
    )
    columns: list[Axes] = list(grid[:, 0])
    last = max(2, int(steps["step"].iloc[-1]))
    for axes in columns:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(0, last)
    columns[-1].set_xlabel("training step")
    columns[-1].xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True))
    columns[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, columns


def window(steps: pd.DataFrame) -> int:
    """The width in steps of the smoothing window."""
    return max(1, len(steps) // 60)


def draw_series(axes: Axes, steps: pd.DataFrame, column: str, colour: str, text: str, number: str = "{:.3g}") -> Label:
    """Draw one column: thin as measured, thick as a running median. Returns its label for the right-hand side."""
    values = steps[column].replace([np.inf, -np.inf], np.nan)
    if values.isna().all():
        return (math.nan, f"{text}\n(not measured)", colour)
    smooth = values.rolling(window(steps), min_periods=1, center=True).median()
    if window(steps) > 1:
        axes.plot(steps["step"], values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps["step"], smooth, color=colour, linewidth=2, marker="o" if values.count() == 1 else None)
    last = smooth.dropna().iloc[-1]
    return (last, f"{text} {number.format(last)}", colour)


def as_share(axes: Axes, text: str) -> None:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel(text)


def title(run: Run, subject: str) -> str:
    """The run's name and the subject, with the status of a run that did not finish."""
    ending = "" if run.status in (RunStatus.FINISHED, RunStatus.RUNNING) else f" ({run.status})"
    return printable(f"{run.name}{ending}: {subject}")


def label_right(axes: Axes, labels: Sequence[Label]) -> None:
    """Write the labels beside the axes, at their heights but moved apart where they would overlap."""
    axes.set_ylim(axes.get_ylim())  # fixes the scale, from which the heights are computed
    line = 0.18 * DPI / axes.get_window_extent().height  # the height of a line of text, as a share of the axes
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = []
    for value, text, colour in labels:
        height = to_axes.transform((0, value))[1] if math.isfinite(value) else 0.5
        placed.append((min(1.0, max(0.0, height)), text, colour))
    placed.sort(key=lambda label: label[0])
    sizes = [line * (text.count("\n") + 1) for _, text, _ in placed]
    centres = spread_out([height for height, _, _ in placed], sizes)
    for (_, text, colour), centre in zip(placed, centres, strict=True):
        if colour:
            axes.plot([1.02], [centre], marker="s", color=colour, transform=axes.transAxes, clip_on=False)
        axes.text(1.04, centre, text, color=INK, transform=axes.transAxes, va="center", fontsize=9.5)


def spread_out(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Sorted heights in [0, 1], moved just far enough apart that neighbours of these sizes do not overlap."""
    centres = list(heights)
    for _ in range(100):
        for i in range(1, len(centres)):
            overlap = (sizes[i - 1] + sizes[i]) / 2 - (centres[i] - centres[i - 1])
            if overlap > 0:
                centres[i - 1] -= overlap / 2
                centres[i] += overlap / 2
    return centres
