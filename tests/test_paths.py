"""Paths and texts that a config keeps: a run finds its data from any folder, and every text is read back as it is."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY, compose_config, tiny_config
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from marble_sweep import config as schema
from marble_sweep.checks import is_plain_text
from marble_sweep.commands import override
from marble_sweep.groups import NotebookConfig, PydocsConfig, TextConfig, absolute_path
from marble_sweep.hydra_app.errors import one_line
from marble_sweep.run import run
from marble_sweep.runs.status import find_run
from marble_sweep.sample import load_model

TEXTS = st.one_of(st.text(), st.text(alphabet=st.sampled_from("${}\\:x.'\"? \n"))).filter(
    lambda text: text != "???" and is_plain_text(text)
)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps on a file that its config names relative to the folder of the run, with a note."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("There is a text here, and it has some words.\n\n" * 800)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        own = [word for word in TINY if not word.startswith(("data", "trainer.total_steps"))]
        data = ["data=text", "data.path=a.txt", "data.vocab_size=300", "data.val_fraction=0"]
        config = compose_config(*own, *data, "trainer.total_steps=5", override("notes", "a ${x}"))
        assert run(config, folder / "run") == "finished"
    return folder


def test_a_run_goes_on_from_another_folder(text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(text_run / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert run(schema.load(Path("run/config.yaml")), Path("run"), resume=True) == "finished"


def test_a_note_with_an_interpolation_can_be_read_back(text_run: Path) -> None:
    assert schema.load(text_run / "run" / "config.yaml").notes == "a ${x}"
    model = load_model(text_run / "run")
    assert model.embedding.num_embeddings == 300


def test_two_spellings_of_a_path_are_one_run(text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = schema.load(text_run / "run" / "config.yaml")
    (text_run / "below").mkdir()
    monkeypatch.chdir(text_run / "below")
    monkeypatch.setenv("HOME", str(text_run))
    for path in ("../a.txt", "../below/../a.txt", "~/a.txt", f"{text_run}//./a.txt"):
        config.data = TextConfig(path=path, vocab_size=300, val_fraction=0.0)
        assert find_run(config, text_run) == text_run / "run"


def test_dots_after_a_link_lead_where_the_system_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    monkeypatch.chdir(tmp_path)
    assert absolute_path("data.path", "link/../a.txt") == str(tmp_path.resolve() / "far" / "a.txt")


def test_paths_of_the_notebooks_formats_are_absolute_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = NotebookConfig(corpus_path="a", tokenizer_path="b", dead_mask_path="c/../d")
    assert [config.corpus_path, config.tokenizer_path] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert config.dead_mask_path == str(tmp_path / "d")


@settings(max_examples=30)
@given(notes=TEXTS, name=TEXTS, package=TEXTS)
def test_every_text_is_read_back(notes: str, name: str, package: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = CONFIG
    config.notes, config.experiment_name, config.model.name = notes, name, name
    config.data = PydocsConfig(packages=[package])
    path = tmp_path_factory.getbasetemp() / "read-back.yaml"
    path.write_text(schema.dump(config), encoding="utf-8")
    assert schema.load(path) == config


CONFIG = tiny_config()


# ------------------------------------------------------------------------- complaints


@pytest.mark.parametrize("value", ["~/x (1).txt", "a=b", "ü", "it's", "[draft] x.txt", "a,b", "a b/(c", "x${y", "#1}"])
def test_a_value_that_hydra_cannot_read_is_spelled_out(value: str) -> None:
    with pytest.raises(HydraException) as caught:
        compose_config("data=text", f"data.path={value}")
    line = one_line(caught.value)
    assert line.startswith(f"data.path = {value}: must be ")
    assert "\n" not in line
    word = next(word for word in shlex.split(line[line.index("'data.path=") :]) if word.startswith("data.path="))
    assert Path(compose_config("data=text", word).data.path).name == Path(value).name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("notes", "notes: must be KEY=VALUE"),
        ("x y=3", "x y=3: must be KEY=VALUE"),
        ("notes=${x}", "notes: Interpolation key 'x' not found; where ${ is meant as text, write \\${"),
        ('notes="a ${"', "notes: "),
    ],
)
def test_what_is_wrong_with_a_word(word: str, line: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        compose_config(word)
    assert one_line(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optimizer=sgd"], "no such key here; it belongs to optimizer=sgd and optimizer=muon"),
        (
            ["optimizer=sgd,adamw"],
            "no such key in optimizer=adamw of this sweep; it belongs to optimizer=sgd and optimizer=muon",
        ),
        (
            ["optimizer=glob(*)"],
            "no such key in optimizer=adamw and optimizer=adam of this sweep; "
            "it belongs to optimizer=sgd and optimizer=muon",
        ),
        (
            ["optimizer=choice(sgd,muon)", "optimizer.momentum=0.8"],
            "no such key in the option that this sweep starts from; ++optimizer.momentum=0.8 sets it in those swept",
        ),
    ],
)
def test_which_swept_option_lacks_a_key(words: list[str], line: str) -> None:
    error = HydraException("Could not override 'optimizer.momentum'.\nTo append to your config use +…")
    assert one_line(error, words) == f"optimizer.momentum: {line}"


def test_a_key_can_be_set_in_all_options_swept(tmp_path: Path) -> None:
    """The word that the complaint names: no job is refused for it, the third for its steps."""
    words = ["--multirun", *TINY, "optimizer=sgd,muon", "++optimizer.momentum=0.8", "trainer.total_steps=1,0"]
    command = [sys.executable, "-m", "marble_sweep", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("marble_sweep: job 2 (")
    assert result.stderr.endswith("trainer.total_steps = 0: must be a whole number in [1, 1,000,000,000]\n")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("resume=", "resume = '': must be a run directory, one with a config.yaml"),
        ("hydra.run.dir=", "hydra.run.dir = '': must be a directory"),
        ('resume="~/x"', "resume = ~/x: must be a run directory, one with a config.yaml"),
    ],
)
def test_no_directory_comes_of_a_path_that_is_none(word: str, line: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "marble_sweep", word]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stderr) == (2, f"marble_sweep: {line}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [["hydra.run.dir"], ["hydra.sweep.dir", "--multirun"]])
def test_the_home_directory(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = [sys.executable, "-m", "marble_sweep", *TINY, f'{words[0]}="~/x"', "trainer.total_steps=5", *words[1:]]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "work", check=False)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "home" / "x").rglob("metrics.csv"))
    assert list((tmp_path / "work").iterdir()) == []
