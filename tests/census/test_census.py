"""The census against what was planted, and against plain numpy on small embeddings."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import gamma
from census_files import as_numpy, census_of, plain_cells, plain_holes, write
from inspect_planted import NUM_SINGLETONS, Planted, given_back, plant

from marble_sweep.census.census import Census
from marble_sweep.census.embedding import CHUNK
from marble_sweep.metrics.lattice import black_holes

HOLE_SIZES = (81, 70, 31, 23, 11, 10, 6, 5, 5, 4, 3, 2, 2)  # as in Qwen 3 4B, smaller
DIM = 48


# --------------------------------------------------------------- what was planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Census, Planted]:
    path = tmp_path_factory.mktemp("planted") / "model.safetensors"
    structure = plant(path, 4000, DIM, HOLE_SIZES)
    return census_of(path), structure


def test_black_holes_singletons_and_the_box_are_given_back(planted: tuple[Census, Planted]) -> None:
    census, structure = planted
    expected = {"holes": sorted(structure.holes), "singletons": structure.singletons, "box": structure.box.max()}
    assert given_back(census.as_dict(), expected)
    assert census.black_holes["size"].tolist() == list(HOLE_SIZES)
    assert census.black_holes["is_suspected"].all()
    cluster = census.summary["cluster"]
    assert cluster["num_rows"] == sum(HOLE_SIZES) + NUM_SINGLETONS
    assert (cluster["num_in_black_holes"], cluster["num_singletons"]) == (sum(HOLE_SIZES), NUM_SINGLETONS)
    assert cluster["median_cells"] == np.median(structure.box)


def test_the_box_of_every_dimension_is_the_planted_one(planted: tuple[Census, Planted]) -> None:
    census, structure = planted
    assert census.dimensions["cluster_cells"].tolist() == structure.box.tolist()


def test_distances_between_black_holes_are_the_planted_ones(planted: tuple[Census, Planted]) -> None:
    census, structure = planted
    number = {tuple(ids): order for order, ids in enumerate(structure.holes)}
    offsets = [structure.offsets[number[tuple(ids)]] for ids in census.black_holes["ids"]]
    pairs = [np.abs(offsets[first] - offsets[second]) for first, second in combinations(range(len(offsets)), 2)]
    assert census.distances["linf"].tolist() == [cells.max() for cells in pairs]
    assert census.distances["l1"].tolist() == [cells.sum() for cells in pairs]
    assert census.distances["num_dimensions"].tolist() == [(cells != 0).sum() for cells in pairs]
    l2 = [math.sqrt((cells**2).sum()) for cells in pairs]
    np.testing.assert_allclose(census.distances["l2"], l2, rtol=1e-12)
    nearest = [min(np.abs(a - b).max() for b in offsets if b is not a) for a in offsets]
    assert census.black_holes["linf"].tolist() == nearest


def test_singletons_know_their_nearest_black_hole(planted: tuple[Census, Planted]) -> None:
    census, structure = planted
    holes, others = np.split(structure.offsets, [len(HOLE_SIZES)])
    distances = np.abs(others[:, None] - holes).max(axis=2).min(axis=1)
    singletons = census.singletons.set_index("id")
    by_id = dict(zip([*map(int, structure.singletons)], singletons.loc[structure.singletons, "linf"], strict=True))
    assert sorted(by_id.values()) == sorted(distances)


def test_the_exponents_of_the_cluster_are_those_planted(planted: tuple[Census, Planted]) -> None:
    census, _ = planted
    table = census.exponents
    assert table["count"].sum() == 4000 * DIM
    assert table["cluster_count"].sum() == census.summary["cluster"]["num_rows"] * DIM
    assert set(table.loc[table["cluster_count"] > 0, "field"]) <= set(range(115, 122))


def test_rows_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of a few rows the census is the same."""
    path = tmp_path / "model.safetensors"
    plant(path, 300, 16, (20, 10, 2))
    whole = census_of(path)
    assert CHUNK >= 300 * 16
    monkeypatch.setattr("marble_sweep.census.embedding.CHUNK", 16 * 7)
    chunked = census_of(path)
    for key in ("black_holes", "distances", "dimensions", "exponents"):
        assert chunked.as_dict()[key] == whole.as_dict()[key]
    columns = ["id", "nearest_hole", "linf"]
    assert chunked.singletons[columns].equals(whole.singletons[columns])


# ------------------------------------------------------------- against plain numpy


def random_weights(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows of few values, so that many are identical: zeros of either sign, subnormals, powers of two, both ends."""
    tiny, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    smallest = tiny * torch.finfo(dtype).eps
    values = [0.0, -0.0, smallest, -smallest, tiny, 1.0, -1.0, 1 - torch.finfo(dtype).eps / 2, 1.5, -0.3, largest / 4]
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(values, dtype=torch.float64).to(dtype)[
        torch.randint(len(values), (60, 2), generator=generator)
    ]
    return torch.cat([weights, weights[:, :1]], dim=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_equals_a_plain_census(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = random_weights(dtype)
    census, values = census_of(write(tmp_path / "a.safetensors", weights)), as_numpy(weights)
    holes = plain_holes(values)
    assert census.black_holes["ids"].tolist() == holes
    assert census.summary["dtype"] == str(dtype).removeprefix("torch.")
    pairs = [plain_cells(values[a[0]], values[b[0]]) for a, b in combinations(holes, 2)]
    np.testing.assert_allclose(census.distances["linf"], [cells.max() for cells in pairs], rtol=gamma(2))
    np.testing.assert_allclose(census.distances["l1"], [cells.sum() for cells in pairs], rtol=gamma(4))
    low, high = values.astype(np.float64).min(axis=0), values.astype(np.float64).max(axis=0)
    assert census.dimensions["min"].tolist() == low.tolist()
    assert census.dimensions["max"].tolist() == high.tolist()
    cells = plain_cells(low.astype(values.dtype), high.astype(values.dtype))
    np.testing.assert_allclose(census.dimensions["cells"], cells, rtol=gamma(2))
    magnitudes = np.abs(values.astype(np.float64))
    exponent = np.frexp(np.where(magnitudes == 0, 1, magnitudes))[1] - 1
    lowest = int(math.log2(torch.finfo(dtype).smallest_normal))
    normal = exponent[magnitudes >= torch.finfo(dtype).smallest_normal]
    counts = dict(zip(*np.unique(normal, return_counts=True), strict=True))
    table = census.exponents
    assert dict(table.loc[table["field"] > 0, ["exponent", "count"]].itertuples(index=False)) == counts
    rest = table.loc[table["field"] == 0]
    assert rest["exponent"].tolist() == [lowest], "zeros and subnormals have the spacing of the smallest normal numbers"
    assert rest["count"].tolist() == [(magnitudes < torch.finfo(dtype).smallest_normal).sum()]


def test_black_holes_are_those_of_a_run(tmp_path: Path) -> None:
    weights = random_weights(torch.bfloat16, seed=1)
    census = census_of(write(tmp_path / "a.safetensors", weights))
    assert census.black_holes["ids"].tolist() == black_holes(weights)


# ----------------------------------------------------------------------- borders


def pairs_of_rows(*rows: list[float], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Every row twice, so that each is a black hole."""
    return torch.tensor(rows, dtype=torch.float64).to(dtype).repeat_interleave(2, dim=0)


def test_holes_that_differ_in_the_sign_of_zero_are_two_at_no_distance(tmp_path: Path) -> None:
    census = census_of(write(tmp_path / "a.safetensors", pairs_of_rows([0.0, 1.0], [-0.0, 1.0])))
    assert census.black_holes["ids"].tolist() == [[0, 1], [2, 3]]
    assert census.distances[["linf", "l1", "num_dimensions"]].to_numpy().tolist() == [[0, 0, 0]]
    assert not census.black_holes["is_zero"].any()


def test_cells_across_an_exponent_and_among_subnormals(tmp_path: Path) -> None:
    below, smallest = 1 - 2**-8, 2.0**-133
    census = census_of(
        write(tmp_path / "a.safetensors", pairs_of_rows([1.0, 0.0], [below, smallest], [1.0, -smallest]))
    )
    assert census.distances["linf"].tolist() == [1, 1, 2]
    assert census.distances["l1"].tolist() == [1.5, 1, 2.5]


def test_rows_with_nan_and_infinity_are_named(tmp_path: Path) -> None:
    weights = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights[3, 0] = weights[4, 0] = torch.nan
    weights[7] = torch.tensor([torch.inf, 1.0, -torch.inf])
    weights[4, 1:] = weights[3, 1:]
    weights[9] = 0
    census = census_of(write(tmp_path / "a.safetensors", weights))
    assert census.non_finite.to_numpy().tolist() == [[3, 1, 0], [4, 1, 0], [7, 0, 2]]
    assert census.black_holes["ids"].tolist() == [[3, 4]], "bit-identical, NaN or not"
    finite = weights[weights.isfinite().all(dim=1)]
    assert census.dimensions["max"].tolist() == finite.amax(dim=0).float().tolist()
    assert census.exponents.loc[census.exponents["field"] == 255, "count"].tolist() == [4]
    assert "3 rows with NaN or infinity, 1 row of zeros" in str(census)
    json.dumps(census.as_dict(), allow_nan=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_nothing_but_one_value(value: float, tmp_path: Path) -> None:
    census = census_of(write(tmp_path / "a.safetensors", torch.full((40, 3), value).bfloat16()))
    assert census.summary["num_identical"] == 40
    assert census.summary["cluster"] is None, "all rows are no cluster among others"
    json.dumps(census.as_dict(), allow_nan=False)
    assert "40 rows in 1 black hole" in str(census)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 5), (20, 1)])
def test_tiny_embeddings(shape: tuple[int, int], tmp_path: Path) -> None:
    census = census_of(write(tmp_path / "a.safetensors", torch.arange(shape[0] * shape[1]).view(shape).float()))
    assert census.summary["num_black_holes"] == 0
    assert "no two rows are identical" in str(census)


# --------------------------------------------------------------- float32 on another lattice


def test_float32_that_holds_bfloat16_is_counted_in_its_cells(tmp_path: Path) -> None:
    weights = random_weights(torch.bfloat16)
    as_bf16, as_fp32 = (
        census_of(write(tmp_path / f"{number}.safetensors", rows))
        for number, rows in enumerate((weights, weights.float()))
    )
    assert as_fp32.summary["lattice"] == "bfloat16"
    assert "on the lattice of bfloat16" in str(as_fp32)
    for name in ("black_holes", "distances", "dimensions", "exponents"):
        assert as_fp32.as_dict()[name] == as_bf16.as_dict()[name]


def test_float32_as_its_nearest_bfloat16(tmp_path: Path) -> None:
    weights = 1 + torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) * 2**-8
    rounded = census_of(write(tmp_path / "a.safetensors", weights), as_bfloat16=True)
    assert census_of(tmp_path / "a.safetensors").summary["num_identical"] == 0
    assert rounded.black_holes["ids"].tolist() == black_holes(weights.bfloat16())
    assert rounded.summary["num_identical"] > 10
    assert (rounded.summary["dtype"], rounded.summary["lattice"]) == ("float32", "bfloat16")
