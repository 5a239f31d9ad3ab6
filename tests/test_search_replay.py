"""The replay's contenders and its report, on made-up curves whose right answer is known."""

import gzip
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest
import replay_contenders as contenders
import replay_recording as recorded
import replay_rules as rules
import replay_tables as tables
import search_replay as replays
from made_up_curves import (
    CAP,
    FULL,
    SEEDS,
    STANDARD,
    STEP,
    certifying,
    curve,
    failing,
    make_recording,
    margins_of,
    replayed,
    seeds_by_first,
    size,
)

from marble_sweep.searches import space as spaces
from marble_sweep.searches.pass_rate import Standard
from marble_sweep.searches.strategy import Proposal, Settled
from marble_sweep.searches.trial_record import TrialRecord


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def recording() -> recorded.Recording:
    return make_recording()


@pytest.fixture(scope="module")
def space() -> spaces.Space:
    return replays.make_space()


# ------------------------------------------------------------------ the contenders


def test_ours_finds_and_confirms_the_answer(recording: recorded.Recording, space: spaces.Space) -> None:
    for first in SEEDS:
        for seed in seeds_by_first(recording, space, first):
            replay = replayed(contenders.ours, recording, space, seed)
            assert replay.ended
            assert replay.tokens == sum(replay.by_reason.values())
            score = recorded.score(replay, size(0, 3))
            assert score.verdict == "right"
            assert replay.excluded == {(layers, 2) for layers in range(5)}
            assert (score.excluded, score.overturned) == (5, 0)
            # 3 fresh seeds of 0L3D; where seed 1 is the search's, 0L2D certifies first and fails on a fresh one
            lucky, rest = divmod(replay.by_reason["confirm"] - 3 * recorded.STEPS[5] * STEP, FULL)
            assert rest == 0
            assert (lucky > 0) == (first == 1)
            assert (size(0, 2) in [answer for _, answer in replay.answers]) == (first == 1)


def test_a_pass_rate_costs_more_and_leaves_a_lucky_size_undecided_or_ruled_out(
    recording: recorded.Recording, space: spaces.Space
) -> None:
    for first in SEEDS:
        seed = seeds_by_first(recording, space, first)[0]
        quick, by_rate = (
            replayed(contenders.ours, recording, space, seed, 1e9, standard)
            for standard in (recorded.CONFIRM_SEEDS, STANDARD)
        )
        assert by_rate.ended
        assert by_rate.confirmed[-1][1] == size(0, 3)
        assert by_rate.tokens > 2 * quick.tokens
        assert by_rate.by_reason["confirm"] >= 21 * recorded.STEPS[5] * STEP
        assert by_rate.by_reason["exclude"] > 0


def test_a_smaller_size_is_tried_before_many_seeds_confirm(recording: recorded.Recording, space: spaces.Space) -> None:
    """0L4D is certified: 0L3D, 1L3D, … are tried with its recipe, not confirmed by 21 seeds; but 3 seeds come first."""
    sizes = [contenders.layers_and_width(each) for each in space.sizes]
    done = [(0, 4, "certified", 0.1), (4, 3, "below", -0.1), (1, 3, "below", -0.1)]
    records = [
        TrialRecord(
            number, sizes.index((layers, width)), (3.0,), 0, outcome, {400: 0.1 if outcome == "certified" else -0.1}
        )
        for number, (layers, width, outcome, margin) in enumerate(done)
    ]
    quick, by_rate = (contenders.neighbours_first(space, records, each) for each in (3, STANDARD))
    assert isinstance(quick, Proposal)
    assert (quick.reason, sizes[quick.size], quick.seed) == ("confirm", (0, 4), 1)
    assert isinstance(by_rate, Proposal)
    assert (by_rate.reason, sizes[by_rate.size], by_rate.seed) == ("refute", (3, 3), 0)


def test_ours_plays_what_a_strategy_proposes(recording: recorded.Recording, space: spaces.Space) -> None:
    asked = [(1, (3.0,), 0), (0, (3.0,), 0), (1, (3.0,), 1)]  # sizes 1L2D, 0L2D, then a fresh seed of the first
    seen: list[TrialRecord] = []

    def propose(_space: spaces.Space, records: Sequence[TrialRecord], _standard: Standard) -> Proposal | Settled:
        seen[:] = records
        return Proposal(*asked[len(records)], "probe") if len(records) < len(asked) else Settled()

    replay = recorded.Replay(recording, space, seeds_by_first(recording, space, 1)[0], CAP)
    contenders.ours(replay, next_trial=propose)
    assert [each.outcome for each in seen] == ["below", "certified", "below"]
    assert all(isinstance(each, TrialRecord) for each in seen)
    assert replay.tokens == 3 * FULL
    assert replay.answers == [(2 * FULL, size(0, 2))]


def test_a_rule_is_told_of_failed_trials(recording: recorded.Recording, space: spaces.Space) -> None:
    told = []

    def rule(curve: recorded.Curve, look: int, failed: recorded.Failed) -> bool:
        told.append((curve.key, len(failed)))
        return False

    replayed(lambda replay: contenders.ours(replay, rule=rule), recording, space, 2)
    assert {count for _, count in told} >= {0, 1, 2}
    assert all(count == 0 for (_, width, _), count in told if width > 2)


def test_scans(recording: recorded.Recording, space: spaces.Space) -> None:
    lucky, honest = (seeds_by_first(recording, space, first)[0] for first in (1, 2))
    right, proof = size(0, 3), 3 * recorded.STEPS[5] * STEP
    replay = replayed(lambda each: contenders.ascending(each, 2), recording, space, honest)
    assert replay.confirmed == [(11 * FULL + proof, right)]  # 5 sizes twice, then the first lr and three fresh seeds
    assert recorded.score(replay, right).ended_at == 11 * FULL + proof
    replay = replayed(lambda each: contenders.ascending(each, 2), recording, space, lucky)
    tested, rest = divmod(replay.tokens - 11 * FULL - proof, FULL)
    assert (tested >= 1, rest) == (True, 0)  # 0L2D certifies on the first seed, and not on the fresh ones
    assert replay.answers[0] == (FULL, size(0, 2))
    assert recorded.score(replay, right).verdict == "right"
    replay = replayed(lambda each: contenders.ascending(each, 1, early=True), recording, space, honest)
    assert replay.tokens == 5 * FULL + recorded.STEPS[5] * STEP + proof
    replay = replayed(lambda each: contenders.binary(each, 1), recording, space, honest)
    # 315 sizes: 157, 78, 39, 19, 9 certify, 4 does not, then 7, 6 and 5, the sixth, do
    assert (replay.tokens, recorded.score(replay, right).verdict) == (9 * FULL + proof, "right")


def test_a_bisection_goes_on_where_its_size_is_rejected(space: spaces.Space) -> None:
    """4L2D, the fifth size, certifies on seed 1 alone: the bisection ends there, and its proof fails."""

    def margins(key: recorded.Key, seed: int) -> list[float]:
        is_lucky = key[:2] == (4, 2) and seed == 1
        return certifying(5) if key[1] > 2 or is_lucky else failing()

    recording = make_recording(margins, ((0, 4), (2, 3, 4, 64)))
    replay = replayed(lambda each: contenders.binary(each, 1), recording, space, seeds_by_first(recording, space, 1)[0])
    assert [answer for _, answer in replay.answers] == [size(3, 2)]  # 3 plays 4, as 4 layers are nearest
    assert [answer for _, answer in replay.confirmed] == [size(0, 3)]
    assert list(replay.verdicts)[-1] == (0, 3, 0.0316)


def test_short_runs(recording: recorded.Recording, space: spaces.Space) -> None:
    replay = replayed(lambda each: contenders.top_k(each, 10, 50, 1, "margin"), recording, space, 0)
    assert replay.tokens - replay.by_reason["confirm"] == (10 * 50 + 350) * STEP
    assert replay.num_trials == 11
    replay = replayed(lambda each: contenders.top_k(each, 10, 50, 10, "fronts"), recording, space, 0)
    again = recorded.Replay(recording, space, 0, CAP)
    drawn = [contenders.draw(again) for _ in range(10)]
    smallest = min(size(*shape[:2]) for shape in drawn if again.curve(*shape).certifies_at_end)
    assert replay.confirmed == [(replay.tokens, smallest)]  # smallest first: it ends at the first that is proved


# ------------------------------------------------------------------ the report


def boundary(recording: recorded.Recording, space: spaces.Space, nats: float = 0.0) -> tables.Boundary:
    right = replays.right_size(recording, space)
    assert right is not None
    return tables.Boundary("pydocs", nats, recording, space, right)


def test_false_stops_are_counted(recording: recorded.Recording, space: spaces.Space) -> None:
    """A rule that stops everything at the second look stops all but those that certify by then."""
    names = {row[0]: row for row in tables.stop_rules(boundary(recording, space), 2, CAP)[1:]}
    assert names["never stop"][1] == names["certify.is_hopeless"][1]
    assert names["never stop"][1].startswith("0 of ")
    assert names["never stop"][3] == "0%"
    steep = curve((0, 2, 0.1), 1, [-0.9, -0.89, *certifying(2)[2:]])
    assert recorded.stopped(steep, rules.falls_by(0.0))[0] == "pruned"
    assert recorded.stopped(steep, rules.falls_by(0.04))[0] == "certified"


def test_trailing_compares_with_what_failed() -> None:
    fast, slow = curve((0, 2, 0.1), 1, failing(-0.05)), curve((0, 2, 0.1), 1, failing(-0.2, 0.049))
    known = [dict(zip(fast.steps, fast.margins, strict=True))]
    assert recorded.stopped(slow, rules.trailing(0.1), known) == ("pruned", 2, recorded.STEPS[1])
    assert recorded.stopped(slow, rules.trailing(0.16), known)[0] == "below"
    assert recorded.stopped(slow, rules.trailing(0.1), [])[0] == "below"


def test_no_use_of_the_context() -> None:
    idle, using = (curve((0, 2, 0.1), 1, failing(), gain) for gain in (-1e-5, 0.1))
    assert recorded.stopped(idle, rules.without_context(100, 1e-4)) == ("pruned", 5, 100)
    assert recorded.stopped(using, rules.without_context(100, 1e-4))[0] == "below"


def test_wider_and_worse_is_found() -> None:
    worse = make_recording(lambda key, seed: certifying(3 if key[1] == 3 else 8) if key[1] != 4 else failing())
    _, row = tables.implication(worse)
    assert row[0] == str(2 * 6 * len(SEEDS))  # two depths, six pairs of widths
    assert row[2] == str(2 * 2 * len(SEEDS))  # 2D and 3D certify, 4D does not


def test_other_boundaries(space: spaces.Space, tmp_path: Path) -> None:
    """Where 0.4 nats are taken off, width 3 fails and 0L4D is right; the scans pay 400 steps for each size."""
    harder = make_recording(lambda key, seed: margins_of(key, seed) if key[1] > 3 else failing())
    asked = [boundary(make_recording(), space), boundary(harder, space, 0.4)]
    kept = tables.Replays(tmp_path / "scores.json")
    few = {name: contenders.contenders()[name] for name in ("ours", "ascending scan")}
    lines = [(each, kept.lines(each, recorded.CONFIRM_SEEDS, few, 2, CAP)) for each in asked]
    head, *rows = tables.tables(lines)
    found = {(row[1], row[3]): dict(zip(head, row, strict=True)) for row in rows}
    assert found["0", "ours"]["right"] == "0L3D"
    assert found["0.4", "ours"]["right"] == "0L4D"
    proof = 3 * recorded.STEPS[3] * STEP
    scan = found["0.4", "ascending scan"]
    assert scan["best setting"] == "1 lr"
    assert scan["ends at: median"] == tables.millions(11 * FULL + proof)
    again = tables.Replays(tmp_path / "scores.json")
    few = {"ours": {"": lambda replay: pytest.fail("played again")}}
    assert again.lines(asked[1], recorded.CONFIRM_SEEDS, few, 2, CAP)["ours"] == lines[1][1]["ours"]


def test_lead(recording: recorded.Recording, space: spaces.Space) -> None:
    """Ratios 2 and 8 have a geometric mean of 4; the best rival at each boundary 2 and 4, so 2.83."""

    def line(name: str, setting: str, right_at: float) -> tables.Line:
        score = recorded.Score(0, right_at, math.inf, "right", 1, 1, {}, 4, 1)
        return tables.Line(name, setting, [score])

    here = boundary(recording, space)
    lines = [
        (here, {"ours": [line("ours", "", 1e6)], "scan": [line("scan", "a", 2e6), line("scan", "b", math.inf)]}),
        (here, {"ours": [line("ours", "", 1e6)], "scan": [line("scan", "b", 4e6), line("scan", "a", 8e6)]}),
    ]
    _, best, scan = tables.lead(lines)
    assert best == ["the best at each boundary", "the best at each", "2", "0", "2.83", "2.00"]
    assert scan == ["scan", "a", "2", "0", "4.00", "2.00"]
    assert tables.honesty(lines)[1] == ["2", "0.0%", "0.0%", "8", "2", "25.0%"]


def write_curves(path: Path, recording: recorded.Recording) -> None:
    """A recording as record_curves.py leaves it."""
    names = ("num_layers", "hidden_dim", "lr", "seed", "step", "val_loss", "unigram_margin", "unigram_margin_se")
    lines = [",".join((*names, "context_gain", "seconds"))]
    for each in recording.curves:
        for step, loss, margin, gain in zip(each.steps, each.losses, each.margins, each.gains, strict=True):
            lines.append(",".join(map(str, (*each.key, each.seed, step, loss, margin, 1e-4, gain, 1))))
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def test_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recording: recorded.Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    write_curves(tmp_path / "curves.csv.gz", recording)
    few = {name: dict([next(iter(settings.items()))]) for name, settings in contenders.contenders().items()}
    monkeypatch.setattr(replays, "contenders", lambda: few)
    names = {"--curves": "curves.csv.gz", "--json": "a", "--markdown": "b"}
    files = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    monkeypatch.setattr(sys, "argv", ["search_replay.py", *files, "--seeds", "2", "--max-tokens", "30e6"])
    replays.main()
    text = capsys.readouterr().out
    assert (tmp_path / "b").read_text() == text
    assert "0L3D, 30,390 parameters" in text
    assert "pydocs, 0 | 3 seeds, 3e+07 | ours" in (tmp_path / "a").read_text()
    for name in few:
        assert f"\n| {name} " in text
