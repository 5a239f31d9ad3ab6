"""`python -m marble_sweep.compare PATH…`: compare runs, as a table or as a page."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from marble_sweep.checks import CheckError, require
from marble_sweep.report.noise import noise_floor
from marble_sweep.report.pairs import compare_pairs
from marble_sweep.report.rows import group_rows, matches, parse_filter, repeats, require_column, sort_rows
from marble_sweep.report.search import read_search
from marble_sweep.report.summary import Comparison, Row, compare_runs
from marble_sweep.report.table import FORMATS, Table, default_columns, legend, markdown_text, render, render_table
from marble_sweep.runs.discovery import find_runs, newest
from marble_sweep.runs.files import user_path
from marble_sweep.runs.run import Run
from marble_sweep.terminal import printable, use_replacements

EXIT_ERROR = 2
REPEATS, NONE = "repeats", "none"
FOR_PEOPLE = ("table", "markdown")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m marble_sweep.compare", description=__doc__)
    add = parser.add_argument
    add("paths", nargs="*", type=user_path, metavar="PATH", help="run or sweep directories; the newest sweep if none")
    add("--sort", metavar="COLUMN", help="order of the rows (the held-out loss)")
    add("--descending", action="store_true", help="largest first")
    add("--filter", metavar="EXPR", default="", help="as 'n_params<1e6 and status==finished'; applied to single runs")
    add("--columns", metavar="A,B,…", help="the columns of the table, in this order")
    add(
        "--group-by", default=REPEATS, metavar="A,B,…", help="repeats (runs that differ only in seed), none, or columns"
    )
    add("--format", choices=FORMATS, default="table", help="json has every column")
    add("--pairs", action="store_true", help="test settings pair by pair on the same held-out windows")
    add("--noise", action="store_true", help="what the spread over seeds allows to tell apart")
    add("--difference", type=float, metavar="NATS", help="with --noise: the seeds that a difference needs")
    add("--html", type=user_path, metavar="FILE", help="write a page with curves too; it opens offline")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    use_replacements()
    options = parser().parse_args(arguments)
    try:
        comparison = choose(options.paths or [newest()], options.filter)
        rows = arrange(comparison, options)
        columns = chosen_columns(comparison, rows, options)
        tests = chosen_tests(comparison, rows, options)
        if options.html:
            from marble_sweep.report.page import write_page  # late: the table needs no Plotly

            write_page(comparison, options.html)
        texts = [(test.notes, render_table(test, options.format)) for test in tests]
        table = render(rows, columns, options.format)
    except (CheckError, OSError) as error:
        print(f"marble_sweep.compare: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    show(comparison, table, legend(rows, columns), texts, options.format)
    return 0


def chosen_tests(comparison: Comparison, rows: Sequence[Row], options: argparse.Namespace) -> list[Table]:
    """The tables that --pairs and --noise ask for."""
    nats = options.difference
    given = "a number > 0 in nats per token, given with --noise"
    require(nats is None or (options.noise and 0 < nats < math.inf), "--difference", nats, given)
    for_people = options.format in FOR_PEOPLE
    alone = f"{' or '.join(FOR_PEOPLE)} with both --pairs and --noise"
    require(for_people or not (options.pairs and options.noise), "--format", options.format, alone)
    tables = []
    if options.pairs:
        tables.append(compare_pairs(comparison, rows))
    if options.noise:
        tables.append(noise_floor(comparison, rows, nats))
    return tables


def show(
    comparison: Comparison, table: str, legend: Sequence[str], tests: Sequence[tuple[list[str], str]], form: str
) -> None:
    """Print the table and the tests, with notes, damages and legend.

    For programs, notes and damages go to standard error, and a test takes the place of the table.
    """
    search, damages = read_search(comparison.runs)
    damages += comparison.damages
    if form not in FOR_PEOPLE:
        notes = [*comparison.notes, *damages, *(note for notes, _ in tests for note in notes)]
        print(*map(printable, notes), sep="\n", end="\n" if notes else "", file=sys.stderr)
        print(tests[0][1] if tests else table)
        return
    escape = markdown_text if form == "markdown" else printable
    if search is not None:
        print(*map(escape, search["summary_lines"]), "", sep="\n")
    for note in comparison.notes:
        print(escape(note))
    if comparison.notes:
        print()
    print(table, "", *map(escape, damages), *legend, sep="\n")
    for notes, text in tests:
        print("", *map(escape, notes), *(["", text] if text else []), sep="\n")


def chosen_columns(comparison: Comparison, rows: Sequence[Row], options: argparse.Namespace) -> list[str]:
    """The columns to show: those that --columns names, the default ones, or all of them for programs."""
    if options.columns:
        columns = [column.strip() for column in options.columns.split(",")]
    elif options.format in FOR_PEOPLE:
        columns = default_columns(comparison, rows, named_groups(options))
    else:
        columns = list(rows[0])
    for column in columns:
        require_column("--columns", column, rows)
    return columns


def choose(paths: Sequence[Path], expression: str) -> Comparison:
    """Compare the runs below `paths`; where a filter leaves some of them, those at their own common step."""
    conditions = parse_filter(expression) if expression else []
    runs = [Run.read(path) for path in find_runs(paths)]
    comparison = compare_runs(runs)
    if not conditions:
        return comparison
    for column, _, _ in conditions:
        require_column("--filter", column, comparison.rows)
    passing = [run for run, row in zip(runs, comparison.rows, strict=True) if matches(row, conditions)]
    if not passing:
        raise CheckError(f"--filter = {expression}: must leave a run; none of {len(runs)} passes")
    return compare_runs(passing)


def named_groups(options: argparse.Namespace) -> list[str]:
    """The columns that --group-by names, if it names any."""
    if options.group_by in (REPEATS, NONE):
        return []
    return [column.strip() for column in options.group_by.split(",")]


def arrange(comparison: Comparison, options: argparse.Namespace) -> list[Row]:
    """The rows grouped and sorted as asked."""
    rows = comparison.rows
    if options.group_by != NONE:
        by = named_groups(options) or repeats(comparison)
        for column in by:
            require_column("--group-by", column, rows)
        rows = group_rows(rows, by)
    column = options.sort or comparison.objective
    require_column("--sort", column, rows)
    return sort_rows(rows, column, descending=options.descending)


def command() -> None:
    """Run `main` and end the process with its exit code."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    command()
