"""The command line, the page of its documentation, and the call from Python."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from census_files import census_of, write
from inspect_planted import plant

import marble_sweep as ms
from marble_sweep.census.census import Census
from marble_sweep.census.command import main

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "inspect.md"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "model.safetensors"
    plant(path, 400, 16, (20, 10, 2))
    return path


def test_shows_the_census_and_writes_all_of_it(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(path), "--json", str(tmp_path / "census.json")]) == 0
    census = census_of(path)
    assert capsys.readouterr().out == f"{census}\n"
    written = json.loads((tmp_path / "census.json").read_text())
    assert written == json.loads(json.dumps(census.as_dict()))
    assert written["format"] == 1
    assert [hole["size"] for hole in written["black_holes"]] == [20, 10, 2]


def test_a_mistake_is_one_line(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([f"{path}:no"]) == 2
    assert capsys.readouterr().err == (
        "marble_sweep.inspect: tensor = no: must be one of model.embed_tokens.weight (400 x 16)\n"
    )
    assert main([str(path), "--json", str(tmp_path / "no" / "census.json")]) == 2
    assert capsys.readouterr().err.startswith("marble_sweep.inspect: ")


def test_the_module_is_a_command(path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "marble_sweep.inspect", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("file ")


def test_text_of_others_is_harmless(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", torch.ones(3, 2), "bad\x1b[31m.wte")
    assert "\x1b" not in str(census_of(path))


def test_python_has_it_as_tables(path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    census = ms.inspect(path)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert isinstance(census, Census)
    assert census.black_holes["size"].tolist() == [20, 10, 2]
    assert census._repr_html_().startswith("<pre>file")


def test_the_function_stays_where_the_module_is_imported(path: Path) -> None:
    importlib.import_module("marble_sweep.inspect")
    assert ms.inspect(path).summary["num_black_holes"] == 3


def test_every_key_is_documented(path: Path) -> None:
    text = DOCUMENT.read_text()
    documented = {name for cell in re.findall(r"^\| (`.*?`) \|", text, re.M) for name in re.findall(r"`(\w+)`", cell)}
    census = census_of(path).as_dict()
    keys = {*census, *census["cluster"]}
    for table in census.values():
        if isinstance(table, list):
            keys |= {column for row in table for column in row}
    keys |= {"is_dead", "text", "produced", "id", "num_nan", "num_inf"}
    assert keys == documented
