"""benchmarks/search_seeds.py: what it counts, on planted results, and that it continues where it was interrupted."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from search_claims import ENDED, Agreement, Claims, claims_of, contradictions, upper_bound
from search_seeds import AGREEMENT, ended_searches, keep_overrides, main, read_claims, search_all

from marble_sweep.searches.outcome import ENDINGS

SIZES = {"0L2D": 164, "0L3D": 246, "0L4D": 328}
ROOT = Path(__file__).parent.parent


def planted(
    answer: str | None,
    statuses: Mapping[str, str],
    *,
    confirmed: bool = True,
    ended: str = "undecided",
    below: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """What a search.json holds of its claims."""
    size = None if answer is None else {"size": answer, "n_params": SIZES[answer], "confirmed": confirmed}
    rows = [{"size": size, "n_params": SIZES[size], "status": status} for size, status in statuses.items()]
    named = {"undecided_below": [], "ruled_out_below": [], **(below or {})}
    return {"ended": ended, "answer": size, "frontier": rows, "trials": 30, "seconds": 9.5, **named}


CONFIRMS_2 = planted("0L2D", {"0L2D": "certified", "0L4D": "certified"}, ended="settled")
CONFIRMS_3 = planted("0L3D", {"0L2D": "ruled_out", "0L3D": "certified"}, ended="settled")
CONFIRMS_3_UNDECIDED_2 = planted("0L3D", {"0L2D": "undecided", "0L3D": "certified"})
IMPLIES_2 = planted("0L4D", {"0L2D": "implied", "0L3D": "ruled_out", "0L4D": "certified"}, ended="settled")
NO_ANSWER = planted(None, {"0L4D": "ruled_out"}, ended="settled")  # smaller sizes are implied, and not listed
OUT_OF_BUDGET = planted(None, {"0L2D": "open", "0L4D": "undecided"}, ended="n_trials")


def claims(*searches: dict[str, Any]) -> list[Claims]:
    return [claims_of(seed, search) for seed, search in enumerate(searches, 1)]


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (CONFIRMS_2, CONFIRMS_3, ["seed 1 confirms 0L2D, seed 2 excludes it"]),
        (CONFIRMS_3, CONFIRMS_2, ["seed 2 confirms 0L2D, seed 1 excludes it"]),
        (CONFIRMS_2, IMPLIES_2, ["seed 1 confirms 0L2D, seed 2 excludes it"]),
        (CONFIRMS_3, IMPLIES_2, ["seed 1 confirms 0L3D, seed 2 excludes it"]),
        (CONFIRMS_2, NO_ANSWER, ["seed 1 confirms 0L2D, seed 2 excludes it"]),
        (CONFIRMS_2, CONFIRMS_2, []),
        (CONFIRMS_2, CONFIRMS_3_UNDECIDED_2, []),
        (CONFIRMS_3, CONFIRMS_3_UNDECIDED_2, []),
        (CONFIRMS_2, OUT_OF_BUDGET, []),
        (NO_ANSWER, IMPLIES_2, ["seed 2 confirms 0L4D, seed 1 excludes it"]),
        (planted("0L2D", {"0L2D": "certified"}, confirmed=False), CONFIRMS_3, []),
    ],
)
def test_a_contradiction_is_a_confirmed_size_that_the_other_excludes(
    first: dict[str, Any], second: dict[str, Any], told: list[str]
) -> None:
    assert contradictions(*claims(first, second)) == told


def test_sizes_listed_below_the_answer_count_where_the_frontier_says_otherwise() -> None:
    other = planted("0L4D", {"0L4D": "certified"}, below={"ruled_out_below": ["0L3D"], "undecided_below": ["0L2D"]})
    two, three, four = claims(CONFIRMS_2, CONFIRMS_3, other)
    assert contradictions(two, four) == []
    assert contradictions(three, four) == ["seed 2 confirms 0L3D, seed 3 excludes it"]
    assert [four.status(size, number) for size, number in SIZES.items()] == ["undecided", "excluded", "confirmed"]


def test_counts_pairs_and_sizes() -> None:
    """Of ten pairs three contradict each other: 1 and 3, 2 and 3, 3 and 5."""
    searches = claims(CONFIRMS_3, CONFIRMS_3_UNDECIDED_2, IMPLIES_2, OUT_OF_BUDGET, CONFIRMS_3)
    agreement = Agreement(searches)
    assert agreement.all_pairs() == (3, 10)
    assert agreement.disjoint_pairs() == (0, 2)  # 1 and 2, 3 and 4; the fifth has no partner
    assert agreement.with_the_first() == (1, 4)
    assert agreement.sizes() == {
        "0L2D": {"excluded": 3, "undecided": 1, "open": 1},
        "0L3D": {"confirmed": 3, "excluded": 1, "open": 1},
        "0L4D": {"confirmed": 1, "undecided": 1, "open": 3},
    }
    told = agreement.as_json()
    assert told["all_pairs"] == {"contradict": 3, "of": 10}
    assert told["endings"] == {"settled": 3, "undecided": 1, "n_trials": 1}
    assert told["contradictions"] == [f"seed {seed} confirms 0L3D, seed 3 excludes it" for seed in (1, 2, 5)]
    lines = agreement.as_lines()
    assert "| 0L3D | 3 | 0 | 0 | 1 | 1 |" in lines
    assert "3 of 10 pairs contradict each other." in lines


def test_59_without_a_contradiction_bound_it_below_5_percent() -> None:
    """Clopper and Pearson's bound of none is 1 - 0.05^(1 / n)."""
    for total in (1, 58, 59, 200):
        assert upper_bound(0, total) == pytest.approx(1 - 0.05 ** (1 / total), abs=1e-12)
    assert upper_bound(0, 59) < 0.05 < upper_bound(0, 58)
    assert upper_bound(3, 3) == 1.0


def test_endings_are_those_of_a_search() -> None:
    assert set(ENDINGS) - set(ENDED) == {"interrupted", "error", "running"}


# ------------------------------------------------------------------------------------------------- the command


def plant(folder: Path, seed: int, search: dict[str, Any]) -> None:
    (folder / f"seed-{seed}").mkdir()
    (folder / f"seed-{seed}" / "search.json").write_text(json.dumps(search), encoding="utf-8")


def test_searches_that_have_ended_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path, 1, CONFIRMS_2)
    plant(tmp_path, 2, CONFIRMS_3)
    monkeypatch.setattr(sys, "argv", ["search_seeds.py", str(tmp_path), "--searches", "2", "trainer.total_steps=9"])
    assert main() == 0
    assert "seed 1 confirms 0L2D, seed 2 excludes it" in capsys.readouterr().out
    told = json.loads((tmp_path / AGREEMENT).read_text(encoding="utf-8"))
    assert told["overrides"] == ["trainer.total_steps=9"]
    assert told["disjoint_pairs"] == {"contradict": 1, "of": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [AGREEMENT, "overrides.json", "seed-1", "seed-2"]


def test_searches_that_were_interrupted_are_not_counted(tmp_path: Path) -> None:
    plant(tmp_path, 1, CONFIRMS_2)
    for seed, ended in enumerate(("running", "interrupted", "error"), 2):
        plant(tmp_path, seed, planted("0L3D", {}, ended=ended))
        assert read_claims(tmp_path, seed) is None
    assert [search.seed for search in ended_searches(tmp_path, range(1, 9))] == [1]


def test_other_overrides_need_another_folder(tmp_path: Path) -> None:
    keep_overrides(tmp_path / "new", ["trainer.total_steps=9"])
    keep_overrides(tmp_path / "new", ["trainer.total_steps=9"])
    with pytest.raises(ValueError, match=r"overrides = \['seed=3'\]: must be as in .*overrides.json: "):
        keep_overrides(tmp_path / "new", ["seed=3"])


def test_a_search_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search_all(tmp_path, [1], 1, ["no.such.key=1"]) == [1]
    assert f"seed 1: failed, see {tmp_path / 'seed-1.log'}" in capsys.readouterr().out
    assert "no.such.key" in (tmp_path / "seed-1.log").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupted_command_continues(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/search_seeds.py", str(tmp_path), "--searches", "2", "--at-once", "2"]
    small = ["--quick", "model.hidden_dim=3,5", "search.confirm_seeds=3"]
    process = subprocess.Popen([*command, *small], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    trials = [tmp_path / f"seed-{seed}" / "0" / "config.yaml" for seed in (1, 2)]
    while process.poll() is None and not all(path.exists() for path in trials):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate()
    assert process.returncode == 130
    assert "0 of 2 searches have ended; the same command continues." in told
    begun = [path.read_bytes() for path in trials]
    ended = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "of 1 pairs contradict each other." in ended.stdout
    assert [path.read_bytes() for path in trials] == begun
    searches = json.loads((tmp_path / AGREEMENT).read_text(encoding="utf-8"))["searches"]
    assert [search["seed"] for search in searches] == [1, 2]
