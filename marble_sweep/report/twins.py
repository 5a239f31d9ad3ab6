"""Runs that agree bit for bit though a parameter differs: that parameter did nothing, or nothing yet."""

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from marble_sweep.humanize import plain, some_of
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import RunStatus
from marble_sweep.runs.steps import NEWLINE

# Columns of metrics.csv that are no outcome: the clock's, what the run was given, and the share of the intended changes
# that were lost, to which a decay that is lost adds.
NO_OUTCOMES = ("tokens_per_second", "lr", "updates_lost")
MIN_STEPS = 10  # a shorter agreement is that of the first steps, before a parameter can act
MAX_NOTES = 5
# Settings that say when a run is looked at, how it is judged and where it runs; the same data may lie elsewhere.
NOT_OF_TRAINING = ("verdict.", "certify.", "search.", "sweep.", "device.", "data.", "recorder.", "objective", "seed")
OF_TRAINING = ("trainer.batch_size", "trainer.seq_len")  # of the trainer's settings


class Twin(NamedTuple):
    """A run and how the rows of its metrics.csv compare."""

    run: Run
    digests: dict[int, bytes]  # of the first so many rows, up to all of them
    agreement: int  # the first so many rows equal those of the longest twin


def twin_notes(runs: Sequence[Run], columns: Mapping[str, str]) -> list[str]:
    """A sentence for each parameter, or several at once, without an effect on all or on the first steps.

    `columns` are short names of the config keys that differ. Only runs whose row of an early step is the same, loss and
    metrics to the last digit, are read and compared row by row.
    """
    keys = {key: name for key, name in columns.items() if _acts_on_training(key)}
    if not keys:
        return []
    seeds_by_note: dict[str, list[Any]] = {}
    for cluster in _clusters(runs, MIN_STEPS):
        for note in _notes(cluster, keys):
            seeds_by_note.setdefault(note, []).append(cluster[0].config.get("seed"))
    notes = [
        note if len(seeds) == 1 else f"{note} So with each of {len(seeds)} seeds."
        for note, seeds in seeds_by_note.items()
    ]
    more = [f"And {len(notes) - MAX_NOTES} more sentences on runs that agree."] if len(notes) > MAX_NOTES else []
    return notes[:MAX_NOTES] + more


def _acts_on_training(key: str) -> bool:
    return key in OF_TRAINING or not key.startswith(("trainer.", *NOT_OF_TRAINING))


def _clusters(runs: Sequence[Run], step: int) -> list[list[Run]]:
    """Runs of one seed and size whose rows of `step` are equal, two or more in each."""
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        size = run.metadata.get("n_params"), run.corpus.get("sha256")
        alike.setdefault((run.config.get("seed"), *size), []).append(run)
    clusters: dict[tuple[Any, ...], list[Run]] = {}
    for key, members in alike.items():
        for run in members if len(members) > 1 else []:
            if row := run.steps.row(step):
                numbers = {column: value for column, value in row.items() if column not in NO_OUTCOMES}
                clusters.setdefault((*key, repr(numbers)), []).append(run)
    return [members for members in clusters.values() if len(members) > 1]


def _notes(cluster: Sequence[Run], keys: Mapping[str, str]) -> list[str]:
    """What is to be said of runs that agree at an early step: first of the longest."""
    if not _differing(cluster, keys):
        return []
    twins = _read(cluster)
    by_length = []
    noted = None
    for num_rows in sorted({run.steps.num_rows for run in cluster}):
        reaching = [twin for twin in twins if num_rows in twin.digests]
        by_length.append(_identical(reaching, num_rows, keys))
        first_to_differ = min([num_rows, *(twin.agreement for twin in reaching)])
        differing = _differing([twin.run for twin in reaching], keys)
        if differing and first_to_differ not in (num_rows, noted):
            by_length[-1].append(f"{'; '.join(differing)}: identical up to step {first_to_differ:,}.")
            noted = first_to_differ  # not again of the longer ones alone
    return [note for notes in reversed(by_length) for note in notes]


def _identical(twins: Sequence[Twin], num_rows: int, keys: Mapping[str, str]) -> list[str]:
    """What is to be said of twins that agree in `num_rows` rows, some of which have no more.

    Only of runs that finished there is it known that a parameter did nothing.
    """
    classes: dict[bytes, list[Run]] = {}
    for twin in twins:
        classes.setdefault(twin.digests[num_rows], []).append(twin.run)
    notes = []
    for identical in classes.values():
        ended = [run for run in identical if run.steps.num_rows == num_rows]
        without_effect = _differing([run for run in ended if run.status == RunStatus.FINISHED], keys)
        if without_effect:
            knobs = "this knob" if len(without_effect) == 1 else "these knobs"
            steps = f"{num_rows:,} of {num_rows:,} steps identical"
            notes.append(f"{'; '.join(without_effect)}: {steps}: {knobs} did nothing.")
        differing = _differing(identical, keys)
        if ended and differing and differing != without_effect:
            notes.append(f"{'; '.join(differing)}: identical in the first {num_rows:,} steps that they share.")
    return notes


def _read(cluster: Sequence[Run]) -> list[Twin]:
    lengths = sorted({run.steps.num_rows for run in cluster})
    longest = _text(max(cluster, key=lambda run: run.steps.num_rows))
    twins = []
    for run in cluster:
        text = _text(run)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == NEWLINE)  # of the rows, after that of no row
        digests, digest, begin = {}, hashlib.sha256(), 0
        for num_rows in lengths[: bisect.bisect_left(lengths, len(ends))]:
            digest.update(text[begin : ends[num_rows]])
            digests[num_rows], begin = digest.digest(), ends[num_rows]
        twins.append(Twin(run, digests, _rows_before_difference(text, longest)))
    return twins


def _text(run: Run) -> bytes:
    """The outcomes of all steps, with a newline before and after every row."""
    return run.steps.text_without(NO_OUTCOMES, run.steps.num_rows) + b"\n"


def _rows_before_difference(text: bytes, other: bytes) -> int:
    """The number of whole rows, a newline before and after each, in which two texts agree."""
    length = min(len(text), len(other))
    differs = np.frombuffer(text, np.uint8)[:length] != np.frombuffer(other, np.uint8)[:length]
    end = int(differs.argmax()) if differs.any() else length
    return max(0, text.count(b"\n", 0, end) - 1)


def _differing(runs: Sequence[Run], keys: Mapping[str, str]) -> list[str]:
    """As `weight_decay 0 and 0.01`, for each of the keys that all runs have, with different values."""
    texts = []
    for key, name in keys.items():
        values = {repr(run.config[key]): run.config[key] for run in runs if key in run.config}
        if len(values) > 1 and all(key in run.config for run in runs):
            *others, last = sorted(map(plain, values.values()), key=_by_size)
            texts.append(f"{name} {some_of(others)} and {last}")
    return texts


def _by_size(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return 0.0, text
