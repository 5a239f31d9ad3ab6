"""The replay's bookkeeping, on made-up curves whose right answer is known."""

import gzip
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
import pytest
import replay_contenders as contenders
import replay_packages as packages
import replay_recording as recorded
import replay_rules as rules
import replay_tables as tables
import search_replay as replays
from helpers import compose_config
from optuna.distributions import IntDistribution

from marble_sweep.searches import space as spaces
from marble_sweep.searches.pass_rate import PassRate, Standard
from marble_sweep.searches.strategy import Proposal, Settled, TrialRecord

STEP = recorded.TOKENS_PER_STEP
FULL = recorded.TOTAL_STEPS * STEP
SEEDS = (1, 2, 3, 4)
RATES = (0.01, 0.0316, 0.1)
UNIGRAM = 6.6
CAP = 40e6
STANDARD = PassRate(0.8, 0.95)


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


def replayed(
    contender: recorded.Contender,
    recording: recorded.Recording,
    space: spaces.Space,
    seed: int,
    cap: float = CAP,
    standard: Standard = recorded.CONFIRM_SEEDS,
    right: int | None = None,
) -> recorded.Replay:
    return recorded.play(contender, recorded.Replay(recording, space, seed, cap, standard, right))


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


def test_read_a_recording_of_another_corpus(tmp_path: Path) -> None:
    """With the columns that decide now: the tempered margin, its error and that of the gain, with their freedom."""
    path = tmp_path / "curves.csv.gz"
    header = "corpus,budget,num_layers,hidden_dim,lr,seed,step,val_loss,tempered_margin,tempered_margin_se,"
    header += "tempered_margin_df,oracle_margin,context_gain,context_gain_se,context_gain_df\n"
    rows = [
        f"markov,search,1,4,0.1,{seed},25,5,0.1,0.001,inf,0,{gain},0.02,inf\n" for seed, gain in ((1, 1), (2, 0.01))
    ]
    path.write_bytes(gzip.compress((header + "".join(rows)).encode()))
    certain, unsure = recorded.read_curves(path)
    assert certain.above == pytest.approx((0.1 - 0.001 * recorded.ERRORS,))
    assert unsure.above == pytest.approx((0.01 - 0.02 * recorded.ERRORS,))  # the context is not shown to be used
    small = recorded.Recording([certain, unsure], vocab_size=512)
    assert recorded.Replay(small, replays.make_space(512), 0, CAP).parameters(1, 4) == 4 * 642 + 12 * 16 + 13 * 4
    config = compose_config("data=markov", "model.num_layers=1", "model.hidden_dim=4")
    assert recorded.num_parameters(1, 4, 512) == config.num_parameters


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
    assert replay.num_trials == 4


def test_no_token_above_the_cap(recording: recorded.Recording, space: spaces.Space) -> None:
    replay = recorded.Replay(recording, space, 0, 2.5 * FULL)
    replay.full(0, 4, 0.1)
    replay.full(0, 4, 0.1)
    with pytest.raises(recorded.Spent):
        replay.full(0, 3, 0.1)
    assert replay.tokens == 2 * FULL


def test_an_answer_is_proved_by_the_test_of_a_search(recording: recorded.Recording, space: spaces.Space) -> None:
    """The first recipe takes 21 passes of 21, the second more; a recipe that never certifies is ruled out after 4."""
    replay = recorded.Replay(recording, space, 0, 1e9, STANDARD)
    early, first = recorded.STEPS[3] * STEP, STANDARD.design(1)
    assert replay.propose(0, 4, 0.1)
    assert replay.tokens == replay.by_reason["confirm"] == 21 * early
    assert first.accept[20] == 21
    assert replay.propose(0, 4, 0.09)  # plays the same curves: not tested again
    assert (replay.answers, replay.confirmed) == ([(0, size(0, 4))], [(21 * early, size(0, 4))])
    assert not replay.propose(1, 2, 0.1)
    ruled_out = next(seeds for seeds, passes in enumerate(STANDARD.design(2).rule_out, 1) if passes >= 0)
    assert replay.tokens == 21 * early + ruled_out * FULL
    assert replay.confirmed == [(21 * early, size(0, 4))]
    third = next(seeds for seeds, least in enumerate(STANDARD.design(3).accept, 1) if least <= seeds)
    before = replay.tokens
    assert replay.propose(0, 3, 0.1)
    assert replay.tokens - before == third * recorded.STEPS[5] * STEP
    assert replay.confirmed[-1][1] == size(0, 3)


def test_fresh_seeds_are_drawn_by_their_share(recording: recorded.Recording, space: spaces.Space) -> None:
    """0L2D certifies on one of four recorded seeds, so on a quarter of the fresh ones: within 5 standard errors."""
    replay = recorded.Replay(recording, space, 0, CAP)
    drawn = [replay.curve(0, 2, 0.0316, role).certifies for role in range(1, 401)]
    assert abs(sum(drawn) - 100) < 5 * math.sqrt(400 * 0.25 * 0.75)
    again = recorded.Replay(recording, space, 0, CAP)
    assert [again.curve(0, 2, 0.0316, role).certifies for role in range(1, 401)] == drawn


def test_what_never_ends_pays_for_no_larger_size(recording: recorded.Recording, space: spaces.Space) -> None:
    replay = recorded.Replay(recording, space, 0, CAP, right=size(0, 3))
    assert replay.incumbent(0, 4, 0.1)
    assert (replay.tokens, replay.confirmed, len(replay.answers)) == (0, [], 1)
    assert not replay.incumbent(1, 2, 0.1)
    assert replay.tokens == FULL  # 3 of 3 must pass
    with pytest.raises(recorded.Spent):
        replay.incumbent(0, 3, 0.1)
    assert recorded.score(replay, size(0, 3)).right_at == replay.tokens == FULL + 3 * recorded.STEPS[5] * STEP


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
    replay = recorded.Replay(recording, space, 0, CAP, tokens=5, confirmed=answers)
    score = recorded.score(replay, 30)
    assert (score.verdict, score.right_at, score.ended_at) == (verdict, right_at, math.inf)
    replay.ended = True
    assert recorded.score(replay, 30).ended_at == 5


def test_what_was_ruled_out_is_held_against_the_recording(recording: recorded.Recording, space: spaces.Space) -> None:
    replay = recorded.Replay(recording, space, 0, CAP, excluded={(0, 2), (1, 2), (0, 3)})
    score = recorded.score(replay, size(0, 3))
    assert (score.excluded, score.overturned) == (3, 1)  # 0L3D certifies on every seed


def test_quantile() -> None:
    assert tables.quantile([1, 2, 3, 4], 0.5) == 2
    assert tables.quantile([1, 2, 3, 4], 0.9) == 4
    assert tables.quantile([1, 2, math.inf], 0.5) == 2


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


# Every package with its first setting; those that are not installed are tested where they are.
PACKAGES = {name: next(iter(settings.values())) for name, settings in packages.packages().items()}
SLOW = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # whatever other packages warn of


@pytest.mark.parametrize(
    "name", [name if name.startswith("hydra") else pytest.param(name, marks=SLOW) for name in PACKAGES]
)
def test_packages_on_a_space_that_is_easy(space: spaces.Space, name: str) -> None:
    """Where whatever is drawn certifies, the answers get smaller, and every token is accounted for."""
    easy = make_recording(lambda key, seed: certifying(2))
    replay = replayed(PACKAGES[name], easy, space, 1, 10.5 * FULL, right=size(0, 2))
    assert replay.tokens == sum(replay.by_reason.values()) <= 10.5 * FULL
    assert not replay.ended
    parameters = [answer for _, answer in replay.answers if answer is not None]
    assert parameters == sorted(parameters, reverse=True)
    assert len(parameters) > 1
    if name.startswith("hydra"):
        assert (replay.tokens, replay.num_trials) == (10 * FULL, 10)
    elif "NSGA" not in name:
        assert replay.num_trials > 10  # they end once they certify


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_packages_are_told_what_fresh_seeds_rejected(recording: recorded.Recording, space: spaces.Space) -> None:
    """Whatever is proved is no smaller than the right answer, and once the right one is, the replay ends."""
    for contender in PACKAGES.values():
        replay = replayed(contender, recording, space, seeds_by_first(recording, space, 1)[0], CAP, right=size(0, 3))
        proved = [answer for _, answer in replay.confirmed]
        assert proved in ([], [size(0, 3)])


def test_a_watched_trial_ends_where_it_certifies_or_is_stopped(
    recording: recorded.Recording, space: spaces.Space
) -> None:
    replay = recorded.Replay(recording, space, seeds_by_first(recording, space, 1)[0], CAP, right=size(0, 3))
    assert packages.watched(replay, (0, 4, 0.1), lambda step, above: False)[1] is False
    assert replay.tokens == recorded.STEPS[3] * STEP
    above, was_stopped = packages.watched(replay, (1, 2, 0.1), lambda step, above: step >= 50)
    assert was_stopped
    assert above < 0
    assert replay.tokens == (recorded.STEPS[3] + 50) * STEP
    above, _ = packages.watched(replay, (0, 2, 0.0316), lambda step, above: False)  # certifies on seed 1 alone
    assert above == packages.REJECTED


def test_a_larger_budget_trains_on(recording: recorded.Recording, space: spaces.Space) -> None:
    replay = recorded.Replay(recording, space, 0, CAP, right=size(0, 3))
    assert packages.train_to(replay, (0, 4, 0.1), 0, 50) == -0.04 - 1e-4 * recorded.ERRORS  # it certifies at 71
    assert packages.train_to(replay, (0, 4, 0.1), 50, 141) == 0.0
    assert replay.tokens == recorded.STEPS[3] * STEP
    assert packages.train_to(replay, (0, 4, 0.1), 141, 400) == 0.0
    assert replay.tokens == recorded.STEPS[3] * STEP
    packages.train_to(replay, (1, 2, 0.1), 0, 141)
    packages.train_to(replay, (1, 2, 0.1), 141, 400)
    assert replay.tokens == recorded.STEPS[3] * STEP + FULL
    assert replay.num_trials == 2


def test_the_published_sweeper_draws_one_more(space: spaces.Space) -> None:
    whole = packages.as_published(space)
    assert whole[recorded.LAYERS] == IntDistribution(0, 5)
    assert whole[recorded.WIDTH] == IntDistribution(2, 65)


def test_penalty() -> None:
    assert packages.penalised(30, 0.0) == math.log(30)
    assert (
        math.log(size(5, 65))
        < packages.penalised(30, -0.1)
        < packages.penalised(20, -0.2)
        < packages.penalised(9, -math.inf)
    )
    assert packages.lacking(math.nan) == packages.lacking(-math.inf) == packages.FARTHEST


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
