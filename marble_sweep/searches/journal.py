"""The journal: a file of Optuna's records, one a line, that survives kills and damage.

A writer that is killed or meets a full disk leaves half a line. An editor, a power cut or another program leaves blank
lines, blocks of zeros, or two records on one line. Optuna then loses records or cannot read the file at all. Here every
whole record counts, wherever it stands, and a file that is not a journal is left as it is.
"""

import errno
import json
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.distributions import json_to_distribution
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

if sys.platform != "win32":
    import fcntl

LOCK_SECONDS = 0.005  # between two tries to take the journal's lock, where the system does not wake who waits
MAX_LINES_NAMED = 5  # damaged lines that the warning names
BLANK = "\0 \t\r\n"
CREATE_STUDY, DELETE_STUDY, CREATE_TRIAL, SET_STATE = 0, 1, 4, 6  # op codes

log = logging.getLogger(__name__)

Record = dict[str, Any]
Fields = dict[str, Callable[[Any], bool]]


class JournalError(ValueError):
    """Why a file is not a journal, or no longer one. The caller names the path."""


class JournalFile(JournalFileBackend):
    """A journal backend that reads every whole record, whatever stands between them."""

    def __init__(self, path: Path) -> None:
        """Open the journal; create it where the file is empty or missing.

        Raises JournalError where the file is not a journal, and OSError where it cannot be read or written.
        """
        if path.is_symlink() and not path.exists():
            raise JournalError("it is a link to nothing")
        self.path = Path(os.path.realpath(path))  # workers that use other names of the file share its lock
        if self.path.exists():
            if not self.path.is_file():
                raise JournalError("it is not a regular file")
            self._lost_trials = survey(self.path)
        else:
            self._lost_trials = {}
        super().__init__(str(self.path), RepairingFileLock(self.path))
        self._lock.acquire()  # raises now if the file cannot be written
        self._lock.release()
        self._warned = 0  # the last damaged line that the user was warned of
        self._begin()

    def _begin(self) -> None:
        self._offset = 0  # of the first unread line, in bytes
        self._line = 0  # lines read
        self._returned = 0  # records that read_logs has returned
        self._pending: deque[Record] = deque()  # read from the file, not returned yet

    def read_logs(self, log_number_from: int) -> Iterator[Record]:  # type: ignore[override]  # Optuna says Generator
        """The records from that number on. Optuna counts a record as soon as it is returned."""
        if log_number_from < self._returned:
            self._begin()
        self._read_lines()
        while self._pending:
            record = self._pending.popleft()
            self._returned += 1
            if self._returned > log_number_from:
                yield record

    def _read_lines(self) -> None:
        """Read the new whole lines. A line without its end may still be in writing."""
        damaged = []
        lines, _ = read_lines(self.path, self._offset)
        for line in lines:
            self._offset += len(line) + 1
            self._line += 1
            records, rest = split(line)
            self._pending.extend(self._lost_trials.get(self._line, []))
            self._pending.extend(records)
            if (rest or len(records) != 1) and self._line > self._warned:
                damaged.append(self._line)
        if damaged:
            self._warned = damaged[-1]
            named = ", ".join(map(str, damaged[:MAX_LINES_NAMED]))
            more = f" and {len(damaged) - MAX_LINES_NAMED} more" if len(damaged) > MAX_LINES_NAMED else ""
            which = f"line{'s' * (len(damaged) > 1)} {named}{more}"
            log.warning("%s: %s: damaged; every whole record is read, the rest is skipped", self.path, which)


def read_lines(path: Path, offset: int) -> tuple[list[bytes], bytes]:
    """The whole lines of a file from `offset` on, and what is left without an end.

    All is read at once. Otherwise half a line that is removed meanwhile might be read together with a later part of the
    record that takes its place. Raises JournalError where the file ends before.
    """
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        if size < offset:
            raise JournalError("it has become shorter: another program has changed it")
        file.seek(offset)
        *lines, rest = (file.read(size - offset) or b"").split(b"\n")
    return lines, rest


def is_on_disk(descriptor: int) -> bool:
    """Whether a file is on a block device. Linux gives what has none, such as NFS, a device number with major 0."""
    return sys.platform == "linux" and os.major(os.fstat(descriptor).st_dev) != 0


def wait_for_flock(path: str) -> int | None:
    """Take the lock that filelock takes on a file, and be woken for it by the system; returns its descriptor.

    filelock looks for it again and again: with 16 workers on two cores that took a third of the time. None where it
    must be left to filelock: the file is not there yet, the system has no flock, or the file is not on a disk of this
    machine. NFS would wake a waiter after a second or more.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    if not is_on_disk(descriptor):
        os.close(descriptor)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno == errno.ENOSYS:
            return None
        raise
    return descriptor


class RepairingFileLock(JournalFileSymlinkLock):
    """The lock that every append takes. Acquiring it repairs the end of the file, so that it ends in a whole line.

    The system releases it when its holder dies. Optuna's own locks are files that stay behind: they stop every worker
    for half a minute, or for ever where the journal's path is relative.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self.lock = FileLock(path.with_name(f".{path.name}.lock"), poll_interval=LOCK_SECONDS)
        self._descriptor: int | None = None  # of the lock's file, while it is held without filelock

    def acquire(self) -> bool:
        self._descriptor = wait_for_flock(self.lock.lock_file)
        if self._descriptor is None:
            self.lock.acquire()
        try:
            self._repair()
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        if self._descriptor is None:
            self.lock.release()
        else:
            descriptor, self._descriptor = self._descriptor, None
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile may have the file open too
            os.close(descriptor)

    def _repair(self) -> None:
        with self.path.open("rb+") as file:
            size = file.seek(0, 2)
            if size == 0:
                return
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return
            survey(self.path)  # another file may have replaced the journal
            file.seek(0)
            whole = file.read()
            start = whole.rfind(b"\n") + 1
            records, _ = split(whole[start:])
            if records:
                file.write(b"\n")
            else:
                file.truncate(start)  # no worker has read it: it was never whole


# ------------------------------------------------------------------------- records


def is_one_attribute(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def is_index(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_state(value: Any) -> bool:
    return value in list(TrialState)


def is_time(value: Any) -> bool:
    return value is None or bool(datetime.fromisoformat(value))


def is_distribution(value: Any) -> bool:
    return bool(json_to_distribution(value))


def are_directions(value: Any) -> bool:
    return isinstance(value, list) and all(direction in list(StudyDirection) for direction in value)


def are_values(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(is_number, value)))


STUDY: Fields = {"study_id": is_index}
TRIAL: Fields = {"trial_id": is_index}
# The fields of every operation, by its code, with what they must be for Optuna to apply it.
OPERATIONS: dict[int, Fields] = {
    CREATE_STUDY: {"study_name": is_text, "directions": are_directions},
    DELETE_STUDY: STUDY,
    2: STUDY | {"user_attr": is_one_attribute},
    3: STUDY | {"system_attr": is_one_attribute},
    CREATE_TRIAL: STUDY | {"datetime_start": is_time},
    5: TRIAL | {"param_name": is_text, "param_value_internal": is_number, "distribution": is_distribution},
    SET_STATE: TRIAL | {"state": is_state, "values": are_values},
    7: TRIAL | {"step": is_index, "intermediate_value": is_number},
    8: TRIAL | {"user_attr": is_one_attribute},
    9: TRIAL | {"system_attr": is_one_attribute},
    10: {},
}
START = re.compile(r'\{\s*"op_code"\s*:')
TORN_START = b'{"op_code":0,"worker_id":"'  # of a new journal's first line: a kill may leave only a part of it
DECODER = json.JSONDecoder()


def is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("worker_id"), str):
        return False
    code = value.get("op_code")
    if not isinstance(code, int) or code not in OPERATIONS:
        return False
    try:
        sound = all(name in value and check(value[name]) for name, check in OPERATIONS[code].items())
        if sound and code == SET_STATE and value["state"] != TrialState.WAITING:
            running = value["state"] == TrialState.RUNNING
            return is_time(value["datetime_start" if running else "datetime_complete"])
        return sound
    except (ValueError, TypeError, KeyError):  # of a time or a distribution
        return False


def split(line: bytes) -> tuple[list[Record], str]:
    """The whole records of a line, and what else stands there."""
    text = line.decode("utf-8", "replace")
    records, rest, position, start = [], "", 0, START.search(text)
    while start:
        try:
            value, end = DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            value, end = None, 0
        if is_record(value) and "\ufffd" not in text[start.start() : end]:  # otherwise some of its bytes are not UTF-8
            records.append(value)
            rest += text[position : start.start()]
            position = end
        start = START.search(text, max(position, start.end()))
    return records, (rest + text[position:]).strip(" \t\r\n")


def survey(path: Path) -> dict[int, list[Record]]:
    """Check that a file is a journal; returns replacements for lost records that created trials, by line.

    Optuna numbers trials in the order of these records: without one of them, all later trials would get the results of
    others. Where later records name more trials than were created, a damaged line counts as such a record.

    Raises JournalError where the file is not a journal, or a lost record cannot be replaced.
    """
    history, sound, foreign = _History(), 0, []
    lines, without_end = read_lines(path, 0)
    for number, line in enumerate(lines, 1):
        records, rest = split(line)
        if rest:
            history.add_damaged(number, rest)
        for record in records:
            history.add(number, record)
        sound += bool(records)
        if not records and rest.strip(BLANK):
            foreign.append(number)
    if not lines:
        sound = without_end.startswith(TORN_START) or bool(split(without_end)[0])
    if (lines or without_end) and (not sound or len(foreign) > sound):
        raise JournalError(f"line {foreign[0] if foreign else 1} is not a record of an Optuna journal")
    return history.lost_trials


class _History:
    """Counts studies and trials as Optuna does when it reads a journal."""

    def __init__(self) -> None:
        self.studies: dict[int, str] = {}
        self.num_studies = 0
        self.num_trials = 0
        self.halves: list[int] = []  # lines with a part of a record that creates a trial
        self.damaged: list[int] = []  # other damaged lines
        self.lost_trials: dict[int, list[Record]] = {}

    def add_damaged(self, line: int, rest: str) -> None:
        """Count a line that holds more than whole records."""
        (self.halves if f'"op_code":{CREATE_TRIAL},' in rest else self.damaged).append(line)

    def add(self, line: int, record: Record) -> None:
        code = record["op_code"]
        if code == CREATE_STUDY:
            if record["study_name"] not in self.studies.values():
                self.studies[self.num_studies] = record["study_name"]
                self.num_studies += 1
            return
        if "study_id" in record and record["study_id"] >= self.num_studies:
            raise JournalError(f"line {line} is of a study that no line before it creates: that line is lost")
        if code == DELETE_STUDY:
            self.studies.pop(record["study_id"], None)
        elif code == CREATE_TRIAL:
            self.num_trials += record["study_id"] in self.studies
        while record.get("trial_id", -1) >= self.num_trials:
            candidates = self.halves or self.damaged
            if not candidates or self.num_studies != 1:
                raise JournalError(f"line {line} is of a trial that no line before it creates: that line is lost")
            begun = {"op_code": CREATE_TRIAL, "worker_id": "", "study_id": 0, "datetime_start": None}
            self.lost_trials.setdefault(candidates.pop(), []).append(begun)
            self.num_trials += 1
