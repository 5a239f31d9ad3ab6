"""Published packages behind made-up curves whose right answer is known."""

import math
from collections.abc import Iterator

import optuna
import pytest
import replay_packages as packages
import replay_recording as recorded
import search_replay as replays
from made_up_curves import CAP, FULL, STEP, certifying, make_recording, replayed, seeds_by_first, size
from optuna.distributions import IntDistribution

from marble_sweep.searches import space as spaces


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
        replay = replayed(contender, recording, space, seeds_by_first(recording, space, 1)[0], 12e6, right=size(0, 3))
        proved = [answer for _, answer in replay.confirmed]
        assert proved in ([], [size(0, 3)])


def test_a_watched_trial_ends_where_it_certifies_or_is_stopped(
    recording: recorded.Recording, space: spaces.Space
) -> None:
    replay = recorded.Replay(recording, space, seeds_by_first(recording, space, 1)[0], 12e6, right=size(0, 3))
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
