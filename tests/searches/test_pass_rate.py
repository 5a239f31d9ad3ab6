"""The test of a pass rate: its bounds against enumeration and simulation, its level, its power, its multiplicity."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marble_sweep.searches import pass_rate
from marble_sweep.searches.pass_rate import Design, PassRate, SeedResult, Tally, Verdict, crossing, interval, judge

STANDARD = PassRate(0.8, 0.95)
PASSED, FAILED, UNDECIDED = SeedResult.PASSED, SeedResult.FAILED, SeedResult.UNDECIDED
LETTERS = {"P": PASSED, "F": FAILED, "U": UNDECIDED, "C": SeedResult.CRASHED, "R": SeedResult.RUNNING}


def seeds(text: str) -> tuple[SeedResult, ...]:
    return tuple(LETTERS[letter] for letter in text)


def enumerated(bounds: Design, rate: float) -> tuple[float, float]:
    """The probabilities of acceptance and of ruling out, over every sequence of passes."""
    accepted, ruled_out = [], []
    for sequence in itertools.product((0, 1), repeat=bounds.max_seeds):
        probability = math.prod(rate if passed else 1 - rate for passed in sequence)
        for number, passes in enumerate(itertools.accumulate(sequence)):
            if passes >= bounds.accept[number]:
                accepted.append(probability)
                break
            if passes <= bounds.rule_out[number]:
                ruled_out.append(probability)
                break
    return math.fsum(accepted), math.fsum(ruled_out)


@pytest.mark.parametrize(("asked", "level"), [(0.5, 0.3), (0.6, 0.3), (0.3, 0.1)])
def test_the_exact_distribution_is_that_of_every_sequence(asked: float, level: float) -> None:
    bounds = pass_rate.design(asked, level)
    assert 3 <= bounds.max_seeds <= 14
    for rate in (0.1, asked, 0.8, 0.95):
        accepted, ruled_out, _ = crossing(bounds, rate)
        assert (accepted, ruled_out) == pytest.approx(enumerated(bounds, rate), abs=1e-12)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_bound_could_not_be_lower(number: int) -> None:
    """At every seed the bound is the least that the spending allows, by a walk of plain numbers."""
    level, most = STANDARD.level(number), STANDARD.design(number).max_seeds
    reached, spent = {0: 1.0}, 0.0
    for count, bound in enumerate(pass_rate.least_passes(0.8, level, [most])[0], 1):
        after: dict[int, float] = {}
        for passes, probability in reached.items():
            after[passes + 1] = after.get(passes + 1, 0.0) + 0.8 * probability
            after[passes] = after.get(passes, 0.0) + 0.2 * probability
        crossed = sum(probability for passes, probability in after.items() if passes >= bound)
        with_one_less = crossed + after.get(bound - 1, 0.0)
        assert spent + crossed <= level * count / most + 1e-15
        assert spent + with_one_less > level * count / most
        spent += crossed
        reached = {passes: probability for passes, probability in after.items() if passes < bound}


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_the_level_and_the_power(number: int) -> None:
    level, bounds = STANDARD.level(number), STANDARD.design(number)
    for rate in (0.0, 0.2, 0.5, 0.7, 0.79, 0.8):
        assert crossing(bounds, rate)[0] <= level
    for rate in (0.8, 0.81, 0.9, 0.99, 1.0):
        assert crossing(bounds, rate)[1] <= level
    assert crossing(bounds, 0.8)[0] > level / 2  # it is not merely careful
    assert crossing(bounds, 0.95)[0] >= pass_rate.POWER
    shorter = Design(
        tuple(pass_rate.least_passes(0.8, level, [bounds.max_seeds - 1])[0]), (-1,) * (bounds.max_seeds - 1)
    )
    assert crossing(shorter, 0.95)[0] < pass_rate.POWER  # no smaller number of seeds has the power


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("level", [0.25, 0.025, 1e-4])
def test_no_test_of_fewer_seeds_has_the_power(rate: float, level: float) -> None:
    """The most powerful test of some number of seeds, by binomial coefficients; and sequential ones below it."""
    aim = 1 - 0.25 * (1 - rate)

    def power(number: int) -> float:
        passes = range(number, -1, -1)  # all that certify tell most for the aimed-at rate
        ways = [math.comb(number, count) for count in passes]
        wrong, right = (
            [way * p**n * (1 - p) ** (number - n) for way, n in zip(ways, passes, strict=True)] for p in (rate, aim)
        )
        left, accepted = level, 0.0
        for chance, gain in zip(wrong, right, strict=True):
            accepted += gain * (1.0 if chance <= left else left / chance)
            left = max(0.0, left - chance)
        return accepted

    fewest = pass_rate.fewest_seeds(rate, level, aim)
    assert power(fewest) >= pass_rate.POWER - 1e-6
    assert fewest == 1 or power(fewest - 1) < pass_rate.POWER
    for most in {1, fewest // 2, fewest - 1} - {0}:
        bounds = Design(tuple(pass_rate.least_passes(rate, level, [most])[0]), (-1,) * most)
        assert crossing(bounds, aim)[0] < pass_rate.POWER
    assert pass_rate.design(rate, level).max_seeds >= fewest


def test_the_design_that_the_documents_name() -> None:
    bounds = STANDARD.design(1)
    assert bounds.max_seeds == 46
    assert next(count for count, bound in enumerate(bounds.accept, 1) if bound <= count) == 21
    assert next(count for count, bound in enumerate(bounds.rule_out, 1) if bound >= 0) == 4
    assert crossing(bounds, 0.95)[2] == pytest.approx(32.6, abs=0.05)


def test_the_levels_of_all_recipes_add_up_to_the_error_of_a_search() -> None:
    total = math.fsum(STANDARD.level(number) for number in range(1, 100_000))
    assert total <= 0.05
    assert total == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize(("rate", "share", "verdict"), [(0.8, 0.025, "either"), (0.95, 0.8, Verdict.ACCEPTED)])
def test_simulated(rate: float, share: float, verdict: str) -> None:
    """4,000 tests with the rules of a search; the tolerances are four standard deviations of such a share."""
    draw, rounds = random.Random(7), 4000
    verdicts = []
    for _ in range(rounds):
        results = tuple(PASSED if draw.random() < rate else FAILED for _ in range(STANDARD.design(1).max_seeds))
        verdicts.append(judge(STANDARD, 1, results).verdict)
    spread = 4 * math.sqrt(share * (1 - share) / rounds)
    if verdict == "either":
        assert verdicts.count(Verdict.ACCEPTED) <= rounds * (share + spread)
        assert verdicts.count(Verdict.RULED_OUT) <= rounds * (share + spread)
    else:
        assert verdicts.count(Verdict.ACCEPTED) >= rounds * (share - spread)


# ------------------------------------------------------------------------------------------------- judging seeds


@pytest.mark.parametrize(
    ("text", "verdict", "counted"),
    [
        ("P" * 20, Verdict.OPEN, 20),
        ("P" * 21, Verdict.ACCEPTED, 21),
        ("P" * 21 + "FFFF", Verdict.ACCEPTED, 21),  # what comes after the decision does not count
        ("FFF", Verdict.OPEN, 3),
        ("FFFF", Verdict.RULED_OUT, 4),
        ("UUUU", Verdict.UNDECIDED, 4),  # an undecided seed counts as passed for ruling out and as failed for accepting
        ("P" * 20 + "U", Verdict.OPEN, 21),
        ("PPC", Verdict.CRASHED, 2),
        ("PPRFFFF", Verdict.OPEN, 2),  # only the seeds before the first running one count
        ("", Verdict.OPEN, 0),
    ],
)
def test_a_verdict(text: str, verdict: Verdict, counted: int) -> None:
    tally = judge(STANDARD, 1, seeds(text))
    assert (tally.verdict, tally.seeds) == (verdict, counted)


def test_a_later_recipe_needs_more_seeds() -> None:
    assert judge(STANDARD, 2, seeds("P" * 21)).verdict == Verdict.OPEN
    assert judge(STANDARD, 2, seeds("FFFF")).verdict == Verdict.OPEN


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("PP", Verdict.OPEN), ("PPP", Verdict.ACCEPTED), ("PF", Verdict.UNDECIDED), ("PPU", Verdict.UNDECIDED)],
)
def test_the_quick_form(text: str, verdict: Verdict) -> None:
    assert judge(3, 1, seeds(text)).verdict == verdict


@given(st.lists(st.sampled_from([PASSED, FAILED, UNDECIDED]), max_size=60), st.integers(1, 4))
def test_more_undecided_seeds_never_help_either_side(results: list[SeedResult], number: int) -> None:
    """A claim with undecided seeds stands as well where all of them had failed, and where all had passed."""
    claim = judge(STANDARD, number, tuple(results)).verdict
    if claim in (Verdict.ACCEPTED, Verdict.RULED_OUT):
        for instead in (PASSED, FAILED):
            known = tuple(instead if result == UNDECIDED else result for result in results)
            assert judge(STANDARD, number, known).verdict == claim


# ------------------------------------------------------------------------------------------------- intervals


def test_the_interval_of_clopper_and_pearson() -> None:
    """Against its closed forms, and the definition of its ends."""
    assert interval(Tally(Verdict.OPEN, 10, 0), 0.95) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    assert interval(Tally(Verdict.OPEN, 10, 10), 0.95) == pytest.approx((0.025 ** (1 / 10), 1.0))
    low, high = interval(Tally(Verdict.OPEN, 7, 2), 0.95)

    def tail(rate: float, least: int, most: int) -> float:
        return sum(math.comb(7, count) * rate**count * (1 - rate) ** (7 - count) for count in range(least, most + 1))

    assert (tail(low, 2, 7), tail(high, 0, 2)) == pytest.approx((0.025, 0.025))
    assert interval(Tally(Verdict.OPEN, 7, 2, 3), 0.95)[0] == pytest.approx(low)
    assert interval(Tally(Verdict.OPEN, 7, 2, 5), 0.95)[1] == 1.0
    assert interval(Tally(Verdict.OPEN), 0.95) == (0.0, 1.0)


@given(st.sampled_from([0.3, 0.6, 0.95]), st.randoms(use_true_random=False), st.integers(1, 3))
def test_the_interval_lies_on_the_side_of_the_verdict(rate: float, draw: random.Random, number: int) -> None:
    tally = judge(STANDARD, number, tuple(PASSED if draw.random() < rate else FAILED for _ in range(90)))
    low, high = interval(tally, STANDARD.confidence)
    assert low > 0.8 or tally.verdict != Verdict.ACCEPTED
    assert high < 0.8 or tally.verdict != Verdict.RULED_OUT


def test_what_three_of_three_show() -> None:
    assert pass_rate.quick_bound(3, 0.95) == pytest.approx(0.3684, abs=1e-4)
