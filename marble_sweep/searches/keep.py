"""search.keep: which trials' tensors (weights, checkpoints, state, record) are removed, and when nobody needs them.

A trial may be retried, continued for another threshold, or become the answer. Until none of that can happen its tensors
stay, whatever search.keep says. Tables always stay.
"""

from pathlib import Path

from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.outcome import SearchResult
from marble_sweep.searches.study import result_of
from marble_sweep.searches.trial_record import STALE, TrialRecord

MAY_GO_ON = (RunStatus.RUNNING, RunStatus.FAILED, STALE)  # the last two are retried


def unneeded(result: SearchResult, *, is_over: bool) -> list[Path]:
    """The run directories of trials whose tensors go, as search.keep says.

    `is_over` means that nothing is left to try: then no trial is continued for another threshold, and no other answer
    will come.
    """
    keep = result.base.search.keep
    if keep == "all":
        return []
    kept = result.named_trials(is_over=is_over) if keep == "best" else set()
    latest = {configuration(record): record for record in result.records}
    busy = {key for key, record in latest.items() if may_go_on(record, is_over=is_over)}
    directories: dict[Path, bool] = {}  # whether someone needs it
    for trial, record in zip(result.trials, result.records, strict=True):
        if directory := result_of(trial).get("directory"):
            needed = record.number in kept or configuration(record) in busy
            directories[Path(directory)] = needed or directories.get(Path(directory), False)
    return [directory for directory, needed in directories.items() if not needed]


def configuration(record: TrialRecord) -> tuple[int, tuple[float, ...], int]:
    return record.size, record.recipe, record.seed


def may_go_on(record: TrialRecord, *, is_over: bool) -> bool:
    """Whether the latest trial of a configuration trains, or may be trained further."""
    is_open = any(standing.outcome is None for standing in record.standings.values())
    return record.outcome in MAY_GO_ON or (is_open and not is_over)
