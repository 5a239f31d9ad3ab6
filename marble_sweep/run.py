"""One run on one page: corpus -> model -> train -> verdict -> run directory."""

import contextlib
import functools
import io
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import torch

from marble_sweep.checks import CheckError, require
from marble_sweep.commands import resume_command
from marble_sweep.config import Config, VerdictConfig, dump
from marble_sweep.data.baselines import Baselines, cached_baselines
from marble_sweep.data.batches import Batches, eval_windows, windows
from marble_sweep.data.corpus import Corpus, load_corpus, require_enough
from marble_sweep.data.held_out import choose_all_windows, choose_windows
from marble_sweep.data.tokens import MappedWindows, TokenStream
from marble_sweep.early_stopping import EarlyStopping
from marble_sweep.metadata import describe, header, share_clipped, summarize
from marble_sweep.model.products import Products, using
from marble_sweep.model.transformer import Transformer
from marble_sweep.record.disk import record_bytes, require_disk
from marble_sweep.record_config import DeadRecorderConfig
from marble_sweep.report.plots import draw_plots
from marble_sweep.runs import layout
from marble_sweep.runs.files import (
    lock_directory,
    open_append,
    remove_temporaries,
    require_ordinary,
    write_json,
    write_text,
)
from marble_sweep.runs.removed import require_kept
from marble_sweep.runs.run import Run
from marble_sweep.runs.state import read_info
from marble_sweep.runs.status import RunStatus, read_metadata
from marble_sweep.runs.tensors import write_tensors
from marble_sweep.runs.window_losses import HeldOut
from marble_sweep.training.device import choose_device, cpu_threads, recorded_threads
from marble_sweep.training.estimate import seconds_per_step
from marble_sweep.training.evaluation import AllWindows, Evaluator
from marble_sweep.training.memory import require_memory
from marble_sweep.training.precision import POLICIES
from marble_sweep.training.products import as_metadata, choose_products, recorded_products
from marble_sweep.training.progress import Progress
from marble_sweep.training.recorder import Recorder
from marble_sweep.training.signals import stop_requests
from marble_sweep.training.trainer import Trainer
from marble_sweep.training.writer import RunWriter
from marble_sweep.verdict import Verdict, judge

MAX_ALL_TOKENS = 1 << 19  # held out, where all windows are evaluated: 4,096 windows of 128

log = logging.getLogger(__name__)


def run(
    config: Config, directory: Path, *, resume: bool = False, show: bool = True, shared: Path | None = None
) -> RunStatus:
    """Train, judge and record one model in `directory`; returns how the run ended.

    That is `finished`, `diverged`, or with certify.stop `certified`, `pruned` or `too_slow`, all with a verdict; or
    `interrupted`, with the state saved. `show` asks for a progress bar. `shared` is the folder in which the jobs of a
    sweep choose their products. Raises ValueError for a config that does not fit the data or the machine and for a
    directory that holds another run, OSError where it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(directory, config, resume=resume))
        stack.enter_context(logging_to(directory / layout.LOG))
        stack.enter_context(cpu_threads(threads_for(config, directory, resume=resume)))
        started = time.monotonic()
        trainer, metadata = prepare(config, directory, stack, resume=resume, show=show, shared=shared)
        status, verdict = train(trainer, metadata, started, show=show)
        log_outcome(directory, status, trainer.step, verdict)
        return status


def prepare(
    config: Config, directory: Path, stack: contextlib.ExitStack, *, resume: bool, show: bool, shared: Path | None
) -> tuple[Trainer, dict[str, Any]]:
    """The trainer and the metadata of the run. After this its directory says that it is running.

    The run's products are in use until `stack` ends.
    """
    policy = POLICIES[config.precision.name]
    device = choose_device(config.device, policy)
    require_memory(config, device)
    corpus = load_corpus(config.data)
    require_enough(corpus, config.trainer.batch_size, config.trainer.seq_len)
    chosen = held_out_windows(config, corpus)
    scored, baselines = measure_baselines_of_run(config, corpus, chosen)
    model = build_model(config, len(corpus.dead_mask)).to(device, policy.param_dtype)
    train_windows = windows(corpus.train, config.trainer.seq_len).to(device)
    batches = Batches(train_windows, config.trainer.batch_size, config.seed)

    resume = resume and has_begun(directory)
    products = products_for(config, directory, device, len(corpus.dead_mask), shared, resume=resume)
    stack.enter_context(using(products))
    metadata = describe(config, corpus, baselines, model, batches, device)
    metadata |= {"products": as_metadata(products, device)} | check_disk(config, directory, corpus, resume=resume)
    if resume:
        metadata |= what_stays(directory, metadata)
    trainer = Trainer(
        config,
        model,
        batches,
        corpus.dead_mask.to(device),
        RunWriter(directory, corpus.dead_mask, chosen),
        Progress(config.trainer.total_steps, show=show),
        evaluator=None if chosen is None else build_evaluator(config, corpus, chosen, scored.to(device), baselines),
        all_windows=None if chosen is None else build_all_windows(config, corpus, chosen, device),
        early_stopping=EarlyStopping(config) if config.certify.stop else None,
        recorder=build_recorder(config, directory, model, train_windows, corpus.dead_mask),
        resume=resume,
    )
    write_what_is_known(directory, corpus, baselines, metadata)
    return trainer, metadata


def write_what_is_known(directory: Path, corpus: Corpus, baselines: Baselines, metadata: dict[str, Any]) -> None:
    """Write what a run has before its first step, besides its config."""
    (directory / layout.LIFECYCLE).unlink(missing_ok=True)  # of a shorter record; metadata.json drops its numbers too
    write_text(directory / layout.TOKENIZER, corpus.tokenizer.to_str())
    write_tensors(directory / layout.UNIGRAM, {"log_probs": baselines.unigram_log_probs.float()})
    write_json(directory / layout.METADATA, metadata | {"status": RunStatus.RUNNING})


def train(
    trainer: Trainer, metadata: dict[str, Any], started: float, *, show: bool
) -> tuple[RunStatus, Verdict | None]:
    """Train and judge. However that ends, metadata.json says so, with the seconds since `started`."""
    config, directory = trainer.config, trainer.writer.directory
    outcome: dict[str, Any] = {}
    verdict = None
    with stop_requests() as should_stop:
        try:
            steps_left = config.trainer.total_steps - trainer.step
            log.info("%s\n", header(metadata, steps_left, seconds_per_step(trainer) if show else None))
            status = trainer.train(should_stop)
            outcome["seconds"] = time.monotonic() - started
            if status != RunStatus.INTERRUPTED:
                outcome["grad_clipped"] = share_clipped(config, Run.read(directory))
                verdict = conclude(config, directory, status)
            outcome["status"] = status  # last: it promises that verdict and plots are written
        except KeyboardInterrupt:  # the user asked twice: `resume` continues from what was saved last
            outcome["status"] = status = RunStatus.INTERRUPTED
            verdict = None
        except BaseException as error:
            outcome |= {"status": RunStatus.FAILED, "reason": f"{type(error).__name__}: {error}"}
            raise
        finally:
            outcome = summarize(trainer) | {"seconds": time.monotonic() - started} | outcome
            write_json(directory / layout.METADATA, metadata | outcome)
    return status, verdict


def log_outcome(directory: Path, status: RunStatus, step: int, verdict: Verdict | None) -> None:
    """Log how the run ended; one that was interrupted has no verdict."""
    if verdict is None:
        log.info("Interrupted at step %d; continue with:\n  %s", step, resume_command(directory))
        return
    if status == RunStatus.DIVERGED:
        loss = Run.read(directory).steps.row(step)["loss"]
        log.info("Diverged: the loss became %s at step %d.", "NaN" if math.isnan(loss) else "infinite", step)
    metadata = read_metadata(directory)
    if (clipped := metadata.get("grad_clipped")) is not None:
        log.info("\nThe gradient was clipped in %.1f%% of the steps.", 100 * clipped)
    if (counted := metadata.get("corpus", {}).get("num_sampled_tokens")) is not None:
        log.info("\nBigram, trigram and 4-gram are counted on %d training tokens: they are too high.", counted)
    log.info("\nVerdict\n%s\n\nEverything is in %s", verdict.as_text(), directory)


@contextlib.contextmanager
def claimed(directory: Path, config: Config, *, resume: bool) -> Iterator[None]:
    """Hold the run directory against other processes; a new run also leaves its config there.

    Raises ValueError where another run is in it, alive or not, or where a new run would replace a record.
    """
    require_ordinary(directory, files=layout.FILES, folders=[layout.PLOTS, layout.RECORD])
    lock = lock_directory(directory, "hydra.run.dir")
    path = directory / layout.CONFIG
    try:
        if (directory / layout.PLOTS).is_dir():
            remove_temporaries(directory / layout.PLOTS)
        if not resume:
            free = f"a new directory: this one holds a run, which {resume_command(directory)} would continue"
            require(not path.exists(), "hydra.run.dir", directory, free)
            own = f"a new directory: this one holds a {layout.RECORD} without a run"
            require(not (directory / layout.RECORD).exists(), "hydra.run.dir", directory, own)
            write_text(path, dump(config))
        try:
            yield
        finally:
            # A run that was refused before it began leaves the directory free for a better one.
            if not resume and not (directory / layout.METADATA).exists():
                path.unlink(missing_ok=True)
                shutil.rmtree(directory / layout.RECORD, ignore_errors=True)
    finally:
        lock.release()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Keep what the package logs in a file too."""
    logger = logging.getLogger("marble_sweep")
    level = logger.level
    with open_append(path) as file, io.TextIOWrapper(file, encoding="utf-8", write_through=True) as text:
        handler = RunLog(text)
        logger.addHandler(handler)
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))  # a notebook's root logger lets no INFO pass
        try:
            yield
        except Exception as error:
            # A terminal gets one line; the traceback is here.
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s", (error,), sys.exc_info()))
            raise
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


class RunLog(logging.StreamHandler[TextIO]):
    """A log that a full disk cuts short without ending the run: that happens where the run's results do not fit."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


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
        tied=model.tied,
        embedding_std=model.embedding_std,
    )


def threads_for(config: Config, directory: Path, *, resume: bool) -> int | None:
    """The CPU threads that config asks for, or that a resumed run began with, as their number decides how sums round.

    None leaves them to torch.
    """
    if config.device.num_threads is not None or not resume:
        return config.device.num_threads
    return recorded_threads(read_metadata(directory))


def products_for(
    config: Config, directory: Path, device: torch.device, vocab_size: int, shared: Path | None, *, resume: bool
) -> Products:
    """How the run multiplies: a resumed one as it began, so that its numbers stay the same; a new one the quickest."""
    if resume:
        return recorded_products(read_metadata(directory), config, device)
    return choose_products(config, device, vocab_size, shared)


def build_evaluator(
    config: Config, corpus: Corpus, chosen: HeldOut, held_out: torch.Tensor, baselines: Baselines
) -> Evaluator:
    """The evaluator on `held_out`, the chosen windows on the run's device."""
    trainer, policy = config.trainer, POLICIES[config.precision.name]
    target_bytes = windows(corpus.val_bytes, trainer.seq_len)[chosen.numbers][:, 1:].sum()
    return Evaluator(held_out, baselines, int(target_bytes), policy, trainer.batch_size, chosen.documents)


def build_all_windows(config: Config, corpus: Corpus, chosen: HeldOut, device: torch.device) -> AllWindows | None:
    """The evaluation of all held-out windows of the run's part; None where it is evaluated on all of them anyway."""
    trainer = config.trainer
    every, stretches = choose_all_windows(
        trainer.eval_part,
        len(corpus.val),
        corpus.val_documents,
        trainer.seq_len,
        torch.from_numpy(chosen.numbers),
        MAX_ALL_TOKENS // trainer.seq_len,
    )
    if len(every) == len(chosen.numbers):
        return None

    def build() -> Evaluator:
        scored = windows(corpus.val, trainer.seq_len)[every]
        baselines = baselines_on(corpus, scored)
        return Evaluator(scored.to(device), baselines, 0, POLICIES[config.precision.name], trainer.batch_size)

    return AllWindows(build, stretches, chosen.documents)


def held_out_windows(config: Config, corpus: Corpus) -> HeldOut | None:
    """The held-out windows that the run is evaluated on; None where nothing is held out."""
    trainer, num_tokens = config.trainer, len(corpus.val)
    if num_tokens == 0:
        return None
    numbers, documents = choose_windows(
        trainer.eval_part, num_tokens, corpus.val_documents, trainer.seq_len, trainer.eval_windows
    )
    return HeldOut(numbers.numpy(), None if documents is None else documents.numpy())


def measure_baselines_of_run(config: Config, corpus: Corpus, chosen: HeldOut | None) -> tuple[torch.Tensor, Baselines]:
    """The chosen windows, or training windows where nothing is held out, and the baselines on them."""
    if chosen is not None:
        scored = windows(corpus.val, config.trainer.seq_len)[chosen.numbers]
    else:
        scored = eval_windows(corpus.train, config.trainer.seq_len, config.trainer.eval_windows)
    allowed = "such that two windows or more are held out with certify.stop=true"
    require(len(scored) >= 2 or not config.certify.stop, "data.val_fraction", config.data.val_fraction, allowed)
    return scored, baselines_on(corpus, scored)


def baselines_on(corpus: Corpus, scored: torch.Tensor) -> Baselines:
    """The baselines on these windows, counted on the training part, or on a sample of one that stays on the disk."""
    train = corpus.train.sample() if isinstance(corpus.train, TokenStream) else corpus.train
    digest = corpus.sha256 if corpus.num_sampled is None else f"{corpus.sha256}, {corpus.num_sampled} sampled"
    return cached_baselines(digest, train, scored, len(corpus.dead_mask))


def check_disk(config: Config, directory: Path, corpus: Corpus, *, resume: bool) -> dict[str, Any]:
    """What the record of the steps to come takes on the disk, as metadata. Raises CheckError where it cannot fit."""
    if not isinstance(config.recorder, DeadRecorderConfig):
        return {}
    # Not metadata.json: that of a killed run has no step, that of a failed one the step of the failure.
    step = read_info(directory / layout.STATE, config)["step"] if resume else 0
    needed = record_bytes(config, int(corpus.dead_mask.sum()), config.trainer.total_steps - step)
    free = require_disk(config.recorder.name, needed, directory)
    return {"record_disk": {"estimated_bytes": needed.estimate, "free_bytes": free}}


def build_recorder(
    config: Config,
    directory: Path,
    model: Transformer,
    train_windows: torch.Tensor | MappedWindows,
    dead_mask: torch.Tensor,
) -> Recorder | None:
    """The recorder that config asks for; its probe are the first windows of the training split."""
    recorder = config.recorder
    if not isinstance(recorder, DeadRecorderConfig):
        return None
    probe = None
    if recorder.probe_windows > 0:
        most = f"at most {len(train_windows):,}, the windows of the training split"
        require(recorder.probe_windows <= len(train_windows), "recorder.probe_windows", recorder.probe_windows, most)
        probe = functools.partial(
            last_hidden, config, model, train_windows[torch.arange(recorder.probe_windows)].long()
        )
    return Recorder(recorder, directory / layout.RECORD, model.embedding.weight, dead_mask, probe)


def last_hidden(config: Config, model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """The last hidden states (N, T, D) of windows (N, T), as training computes them."""
    with POLICIES[config.precision.name].autocast(tokens.device):
        return model(tokens)


def has_begun(directory: Path) -> bool:
    """Whether there is a state to continue from. Raises ValueError where it is missing and there are rows already."""
    if (directory / layout.STATE).exists():
        return True
    require_kept(directory / layout.STATE)
    rows = directory / layout.METRICS
    if rows.exists() and rows.read_bytes().count(b"\n") > 1:
        raise CheckError(f"{directory / layout.STATE}: must be there to continue: {rows} has rows of a run")
    return False


def what_stays(directory: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata that a resumed run keeps. Raises ValueError where the corpus is not the one that it began with."""
    path = directory / layout.METADATA
    before = read_metadata(directory)
    corpus = before.get("corpus")
    began = corpus.get("sha256") if isinstance(corpus, dict) else None
    if not isinstance(began, str):
        raise CheckError(f"{path}: must be a run's metadata: it does not name the corpus that the run began with")
    now = metadata["corpus"]["sha256"]
    require(began == now, "resume", directory, f"on the corpus it began with ({began[:12]}…; this one is {now[:12]}…)")
    return {"continued_from": before["continued_from"]} if "continued_from" in before else {}


def judged_by(config: Config) -> VerdictConfig:
    """The criteria of the run. With certify.stop a margin needs as many standard errors as end a run."""
    if not config.certify.stop:
        return config.verdict
    return replace(config.verdict, min_standard_errors=EarlyStopping(config).errors_needed)


def conclude(config: Config, directory: Path, status: RunStatus) -> Verdict:
    """Write the verdict and draw the plots, from the files that the run has written."""
    files = Run.read(directory)
    held_out = config.data.val_fraction > 0
    lag = config.autocorrelation_lag
    steps, tied = files.steps.table(), config.model.tied
    verdict = judge(judged_by(config), steps, pd.DataFrame(files.evals), lag, held_out=held_out, tied=tied)
    write_json(directory / layout.VERDICT, verdict.as_json())
    if not config.certify.stop:  # a search has many such runs, and its page shows their curves
        draw_plots(directory, status)
    return verdict
