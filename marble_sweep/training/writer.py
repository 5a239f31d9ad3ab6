"""What a run writes while it trains: a row a step, rows of every evaluation, and snapshots of the embedding."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from marble_sweep.metrics.step import MEASURED
from marble_sweep.runs import layout
from marble_sweep.runs.checkpoints import EmbeddingSnapshots
from marble_sweep.runs.csv_log import CsvLog
from marble_sweep.runs.renamed import ADDED_COLUMNS
from marble_sweep.runs.window_losses import HeldOut, write_windows
from marble_sweep.training.evaluation import ERROR_COLUMNS, EVAL_COLUMNS

# The notebook's eight first, then what it could not see.
STEP_COLUMNS = (
    *("step", "epoch", "loss", "top1", "top2", "top3", "h_autocorr", "dead_moving", "lr"),
    *MEASURED[MEASURED.index("grad_norm") :],
    "tokens_per_second",
)


class RunWriter:
    """Writes into one run directory. Rows are on the disk after `sync`, a snapshot once it is taken."""

    step_rows: CsvLog
    eval_rows: CsvLog
    window_rows: CsvLog

    def __init__(self, directory: Path, dead_mask: Tensor, held_out: HeldOut | None = None) -> None:
        """`held_out` says which windows are evaluated; None: none are."""
        self.directory = directory
        self.held_out = held_out
        self.window_columns = ("step", *map(str, held_out.numbers if held_out else ()))
        self.snapshots = EmbeddingSnapshots(directory / layout.SNAPSHOTS, dead_mask)

    def open(self, step: int, eval_steps: Sequence[int], hashes: Mapping[str, str]) -> None:
        """Start the files (step 0), or continue them after `step` and drop what they have beyond it.

        Raises ValueError where their rows are not those of steps 1 to `step` and of `eval_steps`, or have other
        `hashes`, by file name.
        """
        self.step_rows = CsvLog(
            self.directory / layout.METRICS,
            STEP_COLUMNS,
            step,
            steps=range(1, step + 1),
            sha256=hashes.get(layout.METRICS),
        )
        self.eval_rows = CsvLog(
            self.directory / layout.EVALS,
            EVAL_COLUMNS,
            step,
            steps=eval_steps,
            sha256=hashes.get(layout.EVALS),
            later_columns=(*ERROR_COLUMNS, *ADDED_COLUMNS),
        )
        # A run that an earlier version began has no such file, and someone may have removed it: it then begins here.
        path = self.directory / layout.WINDOW_LOSSES
        sha256 = hashes.get(layout.WINDOW_LOSSES) if path.exists() else None
        self.window_rows = CsvLog(path, self.window_columns, 0 if sha256 is None else step, sha256=sha256)
        if self.held_out is not None:
            write_windows(self.directory / layout.WINDOWS, self.held_out)

    def write_evaluation(self, row: Mapping[str, float], window_losses: Tensor) -> None:
        """Write a row of evals.csv, and the losses (num_windows,) of its windows."""
        self.eval_rows.write([row])
        losses = [row["step"], *window_losses.tolist()]
        self.window_rows.write([dict(zip(self.window_columns, losses, strict=True))])

    def sync(self) -> dict[str, str]:
        """Wait until all rows are on the disk; returns their hashes by file name."""
        logs = (self.step_rows, self.eval_rows, self.window_rows)
        for rows in logs:
            rows.sync()
        return {rows.path.name: rows.hash.hexdigest() for rows in logs}

    def close(self) -> None:
        for rows in (self.step_rows, self.eval_rows, self.window_rows):
            rows.close()
