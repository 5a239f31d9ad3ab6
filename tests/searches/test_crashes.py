"""Which errors end a search at once, and which concern one trial alone."""

from dataclasses import replace

import pytest
from studies import made_up

from marble_sweep.searches.crashes import shared_error
from marble_sweep.searches.study import Result

SEARCHED = ("model.num_layers", "model.hidden_dim", "optimizer.lr")
MISSING = "data.path = 'a.txt': must be a file, a glob, or a folder with .txt or .md files"
BATCH = "trainer.batch_size = 9999: must be <= 1125, the training windows of 16 tokens (trainer.seq_len)"
DEVICE = "device.type = cuda: must be auto or one that is there: cpu"
MEMORY = "model.hidden_dim = 65536: must be such that the model fits into 16 GB"


def crash(reason: str, stage: str, field: str | None = None) -> Result:
    return replace(made_up("failed", step=0, margin=None), reason=reason, stage=stage, field=field)


def refused(complaint: str) -> Result:
    return crash(f"CheckError: {complaint}", "setup", complaint.partition(" = ")[0])


@pytest.mark.parametrize("complaint", [MISSING, BATCH, DEVICE])
def test_an_error_that_all_trials_share_ends_a_search(complaint: str) -> None:
    error = shared_error(refused(complaint), SEARCHED, nothing_trained=True)
    assert error == complaint


@pytest.mark.parametrize(
    ("complaint", "searched"),
    [
        (MISSING, "data.path"),
        (MISSING, "data"),
        (BATCH, "trainer.batch_size"),
        (BATCH, "trainer.seq_len"),
        (BATCH, "data.vocab_size"),
        (DEVICE, "device"),
        (MEMORY, "model.hidden_dim"),
    ],
)
def test_an_error_that_depends_on_a_searched_key_concerns_one_trial(complaint: str, searched: str) -> None:
    result = refused(complaint)
    assert shared_error(result, (*SEARCHED, searched), nothing_trained=True) is None


def test_once_a_trial_has_trained_only_the_corpus_can_go_missing() -> None:
    for complaint, expected in ((MISSING, MISSING), (BATCH, None), (DEVICE, None)):
        result = refused(complaint)
        assert shared_error(result, SEARCHED, nothing_trained=False) == expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (
            "OSError: [Errno 12] Cannot allocate memory",
            "a trial's process cannot start: [Errno 12] Cannot allocate memory",
        ),
        ("MemoryError: ", "a trial's process cannot start: MemoryError"),
        (
            "RuntimeError: job 0: its process ended with SIGKILL before it had a directory",
            "a trial's process cannot start: job 0: its process ended with SIGKILL before it had a directory",
        ),
        ("UncompletedJobError: the node went away", None),  # of a launcher; the next job may get another node
        ("no further job is started (sweep.max_failures)", None),
    ],
)
def test_a_process_that_cannot_start_ends_a_search(reason: str, expected: str | None) -> None:
    assert shared_error(crash(reason, "start"), SEARCHED, nothing_trained=False) == expected


@pytest.mark.parametrize(
    ("reason", "stage"),
    [
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory", "setup"),  # for a model of this size
        ("MemoryError: ", "setup"),
        ("its process ended with SIGKILL, as the system does when memory runs out", "training"),
        ("ValueError: something = 3: must be otherwise", "training"),
        (f"ValueError: {MISSING}", "setup"),  # whatever it says, it is not one of our own checks
        ("OSError: [Errno 5] Input/output error", "training"),
    ],
)
def test_other_crashes_concern_one_trial(reason: str, stage: str) -> None:
    assert shared_error(crash(reason, stage), SEARCHED, nothing_trained=True) is None


def test_only_crashes_end_a_search() -> None:
    assert shared_error(made_up("below"), SEARCHED, nothing_trained=False) is None


def test_a_full_disk_ends_a_search_in_one_line() -> None:
    result = crash("OSError: [Errno 28] No space left\n on device", "setup")
    assert shared_error(result, SEARCHED, nothing_trained=False) == "[Errno 28] No space left on device"
