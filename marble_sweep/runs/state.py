"""`state.safetensors`: what a run needs to continue as if it had never stopped, checked before it is used."""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from marble_sweep.checks import CheckError
from marble_sweep.config import Config, dump
from marble_sweep.renamed_keys import with_current_keys
from marble_sweep.runs import layout
from marble_sweep.runs.renamed import with_added_columns
from marble_sweep.runs.status import RunStatus
from marble_sweep.runs.tensors import write_tensors
from marble_sweep.safe_yaml import parse_yaml

# Keys of a config that may change while a run is interrupted: what it computes stays the same, or is checked elsewhere.
# The thresholds decide when a run ends, not what it has computed until then.
FREE = ("data.", "device.", "notes", "experiment_name", "trainer.state_interval", "certify.threshold")
STOP_REASONS = (None, RunStatus.CERTIFIED, RunStatus.PRUNED, RunStatus.TOO_SLOW, RunStatus.DIVERGED)


class Stateful(Protocol):
    """What can be saved and loaded: it gives a flat dict of tensors and numbers, and takes one of tensors."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@contextlib.contextmanager
def readable(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises ValueError where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckError(f"{path}: must be a whole safetensors file: {error}") from None


def flat(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """All parts' tensors and numbers, on the CPU, by part/name."""
    return {
        f"{part}/{name}": torch.as_tensor(value).detach().cpu()
        for part, state in parts.items()
        for name, value in state.items()
    }


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all names and contents."""
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
    """The settings that determine a run's results, by dotted key. The data, which may be moved, has its own hash."""
    keys: dict[str, Any] = {}
    for group, settings in parse_yaml(dump(config, whole=True)).items():
        if isinstance(settings, dict):
            keys |= {f"{group}.{name}": value for name, value in settings.items()}
        else:
            keys[group] = settings
    return {key: value for key, value in keys.items() if not key.startswith(FREE)}


def _require_same_config(path: Path, saved: object, config: Config) -> None:
    """Raise ValueError where the config was edited since the state was saved: the results would belong to neither."""
    now = identity(config)
    if not isinstance(saved, dict):
        raise CheckError(f"{path}: must be the state of a run: its config is damaged")
    for key, value in with_current_keys(saved).items():
        if key in now and now[key] != value:
            place = path.with_name(layout.CONFIG)
            raise CheckError(f"{place}: {key} = {now[key]}: must be {value}, as when {path.name} was saved")


def read_info(path: Path, config: Config) -> dict[str, Any]:
    """The `info` of a saved state of a run of `config`. Raises ValueError for one that cannot be."""
    with readable(path) as file:
        text = (file.metadata() or {}).get("info")
    try:
        info = json.loads(text or "")
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise CheckError(f"{path}: must be the state of a run: its header has no readable info")
    if "ruling" in info:  # its name in version 0.1.0
        info["stop_reason"] = info.pop("ruling")
    _require_same_config(path, info.get("config", {}), config)
    last_step = config.trainer.total_steps
    seconds: Any = info.get("train_seconds")
    fit = {
        "step": (_is_whole(info.get("step")) and 0 <= info["step"] <= last_step, f"a whole number in [0, {last_step}]"),
        "train_seconds": (_is_number(seconds) and 0 <= seconds < math.inf, "finite and >= 0"),
        "last_loss": ("last_loss" in info and (info["last_loss"] is None or _is_number(info["last_loss"])), "a number"),
        "evals": (_are_evaluations(info.get("evals"), info.get("step")), "the evaluations up to its step"),
        "stop_reason": (
            "stop_reason" in info and info["stop_reason"] in STOP_REASONS,
            f"one of {', '.join(map(str, STOP_REASONS))}",
        ),
        "rows": (isinstance(info.get("rows", {}), dict), "the hashes of the CSV files"),
    }
    for name, (is_fit, allowed) in fit.items():
        if not is_fit:
            value = json.dumps(info.get(name))[:100]
            raise CheckError(f"{path}: must be the state of this run: its {name} = {value} must be {allowed}")
    return info | {"evals": [with_added_columns(row, math.nan) for row in info["evals"]]}


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
    """Load every part's tensors, in the order of `parts`.

    `blank` has the names, shapes and dtypes that the tensors must have. Raises ValueError for any other.
    """
    with readable(path) as file:
        info = json.loads(file.metadata()["info"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    is_as_saved = info["sha256"] == tensors_sha256(tensors) if "sha256" in info else None
    # The optimizer's part had another name in version 0.1.0.
    tensors = {re.sub("^updater/", "optimizer/", name): tensor for name, tensor in tensors.items()}
    for complaint in _complaints(tensors, flat(blank), is_as_saved):
        raise CheckError(f"{path}: must be the state of this run: {complaint}")
    for part, stateful in parts.items():
        own = {name.removeprefix(f"{part}/"): value for name, value in tensors.items() if name.startswith(f"{part}/")}
        try:
            stateful.load_state_dict(own)
        except RuntimeError as error:  # a generator's state that is none
            raise CheckError(f"{path}: must be the state of this run: {part}: {error}") from None


def _complaints(tensors: Mapping[str, Tensor], blank: Mapping[str, Tensor], is_as_saved: bool | None) -> Iterator[str]:
    """What is wrong with a state's tensors; `is_as_saved` is None for a state saved before there were hashes."""
    for name in sorted(blank.keys() | tensors.keys()):
        if name not in tensors:
            yield f"{name} is missing"
        elif name not in blank:
            yield f"it has a tensor {name} that the run has not"
        else:
            saved, expected = _described(tensors[name]), _described(blank[name])
            if saved != expected:
                yield f"{name} must be {expected}, not {saved}"
    if is_as_saved is False:
        yield "its tensors are not those that were saved"
    if is_as_saved is None:
        for name, tensor in tensors.items():
            if name.startswith("model/") and not tensor.isfinite().all():
                yield f"{name} must be finite"


def _described(tensor: Tensor) -> str:
    """A tensor's dtype and shape."""
    return f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")
