"""The schema of the recorder: what a run writes of its embedding at every step, besides the numbers of metrics.csv."""

from dataclasses import dataclass, field
from typing import ClassVar

from marble_sweep.checks import MISSING, Checked, Interval, bounded, require
from marble_sweep.groups import COUNT, COUNT_OR_NONE, MAX_VOCAB, SEED

TOKEN_ID = Interval(0, MAX_VOCAB)


@dataclass
class RecorderConfig(Checked):
    """What every recorder has."""

    GROUP: ClassVar[str] = "recorder"

    name: str = MISSING


@dataclass
class NoRecorderConfig(RecorderConfig):
    """Records nothing."""

    name: str = "none"


@dataclass
class DeadRecorderConfig(RecorderConfig):
    """For every dead token and step: L1, L2, L-infinity of the lattice displacement, and the norm of the change."""

    name: str = "dead"
    # training windows whose last hidden states are recorded as well, always the same; 0: none
    probe_windows: int = bounded(0, COUNT_OR_NONE)


@dataclass
class TracersRecorderConfig(DeadRecorderConfig):
    """The exact weights of a few tokens at every step."""

    name: str = "tracers"
    num_tracers: int = bounded(100, COUNT)  # dead tokens, drawn
    seed: int = bounded(42, SEED)  # of the drawing; the run's seed is another
    # these tokens instead, dead or live
    token_ids: list[int] | None = field(default=None, metadata={"interval": TOKEN_ID})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_ids is not None:
            ids = self.token_ids
            require(len(ids) > 0, "recorder.token_ids", ids, "null, or ids of tokens")
            twice = next((token for token in ids if ids.count(token) > 1), None) if len({*ids}) < len(ids) else None
            require(twice is None, "recorder.token_ids", ids, f"different tokens; {twice} is there twice")


@dataclass
class FullRecorderConfig(DeadRecorderConfig):
    """The exact weights of all tokens."""

    name: str = "full"
    every: int = bounded(1, COUNT)  # steps from one recorded step to the next; step 0 is one
