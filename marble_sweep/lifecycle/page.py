"""`lifecycle.html`: the life of the tokens of one run, or of two in lockstep, in one file that opens offline.

The script draws on canvases itself instead of using Plotly, as the comparison page does: Plotly alone is 4.8 MB of the
20 MB that a page may have, and took 183 ms to redraw the points of one view, where a step of the animation has 40 ms
(docs/LOG.md).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from marble_sweep.checks import require
from marble_sweep.lifecycle.choose import MAX_FRAMES, choose_frames, choose_tokens
from marble_sweep.lifecycle.frames import Frames
from marble_sweep.lifecycle.packing import LARGEST, encode, encode_steps, pack_logarithms, pack_range
from marble_sweep.lifecycle.panels import (
    CLOSE_UP,
    COLOURS,
    LABELS,
    LINES,
    LIVE,
    Panel,
    axis_labels,
    cells_in,
    curves,
    panels,
)
from marble_sweep.lifecycle.result import PHASES, Lifecycle
from marble_sweep.lifecycle.sentences import describe
from marble_sweep.runs.files import write_text
from marble_sweep.terminal import printable

MAX_BYTES = 20_000_000  # of a page
FRAME_BYTES = 16_000_000  # of them for what grows with frames times tokens
BYTES_A_POINT = 8  # of a token in a frame: three 16-bit numbers, four bytes of base64 for three
MAX_CURVE = 1_000  # points of a curve
MAX_TEXT = 32  # characters of a token's text


def write_page(path: Path, runs: Sequence[tuple[Lifecycle, Frames, str]]) -> None:
    """Write the page of one run or two, whole or not at all; it has less than MAX_BYTES whatever the runs' lengths.

    Each run is its lifecycle, its frames and its title. Raises ValueError for any other number of runs, and OSError
    where the page cannot be written.
    """
    require(len(runs) in (1, 2), "runs", len(runs), "1 or 2: a page shows one run, or two side by side")
    environment = Environment(
        loader=PackageLoader("marble_sweep.lifecycle", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    shown = [
        {"letter": letter} | run_data(lifecycle, frames, title, FRAME_BYTES // len(runs))
        for letter, (lifecycle, frames, title) in zip("AB", runs, strict=False)
    ]
    page = environment.get_template("lifecycle.html.j2").render(
        runs=shown,
        labels=LABELS,
        colours=COLOURS,
        live=LIVE,
        data={"phases": PHASES, "colours": COLOURS, "live": LIVE, "lines": LINES, "runs": shown},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def run_data(lifecycle: Lifecycle, frames: Frames, title: str, max_bytes: int) -> dict[str, Any]:
    """What the page shows of one run."""
    recorded = lifecycle.tokens[lifecycle.tokens["token"].isin(frames.tokens)]
    tokens = choose_tokens(recorded)
    max_frames = min(MAX_FRAMES, max_bytes // (BYTES_A_POINT * max(1, len(tokens))))
    rows = choose_frames(frames.frame_steps, max_frames)
    epochs = lifecycle.epochs[["start", "end", "kind"]]
    packed = frame_data(frames, rows, tokens)
    return {
        "title": printable(title),
        "sentences": describe(lifecycle),
        "note": note_of(packed, frames.frame_steps, rows),
        "tokens": token_data(tokens),
        "num_dead": int(lifecycle.tokens["is_dead"].sum()),
        "num_live": int((~tokens["is_dead"]).sum()),
        "frames": packed,
        "last_step": int(frames.frame_steps[-1]),
        "cells": cells_in(lifecycle),
        "axes": axis_labels(lifecycle),
        "panels": [panel_data(lifecycle, panel) for panel in panels(lifecycle)],
        "epochs": [[int(start), int(end), str(kind)] for start, end, kind in epochs.to_numpy().tolist()],
    }


def panel_data(lifecycle: Lifecycle, panel: Panel) -> dict[str, Any]:
    """A chart and its curves, at up to MAX_CURVE of the steps, most of them early; as measured, no means."""
    known = curves(lifecycle, panel)
    rows = known.iloc[choose_frames(known.index.to_numpy(), MAX_CURVE)]
    with np.errstate(over="ignore"):
        columns = {name: encode(rows[name].to_numpy(), "f4") for name in rows.columns}
    return dataclasses.asdict(panel) | {"steps": encode(rows.index.to_numpy(), "i4"), "curves": columns}


def token_data(tokens: pd.DataFrame) -> dict[str, Any]:
    """The tokens' tables, the dead first. The phases over the steps follow from the last step of each phase."""
    steps = ("last_early", "last_midlife", "last_late", "last_motion", "freeze_step")
    return {
        "num_dead": int(tokens["is_dead"].sum()),
        "ids": encode(tokens["token"].to_numpy(), "i4"),
        "texts": [token_text(text) for text in tokens["text"]],
        **{name: encode_steps(tokens[name]) for name in steps},
        "censored": encode(tokens["censored"].to_numpy(), "u1"),
        "straggler": encode(tokens["is_straggler"].to_numpy(), "u1"),
    }


def token_text(text: Any) -> str | None:
    """A token's text, harmless and of bounded length; None where it has none."""
    if not isinstance(text, str) or not text:
        return None
    shown = printable(text)
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


def frame_data(frames: Frames, rows: NDArray[np.int64], tokens: pd.DataFrame) -> dict[str, Any]:
    """Positions and traces of the chosen frames and tokens.

    Dead tokens are held relative to their centroid: the cloud is a hundred times smaller than its path, and would be
    seen in steps of the resolution otherwise.
    """
    column = {int(token): number for number, token in enumerate(frames.tokens)}
    order = np.array([column[int(token)] for token in tokens["token"]], dtype=np.int64)
    num_dead = int(tokens["is_dead"].sum())
    shown: dict[str, Any] = {
        "steps": encode(frames.frame_steps[rows], "i4"),
        "traces": pack_logarithms(mean_traces(frames.traces, rows, frames.frame_steps)[:, order]),
    }
    if not np.isfinite(frames.positions).any():
        return shown | {"centroid": None}
    positions = frames.positions[rows][:, order].astype(np.float32)
    dead, live = positions[:, :num_dead], positions[:, num_dead:]
    centroid = mean_of_finite(dead)
    around = dead - centroid[:, None]
    distances = np.abs(around[np.isfinite(around)])
    return shown | {
        "centroid": encode(centroid, "f4"),
        "dead": pack_range(around),
        "live": pack_range(live),
        "reach": float(np.quantile(distances, CLOSE_UP)) if distances.size else 0.0,
    }


def mean_traces(traces: NDArray[np.float32], rows: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float32]:
    """Traces of the chosen frames (F', P): means since the chosen frame before, over those that are left out."""
    gaps = np.diff(steps, prepend=steps[0])
    so_far = np.cumsum(traces * gaps[:, None], axis=0, dtype=np.float64)[rows]
    with np.errstate(invalid="ignore"):
        means = np.diff(so_far, axis=0, prepend=0) / np.maximum(np.diff(steps[rows], prepend=steps[0]), 1)[:, None]
    return means.astype(np.float32)


def mean_of_finite(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean position in every frame, (F, 2); 0 where none is finite."""
    finite = np.isfinite(positions).all(axis=2, keepdims=True)
    total = np.where(finite, positions, 0).sum(axis=1, dtype=np.float64)
    return (total / np.maximum(finite.sum(axis=1), 1)).astype(np.float32)


def note_of(shown: dict[str, Any], steps: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    """How exact the page is, for its foot."""
    sentence = f"{len(rows):,} steps from {steps[0]:,} to {steps[-1]:,} are on the slider"
    if shown["centroid"] is None:
        return f"{sentence}. Curves are values at single steps, not means."
    dead, live = ((shown[part]["high"] - shown[part]["low"]) / LARGEST / 2 for part in ("dead", "live"))
    of_live = f", of live tokens to {live:.0e}" if live else ""
    return (
        f"{sentence}. Positions of dead tokens around their centroid are exact to {dead:.0e} weight units{of_live}. "
        "Curves are values at single steps, not means."
    )
