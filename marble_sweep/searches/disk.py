"""How much disk the trials of a search take, estimated from their configs before the first one."""

import shutil
from pathlib import Path
from typing import NamedTuple

from marble_sweep.config import Config
from marble_sweep.groups import SGDConfig
from marble_sweep.humanize import file_size
from marble_sweep.record.disk import record_bytes

WEIGHT_BYTES = {"bf16": 2, "bf16_pure": 2, "bf16_stochastic": 2, "mixed": 4, "fp32": 4}
MOMENT_BYTES = dict.fromkeys(WEIGHT_BYTES, 4) | {"bf16_pure": 2}
# Of files that are text, as trials of the default search leave them.
STEP_BYTES = 180  # a row of metrics.csv
EVALUATION_BYTES = 900  # a row of evals.csv
LOSS_BYTES = 10  # a number of window_losses.csv
TOKEN_BYTES = 40  # of tokenizer.json and unigram.safetensors
OTHER_BYTES = 30_000  # config, metadata, verdict, log, generators


class DiskBytes(NamedTuple):
    """What a trial leaves that goes on to the end of its budget."""

    tensors: int  # checkpoints, model, state and record
    tables: int  # all else


def disk_bytes(config: Config) -> DiskBytes:
    """An estimate from the sizes of a run's files."""
    trainer, width, precision = config.trainer, config.model.hidden_dim, config.precision.name
    weights = config.num_parameters * WEIGHT_BYTES[precision]
    moments = config.num_parameters * num_moments(config) * MOMENT_BYTES[precision]
    snapshots = (1 + trainer.total_steps // trainer.checkpoint_interval) * (2 * config.data.vocab_size + 4) * width
    means = config.autocorrelation_lag * width * 4
    evaluations = min(trainer.num_evals, trainer.total_steps)
    tables = trainer.total_steps * STEP_BYTES + evaluations * (EVALUATION_BYTES + trainer.eval_windows * LOSS_BYTES)
    return DiskBytes(
        2 * weights + moments + snapshots + means + record_bytes(config).estimate,
        tables + config.data.vocab_size * TOKEN_BYTES + OTHER_BYTES,
    )


def num_moments(config: Config) -> int:
    """How many numbers the optimizer keeps of a weight, at most."""
    optimizer = config.optimizer
    return int(optimizer.momentum > 0) if isinstance(optimizer, SGDConfig) else 2


def disk_line(smallest: Config, largest: Config, folder: Path, workers: int) -> str:
    """What a trial takes, what is free, and a warning where the search may not fit.

    How many trials a search needs is not known before; search.n_trials is only their limit.
    """
    search, free = largest.search, shutil.disk_usage(folder).free
    least, most = sum(disk_bytes(smallest)), disk_bytes(largest)
    removed = f", {file_size(most.tensors)} of it until its tensors are removed" if search.keep != "all" else ""
    line = (
        f"Disk: a trial takes about {file_size(least)} (smallest size) to {file_size(sum(most))} (largest{removed}); "
        f"{file_size(free)} are free"
    )
    if search.keep == "all":
        needed = search.n_trials * sum(most)
        may = f"Warning: {search.n_trials:,} trials of the largest size would take {file_size(needed)}"
    else:
        needed = search.n_trials * most.tables + workers * most.tensors
        may = f"Warning: {search.n_trials:,} trials would take {file_size(needed)} with their tensors removed"
    return line if needed <= free else f"{line}. {may}"
