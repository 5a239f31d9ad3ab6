"""The census of an embedding: identical rows, suspected dead rows, and where they lie on the lattice."""

import contextlib
import html
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from marble_sweep.census import show
from marble_sweep.census.cluster import Cluster, find_cluster
from marble_sweep.census.embedding import Embedding, open_embedding
from marble_sweep.census.scan import Scan, scan_rows
from marble_sweep.census.source import Source, find_source, opened
from marble_sweep.census.tables import (
    MAX_COMPARED,
    dimensions_table,
    distances_table,
    exponents_table,
    holes_table,
    measure_members,
    singletons_table,
)
from marble_sweep.census.vocabulary import NEVER, num_tokens, produced, read_tokenizer, require_fit, token_text
from marble_sweep.checks import CheckError
from marble_sweep.metrics.lattice import BFLOAT16, equal_groups
from marble_sweep.runs import layout

FORMAT = 1  # of the JSON; a new number where a key changes its meaning or goes


@dataclass(frozen=True)
class Census:
    """What an embedding has; docs/inspect.md describes every key and column."""

    summary: dict[str, Any]
    black_holes: pd.DataFrame  # a row a group of identical rows, largest first
    tokens: pd.DataFrame  # a row a token that is in a black hole or in the tight cluster
    singletons: pd.DataFrame  # a row a token of the cluster whose row is like no other
    distances: pd.DataFrame  # a row a pair of black holes, in cells
    dimensions: pd.DataFrame
    exponents: pd.DataFrame
    non_finite: pd.DataFrame  # a row a token with NaN or infinity

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it: the summary's keys, and every table as a list of its rows."""
        tables = {name: records(table) for name, table in vars(self).items() if isinstance(table, pd.DataFrame)}
        return {"format": FORMAT, **self.summary, **tables}

    def __str__(self) -> str:
        return show.text(self.summary, self.black_holes, self.tokens, self.singletons, self.exponents)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON can hold them: None for what is missing, NaN or infinite."""
    columns = {
        name: [None if _is_missing(value) else value for value in table[name].astype(object)] for name in table.columns
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _is_missing(value: object) -> bool:
    return value is pd.NA or (isinstance(value, float) and not math.isfinite(value))


def take_census(
    path: str | Path, tokenizer: str | Path | Tokenizer | None, *, step: int | None, as_bfloat16: bool
) -> Census:
    """The census of the embedding that `path` names (see `find_source`).

    Without a `tokenizer` the tokenizer.json beside the embedding is read, if there is one. Raises CheckError, in one
    line, for what cannot be read.
    """
    given = read_tokenizer(Path(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer
    source = find_source(path, step, None if given is None else num_tokens(given))
    if given is None and (source.folder / layout.TOKENIZER).is_file():
        given = read_tokenizer(source.folder)
    with one_thread(), open_embedding(source, as_bfloat16=as_bfloat16) as embedding:
        if given is not None:
            require_fit(given, embedding.num_rows)
        return count(embedding, source, given)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: a chunk is so small that more of them mostly wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def count(embedding: Embedding, source: Source, tokenizer: Tokenizer | None) -> Census:
    """The census of an open embedding."""
    scan = scan_rows(embedding)
    if scan.is_on_bfloat16:
        embedding.lattice = BFLOAT16
    holes = equal_groups(scan.digests)
    cluster = find_cluster(embedding, scan, holes)
    is_member = np.zeros(embedding.num_rows, dtype=np.bool_) if cluster is None else cluster.is_member
    members = None if cluster is None else measure_members(embedding, is_member, len(scan.exponents))
    hole_of = np.zeros(embedding.num_rows, dtype=np.int64)
    for number, hole in enumerate(holes, start=1):
        hole_of[hole] = number
    hole_rows = embedding.take(hole[0] for hole in holes[:MAX_COMPARED]) if holes else torch.empty(0, embedding.dim)
    is_dead = read_dead_mask(source, embedding.num_rows)
    tokens = tokens_table(hole_of, cluster, tokenizer, is_dead)
    dimensions = dimensions_table(scan, members, embedding.lattice)
    singletons = singletons_table(embedding, np.flatnonzero(is_member & (hole_of == 0)), hole_rows)
    num_not_finite = np.flatnonzero(~scan.is_finite)
    distances = distances_table(hole_rows, embedding.lattice)
    return Census(
        summary={
            **summarize(embedding, source, tokenizer, scan),
            "num_black_holes": len(holes),
            "num_identical": sum(map(len, holes)),
            "num_never_produced": None if tokenizer is None else int(tokens["produced"].isin(NEVER).sum()),
            "num_dead": None if is_dead is None else int(is_dead.sum()),
            "cluster": None if cluster is None else summarize_cluster(cluster, tokens, dimensions),
        },
        black_holes=holes_table(holes, scan, is_member, distances),
        tokens=tokens,
        singletons=singletons.merge(tokens.drop(columns=["hole", "is_suspected"]), on="id"),
        distances=distances,
        dimensions=dimensions,
        exponents=exponents_table(scan, members, embedding.lattice),
        non_finite=pd.DataFrame(
            {"id": num_not_finite, "num_nan": scan.num_nan[num_not_finite], "num_inf": scan.num_inf[num_not_finite]}
        ),
    )


def read_dead_mask(source: Source, num_rows: int) -> NDArray[np.bool_] | None:
    """(V,) which tokens of a run never occur in its training split; None where that is not known.

    Raises CheckError where the checkpoints are of another vocabulary.
    """
    if source.dead_mask is None:
        return None
    with opened(source.dead_mask) as file:
        mask = file.get_tensor("dead_mask") if "dead_mask" in file.keys() else torch.empty(0)  # noqa: SIM118
    if mask.shape != (num_rows,):
        raise CheckError(f"{source.dead_mask}: must hold a dead_mask of {num_rows:,} tokens, as many as the model has")
    dead_mask: NDArray[np.bool_] = mask.bool().numpy()
    return dead_mask


def tokens_table(
    hole_of: NDArray[np.int64],
    cluster: Cluster | None,
    tokenizer: Tokenizer | None,
    is_dead: NDArray[np.bool_] | None,
) -> pd.DataFrame:
    """A row a token in a black hole or in the cluster: its black hole, its distance, what it stands for."""
    is_member = np.zeros(len(hole_of), dtype=np.bool_) if cluster is None else cluster.is_member
    ids = np.flatnonzero(is_member | (hole_of > 0))
    hole = pd.array(hole_of[ids], dtype="Int64")
    hole[hole_of[ids] == 0] = pd.NA
    table = pd.DataFrame({"id": ids, "hole": hole, "is_suspected": is_member[ids]})
    table["distance"] = np.full(len(ids), np.nan) if cluster is None else cluster.distances[ids]
    if is_dead is not None:
        table["is_dead"] = is_dead[ids]
    if tokenizer is not None:
        table["text"] = [token_text(tokenizer, number) for number in ids.tolist()]
        table["produced"] = produced(tokenizer, ids.tolist())
    return table


def summarize(embedding: Embedding, source: Source, tokenizer: Tokenizer | None, scan: Scan) -> dict[str, Any]:
    """What was read."""
    return {
        "file": str(source.file),
        "tensor": source.tensor,
        "tensor_choice": source.choice,
        "num_rows": embedding.num_rows,
        "dim": embedding.dim,
        "dtype": embedding.stored,
        "lattice": embedding.lattice.name,
        "num_tokens": None if tokenizer is None else num_tokens(tokenizer),
        "num_zero_rows": int(scan.is_zero.sum()),
        "num_not_finite": int((~scan.is_finite).sum()),
    }


def summarize_cluster(cluster: Cluster, tokens: pd.DataFrame, dimensions: pd.DataFrame) -> dict[str, Any]:
    """The tight cluster of suspected dead rows; distances in the weights' own unit, the box in cells."""
    members = tokens[tokens["is_suspected"]]
    in_holes = int(members["hole"].notna().sum())
    return {
        "num_rows": len(members),
        "num_in_black_holes": in_holes,
        "num_singletons": len(members) - in_holes,
        "num_dead": int(members["is_dead"].sum()) if "is_dead" in members else None,
        "radius": cluster.radius,
        "next_distance": cluster.next_distance,
        "box_cells": float(dimensions["cluster_cells"].max()),
        "median_cells": float(dimensions["cluster_cells"].median()),
    }
