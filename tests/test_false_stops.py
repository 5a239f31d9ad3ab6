"""The count of false stops, on made-up curves, and on the recorded ones that the rule's constants rest on."""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import false_stops
import pytest
import record_stops
from false_stops import Curve, Row, Rule, make_run, tally

from marble_sweep.early_stopping import FASTEST_FALL, NO_CONTEXT, PART_WITHOUT_CONTEXT, is_hopeless
from marble_sweep.search_config import CertifyConfig

UNIGRAM = 6.6
STEPS = false_stops.SCHEDULES["search"][0]
DENSE = false_stops.SCHEDULES["linear"][0]


def curve(margins: Sequence[float], budget: str = "search", gain: float = 0.1) -> Curve:
    """A curve with a margin per evaluation and tiny standard errors."""
    steps = false_stops.SCHEDULES[budget][0]
    rows = [
        {"step": step, "val_loss": UNIGRAM - margin, "context_gain": gain, "context_gain_se": 1e-4}
        | {f"{name}_margin": margin for name in ("tempered", "oracle", "bigram")}
        | {f"{name}_margin_se": 1e-4 for name in ("tempered", "oracle", "bigram")}
        for step, margin in zip(steps, margins, strict=False)
    ]
    return Curve("pydocs", budget, rows)


def at_step(step: int) -> Rule:
    """A rule that gives up every run after a step."""

    def rule(config: CertifyConfig, evals: Sequence[Row], steps: Sequence[int]) -> bool:
        return evals[-1]["step"] >= step

    return rule


LATE = [-1.0, -0.9, -0.8, -0.7, -0.6, -0.5, -0.4, 0.1, 0.2]  # certifies at its eighth evaluation
BELOW = [-1.0] * 9


def test_a_stop_is_false_only_before_the_run_certifies() -> None:
    late, below = make_run(curve(LATE), STEPS), make_run(curve(BELOW), STEPS)
    assert (late.certified, below.certified) == (7, None)
    assert (late.stop(at_step(200)), late.stop(at_step(201)), late.stop(at_step(283))) == (6, None, None)
    assert (below.stop(at_step(283)), below.stop(at_step(400))) == (7, None), "no run is given up at its end"


def test_what_is_counted() -> None:
    diverged = curve(BELOW[:3])  # at the next evaluation, at step 71
    runs = [make_run(each, STEPS) for each in (curve(LATE), curve(BELOW), diverged)]
    counted = tally(runs, at_step(50))
    assert (counted.certifying, counted.false_stops) == (1, 1)
    assert counted.tokens == (400 + 71) * 16 * 128
    assert counted.saved == (350 + 21) * 16 * 128
    assert tally(runs, false_stops.never).saved == 0


def test_the_interval_of_a_rate() -> None:
    """None of n: its upper end solves (1 - p)^n = 0.025; all of n: the lower end solves p^n = 0.025."""
    none, every = false_stops.Tally(10, 0, 1, 0), false_stops.Tally(10, 10, 1, 0)
    assert none.rate == f"0 of 10 (0.0 to {100 * (1 - 0.025 ** (1 / 10)):.1f} %)"
    assert every.rate == f"10 of 10 ({100 * 0.025 ** (1 / 10):.1f} to 100.0 %)"


def test_a_curve_is_judged_at_some_of_its_evaluations() -> None:
    dense = curve([-1.0] * 10 + [0.1] * 10, "linear")
    assert make_run(dense, DENSE).certified == 10
    sparse = make_run(dense, false_stops.SCHEDULES["linear"][3])
    assert [row["step"] for row in sparse.rows] == [100, 200, 300, 400]
    assert sparse.certified == 2
    assert make_run(dense, DENSE, nats=0.2).certified is None


def test_the_rules_that_are_compared() -> None:
    """By the units in which falls are counted: of the loss of 7 nats, at step 200 after 141, with 0.1 nats since."""
    rows = [curve(BELOW).rows[0] | {"step": 141, "tempered_margin": -2.1}]
    last = rows[0] | {"step": 200, "val_loss": 7.0}
    bounds = {
        ("evaluation", "evaluation"): max(2 * 0.1, 2 * 0.02 * 7),
        ("doubling", "doubling"): max(0.1 / math.log2(200 / 141), 0.02 * 7),
        ("step", "doubling"): max(200 * 0.1 / 59, 0.02 * 7),
    }
    for (rise_unit, unit), bound in bounds.items():
        rule = partial(false_stops.misses, rise_unit, unit, 0.02)
        for margin, gives_up in ((-bound - 1e-6, True), (-bound + 1e-6, False)):
            evals = [rows[0] | {"tempered_margin": margin - 0.1}, last | {"tempered_margin": margin}]
            assert rule(CertifyConfig(), evals, STEPS) is gives_up, (rise_unit, unit)


@pytest.fixture(scope="module")
def recorded() -> list[Curve]:
    return false_stops.read_curves(false_stops.HERE / "stop_curves.csv.gz", false_stops.HERE / "curves.csv.gz")


def test_the_recording_is_whole() -> None:
    stored = false_stops.read_rows(false_stops.HERE / "stop_curves.csv.gz", record_stops.KEYS)
    assert set(stored) == {tuple(map(str, each)) for each in record_stops.grid()}


def test_the_rule_is_that_of_the_table(recorded: list[Curve]) -> None:
    """is_hopeless is the rule that the benchmark compares with others, at its constants."""
    table = false_stops.either(
        partial(false_stops.misses, "step", "doubling", FASTEST_FALL),
        partial(false_stops.without_context, NO_CONTEXT, PART_WITHOUT_CONTEXT),
    )
    for each in itertools.islice(recorded, 0, None, 5):
        run = make_run(each, false_stops.SCHEDULES[each.budget][0])
        assert run.stop(is_hopeless) == run.stop(table)


def test_no_recorded_run_that_certifies_is_given_up(recorded: list[Curve]) -> None:
    assert tally(false_stops.whole(recorded), is_hopeless).false_stops == 0
