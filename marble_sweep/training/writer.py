"""What a run writes while it trains: the rows of metrics.csv and evals.csv, and snapshots of the embedding."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from marble_sweep.metrics.step import MEASURED
from marble_sweep.runs import layout
from marble_sweep.runs.checkpoints import EmbeddingSnapshots
from marble_sweep.runs.csv_log import CsvLog
from marble_sweep.runs.renamed import ADDED_COLUMNS
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

    def __init__(self, directory: Path, dead_mask: Tensor) -> None:
        self.directory = directory
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

    def sync(self) -> dict[str, str]:
        """Wait until all rows are on the disk; returns their hashes by file name."""
        self.step_rows.sync()
        self.eval_rows.sync()
        return {layout.METRICS: self.step_rows.hash.hexdigest(), layout.EVALS: self.eval_rows.hash.hexdigest()}

    def close(self) -> None:
        self.step_rows.close()
        self.eval_rows.close()
