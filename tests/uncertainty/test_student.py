"""Student's quantiles against closed forms."""

import math

import pytest

from marble_sweep.uncertainty.student import student_errors


@pytest.mark.parametrize("errors", [1.0, 3.0, 3.62, 12.0])
def test_quantiles_of_one_and_two_degrees_of_freedom(errors: float) -> None:
    tail = math.erfc(errors / math.sqrt(2)) / 2
    assert student_errors(errors, 1) == pytest.approx(1 / math.tan(math.pi * tail), rel=1e-6)
    assert student_errors(errors, 2) == pytest.approx((1 - 2 * tail) / math.sqrt(2 * tail * (1 - tail)), rel=1e-6)


def test_many_degrees_of_freedom_are_those_of_the_normal_distribution() -> None:
    assert student_errors(3.0, math.inf) == 3.0
    assert student_errors(30.0, 1e9) == pytest.approx(30.0, rel=1e-5)
    assert student_errors(3.0, 1e7) == pytest.approx(3.0, rel=1e-5)


def test_fewer_degrees_of_freedom_need_more_errors() -> None:
    needed = [student_errors(3.0, df) for df in (4.5, 7, 30, 1000)]
    assert needed == sorted(needed, reverse=True)
    assert needed[1] == pytest.approx(4.53, abs=0.005)


def test_certainty_beyond_all_floats_is_never_reached() -> None:
    assert student_errors(50.0, 7) == math.inf
