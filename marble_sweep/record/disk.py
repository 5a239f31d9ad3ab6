"""How much disk a record takes, estimated before the run from what measured runs took (docs/LOG.md, 2026-11-26)."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from marble_sweep.checks import require
from marble_sweep.config import Config
from marble_sweep.humanize import counted, file_size
from marble_sweep.record_config import DeadRecorderConfig, FullRecorderConfig, TracersRecorderConfig
from marble_sweep.runs import layout


class Ratio(NamedTuple):
    """How many times less disk than memory."""

    usual: float  # over a whole measured run
    best: float  # five times what the best 32 steps of one came to


WEIGHT_RATIOS = {
    "bf16": Ratio(9, 100),
    "bf16_pure": Ratio(9, 100),
    "bf16_stochastic": Ratio(6, 50),
    "mixed": Ratio(1.9, 11),
    "fp32": Ratio(1.9, 11),
}
NORM_RATIO = Ratio(2, 100)  # those of tokens that stand still take next to nothing
HIDDEN_RATIO = Ratio(1, 4)  # not measured
ITEM_BYTES = {"bf16": 2, "bf16_pure": 2, "bf16_stochastic": 2, "mixed": 4, "fp32": 4}
NORM_BYTES = 16  # four float32 a token
OTHER_BYTES = 100  # a step: shares of the intended update
FOLDER_BYTES = 100_000  # of descriptions, token ids and the like


class RecordBytes(NamedTuple):
    """Of a record."""

    estimate: int
    least: int  # what even the best ratio leaves of the tables


def record_bytes(config: Config, num_dead: int | None = None, num_steps: int | None = None) -> RecordBytes:
    """What a run records in `num_steps`; None: in all of its steps. `num_dead` is None where the corpus is not made."""
    recorder, trainer, width = config.recorder, config.trainer, config.model.hidden_dim
    if not isinstance(recorder, DeadRecorderConfig):
        return RecordBytes(0, 0)
    steps = trainer.total_steps if num_steps is None else num_steps
    rows = 1 + steps // (recorder.every if isinstance(recorder, FullRecorderConfig) else 1)
    weight_bytes = width * ITEM_BYTES[config.precision.name]
    # Hidden states are kept as weights are: under `mixed` what blocks add to the embedding is widened to float32.
    hidden_bytes = recorder.probe_windows * trainer.seq_len * weight_bytes
    parts = [(rows * hidden_bytes, HIDDEN_RATIO)]
    if isinstance(recorder, FullRecorderConfig):
        parts.append((rows * config.data.vocab_size * weight_bytes, WEIGHT_RATIOS[config.precision.name]))
    elif isinstance(recorder, TracersRecorderConfig):
        num_tokens = recorder.num_tracers if recorder.token_ids is None else len(recorder.token_ids)
        parts.append((rows * num_tokens * weight_bytes, WEIGHT_RATIOS[config.precision.name]))
    else:
        parts.append((steps * dead_tokens(config, num_dead) * NORM_BYTES, NORM_RATIO))
    always = steps * (width * 4 + OTHER_BYTES) + FOLDER_BYTES
    return RecordBytes(
        always + round(sum(size / ratio.usual for size, ratio in parts)),
        round(sum(size / ratio.best for size, ratio in parts)),
    )


def dead_tokens(config: Config, num_dead: int | None) -> int:
    """How many tokens are dead: as known, as asked for, or else none, since the text decides."""
    if num_dead is not None:
        return num_dead
    return round(config.data.vocab_size * getattr(config.data, "dead_fraction", 0.0))


def require_disk(kind: str, needed: RecordBytes, folder: Path) -> int:
    """The bytes that are free in `folder`, or where it will be.

    Raises CheckError, for a recorder of this kind, where even the least that its records take do not fit.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    allowed = (
        f"one whose record fits: it would take about {file_size(needed.estimate)} of disk, {file_size(needed.least)} "
        f"if it compressed five times better than any measured run, and {file_size(free)} are free in {there}"
    )
    require(needed.least <= free, "recorder", kind, allowed)
    return free


def disk_words(estimate: int, free: int) -> str:
    """What records take, and what is free, in bytes."""
    warning = ", which may not be enough" if estimate > free else ""
    return f"about {file_size(estimate)} of disk, estimated from other runs; {file_size(free)} are free{warning}"


def sweep_line(jobs: Sequence[Config], sweep_dir: Path) -> str | None:
    """What the records of a sweep's jobs take together, less those that are there; None where no job records.

    Raises CheckError where they cannot fit.
    """
    recording = [job for job in jobs if isinstance(job.recorder, DeadRecorderConfig)]
    if not recording:
        return None
    there = sum(path.stat().st_size for path in sweep_dir.glob(f"*/{layout.RECORD}/**/*") if path.is_file())
    sums = (sum(sizes) - there for sizes in zip(*map(record_bytes, recording), strict=True))
    needed = RecordBytes(*(max(0, size) for size in sums))
    kinds = sorted({job.recorder.name for job in recording})
    free = require_disk(" and ".join(kinds), needed, sweep_dir)
    return f"{counted(len(recording), 'recorded run')}: {disk_words(needed.estimate, free)}"
