"""What a CSV keeps of a number, and what a continued file keeps of the old one."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from marble_sweep.runs.csv_log import CsvLog, format_value

COLUMNS = ("step", "loss", "top1", "h_autocorr")


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss": 9.0 / step, "top1": step % 7, "h_autocorr": math.nan if step == 1 else 1 / 3}


def record(path: Path, steps: Sequence[int], last_step: int = 0) -> None:
    log = CsvLog(path, COLUMNS, last_step)
    log.write([row(step) for step in steps])
    log.close()


@given(st.floats(width=32, allow_nan=False))
@example(np.float32(1e-45).item())
@example(np.float32(3.4028235e38).item())
@example(16_777_217.0 - 1)
@example(0.1)
def test_a_float32_survives_being_written(value: float) -> None:
    assert np.float32(format_value(value)) == np.float32(value)


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_whole_numbers_have_no_point(value: int) -> None:
    assert format_value(value) == str(value)
    if float(value) == value:
        assert format_value(float(value)) == str(value)


def test_not_a_number_is_an_empty_cell() -> None:
    assert format_value(math.nan) == ""


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_read_back(value: float) -> None:
    assert float(format_value(value)) == value


def test_pandas_reads_what_was_written(tmp_path: Path) -> None:
    record(tmp_path / "metrics.csv", range(1, 6))
    frame = pd.read_csv(tmp_path / "metrics.csv")
    assert tuple(frame.columns) == COLUMNS
    assert frame["step"].tolist() == [1, 2, 3, 4, 5]
    assert frame["top1"].dtype == np.int64
    assert frame["loss"].tolist() == pytest.approx([9 / step for step in range(1, 6)], rel=1e-8)
    assert frame["h_autocorr"].isna().tolist() == [True, False, False, False, False]


def test_rows_are_readable_as_soon_as_written(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv", COLUMNS)
    log.write([row(1)])
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 1
    log.write([row(2), row(3)])
    log.sync()
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 3
    log.close()


def test_columns_keep_their_order_whatever_the_rows_is(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv", COLUMNS)
    log.write([dict(reversed(row(2).items())) | {"unasked": 1.0}])
    log.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,top1,h_autocorr\n2,4.5,2,0.333333333\n"


def test_a_column_without_a_value_is_refused(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv", COLUMNS)
    with pytest.raises(KeyError, match="loss"):
        log.write([{"step": 1, "top1": 2, "h_autocorr": 0.5}])
    log.close()


def test_a_new_run_starts_the_file_anew(tmp_path: Path) -> None:
    record(tmp_path / "metrics.csv", range(1, 6))
    record(tmp_path / "metrics.csv", range(1, 3))
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [1, 2]


@pytest.mark.parametrize("tail", ["", "1", "9,0.12", "9,0.125,2,0.5", "9,0.125,2,", "9", "9,", "\n", "\0\0\0"])
def test_continuing_equals_never_having_stopped(tmp_path: Path, tail: str) -> None:
    record(tmp_path / "unbroken.csv", range(1, 13))
    path = tmp_path / "metrics.csv"
    record(path, range(1, 9))
    with path.open("a") as file:
        file.write(tail)  # of a write that a kill cut short
    record(path, range(6, 13), last_step=5)
    assert path.read_bytes() == (tmp_path / "unbroken.csv").read_bytes()


def test_continuing_keeps_text_as_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,top1,h_autocorr\n1,0.30000000000000004,3,\n2,inf,4,-1e-05\n3,1,1,1\n")
    CsvLog(path, COLUMNS, last_step=2).close()
    assert path.read_text() == "step,loss,top1,h_autocorr\n1,0.30000000000000004,3,\n2,inf,4,-1e-05\n"


def test_evaluations_are_not_a_row_a_step(tmp_path: Path) -> None:
    path = tmp_path / "evals.csv"
    record(path, [100, 200, 300])
    record(path, [300], last_step=250)
    with path.open() as file:
        assert [int(line["step"]) for line in csv.DictReader(file)] == [100, 200, 300]


def test_continuing_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    record(tmp_path / "metrics.csv", range(1, 4))
    record(tmp_path / "metrics.csv", [3], last_step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
