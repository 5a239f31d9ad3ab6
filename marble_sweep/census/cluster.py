"""The tight cluster of an embedding: where the rule of metrics/tight_cluster.py is tried, in all dimensions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marble_sweep.census.embedding import Embedding
from marble_sweep.census.scan import Scan
from marble_sweep.metrics.tight_cluster import MIN_ROWS, cluster_size, nearest_neighbours

CANDIDATES = 128  # rows, densest by their projections, whose neighbours are measured in all dimensions
MAX_HOLES = 4  # black holes tried as centres
MAX_ROUNDS = 8  # of moving the centre to the mean of its cluster
MIN_SPREAD = 2.0  # how much farther than the cluster's rows the others must be from their own mean, by medians


@dataclass
class Cluster:
    """Rows that are far nearer to each other than to the others."""

    is_member: NDArray[np.bool_]  # (V,)
    distances: NDArray[np.float64]  # (V,) from the centre, the mean of the members; NaN for rows that are not finite
    radius: float  # of the farthest member
    next_distance: float  # of the nearest row that is no member


def find_cluster(embedding: Embedding, scan: Scan, holes: Sequence[Sequence[int]]) -> Cluster | None:
    """The largest tight cluster around the densest rows or a large black hole; None if there is none."""
    best: Cluster | None = None
    is_finite = scan.is_finite
    tried = np.zeros(embedding.num_rows, dtype=np.bool_)
    for ids in first_members(embedding, scan, holes):
        if tried[ids[0]] or not is_finite[ids[0]]:
            continue
        cluster = grow(embedding, is_finite, embedding.take(ids).double().mean(dim=0))
        if cluster is not None and others_are_spread(embedding, scan, cluster):
            tried |= cluster.is_member
            if best is None or cluster.is_member.sum() > best.is_member.sum():
                best = cluster
    return best


def first_members(embedding: Embedding, scan: Scan, holes: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    """Rows around whose mean a cluster may lie: a few neighbours, then one row of each of the largest black holes."""
    repeated = {number for hole in holes for number in hole[1:]}
    distinct = np.array([number for number in np.flatnonzero(scan.is_finite) if number not in repeated])
    if len(distinct) >= MIN_ROWS:
        groups = distinct[nearest_neighbours(scan.projected[distinct], CANDIDATES)]
        rows = embedding.take(groups.reshape(-1).tolist()).double().view(*groups.shape, -1)
        radii = (rows - rows.mean(dim=1, keepdim=True)).norm(dim=2).amax(dim=1)
        yield groups[int(radii.argmin())].tolist()
    for hole in holes[:MAX_HOLES]:
        if len(hole) >= MIN_ROWS:
            yield hole[:1]


def grow(embedding: Embedding, is_finite: NDArray[np.bool_], centre: Tensor) -> Cluster | None:
    """The cluster around a centre, which moves to the mean of the cluster's rows until they stay the same."""
    is_member = np.zeros(embedding.num_rows, dtype=np.bool_)
    for _ in range(MAX_ROUNDS):
        distances = distances_from(embedding, centre)
        distances[~is_finite] = np.nan
        size = cluster_size(distances[is_finite])
        if size is None:
            return None
        ordered = np.sort(distances[is_finite])
        radius, next_distance = float(ordered[size - 1]), float(ordered[size])
        before, is_member = is_member, distances <= radius
        if np.array_equal(before, is_member):
            break
        centre = column_sums(embedding, is_member) / int(is_member.sum())
    return Cluster(is_member, distances, radius, next_distance)


def others_are_spread(embedding: Embedding, scan: Scan, cluster: Cluster) -> bool:
    """Whether the rows outside are farther from their own mean than those inside are from theirs.

    A ball around all trained rows also ends before a distant cluster does; it is not what is tight.
    """
    others = scan.is_finite & ~cluster.is_member
    sums = scan.column_sums - column_sums(embedding, cluster.is_member)
    distances = distances_from(embedding, sums / int(others.sum()))
    inside = np.median(cluster.distances[cluster.is_member])
    return bool(np.median(distances[others]) >= MIN_SPREAD * inside)


def distances_from(embedding: Embedding, centre: Tensor) -> NDArray[np.float64]:
    """(V,) the Euclidean distance of every row from a centre (D,) in float64."""
    distances = np.zeros(embedding.num_rows)
    for place, rows in embedding.chunks("distances"):
        distances[place] = rows.double().sub_(centre).square_().sum(dim=1).sqrt_()
    return distances


def column_sums(embedding: Embedding, chosen: NDArray[np.bool_]) -> Tensor:
    """(D,) float64 sums of the chosen rows."""
    sums = torch.zeros(embedding.dim, dtype=torch.float64)
    for place, rows in embedding.chunks("means"):
        if chosen[place].any():
            sums += rows[torch.from_numpy(chosen[place])].double().sum(dim=0)
    return sums
