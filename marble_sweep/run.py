"""One run on one page: corpus -> model -> train -> verdict -> run directory."""

import contextlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from marble_sweep.config import Config, dump, require
from marble_sweep.data.baselines import Baselines, measure_baselines
from marble_sweep.data.batches import Batches, eval_windows, windows
from marble_sweep.data.corpus import Corpus, load_corpus, require_enough
from marble_sweep.metadata import describe, header
from marble_sweep.model.transformer import Transformer
from marble_sweep.report.plots import draw_plots
from marble_sweep.runs.files import lock_directory, write_json, write_text
from marble_sweep.runs.tensors import write_tensors
from marble_sweep.training.device import choose_device, cpu_threads
from marble_sweep.training.evaluation import Evaluator
from marble_sweep.training.memory import require_memory
from marble_sweep.training.precision import POLICIES
from marble_sweep.training.progress import Progress
from marble_sweep.training.signals import stop_requests
from marble_sweep.training.trainer import Trainer, autocorrelation_lag
from marble_sweep.verdict import judge

log = logging.getLogger(__name__)


def run(config: Config, directory: Path, *, resume: bool = False, show: bool = True) -> str:
    """Train, judge and record one model in `directory`; returns how the run ended.

    `finished` or `diverged`, or as certify.stop has it `certified`, `pruned` or `too_slow`, each with a
    verdict, or `interrupted`, with the state saved. Raises ValueError
    for a config that the data or the machine cannot serve and for a directory that holds another run,
    OSError where it cannot be written. `show` asks for a progress bar.
    """
    with claimed(directory, config, resume=resume), logging_to(directory / "run.log"), cpu_threads(config.device):
        started = time.monotonic()
        policy = POLICIES[config.precision.name]
        device = choose_device(config.device, policy)
        require_memory(config, device, autocorrelation_lag(config))
        corpus = load_corpus(config.data)
        require_enough(corpus, config.trainer.batch_size, config.trainer.seq_len)
        held_out, baselines = measure_held_out(config, corpus)
        model = build_model(config, len(corpus.dead_mask)).to(device, policy.param_dtype)
        seq_len, batch_size = config.trainer.seq_len, config.trainer.batch_size
        batches = Batches(windows(corpus.train_tokens, seq_len).to(device), batch_size, config.seed)
        evaluator = None
        if held_out is not None:
            target_bytes = eval_windows(corpus.val_bytes, seq_len, config.trainer.eval_windows)[:, 1:]
            evaluator = Evaluator(held_out.to(device), baselines, int(target_bytes.sum()), policy, batch_size)

        resume = resume and (directory / "state.safetensors").exists()
        metadata = describe(config, corpus, baselines, model, batches, device)
        if resume:
            refuse_other_data(directory, metadata)
        write_text(directory / "tokenizer.json", corpus.tokenizer.to_str())
        write_tensors(directory / "unigram.safetensors", {"log_probs": baselines.unigram_log_probs.float()})
        write_json(directory / "metadata.json", metadata | {"status": "running"})
        outcome: dict[str, Any] = {}
        progress = Progress(config.trainer.total_steps, show=show)
        dead_mask = corpus.dead_mask.to(device)
        trainer = Trainer(config, model, batches, evaluator, dead_mask, directory, progress, resume=resume)
        with stop_requests() as should_stop:
            try:
                steps_left = config.trainer.total_steps - trainer.step
                log.info("%s\n", header(metadata, steps_left, trainer.seconds_per_step() if show else None))
                outcome["status"] = trainer.train(should_stop)
            except BaseException as error:
                outcome |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
                raise
            finally:
                outcome |= trainer.summary() | {"seconds": time.monotonic() - started}
                write_json(directory / "metadata.json", metadata | outcome)
        if outcome["status"] == "interrupted":
            resume_command = f"python -m marble_sweep resume={shlex.quote(str(directory))}"
            log.info("Interrupted at step %d; continue with:\n  %s", trainer.step, resume_command)
            return "interrupted"
        conclude(config, directory, outcome)
        return str(outcome["status"])


@contextlib.contextmanager
def claimed(directory: Path, config: Config, *, resume: bool) -> Iterator[None]:
    """Hold the run directory against other processes; a new run also leaves its config there.

    Raises ValueError where another run is in it, alive or not.
    """
    lock = lock_directory(directory, "hydra.run.dir")
    path = directory / "config.yaml"
    try:
        if not resume:
            free = f"a new directory: this one holds a run (resume={directory} would continue it)"
            require(not path.exists(), "hydra.run.dir", directory, free)
            write_text(path, dump(config))
        try:
            yield
        finally:
            # A run that was refused before it began leaves the directory free for a better one.
            if not resume and not (directory / "metadata.json").exists():
                path.unlink()
    finally:
        lock.release()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Keep what the package logs in a file too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    logger = logging.getLogger("marble_sweep")
    level = logger.level
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))  # a notebook's root logger lets no INFO pass
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        # One line is enough on a terminal; whoever looks for the cause finds it here.
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s", (error,), sys.exc_info()))
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def build_model(config: Config, vocab_size: int) -> Transformer:
    """The model that config describes, in float32 on the CPU."""
    model = config.model
    return Transformer(
        vocab_size=vocab_size,
        seq_len=config.trainer.seq_len,
        num_layers=model.num_layers,
        hidden_dim=model.hidden_dim,
        num_heads=model.heads,
        mlp_dim=model.mlp_dim,
        seed=config.seed,
    )


def measure_held_out(config: Config, corpus: Corpus) -> tuple[torch.Tensor | None, Baselines]:
    """The held-out windows and the baselines on them; where nothing is held out, those on training windows."""
    held_out = len(corpus.val_tokens) > 0
    tokens = corpus.val_tokens if held_out else corpus.train_tokens
    scored = eval_windows(tokens, config.trainer.seq_len, config.trainer.eval_windows)
    baselines = measure_baselines(corpus.train_tokens, scored, len(corpus.dead_mask))
    return (scored if held_out else None), baselines


def refuse_other_data(directory: Path, metadata: dict[str, Any]) -> None:
    """A resumed run must go on with the tokens it began with."""
    path = directory / "metadata.json"
    if not path.exists():
        return
    began, now = json.loads(path.read_text())["corpus"]["sha256"], metadata["corpus"]["sha256"]
    require(began == now, "resume", directory, f"on the corpus it began with ({began[:12]}…; this one is {now[:12]}…)")


def conclude(config: Config, directory: Path, outcome: dict[str, Any]) -> None:
    """Verdict and plots, from the files the run has written; a run of a search leaves the plots out."""
    steps, evals = pd.read_csv(directory / "metrics.csv"), pd.read_csv(directory / "evals.csv")
    verdict = judge(config.verdict, steps, evals, autocorrelation_lag(config))
    write_json(directory / "verdict.json", verdict.as_json())
    if not config.certify.stop:  # a search has many such runs, and its page shows their curves
        draw_plots(directory)
    if outcome["status"] == "diverged":
        log.info("Diverged: the loss of step %d is not a number.", outcome["step"])
    log.info("\nVerdict\n%s\n\nEverything is in %s", verdict.as_text(), directory)
