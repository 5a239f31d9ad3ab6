"""`python -m marble_sweep.lifecycle RUN_DIR…`: when tokens freeze, how their cloud moves, from a run's record."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from marble_sweep.checks import CheckError, require
from marble_sweep.runs import layout
from marble_sweep.runs.discovery import find_runs
from marble_sweep.runs.files import user_path
from marble_sweep.terminal import printable, use_replacements

if TYPE_CHECKING:
    from marble_sweep.lifecycle.result import Lifecycle

EXIT_ERROR = 2
MAX_ON_PAGE = 2
COLUMNS = ("n_frozen", "freeze_median", "freeze_last", "half_freeze_step", "n_stragglers", "lift_off_step")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m marble_sweep.lifecycle", description=__doc__)
    add = parser.add_argument
    add("paths", nargs="+", type=user_path, metavar="RUN_DIR", help="runs with a record, or folders of them")
    add(
        "--quiet-window",
        type=int,
        metavar="STEPS",
        help="a freeze counts where the record goes on that long without motion (a tenth of it, at least 100 steps)",
    )
    add("--html", type=user_path, metavar="FILE", help="write a page with a slider over the steps, of one run or two")
    add("--png", type=user_path, metavar="FOLDER", help="write the charts of the page for print")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    use_replacements()
    options = parser().parse_args(arguments)
    try:
        directories = with_record(options.paths)
        side_by_side = options.html is None or len(directories) <= MAX_ON_PAGE
        require(side_by_side, "--html", options.html, f"given with one run or two, not {len(directories)}")
        lives = {
            directory: show_run(directory, options.quiet_window, titled=len(directories) > 1)
            for directory in directories
        }
        if len(directories) > 1:
            show_all(directories)
        if options.html or options.png:
            draw(lives, options.html, options.png)
    except (CheckError, OSError) as error:
        print(f"marble_sweep.lifecycle: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    return 0


def with_record(paths: Sequence[Path]) -> list[Path]:
    """The directories with a record at or below each path. Raises CheckError where there is none below one."""
    directories: dict[Path, None] = {}
    for path in paths:
        below = [path] if (path / layout.RECORD).is_dir() else find_runs([path], "RUN_DIR")
        recorded = [directory for directory in below if (directory / layout.RECORD).is_dir()]
        if not recorded:
            raise CheckError(f"RUN_DIR = {path}: must have a record, as a run with recorder=dead, tracers or full has")
        directories |= dict.fromkeys(recorded)
    return list(directories)


def show_run(directory: Path, quiet_window: int | None, *, titled: bool) -> "Lifecycle":
    """Analyse a run, keep the result beside it, and print it."""
    from marble_sweep.lifecycle.of_run import analyse_run, open_record, save  # late: --help needs no pandas
    from marble_sweep.lifecycle.show import text

    if titled:
        print(printable(str(directory)))
    life = analyse_run(directory, open_record(directory), quiet_window=quiet_window, show=sys.stderr.isatty())
    print(text(life))
    try:
        save(directory, life)
    except CheckError as error:  # the run is being trained
        print(f"{'not kept':<11} {printable(str(error))}")
    print()
    return life


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


def draw(lives: "dict[Path, Lifecycle]", html: Path | None, png: Path | None) -> None:
    """Write the page and the figures that are asked for. Of several runs, the figures go into numbered folders."""
    from marble_sweep.lifecycle.figures import draw_figures  # late: Matplotlib
    from marble_sweep.lifecycle.frames import make_frames
    from marble_sweep.lifecycle.of_run import open_record
    from marble_sweep.lifecycle.page import write_page

    show, runs = sys.stderr.isatty(), []
    for number, (directory, life) in enumerate(lives.items(), start=1):
        frames = make_frames(open_record(directory), life, show=show)
        if png:
            folder = png if len(lives) == 1 else png / str(number)
            draw_figures(folder, life, frames, str(directory), show=show)
            print(f"{'figures':<11} {printable(str(folder))}")
        if html:
            runs.append((life, frames, str(directory)))
    if html:
        write_page(html, runs)
        print(f"{'page':<11} {printable(str(html))}")


def command() -> None:
    """Run `main` and end the process with its exit code."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
