"""The replay's recording and bookkeeping, on made-up curves whose right answer is known."""

import gzip
import math
from pathlib import Path

import pytest
import replay_recording as recorded
import replay_tables as tables
import search_replay as replays
from helpers import compose_config
from made_up_curves import CAP, FULL, STANDARD, STEP, certifying, curve, failing, make_recording, size

from marble_sweep.searches import space as spaces


@pytest.fixture(scope="module")
def recording() -> recorded.Recording:
    return make_recording()


@pytest.fixture(scope="module")
def space() -> spaces.Space:
    return replays.make_space()


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
