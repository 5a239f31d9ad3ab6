"""What `recorder` asks for, recorded while a run trains: the loop copies, a thread codes, compresses and writes."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marble_sweep.checks import CheckError, require
from marble_sweep.metrics.intended import INTENDED
from marble_sweep.record.background import Background
from marble_sweep.record.norms import motion_norms
from marble_sweep.record.store import BITS, DEAD, Contents, RecordStore
from marble_sweep.record_config import FullRecorderConfig, RecorderConfig, TracersRecorderConfig

WAITING_BYTES = 16 << 20  # of copies that wait to be written, unless two are more
MIN_WAITING, MAX_WAITING = 2, 32
NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def recorded_tokens(recorder: RecorderConfig, dead_mask: Tensor) -> Tensor:
    """The ids of the tokens whose rows are recorded, ascending; as given where they are given.

    Raises CheckError where there are too few dead tokens, or an id is not in the vocabulary.
    """
    dead = dead_mask.cpu().nonzero().flatten()
    if isinstance(recorder, FullRecorderConfig):
        return torch.arange(len(dead_mask))
    if not isinstance(recorder, TracersRecorderConfig):
        require(len(dead) > 0, "recorder", recorder.name, "none, tracers with token_ids, or full: no token is dead")
        return dead
    if recorder.token_ids is not None:
        largest, allowed = max(recorder.token_ids), f"below {len(dead_mask):,}, the size of the vocabulary"
        require(largest < len(dead_mask), "recorder.token_ids", largest, allowed)
        return torch.tensor(recorder.token_ids)
    most = f"at most {len(dead):,}, the number of dead tokens"
    require(recorder.num_tracers <= len(dead), "recorder.num_tracers", recorder.num_tracers, most)
    generator = torch.Generator().manual_seed(recorder.seed)
    return dead[torch.randperm(len(dead), generator=generator)[: recorder.num_tracers]].sort().values


class Copies:
    """Where a step's tensors wait on the CPU to be written; in pinned memory where they come from a GPU."""

    def __init__(self, rows: Tensor, hidden_dim: int) -> None:
        pinned = rows.is_cuda
        self.rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=pinned)
        self.h_mean = torch.empty(hidden_dim, pin_memory=pinned)
        self.intended = torch.empty(len(INTENDED), pin_memory=pinned)
        self.copied = torch.cuda.Event() if pinned else None

    def take_rows(self, embedding: Tensor, tokens: Tensor | None) -> None:
        """Copy the rows of the tokens, or all; on the CPU in one pass."""
        if tokens is not None and embedding.is_cpu:
            torch.index_select(embedding, 0, tokens, out=self.rows)
        else:
            rows = embedding if tokens is None else embedding.index_select(0, tokens)
            self.rows.copy_(rows, non_blocking=self.copied is not None)

    def take(self, h_mean: Tensor | None, intended: Tensor | None) -> None:
        """Copy what there is. Never waits for a GPU, as `take_rows` does not: `wait` does."""
        for target, source in ((self.h_mean, h_mean), (self.intended, intended)):
            if source is not None:
                target.copy_(source, non_blocking=self.copied is not None)
        if self.copied is not None:
            self.copied.record()

    def wait(self) -> None:
        """Until the copies are complete; called in the thread that writes."""
        if self.copied is not None:
            self.copied.synchronize()


def bits_of(tensor: Tensor) -> Any:
    """The bits of a tensor on the CPU as an array of unsigned integers; no copy."""
    dtype = torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32
    return tensor.view(dtype).numpy().view(BITS[NAMES[tensor.dtype]])


class Recorder:
    """Records into `path` what every step leaves behind, from step 0 on. An error of the disk reaches the next call."""

    def __init__(
        self,
        config: RecorderConfig,
        path: Path,
        embedding: Tensor,
        dead_mask: Tensor,
        probe: Callable[[], Tensor] | None = None,
    ) -> None:
        """`embedding` (V, D) is the model's; `probe` gives the hidden states that are recorded as well.

        Raises CheckError where `config` does not fit the vocabulary.
        """
        self.path, self.embedding, self.probe = path, embedding, probe
        tokens = recorded_tokens(config, dead_mask)
        self.tokens = None if isinstance(config, FullRecorderConfig) else tokens.to(embedding.device)
        self.every = config.every if isinstance(config, FullRecorderConfig) else 1
        self.contents = Contents(
            kind=config.name,
            token_ids=tokens.numpy(),
            dead_mask=dead_mask.cpu().numpy(),
            hidden_dim=embedding.shape[1],
            bits=NAMES[embedding.dtype],
            every=self.every,
            intended=INTENDED,
        )
        self.store: RecordStore
        self.previous: Any = None  # of a record of dead tokens: the bits of their rows after the last step

    def rows(self) -> Tensor:
        """The recorded rows of the embedding (R, D) as they are now, on its device."""
        return self.embedding if self.tokens is None else self.embedding.index_select(0, self.tokens)

    @torch.no_grad()
    def open(self, step: int, *, has_diverged: bool = False) -> None:
        """Start the record (step 0), or continue it after `step`, at which the model is unless it has diverged.

        Raises CheckError where the record on the disk is not one that this run left at that step.
        """
        rows = self.rows()
        if step == 0:
            self.store = RecordStore(self.path, self.contents)
        else:
            self.store = RecordStore.resume(self.path, self.contents, step)
            bits, last = bits_of(rows.cpu()), self.store.last_weights
            is_of_step = step % self.every == 0 and not has_diverged
            if last is not None and is_of_step and not np.array_equal(last, bits):
                raise CheckError(f"{self.path}: must be of this run: its weights at step {step} are not the model's")
            self.previous = bits.copy()
        # How large hidden states are, and of what dtype, only the model knows.
        num_bytes = rows.nbytes + (0 if self.probe is None else self.probe().nbytes)
        max_waiting = min(MAX_WAITING, max(MIN_WAITING, WAITING_BYTES // num_bytes))
        self.background = Background(max_waiting)
        # Besides those that wait, one is written and one is filled.
        self.copies = [Copies(rows, rows.shape[1]) for _ in range(max_waiting + 2)]

    @torch.no_grad()
    def record(self, step: int, h_mean: Tensor | None, intended: Tensor | None) -> None:
        """Record the model as it is after `step`; h_mean (D,) and the shares of the intended update from step 1 on."""
        is_recorded = step % self.every == 0
        copies = self.copies[step % len(self.copies)]
        if is_recorded:
            copies.take_rows(self.embedding, self.tokens)
        copies.take(h_mean, intended)
        hidden = self.probe().cpu() if self.probe is not None and is_recorded else None
        self.background.submit(functools.partial(self._write, step, copies, hidden))

    def _write(self, step: int, copies: Copies, hidden: Tensor | None) -> None:
        copies.wait()
        rows = bits_of(copies.rows)
        values = {"h_mean": copies.h_mean.numpy(), "intended": copies.intended.numpy()} if step else {}
        if self.contents.kind == DEAD:
            if step:
                values["norms"] = motion_norms(self.previous, rows)
            self.previous = rows.copy()
        is_recorded = step % self.every == 0
        self.store.append(
            step,
            weights=rows if is_recorded and self.contents.kind != DEAD else None,
            hidden=None if hidden is None else bits_of(hidden) if hidden.dtype == torch.bfloat16 else hidden.numpy(),
            values=values,
        )

    def sync(self, step: int) -> None:
        """Wait until the record is on the disk up to `step`, and drop what it has beyond that."""
        self.background.submit(lambda: self.store.truncate(step))
        self.background.submit(self.store.commit)
        self.background.wait()

    def close(self) -> None:
        """End the thread; what is not synced may be lost."""
        self.background.close()
