"""What a run says of itself: `metadata.json` and the header before the first step."""

import functools
import importlib.metadata
import math
import platform
from datetime import datetime
from typing import Any

import torch

from marble_sweep.config import Config
from marble_sweep.data.baselines import Baselines
from marble_sweep.data.batches import Batches
from marble_sweep.data.corpus import Corpus
from marble_sweep.groups import AdamWConfig
from marble_sweep.humanize import baselines_in_words, counted, duration, finite
from marble_sweep.metrics.lattice import black_holes
from marble_sweep.model.transformer import Transformer
from marble_sweep.record.disk import disk_words
from marble_sweep.runs.provenance import code_sha256
from marble_sweep.runs.run import Run
from marble_sweep.training.trainer import Trainer

MAX_DOMAIN_GAP = 0.5  # nats per token: within one kind of text the gap is 0 to 0.3, beyond it some nats (docs/data.md)
MAX_SHARE_SEEN = 0.25  # 0.08 on the default corpus, 0.4 and more where one word in eight of a copy is another

PACKAGES = ("marble_sweep", "torch", "numpy", "tokenizers", "safetensors", "hydra-core", "omegaconf", "pandas")


def describe(
    config: Config,
    corpus: Corpus,
    baselines: Baselines,
    model: Transformer,
    batches: Batches,
    device: torch.device,
) -> dict[str, Any]:
    """All that is known before the first step; the notebook's keys first, by its names."""
    num_dead = int(corpus.dead_mask.sum())
    return {
        "experiment": config.experiment_name,
        "series": "marble_sweep",
        "date": f"{datetime.now():%Y-%m-%d}",
        **describe_training(config),
        "vocab_size": len(corpus.dead_mask),
        "hidden_dim": config.model.hidden_dim,
        "num_layers": config.model.num_layers,
        "num_heads": config.model.heads,
        "n_params": sum(weight.numel() for weight in model.parameters()),
        "random_seed": config.seed,
        "n_dead_tokens": num_dead,
        "n_live_tokens": len(corpus.dead_mask) - num_dead,
        "epoch_length": batches.steps_per_epoch,
        "device": device.type,
        "checkpoint_interval": config.trainer.checkpoint_interval,
        "notes": config.notes,
        "name": config.model.name,
        "tied": config.model.tied,
        "optimizer": config.optimizer.name,
        "schedule": config.schedule.name,
        "precision": config.precision.name,
        "recorder": config.recorder.name,
        "h_autocorr_lag": config.autocorrelation_lag,
        "corpus": describe_corpus(corpus),
        "baselines": describe_baselines(baselines, len(corpus.val) // config.trainer.seq_len),
        **describe_environment(device),
    }


def describe_training(config: Config) -> dict[str, Any]:
    """The budget, and the settings of the optimizer; those of Adam are None for another."""
    trainer, optimizer = config.trainer, config.optimizer
    adam = optimizer if isinstance(optimizer, AdamWConfig) else None
    return {
        "total_steps": trainer.total_steps,
        "batch_size": trainer.batch_size,
        "seq_len": trainer.seq_len,
        "learning_rate": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "beta1": adam.betas[0] if adam else None,
        "beta2": adam.betas[1] if adam else None,
        "epsilon": adam.eps if adam else None,
        "grad_clip": optimizer.grad_clip,
    }


def share_clipped(config: Config, run: Run) -> float | None:
    """The share of a run's steps whose gradient was clipped; None where none ever is, and metrics.csv is not read."""
    if config.optimizer.grad_clip is None or (steps := run.steps.table()).empty:
        return None
    return float((steps["grad_norm"] > config.optimizer.grad_clip).mean())


def describe_corpus(corpus: Corpus) -> dict[str, Any]:
    return {
        "description": corpus.description,
        "sha256": corpus.sha256,
        "num_train_tokens": len(corpus.train),
        "num_val_tokens": len(corpus.val),
        "num_duplicates_dropped": corpus.num_duplicates_dropped,
        "entropy_rate": corpus.entropy_rate,
        "dead_kinds": corpus.dead_kinds,
        # that baselines are counted on; null: all of them
        "num_sampled_tokens": corpus.num_sampled,
    }


def describe_baselines(baselines: Baselines, num_held_out: int) -> dict[str, Any]:
    """The mean losses, in nats per token, and what they were measured on; `num_held_out` windows are held out."""
    return {
        "measured_on": "held-out windows" if num_held_out else "training windows",
        "num_windows": len(baselines.unigram_fitted),
        "num_held_out_windows": num_held_out,
        "unigram_fitted": baselines.unigram_fitted.mean().item(),
        "unigram_oracle": baselines.unigram_oracle.mean().item(),
        "bigram": baselines.bigram.mean().item(),
        "uniform": baselines.uniform,
        "unigram_tempered": baselines.unigram_tempered.mean().item(),
        "trigram": baselines.trigram.mean().item(),
        "fourgram": baselines.fourgram.mean().item(),
        "exponent": baselines.exponent,
        "oracle_flattery": baselines.oracle_flattery,
        "domain_gap": finite(baselines.domain_gap),
        "run_length": int(baselines.run_length),
        "share_seen": finite(baselines.share_seen),
    }


def warnings(corpus: dict[str, Any], baselines: dict[str, Any]) -> list[str]:
    """Why the held-out part is no fair test of what was learnt from the training part; empty where nothing is odd."""
    if corpus["num_val_tokens"] == 0:
        return []
    phrases = []
    fitted, uniform, gap = baselines["unigram_fitted"], baselines["uniform"], baselines["domain_gap"]
    if fitted > uniform or (gap is not None and gap > MAX_DOMAIN_GAP):
        above = f", above uniform ({uniform:.4f})" if fitted > uniform else ""
        phrases.append(
            f"the held-out part is of another kind than training: fitted unigram {fitted:.4f}{above}, "
            f"{fitted - baselines['unigram_oracle']:.2f} nats above the oracle"
        )
    share = baselines["share_seen"]
    # Sources of a known entropy rate repeat themselves by design.
    if corpus["entropy_rate"] is None and share is not None and share > MAX_SHARE_SEEN:
        phrases.append(
            f"{share:.0%} of the held-out runs of {baselines['run_length']} tokens also occur in training: "
            "memory of them counts as learning"
        )
    return phrases


@functools.cache
def package_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_environment(device: torch.device) -> dict[str, Any]:
    """The software and the machine that the numbers come from."""
    return {
        "versions": {"python": platform.python_version()} | package_versions(),
        "code_sha256": code_sha256(),
        "machine": {
            "platform": platform.platform(),
            "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "num_threads": torch.get_num_threads(),
        },
    }


def summarize(trainer: Trainer) -> dict[str, Any]:
    """How far the run has come, with the numbers of its last evaluation, as metadata.json has it."""
    holes = black_holes(trainer.model.embedding.weight.detach().bfloat16())
    last = trainer.evals[-1] if trainer.evals else {}
    return {
        "step": trainer.step,
        "n_black_holes": len(holes),
        "n_black_hole_tokens": sum(map(len, holes)),
        "final_loss": trainer.last_loss,
        "total_epochs": trainer.batches.epoch,
        "n_checkpoints": len(trainer.writer.snapshots.steps),
        "train_seconds": trainer.train_seconds,
        "steps_per_minute": trainer.steps_per_minute() if trainer.step else None,
        "last_evaluation": {name: value if math.isfinite(value) else None for name, value in last.items()},
    }


def _kinds_of_dead(corpus: dict[str, Any]) -> str:
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in corpus["dead_kinds"].items())
    return f" ({kinds})" if kinds else ""


def _without_duplicates(corpus: dict[str, Any]) -> str:
    dropped = corpus["num_duplicates_dropped"]
    return f" without {counted(dropped, 'paragraph')} that training has too" if dropped else ""


def header(metadata: dict[str, Any], steps_left: int, seconds_per_step: float | None) -> str:
    """What a person wants to know before the first step; nobody waits where `seconds_per_step` is None."""
    corpus, baselines = metadata["corpus"], metadata["baselines"]
    clips = "" if metadata["grad_clip"] is None else f"gradient norm clipped to {metadata['grad_clip']:g}, "
    lines = {
        "model": f"{metadata['name']}, {metadata['n_params']:,} parameters, {counted(metadata['num_heads'], 'head')}"
        + ("" if metadata["tied"] else ", head not tied to the embedding"),
        "training": f"{metadata['total_steps']:,} steps of {metadata['batch_size']} x {metadata['seq_len']} tokens "
        f"({metadata['epoch_length']:,} steps an epoch), {metadata['optimizer']}, lr {metadata['learning_rate']:g}, "
        f"weight decay {metadata['weight_decay']:g}, {clips}{metadata['schedule']}, seed {metadata['random_seed']}",
        "corpus": f"{corpus['description']}; {corpus['num_train_tokens']:,} tokens to train on, "
        f"{corpus['num_val_tokens']:,} held out{_without_duplicates(corpus)}",
        "vocabulary": f"{metadata['vocab_size']:,} tokens: {metadata['n_live_tokens']:,} live, "
        f"{metadata['n_dead_tokens']:,} dead{_kinds_of_dead(corpus)}",
        "baselines": baselines_in_words(baselines),
        "device": f"{metadata['machine']['accelerator'] or metadata['device']}, "
        f"{counted(metadata['machine']['num_threads'], 'CPU thread')}, precision {metadata['precision']}",
    }
    if metadata["products"] is not None:
        matmul, head = metadata["products"]["matmul"], metadata["products"]["head"]
        lines["products"] = f"layers {matmul}, head {head}"
    if (disk := metadata.get("record_disk")) is not None:
        lines["recorder"] = f"{metadata['recorder']}, {disk_words(disk['estimated_bytes'], disk['free_bytes'])}"
    if seconds_per_step is not None:
        estimate = duration(steps_left * seconds_per_step)
        lines["time"] = f"about {estimate} for {steps_left:,} steps, evaluations not counted"
    if corpus["entropy_rate"] is not None:
        lines["baselines"] += f"; entropy rate of the source {corpus['entropy_rate']:.4f}"
    text = [f"{name:<11} {line}" for name, line in lines.items()]
    if corpus["num_sampled_tokens"] is not None:
        sampled = f"baselines are counted on {corpus['num_sampled_tokens']:,} of the training tokens"
        text.append(f"{'Note':<11} {sampled}: those of pairs, threes and fours come out too high")
    return "\n".join([*text, *(f"{'Warning':<11} {phrase}" for phrase in warnings(corpus, baselines))])
