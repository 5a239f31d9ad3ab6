"""Run directories that earlier versions made: their names are mapped when read, and they can be continued.

tests/assets/old_runs holds three: a finished one of version 0.1.0 (without its tensors), one of it interrupted at
step 7, and one interrupted later in development, whose state has hashes of the rows.
"""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open

import marble_sweep as ms
from marble_sweep.compare import main as compare
from marble_sweep.report.summary import EARLIER_NOTE, compare_runs
from marble_sweep.run import run
from marble_sweep.runs.csv_log import CsvLog
from marble_sweep.runs.renamed import RENAMED
from marble_sweep.runs.run import Run
from marble_sweep.training.evaluation import ERROR_COLUMNS, EVAL_COLUMNS
from marble_sweep.training.writer import STEP_COLUMNS

EARLIER_COLUMNS = tuple(name for name in EVAL_COLUMNS if name not in ERROR_COLUMNS)
OLD_RUNS = Path(__file__).parents[1] / "assets" / "old_runs"
INTERRUPTED = ("interrupted", "interrupted_with_hashes")


@pytest.fixture(params=INTERRUPTED)
def interrupted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUNS / request.param, tmp_path / "run"))


def test_every_column_has_its_current_name() -> None:
    loaded = ms.load_run(OLD_RUNS / "finished")
    assert "off_unigram" in (loaded.path / "evals.csv").read_text()
    assert tuple(loaded.evals.columns) == EARLIER_COLUMNS
    assert tuple(loaded.metrics.columns) == STEP_COLUMNS
    assert tuple(loaded.metadata["last_evaluation"]) == EARLIER_COLUMNS
    assert loaded.evals["non_unigram_top1"].tolist() == [1.0, 1.0, 1.0]


def test_every_check_has_its_current_name() -> None:
    loaded = ms.load_run(OLD_RUNS / "finished")
    assert loaded.verdict is not None
    checks = {check.name for criterion in loaded.verdict.criteria for check in criterion.checks}
    assert "non_unigram_top1" in checks
    assert not {*RENAMED} & checks


def test_old_runs_are_compared_without_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert compare([str(OLD_RUNS), "--format=json", "--group-by=none", f"--html={page}"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["status"] for row in rows} == {"finished", "interrupted"}
    assert [row["damage"] for row in rows] == [None, None, None]
    assert page.is_file()


def test_whether_an_old_run_beats_unigram_is_not_known() -> None:
    """It was measured against the fitted unigram alone."""
    old = Run.read(OLD_RUNS / "finished")
    comparison = compare_runs([old])
    (row,) = comparison.rows
    assert row["val_margin"] == old.evals[-1]["unigram_margin"]
    assert row["beats_unigram"] is not True
    assert EARLIER_NOTE in comparison.notes


def test_a_loss_that_became_nan_is_no_sign_of_an_earlier_version(tmp_path: Path) -> None:
    file = CsvLog(tmp_path / "evals.csv", EVAL_COLUMNS)
    file.write([dict.fromkeys(EVAL_COLUMNS, math.nan) | {"step": 4}])
    file.close()
    assert EARLIER_NOTE not in compare_runs([Run.read(tmp_path)]).notes


def test_an_old_run_is_continued_under_its_own_header(interrupted: Path) -> None:
    before = (interrupted / "evals.csv").read_bytes()
    config = ms.load_run(interrupted).config
    assert run(config, interrupted, resume=True, show=False) == "finished"
    after = (interrupted / "evals.csv").read_bytes()
    assert after.startswith(before)
    finished = ms.load_run(interrupted)
    assert finished.evals["step"].tolist() == [4, 8, 12]
    assert finished.evals["non_unigram_top1"].notna().all()
    assert finished.metrics["step"].tolist() == list(range(1, 13))
    assert finished.verdict is not None
    with safe_open(interrupted / "state.safetensors", "pt") as file:
        assert {*json.loads(file.metadata()["info"])["evals"][0]} == {*EARLIER_COLUMNS}


def test_an_old_run_goes_on_after_a_kill_before_its_first_new_state(interrupted: Path) -> None:
    """The file is opened again, and still has the rows and the header that the old state has the hash of."""
    config = ms.load_run(interrupted).config
    state = (interrupted / "state.safetensors").read_bytes()
    assert run(config, interrupted, resume=True, show=False) == "finished"
    table = pd.read_csv(interrupted / "evals.csv")
    (interrupted / "state.safetensors").write_bytes(state)
    assert run(config, interrupted, resume=True, show=False) == "finished"
    assert pd.read_csv(interrupted / "evals.csv").equals(table)


def test_a_file_with_the_old_and_the_new_name_is_damaged(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUNS / "finished", tmp_path / "run")
    path = tmp_path / "run" / "evals.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},non_unigram_top1", *(f"{row},1" for row in rows), ""]))
    assert [damage.file for damage in Run.read(tmp_path / "run").damages] == ["evals.csv"]
