"""search.json beside its trials, of this version and of earlier ones."""

import json
from pathlib import Path

from marble_sweep.report.search import read_search
from marble_sweep.runs.run import Run


def test_search_json_is_read_beside_its_trials_only(tmp_path: Path) -> None:
    runs = [Run(tmp_path / "search" / name, {}, {}, []) for name in "01"]
    assert read_search(runs) == (None, [])
    (tmp_path / "search").mkdir()
    content = {"version": 2, "summary_lines": ["0L3D"]}
    (tmp_path / "search" / "search.json").write_text(json.dumps(content))
    assert read_search(runs) == (content, [])
    assert read_search([*runs, Run(tmp_path / "other" / "0", {}, {}, [])]) == (None, [])


def test_a_search_json_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name, {}, {}, []) for name in "01"]
    earlier = {"words": ["0L3D"], "looks": [28, 40], "standard_errors_each_look": 3.2}
    earlier |= {"threshold": "unigram", "answer": None}
    (tmp_path / "search.json").write_text(json.dumps(earlier))
    now = {"summary_lines": ["0L3D"], "evaluation_steps": [28, 40], "standard_errors_each_evaluation": 3.2}
    now |= {"version": 1, "thresholds": [{"threshold": "unigram", "answer": None}]}
    assert read_search(runs) == (now, [])
