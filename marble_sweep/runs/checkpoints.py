"""`checkpoints.safetensors` in the notebook's format, and the resumable state beside it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from marble_sweep.runs.tensors import write_tensors


class EmbeddingSnapshots:
    """The embedding and h_mean every so many steps, on disk as soon as they are taken.

    Each checkpoint rewrites the file whole, so a kill leaves the one before: for n checkpoints that is
    n²/2 times one checkpoint's size in all (165 MB for the notebook's eleven of 2.6 MB).
    """

    def __init__(self, path: Path, dead_mask: Tensor) -> None:
        self.path = path
        self.dead_mask = dead_mask.cpu()
        self.steps: list[int] = []

    def take(self, step: int, embedding: Tensor, h_mean: Tensor) -> None:
        """Add the embedding (V, D), as bfloat16 bits, and h_mean (D,); what came after `step` goes."""
        bits = embedding.detach().cpu().to(torch.bfloat16).view(torch.uint16)
        new = {"steps": torch.tensor([step]), "W": bits[None], "h_mean": h_mean.detach().cpu().float()[None]}
        if self.steps:
            old = load_file(self.path)
            kept = int((old["steps"] < step).sum())
            new = {name: torch.cat([old[name][:kept], value]) for name, value in new.items()}
        self.steps = new["steps"].tolist()
        masks = {"dead_mask": self.dead_mask, "dead_indices": self.dead_mask.nonzero().flatten()}
        write_tensors(self.path, {**new, **masks})

    def resume(self, last_step: int) -> None:
        """Continue the file on disk after `last_step`."""
        with readable(self.path) as file:
            steps = file.get_tensor("steps").tolist()
        self.steps = [step for step in steps if step <= last_step]


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


def save_state(path: Path, parts: dict[str, Stateful], info: dict[str, Any]) -> None:
    """Write every part's tensors and the JSON-able `info` as one safetensors file, atomically."""
    tensors = {
        f"{part}/{name}": torch.as_tensor(value).detach().cpu()
        for part, stateful in parts.items()
        for name, value in stateful.state_dict().items()
    }
    write_tensors(path, tensors, {"info": json.dumps(info)})


def load_state(path: Path, parts: dict[str, Stateful]) -> dict[str, Any]:
    """Give every part back its tensors, in the order of `parts`; returns `info`."""
    with readable(path) as file:
        info: dict[str, Any] = json.loads(file.metadata()["info"])
        for part, stateful in parts.items():
            names = [name for name in file.keys() if name.startswith(f"{part}/")]  # noqa: SIM118 (not a dict)
            stateful.load_state_dict({name.removeprefix(f"{part}/"): file.get_tensor(name) for name in names})
    return info
