"""What a person sees of a sweep, and summary.csv: all read from the run directories, whoever runs the jobs."""

import math
import sys
import threading
from pathlib import Path
from typing import Any

from tqdm import tqdm

from marble_sweep.report.page import write_page
from marble_sweep.report.summary import compare_runs
from marble_sweep.report.table import render
from marble_sweep.runs.files import write_text
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import ENDED, changed_at, run_directories

POLL_SECONDS = 1.0


class SweepWatch:
    """A line for every job that ends, a bar over the steps of all, and the sweep's own files."""

    def __init__(self, sweep_dir: Path, total_steps: int) -> None:
        """`total_steps` are those of all jobs together."""
        self.sweep_dir = sweep_dir
        # What was done before is not told again.
        self.told = {(path, changed_at(path)) for path in run_directories(sweep_dir)}
        self.bar = tqdm(total=total_steps, unit="step", unit_scale=True, disable=not sys.stderr.isatty())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look once more, write the comparison page, and end."""
        self._stop.set()
        self._thread.join()
        self.look()
        self.bar.close()
        if runs := [Run.read(path) for path in run_directories(self.sweep_dir)]:
            write_page(compare_runs(runs), self.sweep_dir / "compare.html")

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self.look()

    def look(self) -> None:
        """Tell of what has ended since the last look."""
        runs = [Run.read(path) for path in run_directories(self.sweep_dir)]
        ended = [run for run in runs if run.status in ENDED]
        new = [run for run in ended if (run.path, changed_at(run.path)) not in self.told]
        if new:
            # Of ended runs alone: one that has just begun would pull the step of comparison back to its own.
            comparison = compare_runs(ended)
            rows = {row["run"]: row for row in comparison.rows}
            for run in new:
                self.told.add((run.path, changed_at(run.path)))
                tqdm.write(ended_line(run, rows[str(run.path)], comparison.varied), file=sys.stderr)
            write_text(self.sweep_dir / "summary.csv", render(comparison.rows, list(comparison.rows[0]), "csv"))
        done = sum(run.steps.last_step or 0 for run in runs)
        self.bar.update(done - self.bar.n)


def ended_line(run: Run, row: dict[str, Any], varied: list[str]) -> str:
    """Name, parameters, held-out loss, margin and minutes of a job; of a failed one the reason."""
    parts = [f"{run.path.name:>4}  {run.name}", *(f"{column}={row[column]}" for column in [*varied, "seed"])]
    if run.status == "failed":
        return "  ".join([*parts, f"FAILED: {run.metadata.get('reason')}"])
    if run.status == "diverged":
        parts.append(f"diverged at step {run.metadata.get('step')}")
    last = run.metadata.get("last_evaluation") or {}
    if (loss := last.get("val_loss")) is not None and math.isfinite(loss):
        parts.append(f"held-out loss {loss:.4f}")
    if (margin := last.get("unigram_margin")) is not None:
        error = last.get("unigram_margin_se")
        parts.append(f"margin {margin:+.4f}" + ("" if error is None else f" ± {error:.4f}"))
    parts.append(f"{run.metadata.get('seconds', math.nan) / 60:.1f} min")
    return "  ".join(parts)
