"""One answer to what a margin shows, wherever it is asked: in the verdict, the table and the certification."""

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers import MANY_CLUSTERS, tiny_config

from marble_sweep.config import VerdictConfig
from marble_sweep.early_stopping import EarlyStopping, shortfall
from marble_sweep.metrics.margin import outcome_of, outcome_with_context
from marble_sweep.metrics.step import MEASURED
from marble_sweep.report.summary import compare_runs
from marble_sweep.run import judged_by, run
from marble_sweep.runs.csv_log import CsvLog
from marble_sweep.runs.run import Run
from marble_sweep.search_config import CertifyConfig
from marble_sweep.sweeps.watch import ended_line
from marble_sweep.training.evaluation import EVAL_COLUMNS
from marble_sweep.verdict import judge

INF, NAN = math.inf, math.nan
OF_ALL = [column for column in EVAL_COLUMNS if column.startswith("all_")]
CASES = [  # margin, its error, what that shows at 3 standard errors
    (0.33, 0.1, "certified"),
    (0.29, 0.1, "undecided"),
    (-0.29, 0.1, "undecided"),
    (-0.33, 0.1, "below"),
    (0.1, 0.0, "certified"),
    (0.0, 0.0, "below"),
    (-0.0, 0.0, "below"),
    (-0.1, 0.0, "below"),
    (0.0, 0.1, "undecided"),
    (0.31, INF, "undecided"),
    (0.0, INF, "undecided"),
    (INF, INF, "undecided"),
    (INF, 0.1, "undecided"),
    (-INF, 0.1, "undecided"),
    (NAN, 0.1, None),
    (0.31, NAN, None),  # a single window
    (-INF, NAN, None),  # a loss that ran to infinity
    (NAN, NAN, None),
]
AS_ANSWER = {"certified": True, "below": False, "undecided": None, None: None}


def row(margin: float, error: float) -> dict[str, float]:
    """A row of evals.csv with this margin to each baseline, and this gain from the context."""
    margins = (
        dict.fromkeys(EVAL_COLUMNS, 0.5)
        | dict.fromkeys(OF_ALL, NAN)
        | {"step": 40, "context_gain": margin, "context_gain_se": error}
    )
    for name in ("unigram", "tempered", "oracle", "bigram"):
        margins |= {f"{name}_margin": margin, f"{name}_margin_se": error}
    return margins | MANY_CLUSTERS


def write_evals(path: Path, values: dict[str, float]) -> None:
    """An evals.csv of one row, as a run writes it."""
    file = CsvLog(path, EVAL_COLUMNS)
    file.write([values])
    file.close()


def test_exactly_as_many_errors_as_needed_are_enough() -> None:
    assert outcome_of((0.75, 0.25, INF), 3.0) == "certified"  # three, in binary too
    assert outcome_of((-0.75, 0.25, INF), 3.0) == "below"


@pytest.mark.parametrize(("df", "expected"), [(7.0, None), (30.0, True)])
def test_few_clusters_need_more_errors_at_every_place(df: float, expected: bool | None, tmp_path: Path) -> None:
    """With 7 degrees of freedom 3 standard errors of a normal distribution are 4.53, with 30 they are 3.27."""
    values = row(0.37, 0.1) | dict.fromkeys(MANY_CLUSTERS, df)
    steps = pd.DataFrame([dict.fromkeys(["loss", "h_autocorr", "h_autocorr_lag", *MEASURED], 0.5)])
    verdict = judge(VerdictConfig(), steps, pd.DataFrame([values]), lag=100)
    assert verdict.beats_unigram is expected
    write_evals(tmp_path / "evals.csv", values)
    (shown,) = compare_runs([Run.read(tmp_path)]).rows
    assert shown["beats_unigram"] is expected
    stopping = EarlyStopping(tiny_config("trainer.num_evals=1", "certify.stop=true"))
    assert (stopping.stop_reason([values], steps_per_minute=500.0) == "certified") is bool(expected)
    assert (shortfall(CertifyConfig(), values, 3.0) <= 0) is bool(expected)
    below = values | row(-0.37, 0.1) | dict.fromkeys(MANY_CLUSTERS, df)
    assert stopping.outcome(below) == ("below" if expected else "undecided")


@pytest.mark.parametrize(("margin", "error", "expected"), CASES)
def test_every_place_gives_the_same_answer(margin: float, error: float, expected: str | None, tmp_path: Path) -> None:
    assert outcome_of((margin, error, INF), 3.0) == expected
    passed = AS_ANSWER[expected]

    steps = pd.DataFrame([dict.fromkeys(["loss", "h_autocorr", "h_autocorr_lag", *MEASURED], 0.5)])
    verdict = judge(VerdictConfig(), steps, pd.DataFrame([row(margin, error)]), lag=100)
    assert (verdict.beats_unigram, verdict.beats_oracle, verdict.beats_bigram) == (passed,) * 3
    checks = [check for criterion in verdict.criteria for check in criterion.checks]
    gain = next(check for check in checks if check.name == "context_gain_in_se")
    assert (gain.passed, gain.outcome) == (passed, expected)
    assert [criterion.undecided for criterion in verdict.criteria[:2]] == [expected == "undecided"] * 2

    write_evals(tmp_path / "evals.csv", row(margin, error))
    (shown,) = compare_runs([Run.read(tmp_path)]).rows
    assert (shown["beats_unigram"], shown["beats_oracle"], shown["beats_bigram"]) == (passed,) * 3
    assert (shown["unigram_outcome"], shown["oracle_outcome"], shown["bigram_outcome"]) == (expected,) * 3

    early_stopping = EarlyStopping(tiny_config("trainer.num_evals=1", "certify.stop=true"))
    assert early_stopping.errors_needed == pytest.approx(3.205, abs=1e-3)  # two decisions
    assert early_stopping.outcome(row(margin, error)) == expected
    stop_reason = early_stopping.stop_reason([row(margin, error)], steps_per_minute=500.0)
    assert (stop_reason == "certified") is (expected == "certified")
    assert (shortfall(CertifyConfig(), row(margin, error), 3.0) <= 0) is (expected == "certified")


@pytest.mark.parametrize(
    ("margin", "gain", "expected"),
    [
        ("certified", "certified", "certified"),
        ("certified", "undecided", "undecided"),
        ("undecided", "certified", "undecided"),
        ("undecided", "undecided", "undecided"),
        ("certified", "below", "below"),
        ("below", "certified", "below"),
        ("undecided", "below", "below"),
        ("certified", None, None),
        (None, "undecided", None),
        (None, "below", "below"),
    ],
)
def test_a_baseline_is_beaten_where_margin_and_context_are_certified(
    margin: str | None, gain: str | None, expected: str | None
) -> None:
    numbers = {"certified": 0.5, "undecided": 0.1, "below": -0.5, None: NAN}
    assert outcome_with_context((numbers[margin], 0.1, INF), (numbers[gain], 0.1, INF), 3.0) == expected


def test_what_is_known_of_all_windows_decides_at_every_place(tmp_path: Path) -> None:
    """The evaluated windows leave it undecided; all of them certify it."""
    values = row(0.2, 0.1) | {f"all_{name}": value for name, value in row(0.33, 0.1).items() if name != "step"}
    values = {column: values[column] for column in EVAL_COLUMNS} | {"all_windows": 900}
    steps = pd.DataFrame([dict.fromkeys(["loss", "h_autocorr", "h_autocorr_lag", *MEASURED], 0.5)])
    verdict = judge(VerdictConfig(), steps, pd.DataFrame([values]), lag=100)
    assert (verdict.beats_unigram, verdict.beats_oracle, verdict.beats_bigram) == (True,) * 3
    assert "0.330 ± 0.100 nats below oracle unigram (+3.3 standard errors, 3 needed on 900 windows" in verdict.as_text()
    write_evals(tmp_path / "evals.csv", values)
    (shown,) = compare_runs([Run.read(tmp_path)]).rows
    assert (shown["val_margin"], shown["unigram_outcome"]) == (0.33, "certified")
    last = {name: value if math.isfinite(value) else None for name, value in values.items()}
    run_of_sweep = Run(tmp_path, {}, {"status": "finished", "last_evaluation": last}, [values])
    assert "margin +0.3300 ± 0.1000" in ended_line(run_of_sweep, {"seed": 1}, [])
    stopping = EarlyStopping(tiny_config("trainer.num_evals=1", "certify.stop=true"))
    assert stopping.stop_reason([values], steps_per_minute=500.0) == "certified"


def test_a_run_that_may_stop_needs_at_every_place_what_an_evaluation_needs(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    """3.3 standard errors are enough for one evaluation, and too few for one of nine that may end the run."""
    nine = ("trainer.total_steps=400", "trainer.num_evals=9")
    whole, stopping = tiny_config(*nine), tiny_config(*nine, "certify.stop=true")
    for config, expected in ((whole, True), (stopping, False)):
        certified = outcome_of((0.33, 0.1, INF), judged_by(config).min_standard_errors) == "certified"
        assert certified is expected
    assert judged_by(stopping).min_standard_errors == EarlyStopping(stopping).errors_needed
    for name, stop in (("whole", "false"), ("stopping", "true")):
        folder = make_run(tmp_path / name, f"certify.stop={stop}", "trainer.num_evals=9", steps=40, every=40)
        write_evals(folder / "evals.csv", row(0.33, 0.1))
    shown = {row["run"]: row["beats_unigram"] for row in compare_runs([Run.read(p) for p in tmp_path.iterdir()]).rows}
    assert shown == {str(tmp_path / "whole"): True, str(tmp_path / "stopping"): None}


def test_a_run_that_must_certify_holds_out_two_windows_or_more(tmp_path: Path) -> None:
    stopping = ("trainer.num_evals=2", "certify.stop=true")
    with pytest.raises(ValueError, match=r"trainer\.eval_windows = 1: must be >= 2 with certify\.stop=true"):
        tiny_config(*stopping, "trainer.eval_windows=1")
    with pytest.raises(ValueError, match=r"data\.val_fraction = 0\.001: must be such that two windows or more"):
        run(tiny_config(*stopping, "data.val_fraction=0.001"), tmp_path / "run", show=False)


def test_a_verdict_says_that_a_loss_ran_to_infinity() -> None:
    steps = pd.DataFrame([dict.fromkeys(["loss", "h_autocorr", "h_autocorr_lag", *MEASURED], 0.5)])
    verdict = judge(VerdictConfig(), steps, pd.DataFrame([row(-INF, NAN) | {"val_loss": INF}]), lag=100)
    assert "held-out loss against fitted unigram: not measured: the held-out loss is inf" in verdict.as_text()
