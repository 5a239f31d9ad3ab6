"""Texts in run directories that mean to do more than be read."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marble_sweep.compare import main
from marble_sweep.config import dump, load
from marble_sweep.groups import TextConfig
from marble_sweep.report.page import write_page
from marble_sweep.report.rows import sort_rows
from marble_sweep.report.summary import compare_runs
from marble_sweep.report.table import markdown_text, render
from marble_sweep.runs.run import Run

MakeRun = Callable[..., Path]
EVIL = "\x1b]0;owned\x07\x9b2J\u202e\u2066\n|`<b>[x](y)</script>\u2028"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module")
def hostile(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with such texts as name, reason, config key, config value and directory, and a damaged one."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(("=cmd()|\x1b[31m\u202e", os.fsdecode(b"caf\xe9\n"), "damaged\x1b[31m")):
        run = make_run(folder / name, f"optimizer.lr=0.0{number + 1}", steps=20)
        metadata = json.loads((run / "metadata.json").read_text())
        (run / "metadata.json").write_text(json.dumps(metadata | {"name": EVIL, "reason": EVIL, "status": f"{EVIL}"}))
        with (run / "config.yaml").open("a") as file:
            file.write(f"{json.dumps(EVIL)}: {json.dumps(f'{number}{EVIL}')}\nrun: {number}\nval_loss: {number}\n")
    (folder / "damaged\x1b[31m" / "metrics.csv").write_bytes(b"\x1b[31m")
    (folder / "search.json").write_text(json.dumps({"words": [EVIL]}))
    return folder


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json"])
@pytest.mark.parametrize("group_by", ["repeats", "none"])
def test_no_text_of_a_run_reaches_the_terminal_raw(
    hostile: Path, capsys: pytest.CaptureFixture[str], form: str, group_by: str
) -> None:
    assert main([str(hostile), "--format", form, "--group-by", group_by]) == 0
    printed = capsys.readouterr()
    assert not RAW.search(printed.out + printed.err)
    assert r"\u202e" in printed.out


def test_an_error_line_shows_no_text_of_a_run_raw(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(hostile), "--sort", "nope"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert not RAW.search(message)


def test_the_page_takes_no_text_for_its_own(hostile: Path, tmp_path: Path) -> None:
    write_page(compare_runs([Run.read(run) for run in hostile.iterdir() if run.is_dir()]), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    own = text.replace(text[text.index("/**\n* plotly.js") : text.index('<script id="data"')], "")
    assert "<b>[x]" not in own
    assert not RAW.search(own)
    data = own[own.index('<script id="data"') :]
    data = data[data.index(">") + 1 : data.index("</script>")]
    assert len(json.loads(data)["groups"]) == 3


def test_what_is_infinite_leaves_json_and_the_page_readable(make_run: MakeRun, tmp_path: Path, capsys: Any) -> None:
    for seed in (1, 2):
        run = make_run(tmp_path / str(seed), f"seed={seed}", steps=20)
        evals = (run / "evals.csv").read_text().splitlines()
        fields = evals[-1].split(",")
        (run / "evals.csv").write_text("\n".join([*evals[:-1], ",".join([fields[0], "inf", *fields[2:]])]) + "\n")
    assert main([str(tmp_path), "--format", "json", "--html", str(tmp_path / "page.html")]) == 0
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (row["val_loss"], row["val_loss_sd"], row["status"]) == (None, None, "finished")
    assert (
        "Infinity" not in (tmp_path / "page.html").read_text().partition('<script id="data"')[2].partition("</scr")[0]
    )


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("+1+cmd", "'+1+cmd"),
        ("-2-cmd", "'-2-cmd"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", r"'\t=1"),
        ("\r=1", r"'\r=1"),
        (["=1", "2"], "'=1 2"),
        (-0.5, "-0.5"),
        ("-0.5", "-0.5"),
        ("4L128D", "4L128D"),
    ],
)
def test_csv_holds_no_formula(value: Any, cell: str) -> None:
    heading, row = csv.reader(io.StringIO(render([{"=key": value}], ["=key"], "csv")))
    assert (heading, row) == (["'=key"], [cell])


def test_markdown_shows_texts_as_they_are() -> None:
    assert markdown_text("a|b`c`<i>&[x](y)*\\\n") == r"a\|b\`c\`\<i\>\&\[x\](y)\*\\\\n"
    assert markdown_text("${x}/$") == r"\${x}/\$", "some readers set what stands between two of them as mathematics"
    assert markdown_text("bits_per_byte") == "bits_per_byte"


@pytest.mark.parametrize("form", ["table", "csv", "json", "page"])
def test_what_looks_like_an_interpolation_is_shown_as_it_is(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    paths = ["/books/${seed}/${x", r"/books/\${x}/$y$"]
    for number, path in enumerate(paths):
        run = make_run(tmp_path / str(number), steps=20)
        config = load(run / "config.yaml")
        (run / "config.yaml").write_text(dump(replace(config, data=TextConfig(path=path))))
    page = tmp_path / "page.html"
    options = ["--html", str(page)] if form == "page" else ["--columns", "path", "--format", form]
    assert main([str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    shown = {
        "table": lambda: printed.splitlines()[2:4],
        "csv": lambda: printed.splitlines()[1:],
        "json": lambda: [row["path"] for row in json.loads(printed)],
        "page": lambda: re.findall(r"<td[^>]*>(/books/.*?)</td>", page.read_text()),
    }
    assert sorted(shown[form]()) == paths


def test_relative_and_absolute_paths_mix(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "here" / "a", "optimizer.lr=0.1", steps=20)
    make_run(tmp_path / "there" / "b", "optimizer.lr=0.2", steps=20)
    monkeypatch.chdir(tmp_path)
    assert main(["here/a", str(tmp_path / "there" / "b"), "--columns", "run, lr", "--sort", "lr"]) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == ["here/a   0.1", "there/b  0.2"]


def test_rows_of_any_values_can_be_sorted() -> None:
    values = [3, "b", None, [2, None], True, [1, "x"], 2.5, "a", float("inf")]
    ordered = [row["x"] for row in sort_rows([{"x": value} for value in values], "x")]
    assert ordered == [True, 2.5, 3, float("inf"), "a", "b", [1, "x"], [2, None], None]


@pytest.mark.parametrize(
    "options",
    [
        ["--sort", "seeds"],
        ["--sort", "runs"],
        ["--sort", "betas"],
        ["--group-by", "betas"],
        ["--group-by", "status, val_loss"],
        ["--columns", "run,run,seeds"],
        ["--filter", "betas!=x and lr!=none"],
        ["--filter", "n_params<1e400", "--sort", "reason"],
    ],
)
def test_odd_options_give_a_table(make_run: MakeRun, tmp_path: Path, options: list[str], capsys: Any) -> None:
    make_run(tmp_path / "a", "optimizer.betas=[0.8,0.9]", steps=20)
    make_run(tmp_path / "b", "optimizer.betas=[0.9,0.9]", "seed=3", steps=20, every=0)
    assert main([str(tmp_path), *options]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("options", [["--columns", ","], ["--group-by", ""], ["--filter", "and"], ["--filter", "a<"]])
def test_options_that_mean_nothing_cost_one_line(
    make_run: MakeRun, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", steps=20)
    assert main([str(tmp_path), *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_ascii_terminal_shows_the_table(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "ü" / "1", "seed=1", steps=20)
    make_run(tmp_path / "ü" / "2", "seed=2", steps=20)
    command = [sys.executable, "-m", "marble_sweep.compare", str(tmp_path / "ü")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    finished = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert b" +- 0.0150" in finished.stdout
    assert b"\n-----" in finished.stdout
