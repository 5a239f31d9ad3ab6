"""`python -m marble_sweep.record`: make a record of an HDF5 file, or a safetensors file of a record."""

import argparse
import sys
from collections.abc import Sequence

from marble_sweep.checks import CheckError
from marble_sweep.runs.files import user_path
from marble_sweep.terminal import printable, use_replacements

EXIT_ERROR = 2


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m marble_sweep.record", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="import|export")
    add = actions.add_parser("import", help="write DIR/record/ of an HDF5 file").add_argument
    add("source", type=user_path, metavar="FILE.h5", help="with W (steps, V, D) as uint16, the bits of bfloat16")
    add("directory", type=user_path, metavar="DIR", help="a new directory, or a run's that has no record")
    add(
        "--dead-mask", type=user_path, metavar="FILE", help="safetensors with dead_mask (V,), as data=notebook takes it"
    )
    add = actions.add_parser("export", help="write a run's record as one safetensors file").add_argument
    add("directory", type=user_path, metavar="RUN_DIR")
    add("target", type=user_path, metavar="FILE.safetensors")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    use_replacements()
    options = parser().parse_args(arguments)
    try:
        if options.action == "import":
            from marble_sweep.record.hdf5 import import_hdf5  # late, as below: --help is instant

            written = import_hdf5(options.source, options.directory, options.dead_mask)
        else:
            from marble_sweep.record.export import export_safetensors

            written = options.target
            export_safetensors(options.directory, written)
    except ImportError as error:
        print(f"marble_sweep.record: {error}; pip install h5py adds it", file=sys.stderr)
        return EXIT_ERROR
    except (CheckError, OSError) as error:
        print(f"marble_sweep.record: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    print(written)
    return 0


def command() -> None:
    """Run `main` and end the process with its exit code."""
    sys.exit(main())
