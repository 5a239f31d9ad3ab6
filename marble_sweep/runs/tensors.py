"""Tensors in files that are whole or not there."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from marble_sweep.runs.files import atomic_write


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, str] | None = None) -> None:
    """Save tensors as safetensors, with `info` in the file's own header."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(info or {})))
