"""Where an embedding lies: in a file, a sharded model, a folder or a run directory; and which tensor it is."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_sweep.checks import CheckError, require, wrong_value
from marble_sweep.metrics.lattice import BFLOAT16, FLOAT16, FLOAT32
from marble_sweep.runs import layout
from marble_sweep.runs.damage import DamageError, open_file, read_json
from marble_sweep.runs.removed import require_kept
from marble_sweep.runs.state import readable

DTYPES = {"BF16": BFLOAT16, "F16": FLOAT16, "F32": FLOAT32}  # by their names in a file
EMBEDDING = "embedding.weight"  # of a run's model
INDEX = ".safetensors.index.json"  # how the name of a sharded model's index ends
# What the module of an input embedding is called in published models. Positions have other names.
MODULES = (
    *("embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embed_in", "embedding", "embeddings"),
    *("token_embedding", "token_embeddings", "tok_embedding", "tok_emb", "shared", "emb"),
)
SHOWN_NAMES = 12  # tensors that a message lists


@dataclass(frozen=True)
class Source:
    """A matrix in a file, (rows, dimensions)."""

    file: Path
    tensor: str
    choice: str  # why this tensor, for people
    folder: Path  # where the tokenizer is looked for
    snapshot: int | None = None  # which of the matrices, where the tensor is a run's checkpoints
    dead_mask: Path | None = None  # the file that says which tokens are dead, of a run


def find_source(path: str | Path, step: int | None = None, num_tokens: int | None = None) -> Source:
    """The embedding that `path` names: FILE, FOLDER or RUN_DIR, each with `:tensor` behind it if the user chose one.

    `num_tokens` is a tokenizer's, which tells the embedding where no name does. `step` chooses a checkpoint of a run.
    Raises CheckError, in one line, for what is missing or cannot be told.
    """
    place, tensor = split_tensor(str(path))
    require(place.exists(), "PATH", place, "a .safetensors file, a model's .index.json, or a folder that holds them")
    if place.is_dir() and (place / layout.CONFIG).is_file() and tensor is None:
        found = run_source(place, step)
        if found is not None:
            return found
    if place.name == layout.SNAPSHOTS and tensor in (None, "W"):
        return snapshot_source(place, step)
    require(step is None, "step", step, "left out: only a run has checkpoints")
    files = tensor_files(place)
    name, choice = (tensor, "as asked") if tensor is not None else choose_tensor(place, files, num_tokens)
    if name not in files:
        raise wrong_value("tensor", name, f"one of {listed(matrices(files)) or listed(files)}")
    folder = place if place.is_dir() else place.parent
    return Source(files[name], name, choice, folder)


def split_tensor(text: str) -> tuple[Path, str | None]:
    """A path and the tensor that follows its last colon, unless the whole text is a path."""
    place, colon, tensor = text.rpartition(":")
    return (Path(text), None) if not colon or Path(text).exists() else (Path(place), tensor)


def run_source(run_dir: Path, step: int | None) -> Source | None:
    """A run's embedding at its end or, while it has no model, at its last checkpoint; None if it has neither.

    A folder of another program may have a config.yaml and a model as well, whose tensors have other names.
    """
    snapshots, model = run_dir / layout.SNAPSHOTS, run_dir / layout.MODEL
    if step is None and model.exists():
        with opened(model) as file:
            if EMBEDDING not in file.keys():  # noqa: SIM118 (not a dict)
                return None
        mask = snapshots if snapshots.exists() else None
        return Source(model, EMBEDDING, "the run's embedding", run_dir, dead_mask=mask)
    if snapshots.exists():
        return snapshot_source(snapshots, step)
    require_kept(snapshots)
    require(step is None, "step", step, f"left out: the run has no {layout.SNAPSHOTS}")
    return None


def snapshot_source(path: Path, step: int | None) -> Source:
    """A run's embedding at a checkpoint, its last one unless `step` says otherwise."""
    with opened(path) as file:
        names = {"steps", "W", "dead_mask"}
        require(names <= set(file.keys()), "PATH", path, "a run's checkpoints: with steps, W and dead_mask")
        steps = file.get_tensor("steps").tolist()
    require(len(steps) > 0, "PATH", path, "a run's checkpoints: it has none yet")
    chosen = steps[-1] if step is None else step
    require(chosen in steps, "step", chosen, f"one of {', '.join(map(str, steps))}")
    choice = f"the run's checkpoint of step {chosen:,}"
    return Source(path, "W", choice, path.parent, snapshot=steps.index(chosen), dead_mask=path)


def tensor_files(place: Path) -> dict[str, Path]:
    """The file of every tensor at a place, by its name."""
    if place.is_dir():
        place = model_file(place)
    if place.name.endswith(".json"):
        return indexed_files(place)
    with opened(place) as file:
        return dict.fromkeys(file.keys(), place)


def model_file(folder: Path) -> Path:
    """The index of a folder's sharded model, or its only safetensors file."""
    for pattern in (f"*{INDEX}", layout.MODEL, "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = listed(path.name for path in found)
            raise wrong_value("PATH", folder, f"one of its files, as it has several: {names}")
    raise wrong_value("PATH", folder, f"a folder with a .safetensors file or a model{INDEX}")


def indexed_files(index: Path) -> dict[str, Path]:
    """The shard of every tensor of a sharded model."""
    try:
        content = read_json(index)
    except DamageError as error:
        raise CheckError(f"{index}: {error}") from None
    shards = content.get("weight_map")
    if not isinstance(shards, Mapping) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckError(f"{index}: must hold a weight_map from tensors to files")
    for shard in dict.fromkeys(shards.values()):
        if not (index.parent / shard).exists():
            raise CheckError(f"{index}: must name shards that exist; {shard} is missing")
    return {name: index.parent / shard for name, shard in shards.items()}


def choose_tensor(place: Path, files: Mapping[str, Path], num_tokens: int | None) -> tuple[str, str]:
    """The tensor that is the embedding, and why. Raises CheckError with the candidates where that cannot be told."""
    shapes = matrices(files)
    named = [name for name in shapes if name.removesuffix(".weight").rpartition(".")[2] in MODULES]
    if len(named) == 1:
        return named[0], "by its name"
    num_rows = vocabulary_size(place) if num_tokens is None else num_tokens
    tall = [name for name in named or shapes if shapes[name][0] == num_rows]
    if len(tall) == 1:
        return tall[0], f"with {num_rows:,} rows, as many as the vocabulary"
    if len(shapes) == 1:
        return next(iter(shapes)), "the only matrix"
    candidates = {name: shapes[name] for name in tall or named or shapes}
    require(bool(candidates), "PATH", place, f"a model with a matrix of {', '.join(DTYPES)}; it has none")
    raise CheckError(f"tensor: must be given as {place}:TENSOR, one of {listed(candidates)}")


def vocabulary_size(place: Path) -> int | None:
    """vocab_size in the config.json beside a model, if it has one."""
    try:
        size = read_json((place if place.is_dir() else place.parent) / "config.json").get("vocab_size")
    except (OSError, DamageError):
        return None
    return size if isinstance(size, int) else None


def matrices(files: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """The shapes of the 2-d tensors of a readable dtype, tallest first."""
    shapes: dict[str, tuple[int, int]] = {}
    for path in dict.fromkeys(files.values()):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                if part.get_dtype() in DTYPES and len(part.get_shape()) == 2:
                    shapes[name] = tuple(part.get_shape())
    return dict(sorted(shapes.items(), key=lambda item: -item[1][0]))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises CheckError, with its name, where it is missing or damaged."""
    try:
        open_file(path).close()  # it refuses what is no file
    except (DamageError, FileNotFoundError) as error:
        raise CheckError(f"{path}: {'is missing' if isinstance(error, FileNotFoundError) else error}") from None
    with readable(path) as file:
        yield file


def listed(names: Iterable[str]) -> str:
    """Names in one line, with the shapes where they have any."""
    shapes = names if isinstance(names, Mapping) else {}
    texts = [f"{name} ({' x '.join(f'{n:,}' for n in shapes[name])})" if name in shapes else name for name in names]
    more = f" and {len(texts) - SHOWN_NAMES} more" if len(texts) > SHOWN_NAMES else ""
    return ", ".join(texts[:SHOWN_NAMES]) + more
