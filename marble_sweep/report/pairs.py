"""Whether the settings of a comparison differ, tested pair by pair on the same held-out windows."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marble_sweep.humanize import counted, some_of
from marble_sweep.report.headline import labels
from marble_sweep.report.summary import Comparison, Row, common_step, eval_part, holds_nothing_out
from marble_sweep.report.table import Table
from marble_sweep.runs import layout
from marble_sweep.runs.damage import DamageError
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import RunStatus
from marble_sweep.runs.window_losses import read_documents, read_window_losses
from marble_sweep.uncertainty.pairs import holm, paired_difference

MAX_ALL_PAIRS = 5  # settings: with more, only the pairs with the best one are shown
LEVEL = 0.05  # of the corrected p, below which a difference is beyond noise
COLUMNS = ("setting", "other", "n", "n_other", "difference", "df", "p", "p_corrected", "result")
ONE_SEED = (
    "A pair with n = 1 on both sides is about these two trained models, not about their settings: with other seeds the "
    "difference may be another."
)
SPREAD_LENT = "A side with n = 1 is taken to spread over seeds as the other one does."


class Setting(NamedTuple):
    """The runs of one setting."""

    label: str
    losses: NDArray[np.float64]  # (num_runs, num_windows) in nats per token, no two runs the same


class Windows(NamedTuple):
    """What makes the held-out windows of two runs the same text."""

    corpus: str | None
    seq_len: int | None
    numbers: str
    part: str


def compare_pairs(comparison: Comparison, groups: Sequence[Row]) -> Table:
    """Test the settings of grouped rows: all pairs of up to MAX_ALL_PAIRS settings, else the pairs with the best one.

    Where all runs are of one setting, the runs are compared as settings of their own. Runs of a setting whose losses
    are identical count once. Runs on other windows than most, or without losses by window, are left out, with a line
    for each reason.
    """
    groups = groups if len(groups) > 1 else comparison.rows
    step = common_step(comparison.runs) if comparison.stopping else comparison.step
    if step is None:
        return Table(COLUMNS, [], ["No pair tests: there is no step at which all runs have an evaluation."])
    losses, numbers, left_out = _read(comparison.runs, step)
    notes = [f"Not in the pair tests: {some_of(paths)}: {reason}." for reason, paths in left_out.items()]
    settings = []
    for label, group in zip(labels(comparison, groups), groups, strict=True):
        known = [losses[path] for path in group.get("runs", [group["run"]]) if path in losses]
        if distinct := {values.tobytes(): values for values in known}:
            settings.append(Setting(label, np.array(list(distinct.values()))))
    if len(settings) < 2:
        what = "2 runs" if len(comparison.runs) < 2 else "2 settings with losses by window"
        return Table(COLUMNS, [], [*notes, f"No pair tests: they need {what}."])
    documents, damages = _read_documents([run.path for run in comparison.runs if str(run.path) in losses], numbers)
    settings.sort(key=lambda setting: setting.losses.mean())
    rows = tested_pairs(settings, documents)
    return Table(COLUMNS, rows, [*_explain(settings, rows, step), *damages, *notes])


def tested_pairs(settings: Sequence[Setting], documents: NDArray[np.int64] | None) -> list[Row]:
    """A row for each pair to show of settings in the order of their losses.

    p is corrected for all pairs, shown or not: which is the best, and so which pairs are shown, the same losses decide.
    """
    best, *others = settings
    few = len(settings) <= MAX_ALL_PAIRS
    pairs = list(itertools.combinations(settings, 2)) if few else [(best, other) for other in others]
    differences = [paired_difference(first.losses, second.losses, documents) for first, second in pairs]
    corrected = holm([difference.p for difference in differences], math.comb(len(settings), 2))
    return [
        {
            "setting": first.label,
            "other": second.label,
            "n": len(first.losses),
            "n_other": len(second.losses),
            "difference": difference.mean,
            "difference_se": _known(difference.error),
            "df": _known(difference.df),
            "p": _known(difference.p),
            "p_corrected": _known(p),
            "result": _result(first, second, p),
        }
        for (first, second), difference, p in zip(pairs, differences, corrected, strict=True)
    ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _result(lower: Setting, higher: Setting, p: float) -> str:
    if math.isnan(p):
        return "not measured"
    if np.array_equal(lower.losses, higher.losses):
        return "identical"
    return f"{lower.label} is lower" if p < LEVEL else "within noise"


def _explain(settings: Sequence[Setting], rows: Sequence[Row], step: int) -> list[str]:
    num = len(settings)
    which = "Every pair of settings" if num <= MAX_ALL_PAIRS else "The best setting with every other"
    windows = counted(settings[0].losses.shape[1], "held-out window")
    notes = [
        f"{which} at step {step:,}, on the same {windows}: difference of held-out loss, in nats per token, ± its "
        "standard error."
    ]
    if num > 2:
        num_pairs = math.comb(num, 2)
        notes.append(f"p_corrected is p corrected for all {num_pairs:,} pairs of {num:,} settings (Holm).")
    notes.append(f"A difference whose p_corrected is {LEVEL} or more is within noise.")
    sides = [{row["n"] == 1, row["n_other"] == 1} for row in rows]
    if {True} in sides:
        notes.append(ONE_SEED)
    if {True, False} in sides:
        notes.append(SPREAD_LENT)
    if any(row["result"] == "not measured" for row in rows):
        notes.append("Not measured: the windows depend on each other over too many of them.")
    return notes


def _read(runs: Sequence[Run], step: int) -> tuple[dict[str, NDArray[np.float64]], str, dict[str, list[str]]]:
    """The losses by window of the runs on the same windows as most, and the windows' numbers as the file has them.

    And the other runs, by why they are left out.
    """
    losses: dict[str, NDArray[np.float64]] = {}
    windows: dict[str, Windows] = {}
    left_out: dict[str, list[str]] = {}
    for run in runs:
        path = str(run.path)
        if holds_nothing_out(run):
            left_out.setdefault("nothing is held out (data.val_fraction = 0)", []).append(path)
            continue
        try:
            read = None if run.status == RunStatus.DAMAGED else read_window_losses(run.path, step)
        except FileNotFoundError:
            reason = f"has no {layout.WINDOW_LOSSES}, which earlier versions did not write"
        except DamageError as error:
            reason = f"{layout.WINDOW_LOSSES}: {error}"
        else:
            if read is not None:
                corpus, seq_len = run.corpus.get("sha256"), run.config.get("trainer.seq_len")
                windows[path], losses[path] = Windows(corpus, seq_len, read.numbers, eval_part(run)), read.losses
                continue
            damaged = run.status == RunStatus.DAMAGED
            reason = "is damaged" if damaged else f"has no losses by window at step {step:,}"
        left_out.setdefault(reason, []).append(path)
    if not windows:
        return {}, "", left_out
    usual = Counter(windows.values()).most_common(1)[0][0]
    for path, others in windows.items():
        if others != usual:
            del losses[path]
            left_out.setdefault(_what_differs(others, usual), []).append(path)
    return losses, usual.numbers, left_out


def _what_differs(windows: Windows, usual: Windows) -> str:
    if windows.corpus != usual.corpus:
        return "is on another corpus than most"
    if windows.part != usual.part:
        return f"is on other held-out windows than most (trainer.eval_part {windows.part}, not {usual.part})"
    return "is on other held-out windows than most (trainer.seq_len or trainer.eval_windows)"


def _read_documents(directories: Sequence[Path], numbers: str) -> tuple[NDArray[np.int64] | None, list[str]]:
    """The documents of the windows of these numbers, from the first run that has them; a line where none has."""
    reason = ""
    for directory in directories:
        try:
            return read_documents(directory, numbers), []
        except FileNotFoundError:
            reason = "is missing"
        except DamageError as error:
            reason = str(error)
    return None, [f"{directories[-1] / layout.WINDOWS}: {reason}: blocks of windows stand for documents."]
