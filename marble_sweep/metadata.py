"""What a run says of itself: `metadata.json` and the header before the first step."""

import importlib.metadata
import platform
from datetime import datetime
from typing import Any

import torch

from marble_sweep.config import Config
from marble_sweep.data.baselines import Baselines
from marble_sweep.data.batches import Batches
from marble_sweep.data.corpus import Corpus
from marble_sweep.groups import AdamWConfig
from marble_sweep.humanize import counted, duration
from marble_sweep.model.transformer import Transformer
from marble_sweep.runs.provenance import code_sha256
from marble_sweep.training.trainer import autocorrelation_lag

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
    optimizer, trainer = config.optimizer, config.trainer
    adam = optimizer if isinstance(optimizer, AdamWConfig) else None
    num_dead = int(corpus.dead_mask.sum())
    held_out = len(corpus.val_tokens) > 0
    return {
        "experiment": config.experiment_name,
        "series": "marble_sweep",
        "date": f"{datetime.now():%Y-%m-%d}",
        "total_steps": trainer.total_steps,
        "batch_size": trainer.batch_size,
        "seq_len": trainer.seq_len,
        "learning_rate": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "beta1": adam.betas[0] if adam else None,
        "beta2": adam.betas[1] if adam else None,
        "epsilon": adam.eps if adam else None,
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
        "checkpoint_interval": trainer.checkpoint_interval,
        "notes": config.notes,
        "name": config.model.name,
        "optimizer": optimizer.name,
        "schedule": config.schedule.name,
        "precision": config.precision.name,
        "h_autocorr_lag": autocorrelation_lag(config),
        "corpus": {
            "description": corpus.description,
            "sha256": corpus.sha256,
            "num_train_tokens": len(corpus.train_tokens),
            "num_val_tokens": len(corpus.val_tokens),
            "entropy_rate": corpus.entropy_rate,
        },
        "baselines": {
            "measured_on": "held-out windows" if held_out else "training windows",
            "num_windows": len(baselines.unigram_fitted),
            "unigram_fitted": baselines.unigram_fitted.mean().item(),
            "unigram_oracle": baselines.unigram_oracle.mean().item(),
            "bigram": baselines.bigram.mean().item(),
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "code_sha256": code_sha256(),
        "machine": {
            "platform": platform.platform(),
            "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "num_threads": torch.get_num_threads(),
        },
    }


def header(metadata: dict[str, Any], steps_left: int, seconds_per_step: float | None) -> str:
    """What a person wants to know before the first step; nobody waits where `seconds_per_step` is None."""
    corpus, baselines = metadata["corpus"], metadata["baselines"]
    lines = {
        "model": f"{metadata['name']}, {metadata['n_params']:,} parameters, {counted(metadata['num_heads'], 'head')}",
        "training": f"{metadata['total_steps']:,} steps of {metadata['batch_size']} x {metadata['seq_len']} tokens "
        f"({metadata['epoch_length']:,} steps an epoch), {metadata['optimizer']}, lr {metadata['learning_rate']:g}, "
        f"weight decay {metadata['weight_decay']:g}, {metadata['schedule']}, seed {metadata['random_seed']}",
        "corpus": f"{corpus['description']}; {corpus['num_train_tokens']:,} tokens to train on, "
        f"{corpus['num_val_tokens']:,} held out",
        "vocabulary": f"{metadata['vocab_size']:,} tokens: {metadata['n_live_tokens']:,} live, "
        f"{metadata['n_dead_tokens']:,} dead",
        "baselines": f"unigram {baselines['unigram_fitted']:.4f} (oracle {baselines['unigram_oracle']:.4f}), "
        f"bigram {baselines['bigram']:.4f} nats per token, on {baselines['num_windows']:,} {baselines['measured_on']}",
        "device": f"{metadata['machine']['accelerator'] or metadata['device']}, "
        f"{counted(metadata['machine']['num_threads'], 'CPU thread')}, precision {metadata['precision']}",
    }
    if metadata["products"] is not None:
        matmul, head = metadata["products"]["matmul"], metadata["products"]["head"]
        lines["products"] = f"layers {matmul}, head {head}"
    if seconds_per_step is not None:
        estimate = duration(steps_left * seconds_per_step)
        lines["time"] = f"about {estimate} for {steps_left:,} steps, evaluations not counted"
    if corpus["entropy_rate"] is not None:
        lines["baselines"] += f"; entropy rate of the source {corpus['entropy_rate']:.4f}"
    return "\n".join(f"{name:<11} {text}" for name, text in lines.items())
