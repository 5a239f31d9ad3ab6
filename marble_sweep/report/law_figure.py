"""The plot of a frontier: held-out loss against size, the law through it, and what that predicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from marble_sweep.humanize import interval_words
from marble_sweep.terminal import printable

POINT, LAW, INK = "#0072B2", "#D55E00", "#444444"
THRESHOLDS = {"unigram": "best unigram", "oracle": "oracle unigram", "bigram": "bigram"}
LINE_STYLES = ("--", "-.", ":", (0, (5, 1)))
ROOM = 1.25  # for labels, beside the largest size
MARGIN = 0.06  # above and below what is drawn, as a share of its height
LABEL_HEIGHT = 0.045  # of the axes


def law_figure(summary: Mapping[str, Any]) -> Figure:
    """Held-out loss over parameters: the sizes with 95 % intervals, the staircase, the law with its band, baselines."""
    figure = Figure(figsize=(8.5, 5.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    draw_law(axes, summary["law"])
    draw_points(axes, summary["sizes"], summary["staircase"])
    fit_height(axes, summary)
    draw_thresholds(axes, summary["thresholds"])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("parameters")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.set_title(printable(title(summary["law"])), loc="left", fontsize="medium", parse_math=False, wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False, fontsize="small")
    return figure


def title(law: Mapping[str, Any]) -> str:
    if law.get("refused") is not None:
        return f"No law: {law['refused']}"
    return (
        f"loss = E + A / parameters^α, E = {interval_words(law['E'], '.3f')}, α = {interval_words(law['alpha'], '.2f')}"
    )


def draw_law(axes: Axes, law: Mapping[str, Any]) -> None:
    """The law and the 95 % interval of a run, over the sizes of which it may say something."""
    curve = law.get("curve") or []
    if curve:
        sizes, losses, low, high = zip(*curve, strict=True)
        axes.fill_between(sizes, low, high, color=LAW, alpha=0.15, linewidth=0, label="95 % of runs, by the law")
        axes.plot(sizes, losses, color=LAW, linewidth=1.5, label="law of the tuned sizes")


def draw_points(axes: Axes, sizes: Sequence[Mapping[str, Any]], staircase: Sequence[str]) -> None:
    """The sizes with the 95 % interval of their mean, tuned ones filled, and the lowest loss up to every size."""
    measured = [row for row in sizes if row["loss"] is not None]
    steps = [row for row in measured if row["size"] in staircase]
    if steps:
        ends = [row["n_params"] for row in steps] + [max(row["n_params"] for row in measured)]
        losses = [row["loss"] for row in steps] + [steps[-1]["loss"]]
        axes.step(ends, losses, where="post", color=POINT, linewidth=1, alpha=0.6, label="lowest loss up to this size")
    for tuned, fill, label in ((True, POINT, "tuned"), (False, "white", "not tuned")):
        rows = [row for row in measured if row["tuned"] is tuned]
        if rows:
            intervals = [row.get("interval") or [row["loss"], row["loss"]] for row in rows]
            axes.errorbar(
                [row["n_params"] for row in rows],
                [row["loss"] for row in rows],
                yerr=[
                    [row["loss"] - low for row, (low, _) in zip(rows, intervals, strict=True)],
                    [high - row["loss"] for row, (_, high) in zip(rows, intervals, strict=True)],
                ],
                fmt="o",
                color=POINT,
                markerfacecolor=fill,
                markersize=7,
                capsize=2,
                linewidth=1,
                label=f"{label} ({len(rows)})",
            )


def fit_height(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Let the axes hold the points, the thresholds and the law; its band may leave them."""
    losses = [
        loss for row in summary["sizes"] if row["loss"] is not None for loss in row.get("interval") or [row["loss"]]
    ]
    losses += [row["loss"] for row in summary["thresholds"] if row["loss"] is not None]
    losses += [loss for _, loss, _, _ in summary["law"].get("curve") or []]
    if losses:
        margin = MARGIN * (max(losses) - min(losses) or 1.0)
        axes.set_ylim(min(losses) - margin, max(losses) + margin)


def draw_thresholds(axes: Axes, thresholds: Sequence[Mapping[str, Any]]) -> None:
    """The thresholds as labelled lines, and on them the 95 % interval of the size at which the law reaches them."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    axes.set_xlim(left, right * ROOM)
    known = sorted((row for row in thresholds if row["loss"] is not None), key=lambda row: -row["loss"])
    above = top
    for number, threshold in enumerate(known):
        loss = threshold["loss"]
        axes.axhline(loss, color=INK, linewidth=1, linestyle=LINE_STYLES[number % len(LINE_STYLES)], zorder=0)
        is_close = above - loss < LABEL_HEIGHT * (top - bottom)  # then its label goes below its line
        above = loss
        axes.annotate(
            printable(f"{THRESHOLDS.get(threshold['threshold'], 'threshold')} {loss:.3f}"),
            (1, loss),
            xycoords=("axes fraction", "data"),
            xytext=(0, -2 if is_close else 1),
            textcoords="offset points",
            ha="right",
            va="top" if is_close else "bottom",
            fontsize="small",
            color=INK,
            parse_math=False,
        )
    predicted = [row for row in known if row.get("predicted") is not None]
    if predicted:
        sizes, lows, highs = zip(*(row["predicted"] for row in predicted), strict=True)
        ends = [
            [size - (left if low is None else low) for size, low in zip(sizes, lows, strict=True)],
            [(right if high is None else high) - size for size, high in zip(sizes, highs, strict=True)],
        ]
        losses = [row["loss"] for row in predicted]
        label = "size at which the law reaches a line"
        axes.errorbar(sizes, losses, xerr=ends, fmt="D", color=LAW, markersize=5, capsize=3, label=label)
