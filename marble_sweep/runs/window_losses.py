"""The losses of single held-out windows: windows.csv says which they are, window_losses.csv has a row an evaluation.

Plain CSV, as evals.csv is: a row is appended, and a resumed run drops and checks rows by the same code.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marble_sweep.runs import layout
from marble_sweep.runs.damage import DamageError, open_file, read_text
from marble_sweep.runs.files import write_text

MAX_DIGITS = 15  # of a document's number
MAX_LINE = 1 << 24  # bytes; a million windows take ten times less
HEADER = "window,document"


class HeldOut(NamedTuple):
    """The held-out windows that a run is evaluated on."""

    numbers: NDArray[np.int64]  # (num_windows,) of the windows in the held-out split, ascending
    documents: NDArray[np.int64] | None  # (num_windows,) the document of each; None: unknown


class Evaluation(NamedTuple):
    """One evaluation, window by window."""

    numbers: str  # of the windows, as the file has them
    losses: NDArray[np.float64]  # (num_windows,) in nats per token


def write_windows(path: Path, held_out: HeldOut) -> None:
    """Write the number of each window, and its document if that is known."""
    documents = [""] * len(held_out.numbers) if held_out.documents is None else map(str, held_out.documents)
    rows = [f"{number},{document}" for number, document in zip(held_out.numbers, documents, strict=True)]
    write_text(path, "\n".join([HEADER, *rows]) + "\n")


def read_documents(directory: Path, numbers: str) -> NDArray[np.int64] | None:
    """The document (num_windows,) of each window, which have these `numbers`; None where they are unknown.

    Raises FileNotFoundError, or DamageError for a file that does not say it.
    """
    header, *lines = read_text(directory / layout.WINDOWS).removesuffix("\n").split("\n")
    fields = [line.partition(",") for line in lines]
    if header != HEADER or ",".join(number for number, _, _ in fields) != numbers:
        raise DamageError(f"must be the columns {HEADER}, of the windows in {layout.WINDOW_LOSSES}")
    documents = [document for _, _, document in fields]
    if not any(documents):
        return None
    if not all(document.isdecimal() and len(document) <= MAX_DIGITS for document in documents):
        raise DamageError("must have whole numbers as documents")
    return np.array(documents, dtype=np.int64)


def read_window_losses(directory: Path, step: int) -> Evaluation | None:
    """The evaluation at `step`; None where there is none. Half a last row does not count.

    Raises FileNotFoundError, or DamageError where the header or the row is not what it should be.
    """
    with open_file(directory / layout.WINDOW_LOSSES) as file:
        names = file.readline(MAX_LINE).decode("ascii", errors="replace")
        first, _, numbers = names.removesuffix("\n").partition(",")
        if first != "step" or not all(number.isdecimal() for number in numbers.split(",")):
            raise DamageError("line 1: must be step, then the number of each window")
        begin = f"{step},".encode()
        while (line := file.readline(MAX_LINE)).endswith(b"\n"):
            if line.startswith(begin):
                return Evaluation(numbers, _losses(line[len(begin) :], step, numbers.count(",") + 1))
    return None


def _losses(text: bytes, step: int, num_windows: int) -> NDArray[np.float64]:
    try:
        losses = np.array([float(field or math.nan) for field in text.strip().split(b",")])
    except ValueError:
        raise DamageError(f"step {step}: must be numbers") from None
    if len(losses) != num_windows or not np.isfinite(losses).all():
        raise DamageError(f"step {step}: must be {num_windows} finite numbers")
    return losses
