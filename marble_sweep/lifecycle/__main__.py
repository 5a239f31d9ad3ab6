"""`python -m marble_sweep.lifecycle RUN_DIR…`."""

from marble_sweep.lifecycle.command import command

command()
