"""`checkpoints.safetensors` in the notebook's format."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from marble_sweep.runs.state import readable
from marble_sweep.runs.tensors import write_tensors


class EmbeddingSnapshots:
    """Snapshots of the embedding and h_mean, written to disk as soon as they are taken.

    Every snapshot rewrites the whole file, so a kill leaves the previous file: n snapshots write n²/2 times one
    snapshot's size in all (165 MB for the notebook's eleven of 2.6 MB).
    """

    def __init__(self, path: Path, dead_mask: Tensor) -> None:
        self.path = path
        self.dead_mask = dead_mask.cpu()
        self.steps: list[int] = []

    def take(self, step: int, embedding: Tensor, h_mean: Tensor) -> None:
        """Add the embedding (V, D), as bfloat16 bits, and h_mean (D,); drops snapshots at `step` or later."""
        bits = embedding.detach().cpu().to(torch.bfloat16).view(torch.uint16)
        new = {"steps": torch.tensor([step]), "W": bits[None], "h_mean": h_mean.detach().cpu().float()[None]}
        if self.steps:
            old = load_file(self.path)
            kept = int((old["steps"] < step).sum())
            new = {name: torch.cat([old[name][:kept], value]) for name, value in new.items()}
        self.steps = new["steps"].tolist()
        masks = {"dead_mask": self.dead_mask, "dead_indices": self.dead_mask.nonzero().flatten()}
        write_tensors(self.path, {**new, **masks})

    def resume(self, steps: Sequence[int], hidden_dim: int) -> None:
        """Continue the file on disk after `steps`. Raises ValueError where it is not this run's."""
        with readable(self.path) as file:
            have = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        num_tokens = len(self.dead_mask)
        for name, dtype, shape in (
            ("steps", torch.int64, ()),
            ("W", torch.uint16, (num_tokens, hidden_dim)),
            ("h_mean", torch.float32, (hidden_dim,)),
        ):
            tensor = have.get(name)
            count = len(have["steps"]) if "steps" in have and have["steps"].ndim else 0
            if tensor is None or tensor.dtype != dtype or tensor.shape != (count, *shape):
                raise ValueError(
                    f"{self.path}: must hold this run's checkpoints: {name} is missing or of another shape"
                )
        kept = [step for step in have["steps"].tolist() if step <= max(steps)]
        if kept != [*steps]:
            raise ValueError(f"{self.path}: must hold the checkpoints of steps {[*steps]}; it has {kept}")
        self.steps = kept
