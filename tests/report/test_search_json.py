"""search.json beside its trials, of this version and of earlier ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_sweep.report.search import COST_COLUMNS, cost_column, read_search
from marble_sweep.report.summary import compare_runs
from marble_sweep.report.table import cell, default_columns
from marble_sweep.runs.run import Run

MakeRun = Callable[..., Path]


def test_search_json_is_read_beside_its_trials_only(tmp_path: Path) -> None:
    runs = [Run(tmp_path / "search" / name, {}, {}, []) for name in "01"]
    assert read_search(runs) == (None, [])
    (tmp_path / "search").mkdir()
    content: dict[str, object] = {"version": 2, "summary_lines": ["0L3D"]}
    (tmp_path / "search" / "search.json").write_text(json.dumps(content))
    assert read_search(runs) == (content, [])
    reused = Run(tmp_path / "other" / "0", {}, {}, [])
    assert read_search([*runs, reused]) == (None, [])
    content["reused_runs"] = [str(reused.path)]
    (tmp_path / "search" / "search.json").write_text(json.dumps(content))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "search.json").write_text("damaged")
    assert read_search([*runs, reused]) == read_search([reused, *runs]) == (content, [])
    assert read_search([*runs, Run(tmp_path / "other" / "1", {}, {}, [])]) == (None, [])


def test_a_search_json_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name, {}, {}, []) for name in "01"]
    earlier = {"words": ["0L3D"], "looks": [28, 40], "standard_errors_each_look": 3.2}
    earlier |= {"threshold": "unigram", "answer": None}
    (tmp_path / "search.json").write_text(json.dumps(earlier))
    now = {"summary_lines": ["0L3D"], "evaluation_steps": [28, 40], "standard_errors_each_evaluation": 3.2}
    now |= {"version": 1, "thresholds": [{"threshold": "unigram", "answer": None}]}
    assert read_search(runs) == (now, [])


def test_the_table_of_a_searchs_trials_has_what_was_minimised(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(width), f"model.hidden_dim={width}") for width in (32, 64)]
    rows = [{"size": "a", "params": {"model.hidden_dim": 32, "optimizer": "adamw"}, "n_params": 1, "cost": 0.0123456}]
    content = {"version": 2, "summary_lines": ["a"], "minimise": "seconds_per_step", "thresholds": [{"frontier": rows}]}
    (tmp_path / "search.json").write_text(json.dumps(content))
    comparison = compare_runs([Run.read(run) for run in runs])
    assert [row["seconds_per_step"] for row in comparison.rows] == [0.0123456, None]  # of the other nothing is known
    columns = default_columns(comparison, comparison.rows)
    assert columns[columns.index("n_params") + 1] == "seconds_per_step"
    assert [cell(row, "seconds_per_step") for row in comparison.rows] == ["0.0123", "–"]


@pytest.mark.parametrize(
    "content",
    [
        {"minimise": "n_params", "thresholds": []},
        {"thresholds": [{"frontier": None}, 3]},
        {"minimise": ["flops_per_token"], "thresholds": []},
        {"minimise": "flops_per_token", "thresholds": None},
    ],
)
def test_other_tables_do_not(make_run: MakeRun, content: dict[str, object], tmp_path: Path) -> None:
    run = make_run(tmp_path / "0", "model.hidden_dim=32")
    (tmp_path / "search.json").write_text(json.dumps({"version": 2, "summary_lines": ["a"]} | content))
    comparison = compare_runs([Run.read(run)])
    assert not {*COST_COLUMNS} & {*default_columns(comparison, comparison.rows)}


def test_a_damaged_size_has_no_cost(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "0", "model.hidden_dim=32")
    rows: list[object] = [None, {"params": {"model.hidden_dim": 32}, "cost": "much"}, {"params": 1, "cost": 2}]
    summary = {"minimise": "flops_per_token", "thresholds": [{"frontier": rows}]}
    assert cost_column(summary, [Run.read(run)]) == ("flops_per_token", [None])
