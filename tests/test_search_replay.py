"""The replay's bookkeeping, on made-up curves whose right answer is known."""

import gzip
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
import pytest
import replay_contenders as contenders
import replay_recording as recorded
import replay_rules as rules
import search_replay as replays
from helpers import compose_config
from optuna.distributions import IntDistribution

from marble_sweep.searches import space as spaces
from marble_sweep.searches.pass_rate import PassRate, Standard
from marble_sweep.searches.strategy import Proposal, Settled
from marble_sweep.searches.trial_record import TrialRecord

STEP = recorded.TOKENS_PER_STEP
FULL = recorded.TOTAL_STEPS * STEP
SEEDS = (1, 2, 3, 4)
RATES = (0.01, 0.0316, 0.1)
UNIGRAM = 6.6
CAP = 40e6


def curve(key: recorded.Key, seed: int, margins: Sequence[float], gain: float = 0.1) -> recorded.Curve:
    """A curve with a margin per look, a tiny standard error."""
    rows = [
        {
            "step": float(step),
            "val_loss": UNIGRAM - margin,
            "unigram_margin": margin,
            "unigram_margin_se": 1e-4,
            "context_gain": gain,
        }
        for step, margin in zip(recorded.STEPS, margins, strict=False)
    ]
    return recorded.make_curve(key, seed, rows)


def failing(end: float = -0.05, fall: float = 0.05) -> list[float]:
    """Never certifies, and is not given up either: the loss falls by so much a look."""
    return [end - fall * left for left in range(8, -1, -1)]


def certifying(look: int) -> list[float]:
    """From a look on."""
    return [0.05 * (at - look) + 0.01 for at in range(9)]


def margins_of(key: recorded.Key, seed: int) -> list[float]:
    """0L3D is right; 0L2D certifies at 0.0316 for seed 1 alone; the rest of width 2 never does."""
    _num_layers, hidden_dim, lr = key
    if key == (0, 2, 0.0316) and seed == 1:
        return certifying(8)
    if hidden_dim == 2 or lr == 0.01:
        return failing(-0.05 if lr == 0.0316 else -0.2)
    return certifying(5 if hidden_dim == 3 else 3)


def make_recording(
    margins: Callable[[recorded.Key, int], Sequence[float]] = margins_of,
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 1), (2, 3, 4, 64)),
) -> recorded.Recording:
    keys = [(layers, width, lr) for layers in shapes[0] for width in shapes[1] for lr in RATES]
    return recorded.Recording([curve(key, seed, margins(key, seed)) for key in keys for seed in SEEDS])


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


def size(layers: int, width: int) -> int:
    return recorded.num_parameters(layers, width)


def seeds_by_first(recording: recorded.Recording, space: spaces.Space, first: int, count: int = 1) -> list[int]:
    """Replays' seeds for which a recorded seed plays the search's."""
    made = ((seed, recorded.Replay(recording, space, seed, CAP)) for seed in range(200))
    return [seed for seed, replay in made if replay.order[0] == first][:count]


# ------------------------------------------------------------------ the recording


def test_sizes_are_those_of_the_config(space: spaces.Space) -> None:
    for layers, width in ((0, 2), (3, 17), (4, 64)):
        config = compose_config(f"model.num_layers={layers}", f"model.hidden_dim={width}")
        assert size(layers, width) == config.num_parameters
    assert len(space.sizes) == 5 * 63


def test_a_trial_plays_the_nearest_recorded_curve(recording: recorded.Recording) -> None:
    assert recording.snap(0, 2) == (0, 2)
    assert recording.snap(4, 5) == (1, 4)  # layers are limited by what is recorded for the width
    assert recording.snap(1, 15) == (1, 4)  # √(4·64) = 16
    assert recording.snap(1, 17) == (1, 64)
    for lr, played in ((1e-3, 0.01), (0.0177, 0.01), (0.0178, 0.0316), (1.0, 0.1)):
        assert recording.cell(0, 2, lr)[1].key == (0, 2, played)


def test_right_is_certified_on_every_seed(recording: recorded.Recording, space: spaces.Space) -> None:
    assert recording.is_lucky((0, 2))
    assert not recording.is_good((0, 2))
    assert recording.certifying((0, 2)) == {0.01: "0/4", 0.0316: "1/4", 0.1: "0/4"}
    assert str(replays.right_size(recording, space)) == "0L3D"


def test_read_back_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv.gz"
    header = "num_layers,hidden_dim,lr,seed,step,val_loss,unigram_margin,unigram_margin_se,context_gain,seconds\n"
    rows = "0,3,0.1,2,35,6.5,0.1,0.001,0.2,1\n0,3,0.1,2,25,nan,nan,nan,nan,1\n0,3,0.1,1,25,6.7,-0.1,0.001,0.2,1\n"
    path.write_bytes(gzip.compress((header + rows).encode()))
    curves = {each.seed: each for each in recorded.read_curves(path)}
    assert curves[2].steps == (25, 35)
    assert curves[2].above == pytest.approx((-math.inf, 0.1 - 0.001 * recorded.ERRORS))
    assert curves[2].certifies
    assert not curves[2].certifies_at_end  # diverged before
    assert not curves[1].certifies
    harder = {each.seed: each for each in recorded.read_curves(path, harder=0.1)}
    assert not harder[2].certifies


# ------------------------------------------------------------------ the bookkeeping


def test_tokens_of_a_trial(recording: recorded.Recording, space: spaces.Space) -> None:
    replay = recorded.Replay(recording, space, 0, CAP)
    replay.full(0, 4, 0.1)
    assert replay.tokens == FULL
    assert replay.early(0, 4, 0.1)
    assert replay.tokens == FULL + recorded.STEPS[3] * STEP
    assert replay.early(0, 2, 0.1) is False
    assert replay.tokens == 2 * FULL + recorded.STEPS[3] * STEP
    replay.full(1, 3, 0.1, trained=100)
    assert replay.tokens == 2 * FULL + (recorded.STEPS[3] + 300) * STEP
    assert replay.answers == [(FULL, size(0, 4)), (replay.tokens, size(1, 3))]
    assert replay.num_trials == 4


def test_no_token_above_the_cap(recording: recorded.Recording, space: spaces.Space) -> None:
    replay = recorded.Replay(recording, space, 0, 2.5 * FULL)
    replay.full(0, 4, 0.1)
    replay.full(0, 4, 0.1)
    with pytest.raises(recorded.Spent):
        replay.full(0, 3, 0.1)
    assert replay.tokens == 2 * FULL
    assert replay.answers == [(FULL, size(0, 4))]


def test_how_a_run_is_stopped() -> None:
    hopeless = curve((0, 2, 0.1), 1, [-5.0, -5.0, -5.0])
    assert recorded.stopped(hopeless) == ("pruned", 2, recorded.STEPS[1])
    diverged = curve((0, 2, 0.1), 1, failing()[:3])
    assert recorded.stopped(diverged) == ("diverged", 3, recorded.STEPS[3])
    assert recorded.stopped(curve((0, 2, 0.1), 1, failing())) == ("below", 9, 400)
    assert recorded.stopped(curve((0, 2, 0.1), 1, certifying(6))) == ("certified", 7, recorded.STEPS[6])


@pytest.mark.parametrize(
    ("answers", "verdict", "right_at"),
    [
        ([], "miss", math.inf),
        ([(1, 40)], "miss", math.inf),
        ([(1, 40), (2, 30)], "right", 2),
        ([(1, 30), (2, 20)], "wrong", math.inf),
        ([(1, 30), (2, 20), (3, 30)], "right", 3),  # an answer that a fresh seed took back
        ([(1, 30), (2, None)], "miss", math.inf),
    ],
)
def test_score(
    recording: recorded.Recording,
    space: spaces.Space,
    answers: list[tuple[int, int | None]],
    verdict: str,
    right_at: float,
) -> None:
    replay = recorded.Replay(recording, space, 0, CAP, tokens=5, answers=answers)
    score = recorded.score(replay, 30)
    assert (score.verdict, score.right_at, score.ended_at) == (verdict, right_at, math.inf)
    replay.ended = True
    assert recorded.score(replay, 30).ended_at == 5
    assert recorded.score(replay, 30, confirmed=True).verdict == "miss"


def test_quantile() -> None:
    assert replays.quantile([1, 2, 3, 4], 0.5) == 2
    assert replays.quantile([1, 2, 3, 4], 0.9) == 4
    assert replays.quantile([1, 2, math.inf], 0.5) == 2


# ------------------------------------------------------------------ the contenders


def test_ours_finds_and_confirms_the_answer(recording: recorded.Recording, space: spaces.Space) -> None:
    for first in SEEDS:
        for seed in seeds_by_first(recording, space, first):
            replay = recorded.play(contenders.ours, recording, space, seed, CAP)
            assert replay.ended
            assert replay.tokens == sum(replay.by_reason.values())
            assert recorded.score(replay, size(0, 3)).verdict == "right"
            strict = recorded.score(replay, size(0, 3), confirmed=True)
            assert strict.verdict == "right"
            if first != 1:
                assert strict.right_at >= recorded.score(replay, size(0, 3)).right_at + 3 * recorded.STEPS[5] * STEP
            # 3 fresh seeds of 0L3D; where seed 1 is the search's, 0L2D certifies first and fails on a fresh one
            confirmed_early = 3 * recorded.STEPS[5] * STEP
            assert replay.by_reason["confirm"] == confirmed_early + (FULL if first == 1 else 0)
            assert (size(0, 2) in [answer for _, answer in replay.answers]) == (first == 1)


def test_a_pass_rate_costs_more_and_leaves_a_lucky_size_undecided_or_ruled_out(
    recording: recorded.Recording, space: spaces.Space
) -> None:
    for first in SEEDS:
        seed = seeds_by_first(recording, space, first)[0]
        quick, by_rate = (
            recorded.play(lambda each: contenders.ours(each, standard=standard), recording, space, seed, 1e9)  # noqa: B023
            for standard in (recorded.CONFIRM_SEEDS, PassRate(0.8, 0.95))
        )
        assert by_rate.ended
        assert by_rate.confirmed[-1][1] == size(0, 3)
        assert by_rate.tokens > 2 * quick.tokens
        assert by_rate.by_reason["confirm"] >= 21 * recorded.STEPS[5] * STEP
        assert by_rate.by_reason["exclude"] > 0


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

    recorded.play(lambda replay: contenders.ours(replay, rule=rule), recording, space, 2, CAP)
    assert {count for _, count in told} >= {0, 1, 2}
    assert all(count == 0 for (_, width, _), count in told if width > 2)


def test_scans(recording: recorded.Recording, space: spaces.Space) -> None:
    lucky, honest = (seeds_by_first(recording, space, first)[0] for first in (1, 2))
    right = size(0, 3)
    replay = recorded.play(lambda each: contenders.ascending(each, 2), recording, space, honest, CAP)
    assert (replay.tokens, replay.answers) == (11 * FULL, [(11 * FULL, right)])  # 5 sizes twice, then the first lr
    assert recorded.score(replay, right).ended_at == 11 * FULL
    replay = recorded.play(lambda each: contenders.ascending(each, 2), recording, space, lucky, CAP)
    assert (replay.tokens, recorded.score(replay, right).verdict) == (FULL, "wrong")
    replay = recorded.play(lambda each: contenders.ascending(each, 1, early=True), recording, space, honest, CAP)
    assert replay.tokens == 5 * FULL + recorded.STEPS[5] * STEP
    replay = recorded.play(lambda each: contenders.binary(each, 1), recording, space, honest, CAP)
    # 315 sizes: 157, 78, 39, 19, 9 certify, 4 does not, then 7, 6 and 5, the sixth, do
    assert (replay.tokens, recorded.score(replay, right).verdict) == (9 * FULL, "right")


def test_short_runs(recording: recorded.Recording, space: spaces.Space) -> None:
    replay = recorded.play(lambda each: contenders.top_k(each, 10, 50, 1, "margin"), recording, space, 0, CAP)
    assert replay.tokens == (10 * 50 + 350) * STEP
    assert replay.num_trials == 11
    replay = recorded.play(lambda each: contenders.top_k(each, 10, 50, 10, "fronts"), recording, space, 0, CAP)
    again = recorded.Replay(recording, space, 0, CAP)
    drawn = [contenders.draw(again) for _ in range(10)]
    smallest = min(size(*shape[:2]) for shape in drawn if again.curve(*shape).certifies_at_end)
    assert replay.answers == [(replay.tokens, smallest)]  # smallest first: it ends at the first that certifies


def test_rivals_on_a_space_that_is_easy(space: spaces.Space) -> None:
    """Where whatever is drawn certifies, the answer is the smallest drawn, and every token is accounted for."""
    easy = make_recording(lambda key, seed: certifying(2))
    cap = 10.5 * FULL
    for contender in (
        contenders.random_search,
        contenders.hydra_optuna,
        lambda replay: contenders.nsga(replay, 5),
    ):
        replay = recorded.play(contender, easy, space, 1, cap)
        assert (replay.tokens, replay.num_trials, replay.ended) == (10 * FULL, 10, False)
        assert replay.answers[0][0] == FULL
        parameters = [answer for _, answer in replay.answers if answer is not None]
        assert parameters == sorted(parameters, reverse=True)
    for sampler in ("tpe", "random"):
        replay = recorded.play(lambda replay: contenders.asha(replay, 2, sampler), easy, space, 1, cap)  # noqa: B023
        assert replay.num_trials > 10  # some were stopped early
        assert replay.tokens <= cap
        assert not replay.ended
        assert replay.answers


def test_the_published_sweeper_draws_one_more(space: spaces.Space) -> None:
    whole = contenders.as_published(space)
    assert whole[recorded.LAYERS] == IntDistribution(0, 5)
    assert whole[recorded.WIDTH] == IntDistribution(2, 65)


def test_penalty() -> None:
    assert contenders.penalised(30, 0.0) == 30
    assert (
        size(5, 65)
        < contenders.penalised(30, -0.1)
        < contenders.penalised(20, -0.2)
        < contenders.penalised(9, -math.inf)
    )


# ------------------------------------------------------------------ the report


def test_false_stops_are_counted(recording: recorded.Recording, space: spaces.Space) -> None:
    """A rule that stops everything at the second look stops all but those that certify by then."""
    names = {row[0]: row for row in replays.stop_rules(recording, space, size(0, 3), 2, CAP)[1:]}
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
    _, row = replays.implication(worse)
    assert row[0] == str(2 * 6 * len(SEEDS))  # two depths, six pairs of widths
    assert row[2] == str(2 * 2 * len(SEEDS))  # 2D and 3D certify, 4D does not


def test_other_boundaries(space: spaces.Space) -> None:
    """Where 0.4 nats are taken off, width 3 fails and 0L4D is right; the scans pay 400 steps for each size."""
    harder = {
        0.1: make_recording(),
        0.4: make_recording(lambda key, seed: margins_of(key, seed) if key[1] > 3 else failing()),
    }
    head, *rows = replays.boundaries(harder, space, 2, CAP)
    found = {(row[0], row[2]): dict(zip(head, row, strict=True)) for row in rows}
    assert found["0.1", "ours"]["right"] == "0L3D"
    assert found["0.4", "ours"]["right"] == "0L4D"
    scan = found["0.4", "ascending scan"]
    assert scan["best setting"] == "1 lr"
    assert scan["ends at: median"] == replays.millions(11 * FULL)


def write_curves(path: Path, recording: recorded.Recording) -> None:
    """A recording as record_curves.py leaves it."""
    names = ("num_layers", "hidden_dim", "lr", "seed", "step", "val_loss", "unigram_margin", "unigram_margin_se")
    lines = [",".join((*names, "context_gain", "seconds"))]
    for curve in recording.curves:
        for step, loss, margin, gain in zip(curve.steps, curve.losses, curve.margins, curve.gains, strict=True):
            lines.append(",".join(map(str, (*curve.key, curve.seed, step, loss, margin, 1e-4, gain, 1))))
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def test_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recording: recorded.Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    write_curves(tmp_path / "curves.csv.gz", recording)
    few = {name: dict([next(iter(settings.items()))]) for name, settings in contenders.contenders().items()}
    monkeypatch.setattr(replays, "contenders", lambda: few)
    arguments = [
        "--curves",
        str(tmp_path / "curves.csv.gz"),
        "--seeds",
        "2",
        "--max-tokens",
        "5e6",
        "--json",
        str(tmp_path / "a"),
        "--markdown",
        str(tmp_path / "b"),
    ]
    monkeypatch.setattr(sys, "argv", ["search_replay.py", *arguments])
    replays.main()
    text = capsys.readouterr().out
    assert (tmp_path / "b").read_text() == text
    assert "0L3D, 30,390 parameters" in text
    assert '"contender": "ours"' in (tmp_path / "a").read_text()
    for name in few:
        assert f"\n| {name} " in text
