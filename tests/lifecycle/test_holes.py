"""Black holes over time: sizes, mergers, distances."""

import numpy as np
import torch
from planted_records import Planted, bfloat16_bits, from_ordered, hopping, ordered

from marble_sweep.lifecycle.analyse import analyse
from marble_sweep.lifecycle.cloud import MAX_SAMPLED, sampled_places
from marble_sweep.lifecycle.holes import HOLE_COLUMNS, identical_rows, nearest_cells
from marble_sweep.metrics.lattice import black_holes, cells_apart


def test_sampled_steps_are_spread_from_the_first_to_the_last() -> None:
    assert sampled_places(5).tolist() == [0, 1, 2, 3, 4]
    places = sampled_places(10_000)
    assert (len(places), places[0], places[-1]) == (MAX_SAMPLED, 0, 9_999)
    assert set(np.diff(places)) <= {39, 40}


def test_groups_are_those_of_the_metrics() -> None:
    rows = np.random.default_rng(0).integers(0, 3, (200, 3)).astype(np.uint16)
    rows[0, 0], rows[1] = 0x8000, rows[0]  # -0 is another bit pattern than +0
    rows[1, 0] = 0
    expected = black_holes(torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16))
    assert [group.tolist() for group in identical_rows(rows)] == expected


def test_distances_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(1)
    bits = bfloat16_bits(rng.normal(0, 0.02, (9, 5)))
    bits[3] = from_ordered(ordered(bits[2]) + np.array([1, 0, -2, 0, 0]))
    rows = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
    pairs = [[cells_apart(row, other).amax().item() for other in rows] for row in rows]
    np.testing.assert_array_equal(nearest_cells(bits), np.where(np.eye(9) == 1, np.inf, pairs).min(axis=1))
    assert np.isnan(nearest_cells(bits[:1])).all()


def test_planted_holes_form_and_merge() -> None:
    """Tokens 0 to 2 are alike from the start, 3 and 4 from step 2 on; at step 5 those two groups meet."""
    start = bfloat16_bits(np.array([[1.0, 1.0]] * 3 + [[1.25, 1.0], [1.25, 1.5], [1.75, 1.0], [1.0, 1.0]]))
    hops = {2: {4: {1: -64}}, 5: {3: {0: -32}, 4: {0: -32}}}
    is_dead = np.array([True] * 6 + [False])  # a live row does not count
    bits = hopping(start, 8, hops)
    life = analyse(Planted(bits, is_dead, np.ones((8, 2), dtype=np.float32)))
    holes = {column: life.holes.groupby("step")[column].agg(list).tolist() for column in HOLE_COLUMNS}
    assert holes["size"] == [[3], [3], [3, 2], [3, 2], [3, 2], [5], [5], [5], [5]]
    assert holes["tokens"][4:6] == [[[0, 1, 2], [3, 4]], [[0, 1, 2, 3, 4]]]
    assert holes["nearest_cells"][4] == [32, 32]
    assert holes["num_merged"] == [[0], [1], [1, 0], [1, 1], [1, 1], [2], [1], [1], [1]]
    assert life.steps["groups"].tolist() == [1, 2, 2, 2, 1, 1, 1, 1]
    assert life.steps["largest_group"].tolist() == [3, 3, 3, 3, 5, 5, 5, 5]
    assert (life.summary["n_black_holes"], life.summary["largest_black_hole"]) == (1, 5)
