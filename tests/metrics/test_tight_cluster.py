"""The rule for tight clusters, on distances made by hand."""

import numpy as np
import pytest

from marble_sweep.metrics.tight_cluster import MIN_ROWS, cluster_size, nearest_neighbours


def size_of(*groups: tuple[int, float, float]) -> int | None:
    """The size of the cluster among distances: so many evenly from one distance to another, in no order."""
    distances = np.concatenate([np.linspace(low, high, count) for count, low, high in groups])
    return cluster_size(np.random.default_rng(0).permutation(distances))


def test_rows_far_nearer_than_all_others_are_a_cluster() -> None:
    assert size_of((20, 0.5, 1.0), (80, 10, 12)) == 20


@pytest.mark.parametrize(("following", "expected"), [(1.99, None), (2.01, 20)])
def test_no_other_row_is_within_twice_the_radius(following: float, expected: int | None) -> None:
    assert size_of((19, 0.9, 0.95), (1, 1.0, 1.0), (80, following, 2.5)) == expected


def test_a_few_rows_in_between_are_left_out() -> None:
    assert size_of((100, 0.5, 1.0), (4, 1.3, 1.8), (150, 2.2, 20)) == 100
    assert size_of((100, 0.5, 1.0), (2, 1.6, 1.8), (150, 2.5, 60)) == 100, (
        "the gap before them is wider than that after"
    )
    assert size_of((100, 0.5, 1.0), (6, 1.3, 1.8), (150, 1.9, 20)) is None, "6 % more are too many"


def test_rows_that_are_as_far_belong_together() -> None:
    assert size_of((30, 1, 1), (70, 9, 10)) == 30
    assert size_of((30, 0, 0), (70, 9, 10)) == 30, "identical rows"
    assert size_of((30, 0, 0), (20, 1, 1), (50, 9, 10)) == 50, "identical rows and others around them"


def test_too_few_and_too_many_rows_are_no_cluster() -> None:
    assert size_of((MIN_ROWS, 0.5, 1.0), (80, 10, 12)) == MIN_ROWS
    assert size_of((MIN_ROWS - 1, 0.5, 1.0), (80, 10, 12)) is None
    assert size_of((75, 0.5, 1.0), (25, 10, 12)) == 75
    assert size_of((76, 0.5, 1.0), (24, 10, 12)) is None


def test_rows_in_many_dimensions_are_no_cluster() -> None:
    rows = np.random.default_rng(0).standard_normal((500, 32))
    assert cluster_size(np.linalg.norm(rows - rows[0], axis=1)) is None


def test_neighbours_come_densest_first() -> None:
    generator = np.random.default_rng(0)
    points = generator.standard_normal((200, 3))
    points[40:60] = points[40] + generator.standard_normal((20, 3)) * 1e-3
    neighbours = nearest_neighbours(points, 5)
    assert neighbours.shape == (5, MIN_ROWS)
    assert set(neighbours[0]) <= set(range(40, 60))
