"""Configs composed as the program does it, and a run small enough for tests."""

import contextlib
import math
from pathlib import Path

from marble_sweep.config import Config
from marble_sweep.hydra_app import compose
from marble_sweep.run import claimed, prepare
from marble_sweep.runs.status import RunStatus
from marble_sweep.training.evaluation import EVAL_COLUMNS
from marble_sweep.training.signals import stop_requests

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

# A row of evals.csv whose standard errors rest on so many clusters that they are those of a normal distribution.
NO_ALL_WINDOWS = {name: math.nan for name in EVAL_COLUMNS if name.startswith("all_")}
MANY_CLUSTERS = {name: 1e9 for name in EVAL_COLUMNS if name.endswith("_df")}

# What the options of data need beside their names.
MANDATORY = {
    "tokens": ["data.path=ids.safetensors"],
    "text": ["data.path=corpus.txt"],
    "notebook": ["data.corpus_path=c.txt", "data.tokenizer_path=t.json", "data.dead_mask_path=m.safetensors"],
}


def compose_config(*overrides: str) -> Config:
    """The checked config of one run, from the files in conf/."""
    return compose.compose_config(overrides)


def train_only(config: Config, directory: Path, *, resume: bool = False) -> RunStatus:
    """Train as `run` does, without the verdict and the plots, which take longer than forty tiny steps."""
    with claimed(directory, config, resume=resume), stop_requests() as should_stop, contextlib.ExitStack() as stack:
        trainer, _ = prepare(config, directory, stack, resume=resume, show=False, shared=None)
        return trainer.train(should_stop)


def tiny_config(*overrides: str) -> Config:
    return compose_config(*TINY, *overrides)
