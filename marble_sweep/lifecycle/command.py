"""`python -m marble_sweep.lifecycle RUN_DIR…`: when tokens freeze, how their cloud moves, from a run's record."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from marble_sweep.checks import CheckError, require
from marble_sweep.runs import layout
from marble_sweep.runs.discovery import find_runs
from marble_sweep.runs.files import user_path
from marble_sweep.terminal import printable, use_replacements

if TYPE_CHECKING:
    from marble_sweep.lifecycle.recorded import Recorded
    from marble_sweep.lifecycle.result import Lifecycle

EXIT_ERROR = 2
COLUMNS = ("n_frozen", "freeze_median", "freeze_last", "half_freeze_step", "n_stragglers", "lift_off_step")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m marble_sweep.lifecycle", description=__doc__)
    add = parser.add_argument
    add("paths", nargs="+", type=user_path, metavar="RUN_DIR", help="runs with a record, or folders of them")
    add(
        "--quiet-window",
        type=int,
        metavar="STEPS",
        help="a freeze counts where the record goes on that long without motion (docs/lifecycle.md has the default)",
    )
    add(
        "--html",
        type=user_path,
        metavar="FILE",
        help="write a page of one run, or of two in lockstep",
    )
    add("--figures", type=user_path, metavar="FOLDER", help="of one run: write the page's charts as PNGs for print")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    use_replacements()
    options = parser().parse_args(arguments)
    try:
        directories = with_record(options.paths)
        for option, path, most in (("--html", options.html, 2), ("--figures", options.figures, 1)):
            allowed = f"given with {'one run' if most == 1 else 'one run or two'}, not with {len(directories)}"
            require(path is None or len(directories) <= most, option, path, allowed)
        runs: Iterable[Analysed] = (analysed(directory, options.quiet_window) for directory in directories)
        written = []
        if options.html or options.figures:  # before anything is printed: whoever reads that may stop reading
            runs = list(runs)
            written = draw(runs, options.html, options.figures)
        for run in runs:
            show_run(run, titled=len(directories) > 1)
        for line in written:
            print(line)
        if len(directories) > 1:
            show_all(directories)
    except BrokenPipeError:
        raise
    except (CheckError, OSError) as error:
        print(f"marble_sweep.lifecycle: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    return 0


def with_record(paths: Sequence[Path]) -> list[Path]:
    """The directories with a record at or below each path. Raises CheckError where there is none below one."""
    from marble_sweep.lifecycle.of_run import require_not_removed  # late: --help needs no pandas

    directories: dict[Path, None] = {}
    for path in paths:
        below = [path] if (path / layout.RECORD).is_dir() else find_runs([path], "RUN_DIR")
        recorded = [directory for directory in below if (directory / layout.RECORD).is_dir()]
        if not recorded:
            for directory in below:
                require_not_removed(directory)
            raise CheckError(f"RUN_DIR = {path}: must have a record, as a run with recorder=dead, tracers or full has")
        directories |= dict.fromkeys(recorded)
    return list(directories)


class Analysed(NamedTuple):
    """A run whose record was analysed."""

    directory: Path
    record: "Recorded"
    life: "Lifecycle"
    not_kept: str | None  # why


def analysed(directory: Path, quiet_window: int | None) -> Analysed:
    """Analyse a run and keep the result beside it."""
    from marble_sweep.lifecycle.of_run import analyse_run, open_record, save  # late: --help needs no pandas

    record = open_record(directory)
    life = analyse_run(directory, record, quiet_window=quiet_window, show=sys.stderr.isatty())
    try:
        save(directory, life)
    except CheckError as error:  # the run is being trained
        return Analysed(directory, record, life, str(error))
    return Analysed(directory, record, life, None)


def show_run(run: Analysed, *, titled: bool) -> None:
    from marble_sweep.lifecycle.show import text

    if titled:
        print(printable(str(run.directory)))
    print(text(run.life))
    if run.not_kept:
        print(f"{'not kept':<11} {printable(run.not_kept)}")
    print()


def draw(runs: Sequence[Analysed], html: Path | None, folder: Path | None) -> list[str]:
    """Write the page, which opens offline, and the figures. Returns a line about each."""
    from marble_sweep.lifecycle.frames import make_frames
    from marble_sweep.runs.run import Run

    show = sys.stderr.isatty()
    drawn = [
        (run.life, make_frames(run.record, run.life, show=show), f"{Run.read(run.directory).name}, {run.directory}")
        for run in runs
    ]
    written = []
    if html:
        from marble_sweep.lifecycle.page import write_page

        write_page(html, drawn)
        written.append(f"Page: {printable(str(html))}")
    if folder:
        from marble_sweep.lifecycle.figures import draw_figures

        for life, frames, title in drawn:
            paths = draw_figures(folder, life, frames, title, show=show)
            written.append(f"{len(paths)} figures in {printable(str(folder))}")
    return written


def show_all(directories: Sequence[Path]) -> None:
    """A table of the runs, those that differ only in their seed in one row."""
    from marble_sweep.report.rows import group_rows, repeats
    from marble_sweep.report.summary import compare_runs
    from marble_sweep.report.table import legend, render
    from marble_sweep.runs.run import Run

    comparison = compare_runs([Run.read(directory) for directory in directories])
    rows = group_rows(comparison.rows, repeats(comparison))
    columns = ["run", *comparison.varied, *(["n"] if len(rows) < len(directories) else []), *COLUMNS]
    print(render(rows, columns, "table"))
    print(*legend(rows, columns), sep="\n")


def command() -> None:
    """Run `main` and end the process with its exit code."""
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
