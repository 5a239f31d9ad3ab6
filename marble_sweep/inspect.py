"""`python -m marble_sweep.inspect FILE[:TENSOR]`: an embedding's identical rows and suspected dead rows."""

import sys

from marble_sweep.census.command import command

if __name__ == "__main__":
    command()
else:  # importing this file would put it in the place of the function `marble_sweep.inspect`
    from marble_sweep.api import inspect

    sys.modules[__name__] = inspect  # type: ignore[assignment]
