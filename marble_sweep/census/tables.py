"""The tables of a census."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from marble_sweep.census.embedding import Embedding
from marble_sweep.census.scan import Scan, count_exponents, row_bits
from marble_sweep.metrics.lattice import Lattice, cells_apart

MAX_COMPARED = 64  # black holes, the largest, whose distances are measured


@dataclass
class Members:
    """What the rows of the tight cluster have in common."""

    exponents: NDArray[np.int64]  # how many of their values have each biased exponent field
    minimum: Tensor  # (D,) float32
    maximum: Tensor


def measure_members(embedding: Embedding, is_member: NDArray[np.bool_], num_fields: int) -> Members:
    """One pass over the rows of the cluster."""
    members = Members(
        exponents=np.zeros(num_fields, dtype=np.int64),
        minimum=torch.full((embedding.dim,), torch.inf),
        maximum=torch.full((embedding.dim,), -torch.inf),
    )
    for place, rows in embedding.chunks("cluster"):
        if is_member[place].any():
            chosen = rows[torch.from_numpy(is_member[place])]
            members.exponents += count_exponents(row_bits(chosen), embedding.lattice)
            members.minimum = torch.minimum(members.minimum, chosen.amin(dim=0).float())
            members.maximum = torch.maximum(members.maximum, chosen.amax(dim=0).float())
    return members


def dimensions_table(scan: Scan, members: Members | None, lattice: Lattice) -> pd.DataFrame:
    """A row a dimension: its extent over all finite rows and over the cluster, in cells at its farther end."""
    ranges = {"": (scan.minimum, scan.maximum)} if scan.is_finite.any() else {}
    if members is not None:
        ranges["cluster_"] = (members.minimum, members.maximum)
    columns: dict[str, NDArray[np.generic]] = {"dimension": np.arange(len(scan.minimum))}
    for prefix, (low, high) in ranges.items():
        columns[f"{prefix}min"] = low.numpy()
        columns[f"{prefix}max"] = high.numpy()
        columns[f"{prefix}cells"] = cells_apart(low, high, lattice).numpy()
    return pd.DataFrame(columns)


def exponents_table(scan: Scan, members: Members | None, lattice: Lattice) -> pd.DataFrame:
    """A row a biased exponent field that occurs: 0 is that of zeros and subnormals, the last of infinity and NaN."""
    field = np.flatnonzero(scan.exponents)
    exponent = pd.array(np.maximum(field, 1) - lattice.bias, dtype="Int64")
    exponent[field == len(scan.exponents) - 1] = pd.NA
    table = pd.DataFrame({"field": field, "exponent": exponent, "count": scan.exponents[field]})
    if members is not None:
        table["cluster_count"] = members.exponents[field]
    return table


def distances_table(rows: Tensor, lattice: Lattice) -> pd.DataFrame:
    """A row a pair of black holes, numbered from 1; rows (n, D) has one row of each."""
    table = []
    for first, second in combinations(range(len(rows)), 2):
        cells = cells_apart(rows[first], rows[second], lattice).double()
        norms = cells.amax(), cells.sum(), cells.norm(), (cells != 0).sum()
        table.append((first + 1, second + 1, *(norm.item() for norm in norms)))
    return pd.DataFrame(table, columns=["hole", "other", "linf", "l1", "l2", "num_dimensions"])


def singletons_table(embedding: Embedding, ids: NDArray[np.int64], holes: Tensor) -> pd.DataFrame:
    """A row a singleton of the cluster, with the black hole that is nearest by its farthest dimension, and how far."""
    nearest = np.zeros(len(ids), dtype=np.int64)
    cells = np.full(len(ids), np.inf)
    is_chosen = np.zeros(embedding.num_rows, dtype=np.bool_)
    is_chosen[ids] = True
    done = 0
    for place, chunk in embedding.chunks("singletons") if len(holes) else ():
        rows = chunk[torch.from_numpy(is_chosen[place])]
        part = slice(done, done + len(rows))
        for number, hole in enumerate(holes, start=1):
            linf = cells_apart(rows, hole.expand_as(rows), embedding.lattice).amax(dim=1).double().numpy()
            is_nearer = linf < cells[part]
            nearest[part] = np.where(is_nearer, number, nearest[part])
            cells[part] = np.where(is_nearer, linf, cells[part])
        done = part.stop
    hole = pd.array(nearest, dtype="Int64")
    hole[nearest == 0] = pd.NA
    return pd.DataFrame({"id": ids, "nearest_hole": hole, "linf": np.where(nearest == 0, np.nan, cells)})


def holes_table(
    holes: Sequence[Sequence[int]], scan: Scan, is_member: NDArray[np.bool_], distances: pd.DataFrame
) -> pd.DataFrame:
    """A row a black hole, numbered from 1, largest first, with its nearest other one by `distances`."""
    firsts = [hole[0] for hole in holes]
    return pd.DataFrame(
        {
            "hole": np.arange(1, len(holes) + 1),
            "size": [len(hole) for hole in holes],
            "is_zero": scan.is_zero[firsts],
            "is_suspected": is_member[firsts],
            **nearest_holes(len(holes), distances),
            "ids": [list(hole) for hole in holes],
        }
    )


def nearest_holes(num_holes: int, distances: pd.DataFrame) -> dict[str, pd.Series]:
    """The hole nearest to each one by its farthest dimension, and how far that is; missing where none was measured."""
    swapped = distances.rename(columns={"hole": "other", "other": "hole"})
    pairs = pd.concat([distances, swapped])[["hole", "other", "linf"]].dropna().sort_values(["linf", "other"])
    nearest = pairs.drop_duplicates("hole").set_index("hole").reindex(range(1, num_holes + 1))
    hole = nearest["other"].astype("Int64").reset_index(drop=True)
    return {"nearest_hole": hole, "linf": nearest["linf"].reset_index(drop=True)}
