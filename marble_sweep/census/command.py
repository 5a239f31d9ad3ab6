"""`python -m marble_sweep.inspect FILE[:TENSOR]`: an embedding's identical rows and suspected dead rows."""

import argparse
import os
import sys
from collections.abc import Sequence

from marble_sweep.checks import CheckError
from marble_sweep.runs.files import user_path, write_json
from marble_sweep.terminal import printable, use_replacements

EXIT_ERROR = 2


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m marble_sweep.inspect", description=__doc__)
    add = parser.add_argument
    add(
        "path",
        metavar="FILE[:TENSOR]",
        help="a .safetensors file, a model's .index.json, a folder that holds them, or a run directory",
    )
    add("--tokenizer", type=user_path, metavar="FILE", help="a tokenizer.json (the one beside the embedding, if any)")
    add("--step", type=int, metavar="N", help="of a run: the embedding of this checkpoint, not of the end")
    add("--as-bfloat16", action="store_true", help="look at float32 weights as a run's metrics do: nearest bfloat16")
    add("--json", type=user_path, metavar="FILE", help="write everything as JSON, every token and distance")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    use_replacements()
    options = parser().parse_args(arguments)
    from marble_sweep.census.census import take_census  # late: --help needs no torch

    try:
        census = take_census(
            user_path(options.path), options.tokenizer, step=options.step, as_bfloat16=options.as_bfloat16
        )
        if options.json:
            write_json(options.json, census.as_dict())
    except (CheckError, OSError) as error:
        print(f"marble_sweep.inspect: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    print(census)
    return 0


def command() -> None:
    """Run `main` and end the process with its exit code."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
