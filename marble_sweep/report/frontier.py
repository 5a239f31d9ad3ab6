"""The frontier plot: every size that a search has tried, and what became of it."""

import base64
import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from marble_sweep.runs.files import atomic_write
from marble_sweep.terminal import printable

DPI = 130
STYLES = {  # status: label, colour, marker
    "certified": ("certified", "#117733", "o"),
    "refuted": ("refuted", "#cc3311", "X"),
    "too_slow": ("too slow", "#aa4499", "v"),
    "open": ("tried, not refuted", "#999933", "D"),
    "crashed": ("crashed", "#000000", "x"),
    "implied": ("implied by a wider one", "#bbbbbb", "|"),
    "untried": ("not tried", "#6699cc", "|"),
}
WORDS = {"unigram": "fitted unigram", "oracle": "oracle unigram", "bigram": "bigram"}


def frontier_image(summary: dict[str, Any]) -> str:
    """The plot as a data URL, for a page that holds all it needs."""
    picture = io.BytesIO()
    frontier_figure(summary).savefig(picture, format="png", dpi=DPI)
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"


def draw_frontier(summary: dict[str, Any], path: Path) -> None:
    """Draw what search.json holds as a PNG. Raises OSError where it cannot be written."""
    figure = frontier_figure(summary)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def frontier_figure(summary: dict[str, Any]) -> Figure:
    """Size against the best margin a size came to; sizes without one are ticks along the bottom."""
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    rows = summary["frontier"]
    for status, (label, colour, marker) in STYLES.items():
        measured = [row for row in rows if row["status"] == status and row["margin"] is not None]
        bare = [row["n_params"] for row in rows if row["status"] == status and row["margin"] is None]
        if measured:
            axes.errorbar(
                [row["n_params"] for row in measured],
                [row["margin"] for row in measured],
                yerr=[summary["standard_errors_each_look"] * (row["margin_se"] or 0.0) for row in measured],
                fmt=marker,
                color=colour,
                markersize=7,
                capsize=2,
                linewidth=1,
                label=f"{label} ({len(measured) + len(bare)})",
            )
        if bare:
            axes.plot(
                bare,
                [0.02] * len(bare),
                "|",
                color=colour,
                markersize=9,
                transform=axes.get_xaxis_transform(),
                label=None if measured else f"{label} ({len(bare)})",
            )
    axes.axhline(0, color="#444444", linewidth=1)
    title, answer = "Nothing is certified within the budget", summary["answer"]
    if answer is not None:
        axes.axvline(answer["n_params"], color="#444444", linewidth=1, linestyle=":")
        confirmed = "" if answer["confirmed"] else " (not confirmed)"
        title = f"Smallest certified: {answer['size']}, {answer['n_params']:,} parameters{confirmed}"
    if rows:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(loc="best", frameon=False)
    axes.set_xlabel("parameters")
    threshold = WORDS.get(summary["threshold"], f"loss {summary['threshold']}")
    axes.set_ylabel(f"best margin to {threshold}\n(nats per token; bars: what certifies)", parse_math=False)
    axes.set_title(printable(title), loc="left", parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
