"""What a person sees of a sweep, and summary.csv: all read from the run directories, whoever runs the jobs."""

import math
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from tqdm import tqdm

from marble_sweep.metrics.margin import unigram_margin
from marble_sweep.report.page import write_page
from marble_sweep.report.summary import compare_runs
from marble_sweep.report.table import render
from marble_sweep.runs import layout
from marble_sweep.runs.files import write_text
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import ENDED, RunStatus
from marble_sweep.runs.steps import last_step
from marble_sweep.terminal import printable

POLL_SECONDS = 1.0
Stamp = tuple[int, ...] | None  # of a file: when it was last written and how long it is; None where there is none


class SweepWatch:
    """A line for every job that ends, a bar over the steps of all, and the sweep's own files.

    A look asks the system which files have changed, and reads those alone.
    """

    def __init__(self, sweep_dir: Path, total_steps: int) -> None:
        """`total_steps` are those of all jobs together."""
        self.sweep_dir = sweep_dir
        self.directories: set[str] = set()  # names of the runs' directories seen so far
        # What ended before is not reported again.
        self.reported = {(path, stamp(path / layout.METADATA)) for path in self._run_directories()}
        self.metadata: dict[Path, Stamp] = {}  # as of the last look
        self.metrics: dict[Path, Stamp] = {}
        self.steps: dict[Path, int] = {}  # how far each run has come
        self.ended: dict[Path, Run] = {}  # what has ended, or is damaged
        self.complaints: set[str] = set()
        self.bar = tqdm(total=total_steps, unit="step", unit_scale=True, disable=not sys.stderr.isatty())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look once more, write the comparison page, and end."""
        self._stop.set()
        self._thread.join()
        self._look_or_complain()
        self.bar.close()
        if runs := [Run.read(path) for path in self._run_directories()]:
            try:
                write_page(compare_runs(runs), self.sweep_dir / layout.PAGE)
            except OSError as error:
                self._complain(f"compare.html could not be written: {error}")

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._look_or_complain()

    def _look_or_complain(self) -> None:
        """Look; what goes wrong is said once, and the next look is tried all the same."""
        try:
            self.look()
        except OSError as error:  # no space for summary.csv, say
            self._complain(f"The sweep cannot be watched: {error}")
        except Exception:
            self._complain(traceback.format_exc())

    def _complain(self, text: str) -> None:
        if text not in self.complaints:
            self.complaints.add(text)
            tqdm.write(printable(text, keep="\n"), file=sys.stderr)

    def look(self) -> None:
        """Report what has ended since the last look."""
        new = []
        for path in self._run_directories():
            changed = stamp(path / layout.METADATA)
            if path in self.metadata and self.metadata[path] == changed:
                continue
            self._read(path)
            if stamp(path / layout.METADATA) != changed:
                continue  # it was written while it was read: the next look reads it again
            self.metadata[path] = changed
            if path in self.ended and (path, changed) not in self.reported:
                self.reported.add((path, changed))
                new.append(path)
        if new:
            self._report(new)
        self._advance()

    def _read(self, path: Path) -> None:
        run = Run.read(path)
        if run.recorded_status in ENDED or run.small_damages:
            self.ended[path] = run
            self.steps[path] = run.steps.last_step
        else:
            self.ended.pop(path, None)

    def _report(self, new: list[Path]) -> None:
        """A line for each of these, and summary.csv."""
        # Of ended runs alone: one that has just begun would pull the step of comparison back to its own.
        comparison = compare_runs([self.ended[path] for path in sorted(self.ended, key=_by_number)])
        rows = {row["run"]: row for row in comparison.rows}
        for path in new:
            tqdm.write(ended_line(self.ended[path], rows[str(path)], comparison.varied), file=sys.stderr)
        write_text(self.sweep_dir / layout.SUMMARY, render(comparison.rows, list(comparison.rows[0]), "csv"))

    def _advance(self) -> None:
        """Bring the bar to the steps that all have come to."""
        for path in self.metadata.keys() - self.ended.keys():
            changed = stamp(path / layout.METRICS)
            if changed != self.metrics.get(path):
                self.metrics[path] = changed
                self.steps[path] = last_step(path / layout.METRICS)
        self.bar.update(sum(self.steps.values()) - self.bar.n)

    def _run_directories(self) -> list[Path]:
        """Those with a config.yaml, which stays, so that it is looked for only where there was none."""
        with os.scandir(self.sweep_dir) as entries:
            names = {entry.name for entry in entries if entry.name not in self.directories and entry.is_dir()}
        self.directories |= {name for name in names if (self.sweep_dir / name / layout.CONFIG).exists()}
        return sorted((self.sweep_dir / name for name in self.directories), key=_by_number)


def _by_number(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


def stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def ended_line(run: Run, row: dict[str, Any], varied: list[str]) -> str:
    """Name, parameters, held-out loss, margin and minutes of a job; of a failed or damaged one the reason."""
    parts = [f"{run.path.name:>4}  {run.name}", *(f"{column}={row[column]}" for column in [*varied, "seed"])]
    last = run.metadata.get("last_evaluation") or {}
    if run.damages:
        parts.append(f"DAMAGED: {row['damage']}")
    elif run.recorded_status == RunStatus.FAILED:
        parts.append(f"FAILED: {run.metadata.get('reason')}")
    else:
        if run.recorded_status == RunStatus.DIVERGED:
            parts.append(f"diverged at step {run.metadata.get('step')}")
        if (loss := last.get("val_loss")) is not None:
            parts.append(f"held-out loss {loss:.4f}")
        margin, error, _ = unigram_margin(last)
        if not math.isnan(margin):
            parts.append(f"margin {margin:+.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}"))
        if (seconds := run.metadata.get("seconds")) is not None:
            parts.append(f"{seconds / 60:.1f} min")
    return printable("  ".join(parts))
