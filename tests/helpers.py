"""Configs composed as the program does it, and a run small enough for tests."""

from marble_sweep.config import Config
from marble_sweep.hydra_app import compose

# A corpus and a model small enough that 40 steps take a second, yet the model learns the chain.
TINY = (
    "data=markov",
    "data.vocab_size=64",
    "data.num_tokens=20000",
    "model=1L16D",
    "optimizer.lr=1e-2",
    "trainer.total_steps=40",
    "trainer.batch_size=8",
    "trainer.seq_len=16",
    "trainer.num_evals=4",
    "trainer.checkpoint_interval=20",
)


def compose_config(*overrides: str) -> Config:
    """The checked config of one run, from the files in conf/."""
    return compose.compose_config(overrides)


def tiny_config(*overrides: str) -> Config:
    return compose_config(*TINY, *overrides)
