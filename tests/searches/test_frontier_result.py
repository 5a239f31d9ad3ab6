"""The result of a frontier whose losses follow a planted law: in JSON, in words and as a plot."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_config
from matplotlib.container import ErrorbarContainer
from optuna.storages import InMemoryStorage
from studies import made_up
from worlds import make_space

from marble_sweep.checks import CheckError
from marble_sweep.report.frontier import draw_frontier, frontier_figure
from marble_sweep.report.search import can_be_drawn
from marble_sweep.searches.frontier_result import FrontierResult
from marble_sweep.searches.frontier_strategy import FrontierState, next_frontier_trial
from marble_sweep.searches.frontier_windows import shared_and_own, window_errors
from marble_sweep.searches.strategy import Proposal, Settled, Wait
from marble_sweep.searches.study import Snapshot, as_record, open_study
from marble_sweep.searches.view import View
from marble_sweep.uncertainty.clusters import clustered_mean

SPACE = make_space("model.hidden_dim=2,3,4,6,8,12,16", "optimizer.lr=tag(log,interval(1e-3,1))")
LEVEL, FALL = 5.0, 1.6  # α is 1
THRESHOLDS = {"unigram": 6.5, "5.4": 5.4, "4.0": 4.0}
BUDGET = (
    *("search.question=frontier", "search.thresholds=[unigram,5.4,4.0]", "certify.thresholds=[unigram,5.4,4.0]"),
    *("trainer.total_steps=100", "trainer.num_evals=1"),
)


def planted(width: int) -> float:
    return LEVEL + FALL * 2 / width


def trained(plan: Proposal, edge: int) -> float:
    """The loss of a trial: each size has its own best rate, from width `edge` on the lowest one."""
    params = SPACE.params(plan.size, plan.recipe)
    width, rate = int(params["model.hidden_dim"]), math.log10(float(params["optimizer.lr"]))
    best = -3.0 if width >= edge else -1.5
    noise = 0.01 * (-1) ** (width + plan.seed) if plan.seed else -0.02  # the search's own seed is a lucky one
    return planted(width) + 0.3 * (rate - best) ** 2 + noise


def searched(*overrides: str, edge: int = 100) -> FrontierResult:
    base = tiny_config(*BUDGET, *overrides)

    def decide(now: Snapshot) -> Proposal | Wait | Settled:
        return next_frontier_trial(FrontierState(SPACE, now.records, base.search.frontier_seeds))

    shared = open_study(InMemoryStorage(), "test", SPACE, decide, {}, timeout=60.0)
    while (asked := shared.ask()) is not None:
        trial, plan = asked
        loss = trained(plan, edge)
        shown = {name: {"val_loss": loss, "margin": level - loss} for name, level in THRESHOLDS.items()}
        entries: dict[str, dict[str, Any]] = {
            name: entry | {"outcome": "certified" if entry["margin"] > 0.05 else "below", "shortfalls": {}}
            for name, entry in shown.items()
        }
        result = made_up("below", step=100, margin=THRESHOLDS["unigram"] - loss)
        shared.tell(trial, replace(result, val_loss=loss, thresholds=entries), 1, None)
    trials = [trial for trial in shared.study.get_trials() if as_record(trial) is not None]
    return FrontierResult(SPACE, base, trials, [])


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(json.dumps(searched().as_json("settled")))
    return whole


def test_losses_are_those_of_fresh_seeds(summary: dict[str, Any]) -> None:
    for row, size in zip(summary["sizes"], SPACE.sizes, strict=True):
        width = int(dict(size.params)["model.hidden_dim"])
        assert len(row["losses"]) == 2
        assert row["loss"] == pytest.approx(planted(width), abs=1e-6)  # the seeds' noise cancels
        assert row["tuned"]
        assert row["params"]["optimizer.lr"] == pytest.approx(0.0316)
        assert row["interval"][0] < row["loss"] < row["interval"][1]
    assert summary["staircase"] == [row["size"] for row in summary["sizes"]]


def test_the_law_and_what_it_predicts(summary: dict[str, Any]) -> None:
    law = summary["law"]
    for name, truth in (("E", LEVEL), ("alpha", 1.0)):
        _, low, high = law[name]
        assert low < truth < high
    assert law["curve"][0][0] == pytest.approx(1000)
    assert law["curve"][-1][0] == pytest.approx(32_000)
    unigram, reached, never = summary["thresholds"]
    assert unigram["loss"] == pytest.approx(6.5)
    low, high = unigram["predicted"][1:]
    assert low < 1000 * 2 * FALL / (6.5 - LEVEL) < high
    assert reached["predicted"][1] < 1000 * 2 * FALL / (5.4 - LEVEL) < reached["predicted"][2]
    assert never["predicted"] is None
    assert "no size reaches it" in never["not_predicted"]


def test_the_smallest_certified_size_stands_beside_the_prediction(summary: dict[str, Any]) -> None:
    unigram, reached, never = summary["thresholds"]
    assert unigram["answer"] == {"size": "hidden_dim=3", "n_params": 3000}
    assert reached["answer"] == {"size": "hidden_dim=12", "n_params": 12_000}
    assert never["answer"] is None


def test_in_words(summary: dict[str, Any]) -> None:
    lines = summary["summary_lines"]
    assert lines[0].startswith("The lowest held-out losses after 100 steps of 8 x 16 tokens: 7 sizes, 7 of them tuned")
    assert any("2,000 parameters: 6.6000 on 2 seeds (hidden_dim=2 lr=0.0316)" in line for line in lines)
    assert any("loss = E + A / parameters^α with E = 5.0" in line for line in lines)
    assert any(
        "best unigram (6.500): hidden_dim=3 with 3,000 parameters beats it; by the law" in line for line in lines
    )
    assert any("A loss (4.000): no size beats it; by the law no size reaches it" in line for line in lines)
    assert any(line.startswith("The question is settled after") for line in lines)


def test_sizes_at_an_edge_are_not_tuned_and_there_is_no_law() -> None:
    summary = searched(edge=6).as_json("settled")
    assert [row["tuned"] for row in summary["sizes"]] == [True] * 3 + [False] * 4
    assert summary["law"] == {"refused": "a law needs 5 tuned sizes, and there are 3"}
    lines = summary["summary_lines"]
    assert "There is no law: a law needs 5 tuned sizes, and there are 3." in lines
    named = "Not tuned, and not in the law: hidden_dim=6, hidden_dim=8, hidden_dim=12, hidden_dim=16"
    assert any(line.startswith(named) for line in lines)
    assert can_be_drawn(json.loads(json.dumps(summary)))
    axes = frontier_figure(summary).axes[0]
    assert axes.get_title(loc="left").startswith("No law: a law needs 5")


def test_no_law_is_fitted_while_it_runs() -> None:
    summary = searched().as_json("running")
    assert summary["law"]["refused"] is not None
    assert not any("law" in line for line in summary["summary_lines"] if "tuned" not in line)


def test_a_frontier_without_a_trial_has_words_and_a_plot(tmp_path: Path) -> None:
    summary = FrontierResult(SPACE, tiny_config(*BUDGET), [], []).as_json("interrupted")
    assert summary["staircase"] == []
    assert can_be_drawn(json.loads(json.dumps(summary)))
    draw_frontier(summary, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot(summary: dict[str, Any]) -> None:
    """Tuned points filled, others hollow, the band only where the law may predict, thresholds as labelled lines."""
    summary = summary | {"sizes": [row | {"tuned": row["n_params"] > 2000} for row in summary["sizes"]]}
    assert can_be_drawn(summary)
    axes = frontier_figure(summary).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert {"tuned (6)", "not tuned (1)", "law of the tuned sizes", "95 % of runs, by the law"} <= set(labels)
    bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    fills = {container.get_label(): container.lines[0].get_markerfacecolor() for container in bars}
    assert (fills["tuned (6)"] != "white", fills["not tuned (1)"]) == (True, "white")
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.x0, band.x1) == (pytest.approx(1000), pytest.approx(32_000))
    assert {text.get_text() for text in axes.texts} == {"best unigram 6.500", "threshold 5.400", "threshold 4.000"}


def test_a_damaged_summary_is_not_drawn(summary: dict[str, Any]) -> None:
    damages: list[dict[str, Any]] = [{"law": None}, {"sizes": [{}]}, {"thresholds": [{"threshold": 3}]}]
    for damaged in damages:
        assert not can_be_drawn(summary | damaged)
    for law in ({"curve": [[1, 2]]}, {"E": "5"}, {"curve": 7}):
        assert not can_be_drawn(summary | {"law": summary["law"] | law})


def test_errors_of_windows_are_parted() -> None:
    """Windows that are hard for all sizes count in what all share, and not in the errors of single sizes."""
    rng = np.random.default_rng(1)
    hard, own = rng.normal(0, 1.0, 400), rng.normal(0, 0.05, (3, 400))
    parted = shared_and_own(6.0 + hard + own, None)
    assert parted is not None
    errors, shared = parted
    assert shared == pytest.approx(clustered_mean(hard, None).error, rel=0.1)
    assert max(errors) < 0.1 * shared
    assert errors[0] == pytest.approx(clustered_mean(own[0] - own.mean(axis=0), None).error)


def test_windows_that_cannot_be_read_tell_no_error(tmp_path: Path) -> None:
    assert window_errors([[tmp_path / "missing"]], 100) is None


@pytest.mark.parametrize("seeds", [1, 2])
def test_how_many_seeds(seeds: int) -> None:
    """With one, the seed that selected the recipe is all there is."""
    result = searched(f"search.frontier_seeds={seeds}")
    sizes = result.as_json("running")["sizes"]
    assert [len(row["losses"]) for row in sizes] == [1] * len(SPACE.sizes)
    lucky = sizes[0]["loss"] - planted(2)
    assert lucky == pytest.approx(-0.02 if seeds == 1 else -0.01, abs=1e-6)


def test_an_unknown_question_is_refused() -> None:
    with pytest.raises(CheckError, match=r"^search\.question = best: must be one of smallest, frontier$"):
        tiny_config("search.question=best")


def test_a_trial_is_shown_with_its_loss() -> None:
    stream = io.StringIO()
    view = View(100, stream, shows_loss=True)
    view.end("3  climb", made_up("below", step=100, margin=-0.5), "1 of 7 sizes climbed")
    view.end("4  climb", made_up("diverged", step=60, margin=None), "1 of 7 sizes climbed")
    ended, diverged = stream.getvalue().splitlines()
    assert "loss 3.5000" in ended
    assert "margin" not in ended
    assert "diverged  at step  60" in diverged


def test_the_trials_of_best_recipes_are_named() -> None:
    """They keep their tensors under search.keep=best."""
    result = searched()
    named = result.named_trials(is_over=True)
    records = {record.number: record for record in result.records}
    assert len(named) == 3 * len(SPACE.sizes)
    assert {records[number].recipe for number in named} == {(3.0,)}
    assert {records[number].seed for number in named} == {0, 1, 2}
