"""Reading a run directory, a torn one too."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_sweep.runs.discovery import find_runs, newest
from marble_sweep.runs.run import Run
from marble_sweep.runs.steps import StepFile

MakeRun = Callable[..., Path]


@pytest.fixture
def steps(tmp_path: Path) -> Callable[[str], StepFile]:
    def write(text: str) -> StepFile:
        (tmp_path / "metrics.csv").write_text(text)
        return StepFile(tmp_path / "metrics.csv")

    return write


def test_every_row_is_found(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=123)
    file = StepFile(run / "metrics.csv")
    table = file.table()
    assert len(table) == file.last_step == file.num_rows == 123
    for expected in table.to_dict("records"):
        row = file.row(int(expected["step"]))
        assert row.keys() == expected.keys()
        for column, value in expected.items():
            assert isinstance(column, str)
            # pandas before 3.1 reads some decimals a last digit off.
            assert row[column] == pytest.approx(value, rel=4 * sys.float_info.epsilon, abs=0, nan_ok=True)
    assert file.row(0) == file.row(124) == {}


def test_half_a_last_row_does_not_count(steps: Callable[[str], StepFile]) -> None:
    file = steps("step,loss\n1,5\n2,4\n3,0.0")
    assert file.last_step == 2
    assert file.row(3) == {}
    assert len(file.table()) == file.num_rows == 2


@pytest.mark.parametrize("text", ["", "step,lo", "step,loss\n"])
def test_a_file_without_rows(steps: Callable[[str], StepFile], text: str) -> None:
    file = steps(text)
    assert file.last_step == 0
    assert file.row(1) == {}
    assert file.step_after_last("loss", 9) is None
    assert file.table().empty


@pytest.mark.parametrize(
    ("values", "last", "expected"),
    [
        ([1, 0.5, 0, 0], 4, 3),
        ([1, 0, 0.1, 0], 4, 4),  # it moved once more
        ([1, 0, 0.1, 0], 2, 2),  # seen from step 2, it has stopped
        ([1, 0.5, 0.5, 0.1], 4, None),
        ([0, 0, 0], 3, 1),
        ([], 0, None),
    ],
)
def test_the_freeze_step_is_the_first_after_the_last_motion(
    steps: Callable[[str], StepFile], values: list[float], last: int, expected: int | None
) -> None:
    rows = "".join(f"{step},5,{value}\n" for step, value in enumerate(values, start=1))
    assert steps(f"step,loss,dead_moving\n{rows}").step_after_last("dead_moving", last) == expected


def test_without_dead_tokens_nothing_freezes(steps: Callable[[str], StepFile]) -> None:
    assert steps("step,loss,dead_moving\n1,5,\n2,5,\n").step_after_last("dead_moving", 2) is None


def test_missing_and_torn_files_are_no_obstacle(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metadata.json").unlink()
    evals = (run / "evals.csv").read_text()
    (run / "evals.csv").write_text(evals[: evals.rindex(",")])
    loaded = Run.read(run)
    assert loaded.status == "started"
    assert max(loaded.eval_at) == 180
    (run / "evals.csv").unlink()
    (run / "config.yaml").unlink()
    assert Run.read(run).evals == []
    assert Run.read(run).config == {}


def test_runs_are_found_once_and_in_order(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "multirun" / "day" / "time" / name, steps=2) for name in ("2", "10", "9")]
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 1")  # Hydra's, not a run's
    assert [path.name for path in find_runs([tmp_path, runs[0]])] == ["2", "9", "10"]
    with pytest.raises(ValueError, match=r"PATH = .*conf: must hold runs"):
        find_runs([tmp_path / "conf"])
    with pytest.raises(ValueError, match="PATH = nowhere"):
        find_runs([Path("nowhere")])


def test_the_newest_sweep_comes_before_any_single_run(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no run"):
        newest(tmp_path)
    run = make_run(tmp_path / "outputs" / "day" / "time", steps=2)
    assert newest(tmp_path) == run
    make_run(tmp_path / "multirun" / "day" / "b" / "0", steps=2)
    make_run(tmp_path / "multirun" / "day" / "a" / "0", steps=2)
    assert newest(tmp_path) == tmp_path / "multirun" / "day" / "a"


def test_a_file_without_some_columns(tmp_path: Path) -> None:
    rows = [f"{step},{9 / step:.9g},,{step % 7}" for step in range(1, 20_001)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,loss,lr,top1", *rows]) + "\n20001,0.")
    file = StepFile(tmp_path / "metrics.csv")
    for num_rows in (0, 1, 7, 20_000):
        expected = "".join(f"\n{step},{9 / step:.9g}" for step in range(1, num_rows + 1))
        assert file.text_without(("lr", "top1"), num_rows).decode() == expected
    assert file.text_without(("loss",), 2) == b"\n1,,1\n2,,2"
    (tmp_path / "metrics.csv").unlink()
    assert file.text_without(("loss",), 2) == b""
