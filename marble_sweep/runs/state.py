"""`state.safetensors`: what a run needs to go on as if it had never stopped, checked before it is believed."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from marble_sweep.config import Config, dump
from marble_sweep.renamed_keys import with_current_keys
from marble_sweep.runs import layout
from marble_sweep.runs.renamed import with_current_names
from marble_sweep.runs.status import RunStatus
from marble_sweep.runs.tensors import write_tensors

# Keys of a config that may change while a run is interrupted: what it computes stays the same, or is checked elsewhere.
FREE = ("data.", "device.", "notes", "experiment_name", "trainer.state_interval")
RULINGS = (None, RunStatus.CERTIFIED, RunStatus.PRUNED, RunStatus.TOO_SLOW, RunStatus.DIVERGED)


class Stateful(Protocol):
    """What can be saved: a flat dict of tensors and numbers out, one of tensors in."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@contextlib.contextmanager
def readable(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises ValueError where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: must be a whole safetensors file: {error}") from None


def flat(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Every part's tensors and numbers, on the CPU, by part/name."""
    return {
        f"{part}/{name}": torch.as_tensor(value).detach().cpu()
        for part, state in parts.items()
        for name, value in state.items()
    }


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The hash of all names and contents."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: Path, parts: Mapping[str, Stateful], info: Mapping[str, Any]) -> None:
    """Write every part's tensors and the JSON-able `info` as one safetensors file, atomically."""
    tensors = flat({name: part.state_dict() for name, part in parts.items()})
    write_tensors(path, tensors, {"info": json.dumps({**info, "sha256": tensors_sha256(tensors)})})


def identity(config: Config) -> dict[str, Any]:
    """All that a run computes from, by dotted key. The data has a hash of its own, wherever its files lie by now."""
    keys: dict[str, Any] = {}
    for name, value in yaml.safe_load(dump(config)).items():
        keys |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return {key: value for key, value in keys.items() if not key.startswith(FREE)}


def _require_same_config(path: Path, saved: object, config: Config) -> None:
    """Whoever edits the config of a run that has begun is told so, rather than given a run that never was."""
    now = identity(config)
    if not isinstance(saved, dict):
        raise ValueError(f"{path}: must be the state of a run: its config is damaged")
    for key, value in with_current_keys(saved).items():
        if key in now and now[key] != value:
            place = path.with_name(layout.CONFIG)
            raise ValueError(f"{place}: {key} = {now[key]}: must be {value}, as when {path.name} was saved")


def read_info(path: Path, config: Config) -> dict[str, Any]:
    """The `info` of a saved state of a run of `config`. Raises ValueError for one that cannot be."""
    with readable(path) as file:
        text = (file.metadata() or {}).get("info")
    try:
        info = json.loads(text or "")
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise ValueError(f"{path}: must be the state of a run: its header has no readable info")
    _require_same_config(path, info.get("config", {}), config)
    last_step = config.trainer.total_steps
    seconds: Any = info.get("train_seconds")
    fit = {
        "step": (_is_whole(info.get("step")) and 0 <= info["step"] <= last_step, f"a whole number in [0, {last_step}]"),
        "train_seconds": (_is_number(seconds) and 0 <= seconds < math.inf, "finite and >= 0"),
        "last_loss": ("last_loss" in info and (info["last_loss"] is None or _is_number(info["last_loss"])), "a number"),
        "evals": (_are_evaluations(info.get("evals"), info.get("step")), "the evaluations up to its step"),
        "ruling": ("ruling" in info and info["ruling"] in RULINGS, f"one of {', '.join(map(str, RULINGS))}"),
        "rows": (isinstance(info.get("rows", {}), dict), "the hashes of the CSV files"),
    }
    for name, (is_fit, allowed) in fit.items():
        if not is_fit:
            value = json.dumps(info.get(name))[:100]
            raise ValueError(f"{path}: must be the state of this run: its {name} = {value} must be {allowed}")
    return info | {"evals": [with_current_names(row) for row in info["evals"]]}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _are_evaluations(rows: object, last_step: object) -> bool:
    """Whether these are rows of evals.csv: numbers by column, in the order of their steps, up to last_step."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_whole(row.get("step")) for row in rows):
        return False
    steps = [row["step"] for row in rows]
    return (
        isinstance(last_step, int)
        and steps == sorted({*steps})
        and all(0 < step <= last_step for step in steps)
        and all(_is_number(value) for row in rows for value in row.values())
    )


def load_state(path: Path, parts: Mapping[str, Stateful], blank: Mapping[str, Mapping[str, Any]]) -> None:
    """Give every part back its tensors, in the order of `parts`.

    `blank` has tensors of the names, shapes and dtypes that each must have. Raises ValueError for any other.
    """
    with readable(path) as file:
        info = json.loads(file.metadata()["info"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    for complaint in _complaints(tensors, flat(blank), info):
        raise ValueError(f"{path}: must be the state of this run: {complaint}")
    for part, stateful in parts.items():
        own = {name.removeprefix(f"{part}/"): value for name, value in tensors.items() if name.startswith(f"{part}/")}
        try:
            stateful.load_state_dict(own)
        except RuntimeError as error:  # a generator's state that is none
            raise ValueError(f"{path}: must be the state of this run: {part}: {error}") from None


def _complaints(tensors: Mapping[str, Tensor], blank: Mapping[str, Tensor], info: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(blank.keys() | tensors.keys()):
        if name not in tensors:
            yield f"{name} is missing"
        elif name not in blank:
            yield f"it has a tensor {name} that the run has not"
        else:
            has, wants = (
                f"{each.dtype} {tuple(each.shape)}".removeprefix("torch.") for each in (tensors[name], blank[name])
            )
            if has != wants:
                yield f"{name} must be {wants}, not {has}"
    if "sha256" in info:
        if info["sha256"] != tensors_sha256(tensors):
            yield "its tensors are not those that were saved"
        return
    for name, tensor in tensors.items():  # a state saved before there were hashes
        if name.startswith("model/") and not tensor.isfinite().all():
            yield f"{name} must be finite"
