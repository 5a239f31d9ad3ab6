"""Runs that agree bit for bit though a parameter differs: that parameter did nothing, or nothing yet."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from marble_sweep.humanize import plain, some_of
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import UNFINISHED

# Columns of metrics.csv that are no outcome: the clock's, what the run was given, and the share of the intended changes
# that were lost, to which a decay that is lost adds.
NO_OUTCOMES = ("tokens_per_second", "lr", "updates_lost")
MIN_STEPS = 10  # a shorter agreement is that of the first steps, before a parameter can act
MAX_NOTES = 5
# Settings that say when a run is looked at, how it is judged and where it runs; the same data may lie elsewhere.
NOT_OF_TRAINING = ("verdict.", "certify.", "search.", "sweep.", "device.", "data.", "objective", "seed")
OF_TRAINING = ("trainer.batch_size", "trainer.seq_len")  # of the trainer's settings


class Twin(NamedTuple):
    """A run and the rows of its metrics.csv up to the last step that it shares with its twins."""

    run: Run
    digest: bytes
    agreement: int  # the first so many rows equal those of the first twin


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
    """What is to be said of runs that agree at an early step."""
    if not _differing(cluster, keys):
        return []
    num_rows = min(run.steps.num_rows for run in cluster)
    twins = _read(cluster, num_rows)
    notes = []
    for digest, count in Counter(twin.digest for twin in twins).items():
        identical = [twin.run for twin in twins if twin.digest == digest]
        if count > 1 and (differing := _differing(identical, keys)):
            knobs = "this knob" if len(differing) == 1 else "these knobs"
            so_far = " so far" if any(run.status in UNFINISHED for run in identical) else ""
            steps = f"{num_rows:,} of {num_rows:,} steps identical"
            notes.append(f"{'; '.join(differing)}: {steps}: {knobs} did nothing{so_far}.")
    first_to_differ = min(twin.agreement for twin in twins)
    if first_to_differ < num_rows:
        notes.append(f"{'; '.join(_differing(cluster, keys))}: identical up to step {first_to_differ:,}.")
    return notes


def _read(cluster: Sequence[Run], num_rows: int) -> list[Twin]:
    first = cluster[0].steps.text_without(NO_OUTCOMES, num_rows)
    twins = []
    for run in cluster:
        text = run.steps.text_without(NO_OUTCOMES, num_rows)
        agreement = num_rows if text == first else _rows_before_difference(text, first)
        twins.append(Twin(run, hashlib.sha256(text).digest(), agreement))
    return twins


def _rows_before_difference(text: bytes, other: bytes) -> int:
    """The number of whole rows, a newline before each, in which two different texts agree."""
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
