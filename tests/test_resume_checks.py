"""What `resume=` believes of a run directory, and what it refuses: in one line, with nothing changed."""

import functools
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_config as compose_tiny_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from marble_sweep.run import run
from marble_sweep.runs.layout import FILES
from marble_sweep.runs.state import read_info

tiny_config = functools.cache(compose_tiny_config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert run(tiny_config(), directory) == "finished"
    return directory


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(directory: Path) -> dict[str, bytes]:
    """All that a refusal must leave as it is."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name not in ("run.log", ".lock")]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def refusal(directory: Path, *overrides: str) -> str:
    before = contents(directory)
    with pytest.raises((ValueError, OSError)) as caught:
        run(tiny_config(*overrides), directory, resume=True, show=False)
    assert contents(directory) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


Tensors = dict[str, torch.Tensor]


def edit_state(
    directory: Path,
    tensors: Callable[[Tensors], object] = lambda _: None,
    info: Callable[[dict[str, Any]], object] = lambda _: None,
) -> None:
    """Change the saved state's tensors or info in place, leaving the file itself whole."""
    path = directory / "state.safetensors"
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["info"])
    content = load_file(path)
    tensors(content)
    info(header)
    save_file(content, path, {"info": json.dumps(header)})


def as_landed(info: dict[str, Any]) -> None:
    """As the states of version 0.1.0 were: no hashes, no config."""
    for name in ("rows", "config", "sha256"):
        del info[name]


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff\xfe\0", b"", b'{"corpus": 3}', b"[" * 100_000])
def test_metadata_that_is_none(content: bytes, copy: Path) -> None:
    (copy / "metadata.json").write_bytes(content)
    assert "metadata.json: must be a run's metadata" in refusal(copy)


EMBEDDING = "model/embedding.weight"
TENSOR_DAMAGE = {
    "missing": (lambda tensors: tensors.pop("updater/0.0.exp_avg"), "updater/0.0.exp_avg is missing"),
    "foreign": (lambda tensors: tensors.update(other=torch.ones(2)), "it has a tensor other that the run has not"),
    "another shape": (
        lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING][1:].contiguous()}),
        "model/embedding.weight must be bfloat16 (64, 16), not bfloat16 (63, 16)",
    ),
    "another dtype": (
        lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING].float()}),
        "model/embedding.weight must be bfloat16 (64, 16), not float32 (64, 16)",
    ),
    "NaN": (lambda tensors: tensors[EMBEDDING].fill_(torch.nan), "its tensors are not those that were saved"),
    "one bit": (lambda tensors: tensors["metrics/history"][0, 0].neg_(), "its tensors are not those that were saved"),
    "a generator's state that is none": (
        lambda tensors: tensors["batches/generator"].zero_(),
        "its tensors are not those that were saved",
    ),
}


@pytest.mark.parametrize("name", TENSOR_DAMAGE)
def test_a_state_with_other_tensors(name: str, copy: Path) -> None:
    damage, complaint = TENSOR_DAMAGE[name]
    edit_state(copy, tensors=damage)
    message = refusal(copy)
    assert message.startswith(f"{copy}/state.safetensors: must be the state of this run: ")
    assert complaint in message


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda tensors: tensors[EMBEDDING].fill_(torch.nan), "model/embedding.weight must be finite"),
        (lambda tensors: tensors["batches/generator"].zero_(), "batches: "),
        (lambda tensors: tensors["batches/position"].fill_(10**9), "must be of one step: it says step 40"),
        (lambda tensors: tensors["metrics/step"].fill_(39), "must be of one step: it says step 40"),
    ],
)
def test_a_state_without_hashes_is_checked_for_what_can_be(
    damage: Callable[[Tensors], object], complaint: str, copy: Path
) -> None:
    edit_state(copy, tensors=damage, info=as_landed)
    message = refusal(copy)
    assert f"{copy}/state.safetensors: must be" in message
    assert complaint in message


def wrong(key: str, *values: object) -> list[tuple[str, object]]:
    return [(key, value) for value in values]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *wrong("step", 10**9, -1, 2.5, True, None, "7", 41),
        *wrong("train_seconds", -1.0, float("nan"), "x", None),
        *wrong("evals", None, 3, [3], [{"step": 50}], [{"step": 10, "val_loss": "x"}]),
        *wrong("ruling", "maybe", 3, []),
        *wrong("last_loss", "x", []),
        *wrong("rows", 3, "x"),
        *wrong("config", 3),
    ],
)
def test_a_state_that_says_what_cannot_be(key: str, value: object, copy: Path) -> None:
    edit_state(copy, info=lambda info: info.update({key: value}))
    with pytest.raises(ValueError, match=key) as caught:
        read_info(copy / "state.safetensors", tiny_config())
    assert str(caught.value).startswith(f"{copy}/state.safetensors: must be the state of ")


@pytest.mark.parametrize("header", [None, {}, {"info": "{"}, {"info": "[]"}, {"info": "[" * 100_000}])
def test_a_state_without_a_word_of_itself(header: dict[str, str] | None, copy: Path) -> None:
    save_file(load_file(copy / "state.safetensors"), copy / "state.safetensors", header)
    with pytest.raises(ValueError, match=r"state.safetensors: must be the state of a run: its header"):
        read_info(copy / "state.safetensors", tiny_config())


def test_a_state_cut_short(copy: Path) -> None:
    path = copy / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "state.safetensors: must be a whole safetensors file" in refusal(copy)


def test_rows_whose_state_is_gone_are_not_overwritten(copy: Path) -> None:
    (copy / "state.safetensors").unlink()
    assert "state.safetensors: must be there to go on" in refusal(copy)


ROW_DAMAGE = {
    "ten rows missing": (lambda lines: lines[:11] + lines[21:], "that of step 11 is not"),
    "the last rows missing": (lambda lines: lines[:-5], "that of step 36 is not"),
    "a row twice": (lambda lines: [*lines[:5], lines[4], *lines[5:]], "that of step 5 is not"),
    "a number changed": (lambda lines: [*lines[:5], lines[5].replace("1", "2", 3), *lines[6:]], ""),
    "a word": (lambda lines: [*lines[:5], lines[5] + "x", *lines[6:]], "that of step 5 is not"),
    "a field too many": (lambda lines: [*lines[:5], lines[5] + ",1", *lines[6:]], "that of step 5 is not"),
    "nothing left": (lambda _: [], "must begin with the columns"),
    "other columns": (lambda lines: ["step,loss", *lines[1:]], "must begin with the columns"),
}


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("name", ROW_DAMAGE)
def test_rows_that_the_state_counts_on(name: str, landed: bool, copy: Path) -> None:
    damage, complaint = ROW_DAMAGE[name]
    if landed:
        if name == "a number changed":
            pytest.skip("what a state without hashes cannot know")
        edit_state(copy, info=as_landed)
    path = copy / "metrics.csv"
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    message = refusal(copy)
    assert message.startswith(f"{path}: must ")
    assert complaint in message


@pytest.mark.parametrize("content", [b"\0" * 500, b"\xff\xfe\xfa" * 99])
@pytest.mark.parametrize("name", ["metrics.csv", "evals.csv"])
def test_rows_that_are_no_text(name: str, content: bytes, copy: Path) -> None:
    (copy / name).write_bytes(content)
    assert f"{name}: must begin with the columns" in refusal(copy)


@pytest.mark.parametrize("damage", [lambda lines: lines[:-1], lambda lines: [*lines[:-1], lines[-1][:-1] + "7"]])
def test_evaluations_that_the_state_counts_on(damage: Callable[[list[str]], list[str]], copy: Path) -> None:
    path = copy / "evals.csv"
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    assert refusal(copy).startswith(f"{path}: must ")


def test_rows_that_are_gone(copy: Path) -> None:
    (copy / "metrics.csv").unlink()
    assert f"No such file or directory: '{copy}/metrics.csv'" in refusal(copy)


@pytest.mark.parametrize("landed", [False, True])
def test_rows_after_the_saved_step_are_dropped(landed: bool, copy: Path) -> None:
    path = copy / "metrics.csv"
    before = path.read_bytes()
    path.write_bytes(before + before.splitlines()[-1].replace(b"40,", b"41,", 1) + b"\n42,0.1")
    if landed:
        edit_state(copy, info=as_landed)
    assert run(tiny_config(), copy, resume=True, show=False) == "finished"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: {
            name: value[:-1] if name in ("steps", "W", "h_mean") else value for name, value in saved.items()
        },
        lambda saved: saved | {"steps": saved["steps"] + 1},
        lambda saved: saved | {"W": saved["W"][:, 1:].contiguous()},
        lambda saved: saved | {"h_mean": saved["h_mean"].double()},
        lambda saved: {name: value for name, value in saved.items() if name != "W"},
        lambda _: {"other": torch.ones(1)},
    ],
)
def test_checkpoints_that_are_not_the_runs(damage: Callable[[Tensors], Tensors], copy: Path) -> None:
    path = copy / "checkpoints.safetensors"
    save_file(damage(load_file(path)), path)
    assert refusal(copy).startswith(f"{path}: must hold ")


@pytest.mark.parametrize("override", ["optimizer.lr=2e-2", "optimizer.betas=[0.5,0.9]", "trainer.num_evals=5"])
def test_a_config_that_was_edited(override: str, copy: Path) -> None:
    key = override.partition("=")[0]
    message = refusal(copy, override)
    assert message.startswith(f"{copy}/config.yaml: {key} = ")
    assert message.endswith("as when state.safetensors was saved")


def test_what_leaves_the_numbers_as_they_are_may_be_edited(copy: Path) -> None:
    config = tiny_config("notes=later", "device.num_threads=1", "trainer.state_interval=7")
    assert run(config, copy, resume=True, show=False) == "finished"


def make(kind: str, place: Path, victim: Path) -> None:
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "dangling link":
        place.symlink_to(victim / "nowhere")
    else:
        os.mkfifo(place)


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
@pytest.mark.parametrize("name", [*FILES, "plots", ".lock", ".lock.held"])
def test_nothing_in_a_run_directory_leads_out_of_it(name: str, kind: str, copy: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    place = copy / name
    if name == "plots":
        shutil.rmtree(place)
        victim.mkdir()
    else:
        place.unlink(missing_ok=True)
        victim.write_text("precious")
    make(kind, place, victim)
    what = "folder" if name == "plots" else "file"
    assert refusal(copy) == f"{place}: must be an ordinary {what}, not a link, pipe or device"
    assert list(victim.iterdir()) == [] if name == "plots" else victim.read_text() == "precious"


def test_a_file_with_a_second_name_keeps_its_content_there(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a backup made of hard links, or where a stranger gave somebody else's file a name in the run."""
    caplog.set_level(logging.INFO)  # as on the command line, so that there is something to log
    for name in FILES:
        os.link(copy / name, tmp_path / name)
    before = contents(tmp_path)
    log = (tmp_path / "run.log").read_bytes()
    assert run(tiny_config(), copy, resume=True, show=False) == "finished"
    assert {name: contents(tmp_path)[name] for name in before if "/" not in name} == {
        name: content for name, content in before.items() if "/" not in name
    }
    assert (tmp_path / "run.log").read_bytes() == log
    assert (copy / "run.log").read_bytes().startswith(log)
    assert (copy / "run.log").stat().st_size > len(log) + 100
    assert stat.S_ISREG((copy / "run.log").lstat().st_mode)


def test_a_run_directory_may_itself_be_a_link(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    assert run(tiny_config(), tmp_path / "link", resume=True, show=False) == "finished"
