"""The frontier plot: every size that a search has tried, and what became of it."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from marble_sweep.humanize import amount
from marble_sweep.report.law_figure import law_figure
from marble_sweep.runs.files import atomic_write
from marble_sweep.terminal import printable
from marble_sweep.uncertainty.student import student_errors

DPI = 130
PARAMETERS = "parameters"
INK = "#444444"
TICK_HEIGHT = 0.02  # of the axes, above the bottom


class Style(NamedTuple):
    """How sizes of one status are drawn."""

    label: str
    colour: str
    marker: str


STYLES = {
    "certified": Style("certified", "#117733", "o"),
    "ruled_out": Style("ruled out", "#cc3311", "X"),
    "undecided": Style("undecided", "#ddaa33", "s"),
    "refuted": Style("refuted", "#cc3311", "X"),
    "too_slow": Style("too slow", "#aa4499", "v"),
    "open": Style("tried, not refuted", "#999933", "D"),
    "crashed": Style("crashed", "#000000", "x"),
    "implied": Style("implied by a wider one", "#bbbbbb", "|"),
    "untried": Style("not tried", "#6699cc", "|"),
}
THRESHOLDS = {"unigram": "best unigram", "oracle": "oracle unigram", "bigram": "bigram"}


def frontier_image(summary: dict[str, Any]) -> str:
    """The plot as a data URL, for a page that opens offline."""
    picture = io.BytesIO()
    frontier_figure(summary).savefig(picture, format="png", dpi=DPI)
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"


def draw_frontier(summary: dict[str, Any], path: Path) -> None:
    """Draw what search.json holds as a PNG. Raises OSError where it cannot be written."""
    figure = frontier_figure(summary)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def frontier_figure(summary: dict[str, Any]) -> Figure:
    """What was minimised against the best margin of every size, a panel for every threshold."""
    if summary.get("question") == "frontier":
        return law_figure(summary)
    thresholds = summary["thresholds"]
    figure = Figure(figsize=(8.5, 4.8 * len(thresholds)), layout="constrained")
    unit = summary.get("cost_unit", PARAMETERS)  # earlier versions know nothing else
    panels = figure.subplots(len(thresholds), squeeze=False)[:, 0]
    for axes, of_threshold in zip(panels, thresholds, strict=True):
        draw_threshold(axes, of_threshold, unit, summary["standard_errors_each_evaluation"])
    return figure


def draw_threshold(axes: Axes, of_threshold: dict[str, Any], unit: str, errors_needed: float) -> None:
    """Draw the sizes by their margin to one threshold; those without a margin are ticks at the bottom.

    `unit` is that of their cost.
    """
    sizes, answer = of_threshold["frontier"], of_threshold["answer"]
    for status, style in STYLES.items():
        of_status = [size for size in sizes if size["status"] == status]
        draw_sizes(axes, of_status, style, errors_needed)
    axes.axhline(0, color=INK, linewidth=1)
    title = "Nothing is certified within the budget"
    if answer is not None:
        axes.axvline(cost_of(answer), color=INK, linewidth=1, linestyle=":")
        confirmed = "" if answer["confirmed"] else " (not confirmed)"
        fewest = "Smallest certified" if unit == PARAMETERS else f"Certified with the fewest {unit}"
        title = f"{fewest}: {answer['size']}, {amount(cost_of(answer))} {unit}{confirmed}"
    if sizes:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(loc="best", frameon=False)
    axes.set_xlabel(unit)
    threshold = THRESHOLDS.get(of_threshold["threshold"], f"loss {of_threshold['threshold']}")
    axes.set_ylabel(f"best margin to {threshold}\n(nats per token; bars: what certifies)", parse_math=False)
    axes.set_title(printable(title), loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)


def cost_of(size: dict[str, Any]) -> float:
    """What was minimised, of a size in search.json; files of earlier versions know parameters alone."""
    cost: float = size.get("cost", size["n_params"])
    return cost


def draw_sizes(axes: Axes, sizes: Sequence[dict[str, Any]], style: Style, errors_needed: float) -> None:
    """Draw the sizes of one status: their margins, with bars as certain as `errors_needed` normal errors, or ticks."""
    measured = [size for size in sizes if size["margin"] is not None]
    unmeasured = [cost_of(size) for size in sizes if size["margin"] is None]
    label = f"{style.label} ({len(sizes)})"
    if measured:
        axes.errorbar(
            [cost_of(size) for size in measured],
            [size["margin"] for size in measured],
            yerr=[
                student_errors(errors_needed, size.get("margin_df") or math.inf) * (size["margin_se"] or 0.0)
                for size in measured
            ],
            fmt=style.marker,
            color=style.colour,
            markersize=7,
            capsize=2,
            linewidth=1,
            label=label,
        )
    if unmeasured:
        axes.plot(
            unmeasured,
            [TICK_HEIGHT] * len(unmeasured),
            "|",
            color=style.colour,
            markersize=9,
            transform=axes.get_xaxis_transform(),
            label=None if measured else label,
        )
