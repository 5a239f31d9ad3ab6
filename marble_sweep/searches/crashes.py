"""Which crashes every trial would meet: such an error ends the search at once.

A crash during training may be due to the size, and so may too little memory for the model. But before a model is
built, a run reads its corpus, takes its device and cuts its batches. What our own checks refuse there, they refuse in
every trial, unless the search varies what the check depends on.
"""

import builtins
import re
from collections.abc import Iterable

from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.study import Result

COMPLAINT = re.compile(r"([\w.]+) = .*: must be ", re.DOTALL)  # the form of checks.require
DEPENDS_ON = {  # the group of the refused field: the keys that the check depends on
    "data": ("data", "trainer.seq_len"),
    "device": ("device", "precision"),
    "precision": ("device", "precision"),
    "trainer": ("data", "trainer"),
}
NO_PROCESS = (ValueError, OSError, MemoryError, EOFError)  # what a process that cannot start raises
DIED_AT_START = "before it had a directory"  # the words of sweeps/jobs.py


def shared_error(result: Result, searched: Iterable[str], *, nothing_trained: bool) -> str | None:
    """The error in one line where every trial would meet it; None where it may concern this trial alone.

    `searched` are the keys that differ between trials. Once a trial has trained, the device and the batch size are
    known to work; a corpus may still disappear.
    """
    if result.outcome != RunStatus.FAILED or result.stage == "training":
        return None
    reason = result.reason or ""
    kind, _, text = reason.partition(": ")
    error_type = getattr(builtins, kind, None)
    raised = error_type if isinstance(error_type, type) else None
    line = " ".join((text or kind).split())
    if result.stage == "start":
        no_process = DIED_AT_START in reason or (raised is not None and issubclass(raised, NO_PROCESS))
        return f"a trial's process cannot start: {line}" if no_process else None
    if complaint := COMPLAINT.match(text):
        group = complaint[1].partition(".")[0]
        if group not in DEPENDS_ON or not (nothing_trained or group == "data"):
            return None
    elif raised is not None and issubclass(raised, OSError):
        group = "data"
    else:
        return None
    return None if _any_below(searched, DEPENDS_ON[group]) else line


def _any_below(keys: Iterable[str], prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for key in keys for prefix in prefixes)
