"""A damaged journal keeps every whole record; a file that is not a journal is left as it is."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial

from marble_sweep.searches.journal import JournalError, JournalFile
from marble_sweep.searches.storage import open_storage

NAME = "study"
TRIALS = 3


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real one, of two workers that take turns."""
    path = tmp_path_factory.mktemp("journal") / "study.log"
    optuna.create_study(storage=open_storage(str(path)), study_name=NAME)
    workers = [optuna.load_study(storage=open_storage(str(path)), study_name=NAME) for _ in range(2)]
    trials = [workers[number % 2].ask() for number in range(TRIALS)]
    for number, trial in enumerate(trials):
        trial.suggest_float("lr", 1e-3, 1, log=True)
        trial.set_user_attr("plan", {"size": number, "recipe": [1.0], "reason": "ünter\n{}"})
        trial.report(0.5, 10)
        trial.study.tell(trial, float(number))
    return path.read_bytes()


def records(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def study_of(path: Path) -> optuna.Study:
    return optuna.load_study(storage=JournalStorage(JournalFile(path)), study_name=NAME)


# -------------------------------------------------------------------------- damage

FOREIGN = st.sampled_from(
    [b"thesis", b'{"a": 1}', b"17", b"null", b'{"op_code":99,"worker_id":"x"}', b"\xff\xfe\x00", b"{"]
)
INSERTED = {
    "blank line": st.sampled_from([b"\n", b"\r\n", b" \t\n", b"\n\n\n"]),
    "zeros": st.integers(1, 5000).map(bytes),
    "zeros and a line's end": st.integers(1, 50).map(lambda count: bytes(count) + b"\n"),
    "stray line": FOREIGN.map(lambda text: text + b"\n"),
    "stray words before a record": FOREIGN,
    "random line": st.binary(min_size=1, max_size=40).map(lambda text: text.replace(b"\n", b"") + b"\n"),
}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_anywhere_keeps_every_whole_record(
    journal: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lines = journal.splitlines(keepends=True)
    damaged = [*lines, b""]
    for _ in range(data.draw(st.integers(1, 3), "places")):
        place = data.draw(st.integers(0, len(lines) - 1), "place")
        kind = data.draw(st.sampled_from(["half line", "half before a record", "merged", *INSERTED]), "kind")
        if kind == "merged":
            damaged[place] = damaged[place].removesuffix(b"\n")
        elif kind.startswith("half"):
            cut = data.draw(st.integers(1, len(lines[place]) - 2), "cut")
            damaged[place] = lines[place][:cut] + b"\n" * (kind == "half line") + damaged[place]
        else:
            damaged[place] = data.draw(INSERTED[kind], kind) + damaged[place]
    content = b"".join(damaged)
    path = tmp_path_factory.mktemp("damaged") / "study.log"
    path.write_bytes(content)
    before = list(JournalFile(path).read_logs(0))
    assert before == records(journal)

    writer = study_of(path)
    trial = writer.ask()
    trial.set_user_attr("mark", 1)
    assert trial.number == TRIALS
    assert path.read_bytes().startswith(content)
    assert list(JournalFile(path).read_logs(0))[: len(before)] == before
    for study in (writer, study_of(path)):
        assert [trial.number for trial in study.get_trials()] == list(range(TRIALS + 1))
        assert study.get_trials()[TRIALS].user_attrs == {"mark": 1}


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_results_stay_with_their_trial(
    journal: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Trials are numbered in the order of their creation: where that record is lost, no other trial moves up."""
    lines = journal.splitlines(keepends=True)
    creations = [place for place, line in enumerate(lines) if line.startswith(b'{"op_code":4')]
    assert len(creations) == TRIALS
    place = data.draw(st.sampled_from(creations))
    cut = data.draw(st.integers(1, len(lines[place]) - 1))
    half = lines[place][:cut]
    lost = data.draw(st.sampled_from([half + b"\n", half + b"\n\n", half, bytes(len(lines[place]))]))
    path = tmp_path_factory.mktemp("lost") / "study.log"
    path.write_bytes(journal)
    whole = study_of(path).get_trials()
    path.write_bytes(b"".join([*lines[:place], lost, *lines[place + 1 :]]))
    study = study_of(path)
    assert list(map(known, study.get_trials())) == list(map(known, whole))
    assert study.ask().number == TRIALS
    assert study_of(path).get_trials()[: TRIALS + 1] == study.get_trials()


def known(trial: FrozenTrial) -> tuple[Any, ...]:
    """All but the time at which it was created."""
    return trial.number, trial.state, trial.value, trial.params, trial.user_attrs, trial.intermediate_values


def test_a_loss_that_cannot_be_repaired_is_refused(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    lines = journal.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(ValueError, match=r"study.log: must be .*: line 1 is of a study that no line before it creates"):
        open_storage(str(path))
    path.write_bytes(b"".join(line for line in lines if not line.startswith(b'{"op_code":4')))
    with pytest.raises(ValueError, match=r"study.log: must be .*: line 2 is of a trial that no line before it creates"):
        open_storage(str(path))


def test_one_warning_names_file_and_lines(journal: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "study.log"
    first, second, third, *others = journal.splitlines(keepends=True)
    path.write_bytes(b"".join([first, b"\n", second.removesuffix(b"\n"), third, *others, b"scrawl\n"]))
    with caplog.at_level(logging.WARNING):
        study = study_of(path)
        study.ask()
        assert len(study.get_trials()) == TRIALS + 1
    last = len(others) + 4
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: lines 2, 3, {last}: damaged; every whole record is read, the rest is skipped"
    ]


def test_a_last_line_that_lacks_only_its_end_is_kept(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(journal.removesuffix(b"\n"))
    assert list(JournalFile(path).read_logs(0)) == records(journal)
    assert path.read_bytes() == journal


def test_a_journal_that_is_replaced_is_noticed(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(journal)
    backend = JournalFile(path)
    read = list(backend.read_logs(0))
    path.write_bytes(b"my thesis")
    with pytest.raises(JournalError, match="it has become shorter: another program has changed it"):
        list(backend.read_logs(len(read)))
    with pytest.raises(JournalError, match="line 1 is not a record of an Optuna journal"):
        backend.append_logs([{"op_code": 4}])
    assert path.read_bytes() == b"my thesis"


# ------------------------------------------------------------------- no journal at all

NO_JOURNALS = {
    "a line without its end": b"My thesis, all of it on one line",
    "text": b"My thesis.\nIts second line\n",
    "an open end": b"My thesis.\nIts last line",
    "JSON": b'{"a": 1}\n{"b": 2}\n',
    "JSON without its end": b'{"op": 1}',
    "one brace": b"{",
    "other operations": b'{"op_code":77,"worker_id":"a"}\n',
    "an operation without its end": b'{"op_code":0,"name":"mine"}',
    "operations without what they need": b'{"op_code":4,"worker_id":"a"}\n{"op_code":8,"worker_id":"a","trial_id":0}\n',
    "a number for a worker": b'{"op_code":0,"worker_id":1,"study_name":"a","directions":[1]}\n',
    "an end without its time": b'{"op_code":6,"worker_id":"a","trial_id":0,"state":1,"values":null}\n',
    "only blank lines": b"\n\n",
    "zeros": bytes(100),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "deep": b"[" * 100_000 + b"\n",
    "deep from the start of a record": b'{"op_code":' * 50_000,
    "an SQLite database": b"SQLite format 3\x00" + bytes(84),
}


@pytest.mark.parametrize("content", NO_JOURNALS.values(), ids=NO_JOURNALS)
def test_a_file_that_is_not_a_journal_is_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^search.storage = {path}: must be a journal file or .*: line 1 ") as raised:
        open_storage(str(path))
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_torn_first_line_is_overwritten(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(journal[:60])
    optuna.create_study(storage=open_storage(str(path)), study_name=NAME)
    assert study_of(path).get_trials() == []


def test_notes_that_quote_a_journal_are_not_one(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"What I saw:\nIn the log were\n" + journal.splitlines(keepends=True)[0] + b"and more")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="line 1 is not a record of an Optuna journal"):
        open_storage(str(path))
    assert path.read_bytes() == before


def test_no_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening one waits for a writer
    (tmp_path / "nowhere.log").symlink_to(tmp_path / "missing.log")
    (tmp_path / "loop.log").symlink_to(tmp_path / "loop.log")
    (tmp_path / "file").write_text("text")
    reasons = {
        str(tmp_path): "it is no regular file",
        str(tmp_path / "pipe"): "it is no regular file",
        "/dev/null": "it is no regular file",
        "/dev/zero": "it is no regular file",
        str(tmp_path / "nowhere.log"): "it is a link to nothing",
        str(tmp_path / "loop.log"): "it is a link to nothing",
        str(tmp_path / "file" / "study.log"): "exists",
        "/proc/none/study.log": "No such file",
        "/proc/study.log": "No such file",
        str(tmp_path / ("long" * 100)): "name too long",
    }
    for address, why in reasons.items():
        line = f"^search.storage = {address}: must be a journal file or .*{why}"
        with pytest.raises(ValueError, match=line) as raised:
            open_storage(address)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "missing.log").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_journal_that_cannot_be_written_is_one_line(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(journal)
    path.chmod(0o444)
    with pytest.raises(ValueError, match=f"^search.storage = {path}: must be a journal file or .*Permission denied"):
        open_storage(str(path))


def test_a_link_to_a_journal_shares_its_lock(journal: bytes, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "study.log", tmp_path / "link.log"
    target.write_bytes(journal)
    link.symlink_to(target)
    study = optuna.load_study(storage=open_storage(str(link)), study_name=NAME)
    assert study.ask().number == TRIALS
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link.log"]
    assert sorted(os.listdir(target.parent)) == [".study.log.lock", "study.log"]


@pytest.mark.parametrize("content", [b"", None])
def test_an_empty_or_a_missing_file_becomes_a_journal(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "study.log"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    optuna.create_study(storage=open_storage(str(path)), study_name=NAME)
    assert study_of(path).get_trials() == []
