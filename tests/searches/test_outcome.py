"""The result of a search: in JSON, in words and as a plot."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_config
from matplotlib.axes import Axes
from optuna.storages import InMemoryStorage
from studies import made_up, small_space

from marble_sweep.report.frontier import STYLES, draw_frontier, frontier_figure
from marble_sweep.searches.outcome import SearchResult
from marble_sweep.searches.pass_rate import standard_of
from marble_sweep.searches.seeds import trial_seed
from marble_sweep.searches.strategy import Proposal, Settled, Wait, decide
from marble_sweep.searches.study import Snapshot, as_record, open_study
from marble_sweep.searches.trial_record import TrialRecord

SPACE = small_space()
BUDGET = (
    "trainer.total_steps=100",
    "trainer.num_evals=3",
    "trainer.eval_spacing=geometric",
    "certify.stop=true",
    "search.confirm_seeds=2",
)
STEPS = (50, 71, 100)


def flat(summary: dict[str, Any]) -> dict[str, Any]:
    """search.json with what it says of its only threshold beside the rest."""
    (threshold,) = summary["thresholds"]
    return summary | threshold


def searched(*overrides: str, smallest: int | None, max_trials: int = 1000) -> SearchResult:
    """A search where the sizes from index `smallest` on certify at step 71, and no other size does."""
    base = tiny_config(*BUDGET, *overrides)

    def decide_next(now: Snapshot) -> Proposal | Wait | Settled:
        return decide(SPACE, now.records, standard_of(base.search))

    shared = open_study(InMemoryStorage(), "test", SPACE, decide_next, {}, timeout=60.0)
    number = 0
    while isinstance(decide_next(shared.snapshot()), Proposal) and number < max_trials:
        asked = shared.ask()
        assert asked is not None
        trial, plan = asked
        good = smallest is not None and plan.size >= smallest
        for step in STEPS[: 2 if good else 3]:
            trial.report(-0.1 if good and step == 71 else 0.3 - 0.001 * step, step)
        step = 71 if good else 100
        result = made_up("certified" if good else "below", step=step, margin=0.14 if good else -0.05)
        shared.tell(trial, result, SPACE.sizes[plan.size].num_parameters, None)
        number += 1
    trials = [trial for trial in shared.study.get_trials() if as_record(trial) is not None]
    return SearchResult(
        SPACE, base, trials, ["data=markov", "trainer.total_steps=100", "certify.stop=true", "search.n_trials=9"]
    )


def _records(shared: Any) -> list[TrialRecord]:
    return [record for trial in shared.study.get_trials() if (record := as_record(trial)) is not None]


def test_a_retried_trial_is_counted_once_and_a_crash_saves_nothing() -> None:
    base = tiny_config(*BUDGET)
    shared = open_study(InMemoryStorage(), "test", SPACE, lambda now: decide(SPACE, now.records, 2), {}, timeout=60.0)

    def so_far() -> SearchResult:
        return SearchResult(SPACE, base, [trial for trial in shared.study.get_trials() if as_record(trial)], [])

    first, plan = shared.ask() or pytest.fail("there is a first trial")
    first.report(0.3, 50)
    shared.release(first)
    assert (so_far().num_trials(), so_far().tokens()) == (1, 50 * 8 * 16)
    again, same = shared.ask() or pytest.fail("it is retried")
    assert (same.size, same.recipe, same.reason) == (plan.size, plan.recipe, "retry")
    shared.tell(again, made_up("below", step=100), 1, None)
    assert (so_far().num_trials(), so_far().tokens()) == (1, 100 * 8 * 16)
    crashed, _ = shared.ask() or pytest.fail("there is more to do")
    shared.tell(crashed, made_up("failed", step=0, margin=None), 1, None)
    assert so_far().as_json("running")["tokens_saved"] == {"certified_early": 0, "given_up_early": 0}


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return searched(smallest=2)


def test_the_answer(result: SearchResult) -> None:
    answer = result.thresholds[0].answer()
    assert answer is not None
    assert answer["size"] == str(SPACE.sizes[2])
    assert answer["n_params"] == SPACE.sizes[2].num_parameters
    assert (answer["val_loss"], answer["margin"], answer["margin_se"], answer["step"]) == (2.86, 0.14, 0.01, 71)
    assert answer["confirmed"] is True
    fresh = [trial_seed(42, answer["params"], index) for index in (1, 2)]
    assert answer["seed"] == 42
    assert answer["confirming_seeds"] == answer["fresh_seeds"]["seeds"] == fresh
    assert (answer["fresh_seeds"]["passed"], answer["fresh_seeds"]["verdict"]) == (2, "accepted")


def test_the_command_trains_the_winner_for_its_whole_budget(result: SearchResult) -> None:
    answer = result.thresholds[0].answer()
    assert answer is not None
    words = answer["command"].split()
    assert words[:3] == ["python", "-m", "marble_sweep"]
    assert {f"{key}={value}" for key, value in answer["params"].items()} <= set(words)
    assert "trainer.total_steps=100" in words
    assert not any(word.startswith(("certify.stop", "search.")) for word in words)


def test_the_command_repeats_the_winners_device(result: SearchResult) -> None:
    """With other products or threads its numbers would be others; what was fixed for all trials is not said twice."""
    fixed = dataclasses.replace(result, overrides=[*result.overrides, "device.matmul=float32", "device.type=cpu"])
    command = fixed.thresholds[0].command({"optimizer.lr": 0.1}, {"matmul": "float32", "head": "fused"})
    assert command.split()[-4:] == ["device.type=cpu", "device.matmul=float32", "device.head=fused", "optimizer.lr=0.1"]
    assert command.count("device.matmul") == 1
    assert "device." not in result.thresholds[0].command({"optimizer.lr": 0.1}, None)
    assert (
        result.thresholds[0].command({"device.head": "fused"}, {"matmul": "float32", "head": "fused"}).count("head")
        == 1
    )
    answer = result.thresholds[0].answer()
    assert answer is not None
    assert {"device.head=float32", "device.num_threads=2"} <= {*answer["command"].split()}


def test_json(result: SearchResult) -> None:
    summary = flat(result.as_json("settled"))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["ended"] == "settled"
    assert summary["threshold"] == "unigram"
    assert summary["evaluation_steps"] == list(STEPS)
    assert summary["sizes_below"].keys() <= {"refuted", "implied"}
    assert sum(summary["sizes_below"].values()) == 2
    assert summary["trials"] == len(result.trials) == sum(summary["outcomes"].values())
    assert summary["tokens"] == sum(trial.user_attrs["result"]["tokens"] for trial in result.trials)
    certified = summary["outcomes"]["certified"]
    assert summary["tokens_saved"] == {"certified_early": certified * 29 * 8 * 16, "given_up_early": 0}
    statuses = {row["size"]: row["status"] for row in summary["frontier"]}
    assert statuses[str(SPACE.sizes[2])] == "certified"
    assert set(statuses.values()) <= set(STYLES)


def test_words(result: SearchResult) -> None:
    text = "\n".join(result.as_json("settled")["summary_lines"])
    size = SPACE.sizes[2]
    assert f"The smallest certified size: {size}, {size.num_parameters:,} parameters, beats the best" in text
    assert "unigram loss within 100 steps of 8 x 16 tokens." in text
    shown = "a pass rate above 22.4 % at 95 % confidence"
    assert f"; certified on 2 of 2 fresh seeds, the quick form: it shows {shown}." in text
    assert "Of all smaller sizes in the space: " in text
    assert "The question is settled after" in text


def test_an_error_is_no_interruption(result: SearchResult) -> None:
    text = "\n".join(result.as_json("error")["summary_lines"])
    assert "It ended in an error after" in text
    assert "interrupted" not in text


def test_the_command_reads_the_same_files(result: SearchResult) -> None:
    odd = dataclasses.replace(
        result, config_options=["--config-dir", "my conf"], overrides=[*result.overrides, 'notes="a b"']
    )
    answer = odd.thresholds[0].answer()
    assert answer is not None
    words = shlex.split(answer["command"])
    assert words[3:5] == ["--config-dir", "my conf"]
    assert 'notes="a b"' in words


def test_words_where_nothing_certifies() -> None:
    result = searched(smallest=None)
    summary = flat(result.as_json("settled"))
    assert summary["answer"] is None
    assert summary["summary_lines"][0].startswith("Nothing is certified: no size tried is shown to beat the best")
    assert not any("To train it" in line for line in summary["summary_lines"])
    assert result.thresholds[0].bracket().startswith("none certified")


def test_an_answer_that_is_not_confirmed_says_so() -> None:
    result = searched(smallest=0, max_trials=1)
    answer = result.thresholds[0].answer()
    assert answer is not None
    assert not answer["confirmed"]
    assert "not confirmed" in result.as_json("n_trials")["summary_lines"][1]


def crashing(crashes: set[int], smallest: int | None, *, max_trials: int = 100) -> SearchResult:
    """A search where the sizes with these indices crash, and of the others those from `smallest` on certify."""
    base = tiny_config(*BUDGET)
    shared = open_study(InMemoryStorage(), "test", SPACE, lambda now: decide(SPACE, now.records, 2), {}, timeout=60.0)

    def so_far() -> SearchResult:
        return SearchResult(SPACE, base, [trial for trial in shared.study.get_trials() if as_record(trial)], [])

    for _ in range(max_trials):
        settled = not isinstance(decide(SPACE, so_far().records, 2), Proposal)
        if so_far().ended_by(settled=settled):
            break
        trial, plan = shared.ask() or pytest.fail("there is more to do")
        if plan.size in crashes:
            result = made_up("failed", step=0, margin=None)
        else:
            good = smallest is not None and plan.size >= smallest
            trial.report(-0.1 if good else 0.05, 71)
            result = made_up("certified" if good else "below", step=71, margin=0.14 if good else -0.05)
        shared.tell(trial, result, SPACE.sizes[plan.size].num_parameters, None)
    return so_far()


def test_a_crash_that_keeps_the_answer_from_being_proved_is_named() -> None:
    result = crashing({1}, smallest=3)
    assert result.ended_by(settled=True) == "crashed"
    summary = flat(result.as_json("crashed"))
    (crash,) = summary["crashes"]
    name = str(SPACE.sizes[1])
    numbers = [trial.number for trial in result.trials if trial.user_attrs["outcome"] == "failed"]
    assert crash == {"size": name, "trials": numbers, "reason": "boom"}
    assert summary["answer"]["size"] == str(SPACE.sizes[3])
    assert summary["sizes_below"]["crashed"] == 1
    assert sum(summary["sizes_below"].values()) == 3
    line = next(line for line in summary["summary_lines"] if "not settled" in line)
    assert line.startswith(f"The question is not settled: 1 size crashed: {name} (trials {numbers[0]}, ")
    assert line.endswith(": boom).")
    text = "\n".join(summary["summary_lines"])
    assert "The smallest certified size so far: " in text
    assert "The question is settled" not in text
    assert {row["size"]: row["status"] for row in summary["frontier"]}[name] == "crashed"
    assert ", 1 crashed" in result.thresholds[0].bracket()
    assert "2 of 3 smaller refuted" in result.thresholds[0].bracket()


def legend(axes: Axes) -> list[str]:
    box = axes.get_legend()
    assert box is not None
    return [text.get_text() for text in box.get_texts()]


def test_the_plot_counts_a_crashed_size_as_crashed() -> None:
    summary = flat(crashing({1}, smallest=3).as_json("crashed"))
    (axes,) = frontier_figure(summary).axes
    labels = set(legend(axes))
    assert "crashed (1)" in labels
    refuted = sum(row["status"] == "refuted" for row in summary["frontier"])
    assert f"refuted ({refuted})" in labels


def test_a_crash_above_the_answer_does_not_matter() -> None:
    result = crashing({len(SPACE.sizes) // 2}, smallest=0)
    assert result.ended_by(settled=True) == "settled"
    assert result.crashes() == []


def test_a_search_in_which_everything_crashes_ends_after_two_sizes() -> None:
    result = crashing(set(range(len(SPACE.sizes))), smallest=0)
    assert result.ended_by(settled=False) == "crashed"
    assert [trial.user_attrs["outcome"] for trial in result.trials] == ["failed"] * 4
    assert result.num_trials() == 2  # both were retried
    summary = flat(result.as_json("crashed"))
    assert summary["summary_lines"][0] == "Nothing is certified: every trial crashed."
    assert [len(crash["trials"]) for crash in summary["crashes"]] == [2, 2]


def test_crashes_of_an_earlier_start_are_forgotten() -> None:
    result = crashing({1}, smallest=3)
    again = SearchResult(SPACE, result.base, result.trials, [], first_trial=len(result.trials))
    assert again.ended_by(settled=False) is None
    assert again.crashes() == []
    plan = decide(SPACE, again.records, 2)
    assert isinstance(plan, Proposal)
    assert (plan.size, plan.reason) == (1, "retry")
    assert again.as_json("running")["outcomes"]["failed"] == result.as_json("crashed")["outcomes"]["failed"]


def test_what_is_too_slow_is_not_called_refuted_by_training() -> None:
    base = tiny_config(*BUDGET, "certify.min_steps_per_minute=1000")
    space = small_space("model.num_layers=0,1", "model.hidden_dim=2,4")
    shared = open_study(InMemoryStorage(), "test", space, lambda now: decide(space, now.records, 2), {}, timeout=60.0)
    while asked := shared.ask():
        trial, plan = asked
        trial.report(-0.1 if plan.size >= 2 else 0.3, 71)
        outcome = "certified" if plan.size >= 2 else "too_slow"
        shared.tell(trial, made_up(outcome, step=71), space.sizes[plan.size].num_parameters, 1000.0)
    result = SearchResult(space, base, [trial for trial in shared.study.get_trials() if as_record(trial)], [])
    summary = flat(result.as_json("settled"))
    assert summary["sizes_below"] == {"too_slow": 2}
    assert {row["status"] for row in summary["frontier"]} == {"certified", "too_slow"} <= set(STYLES)
    text = "\n".join(summary["summary_lines"])
    assert "Of all smaller sizes in the space: 2 ruled out as too slow." in text
    assert "The smallest certified size: 0L4D" in text
    assert "within 100 steps of 8 x 16 tokens at 1000 steps a minute or more." in text


def test_an_answer_before_the_end_is_the_smallest_found() -> None:
    assert (
        "The smallest certified size so far: "
        in searched(smallest=2, max_trials=3).as_json("n_trials")["summary_lines"][0]
    )


def test_an_answer_that_nothing_had_to_confirm_is_not_called_confirmed() -> None:
    result = searched("search.confirm_seeds=0", smallest=2)
    summary = flat(result.as_json("settled"))
    assert summary["answer"]["confirmed"] is False
    assert "; not confirmed: search.confirm_seeds = 0." in summary["summary_lines"][1]
    assert result.thresholds[0].bracket().startswith(f"{SPACE.sizes[2]} certified")


def test_the_bracket(result: SearchResult) -> None:
    assert (
        result.thresholds[0]
        .bracket()
        .startswith(f"{SPACE.sizes[2]} confirmed on 2 of 2 seeds | 2 of 2 smaller refuted, largest ")
    )


# ------------------------------------------------------------------------------------- by a pass rate


@pytest.fixture(scope="module")
def by_rate() -> SearchResult:
    return searched("search.confirm_seeds=null", smallest=2)


def test_an_answer_by_pass_rate(by_rate: SearchResult) -> None:
    answer = by_rate.thresholds[0].answer()
    assert answer is not None
    fresh = answer["fresh_seeds"]
    seeds = [trial_seed(42, answer["params"], index) for index in range(1, 22)]
    assert answer["confirmed"] is True
    assert answer["confirming_seeds"] == fresh["seeds"] == seeds
    assert (fresh["passed"], fresh["number"], fresh["level"], fresh["max_seeds"]) == (21, 1, pytest.approx(0.025), 46)
    assert fresh["interval"] == pytest.approx([0.025 ** (1 / 21), 1.0])
    assert "seed=42" in answer["command"].split()


def test_words_of_a_pass_rate(by_rate: SearchResult) -> None:
    summary = flat(by_rate.as_json("settled"))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    lines = summary["summary_lines"]
    assert lines[0].startswith(f"The smallest certified size: {SPACE.sizes[2]}, ")
    assert lines[1].endswith("; certified on 21 of 21 fresh seeds: a pass rate above 80 % at 95 % confidence.")
    ruled_out = [tested for tested in summary["tested_recipes"] if tested["verdict"] == "ruled_out"]
    seeds = sum(len(tested["seeds"]) for tested in ruled_out)
    assert {tested["size"] for tested in ruled_out} == set(summary["ruled_out_below"])
    assert all("optimizer.lr" in tested["params"] for tested in ruled_out)
    assert f"2 ruled out with {len(ruled_out)} recipes on {seeds} fresh seeds" in lines[2]
    assert summary["standard"] == {"pass_rate": 0.8, "confidence": 0.95}
    assert {row["status"] for row in summary["frontier"]} == {"certified", "ruled_out"} <= set(STYLES)
    assert (
        by_rate.thresholds[0]
        .bracket()
        .startswith(f"{SPACE.sizes[2]} confirmed on 21 of 21 seeds | 2 of 2 smaller ruled out, ")
    )


def test_a_seed_that_is_only_not_certified_leaves_a_size_undecided() -> None:
    base = tiny_config(*BUDGET, "search.confirm_seeds=null")
    space = small_space("model.num_layers=0,1", "model.hidden_dim=2,4")
    standard = standard_of(base.search)
    shared = open_study(InMemoryStorage(), "test", space, lambda now: decide(space, now.records, standard), {}, 60.0)
    while asked := shared.ask():
        trial, plan = asked
        trial.report(-0.1 if plan.size else 0.01, 71)
        made = made_up("certified" if plan.size else "undecided", step=71, margin=0.14 if plan.size else 0.001)
        shared.tell(trial, made, space.sizes[plan.size].num_parameters, None)
    result = SearchResult(space, base, [trial for trial in shared.study.get_trials() if as_record(trial)], [])
    assert result.ended_by(settled=True) == "undecided"
    summary = flat(result.as_json("undecided"))
    assert summary["sizes_below"] == {"undecided": 1}
    (size,) = summary["undecided_below"]
    tested = next(tested for tested in summary["tested_recipes"] if tested["size"] == size)
    assert (tested["passed"], tested["undecided"]) == (0, len(tested["seeds"]))
    text = "\n".join(summary["summary_lines"])
    seeds = f"certified on 0 of {len(tested['seeds'])} seeds: 0 % to 100 %"
    assert f"Undecided, with the interval of its pass rate: {size} ({seeds})." in text
    assert "Of all smaller sizes in the space: 1 undecided." in text
    assert "Nothing is left to try after" in text
    assert (
        result.thresholds[0]
        .bracket()
        .startswith(f"{space.sizes[1]} confirmed on 21 of 21 seeds | 0 of 1 smaller ruled out, 1 und")
    )


def test_a_confirmed_answer_comes_before_a_smaller_one_that_is_not() -> None:
    base = tiny_config(*BUDGET, "search.confirm_seeds=null")
    standard = standard_of(base.search)
    shared = open_study(InMemoryStorage(), "test", SPACE, lambda now: decide(SPACE, now.records, standard), {}, 60.0)
    confirmed = False
    while True:
        trial, plan = shared.ask() or pytest.fail("there is more to do")
        good = plan.size >= 2 or confirmed
        trial.report(-0.1 if good else 0.05, 71)
        made = made_up("certified" if good else "below", step=71, margin=0.14 if good else -0.05)
        shared.tell(trial, made, SPACE.sizes[plan.size].num_parameters, None)
        result = SearchResult(SPACE, base, [trial for trial in shared.study.get_trials() if as_record(trial)], [])
        if confirmed:  # and this smaller size is lucky
            break
        confirmed = result.thresholds[0].state.confirmed(2)
    summary = flat(result.as_json("max_minutes"))
    assert (summary["answer"]["size"], summary["answer"]["confirmed"]) == (str(SPACE.sizes[2]), True)
    assert summary["smaller_unconfirmed"]["size"] == str(SPACE.sizes[plan.size])
    assert summary["summary_lines"][0].startswith(f"The smallest certified size so far: {SPACE.sizes[2]}, ")
    line = f"A smaller size is certified on the search's seed: {SPACE.sizes[plan.size]}; not confirmed: no fresh seed"
    assert any(text.startswith(line) for text in summary["summary_lines"])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((), None),
        (("search.n_trials=1",), "n_trials"),
        (("search.max_tokens=1",), "max_tokens"),
        (("search.max_minutes=1e-9",), "max_minutes"),
    ],
)
def test_what_ends_a_search(overrides: tuple[str, ...], reason: str | None) -> None:
    result = searched(*overrides, smallest=2, max_trials=1)
    assert result.ended_by(settled=False) == reason
    assert result.ended_by(settled=True) == "settled"


def test_the_plot_shows_every_size_once(result: SearchResult, tmp_path: Path) -> None:
    summary = flat(result.as_json("settled"))
    (axes,) = frontier_figure(summary).axes
    labels = legend(axes)
    counts = [int(label.rpartition("(")[2].rstrip(")")) for label in labels]
    assert sum(counts) == len(summary["frontier"])
    size = SPACE.sizes[2]
    assert axes.get_title(loc="left") == f"Smallest certified: {size}, {size.num_parameters:,} parameters"
    draw_frontier(summary, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_baselines_and_what_was_left_out_are_among_the_lines() -> None:
    names = ("uniform", "unigram_fitted", "unigram_tempered", "unigram_oracle", "bigram", "trigram", "fourgram")
    windows = {"oracle_flattery": 0.1, "measured_on": "windows", "num_windows": 256, "num_held_out_windows": 1377}
    data = {"corpus": {"num_duplicates_dropped": 3}, "baselines": dict.fromkeys(names, 6.0) | windows}
    line = searched(smallest=2, max_trials=3).as_json("n_trials", data)["summary_lines"][-2]
    assert line.endswith("on 256 of 1,377 windows; 3 held-out paragraphs that training has too left out.")
