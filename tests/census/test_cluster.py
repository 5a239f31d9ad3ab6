"""Suspected dead rows: planted clusters are given back, and embeddings without one have none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from census_files import census_of, write
from numpy.typing import NDArray


def suspected(tmp_path: Path, rows: NDArray[np.float64]) -> list[int]:
    census = census_of(write(tmp_path / "a.safetensors", torch.from_numpy(rows).float()))
    ids: list[int] = census.tokens.loc[census.tokens["is_suspected"], "id"].tolist()
    return ids


@pytest.mark.parametrize("dim", [4, 16, 200])
@pytest.mark.parametrize(("num_rows", "num_dead"), [(400, 20), (400, 280), (3000, 30)])
@pytest.mark.parametrize("centre", [0.0, 0.5])
def test_a_planted_cluster_is_given_back(dim: int, num_rows: int, num_dead: int, centre: float, tmp_path: Path) -> None:
    """The dead lie on a small sphere around a centre, the others on spheres at least four times as wide around it."""
    rng = np.random.default_rng(dim + num_dead)
    directions = rng.standard_normal((num_rows, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radii = rng.uniform(4, 12, num_rows)
    dead = np.sort(rng.permutation(num_rows)[:num_dead])
    radii[dead] = rng.uniform(0.5, 1, num_dead)
    assert suspected(tmp_path, centre + 0.01 * directions * radii[:, None]) == dead.tolist()


def test_a_cloud_of_rows_that_started_alike_is_given_back(tmp_path: Path) -> None:
    """As in a run: dead rows keep their random start and drift together; the others have grown in all directions."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2000, 64)) * 0.1
    dead = np.sort(rng.permutation(2000)[:700])
    drift = rng.standard_normal(64) * 0.1
    rows[dead] = rng.standard_normal((700, 64)) * 0.014 + drift
    assert suspected(tmp_path, rows) == dead.tolist()


def test_distances_are_those_from_the_mean_of_the_cluster(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((500, 32)).astype(np.float32)
    rows[:60] = rng.standard_normal((60, 32)) * 0.05 + 1
    census = census_of(write(tmp_path / "a.safetensors", torch.from_numpy(rows)))
    distances = np.linalg.norm(rows.astype(np.float64) - rows[:60].astype(np.float64).mean(axis=0), axis=1)
    cluster = census.summary["cluster"]
    assert cluster["num_rows"] == 60
    assert cluster["radius"] == pytest.approx(distances[:60].max(), rel=1e-12)
    assert cluster["next_distance"] == pytest.approx(distances[60:].min(), rel=1e-12)
    np.testing.assert_allclose(census.tokens["distance"], distances[:60], rtol=1e-12)


def test_a_ball_of_trained_rows_is_not_taken_for_the_dead(tmp_path: Path) -> None:
    """The dead have gone far from all others, so a ball around the others ends before them as well."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1000, 32)) * 0.1
    rows[:20] = 0  # a black hole in their midst, around which a cluster is looked for
    rows[700:] = rng.standard_normal((300, 32)) * 0.01 + 5
    assert suspected(tmp_path, rows) == list(range(700, 1000))


@pytest.mark.parametrize("dim", [1, 2, 8, 64])
@pytest.mark.parametrize("shape", ["normal", "uniform", "long tails"])
def test_rows_without_a_cluster_are_not_suspected(dim: int, shape: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (800, dim)) if shape == "uniform" else rng.standard_normal((800, dim))
    rows *= np.exp(rng.standard_normal((800, 1)) * 0.7) if shape == "long tails" else 1
    assert suspected(tmp_path, rows) == []


def test_identical_rows_alone_are_a_cluster_and_more_rows_around_them_belong_to_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 16))
    rows[100:140] = rows[100]
    assert suspected(tmp_path, rows) == list(range(100, 140))
    rows[140:150] = rows[100] + rng.standard_normal((10, 16)) * 1e-3
    assert suspected(tmp_path, rows) == list(range(100, 150))
