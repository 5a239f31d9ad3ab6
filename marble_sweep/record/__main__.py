"""`python -m marble_sweep.record`."""

from marble_sweep.record.command import command

if __name__ == "__main__":
    command()
