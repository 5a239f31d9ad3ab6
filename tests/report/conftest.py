"""Run directories made up for the tests: the files of a run, with curves that look like one."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import MANY_CLUSTERS, NO_ALL_WINDOWS
from omegaconf import OmegaConf

from marble_sweep.config import EXPERIMENT_NAME, Config
from marble_sweep.groups import MODEL_NAME
from marble_sweep.humanize import finite
from marble_sweep.runs.csv_log import CsvLog
from marble_sweep.training.evaluation import EVAL_COLUMNS
from marble_sweep.training.writer import STEP_COLUMNS

UNIGRAM, ORACLE, BIGRAM = 6.2, 6.0, 4.4
START = math.log(10_000)


def make_run(
    directory: Path,
    *overrides: str,
    steps: int = 200,
    every: int = 20,
    status: str = "finished",
    num_dead: int = 3_699,
    loss: float | None = None,
    freeze_at: int | None = None,
    sha256: str = "a" * 64,
    vocab_size: int = 10_000,
) -> Path:
    """Write a run directory as `overrides` would give it; `loss` is where the held-out loss tends to, in nats."""
    config = OmegaConf.structured(Config())
    config.model.name, config.experiment_name = MODEL_NAME, EXPERIMENT_NAME  # these follow the overrides
    config.trainer.total_steps, config.trainer.num_evals = steps, max(1, steps // (every or steps))
    for key, value in (override.split("=", 1) for override in overrides):
        OmegaConf.update(config, key, yaml.safe_load(value))
    directory.mkdir(parents=True)
    settings: Any = OmegaConf.to_object(config)
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(settings)))
    model, seed = settings.model, settings.seed
    rng = np.random.default_rng([seed, model.num_layers, model.hidden_dim])
    n_params = model.hidden_dim * (vocab_size + 128) + 12 * model.num_layers * model.hidden_dim**2
    if loss is None:
        loss = 7.5 - 0.25 * math.log(n_params) + 0.3 * abs(math.log10(settings.optimizer.lr / 1e-3))
    step = np.arange(1, steps + 1)
    curve = loss + (START - loss) * np.exp(-5 * step / steps) + rng.normal(0, 0.003)
    columns = made_up_columns(step, curve, rng, settings, num_dead, freeze_at)
    if status == "diverged":
        columns["loss"][-5:] = [12, 300, 1e5, 1e9, np.nan]
    rows = CsvLog(directory / "metrics.csv", STEP_COLUMNS)
    rows.write([dict(zip(STEP_COLUMNS, row, strict=True)) for row in np.transpose([columns[c] for c in STEP_COLUMNS])])
    rows.close()
    evals = [made_up_eval(int(at), curve[at - 1], rng) for at in step if every and at % every == 0]
    held_out = CsvLog(directory / "evals.csv", EVAL_COLUMNS)
    held_out.write(evals)
    held_out.close()
    metadata = {
        "name": model.name,
        "vocab_size": vocab_size,
        "num_layers": model.num_layers,
        "hidden_dim": model.hidden_dim,
        "num_heads": model.heads,
        "n_params": n_params,
        "random_seed": seed,
        "h_autocorr_lag": steps // 4,
        "corpus": {"description": "made up", "sha256": sha256, "entropy_rate": None},
        "baselines": {
            "measured_on": "held-out windows",
            "num_windows": 100,
            "unigram_fitted": UNIGRAM,
            "unigram_tempered": UNIGRAM,
            "unigram_oracle": ORACLE,
            "bigram": BIGRAM,
        },
        "status": status,
        "step": steps,
        "last_evaluation": {name: finite(value) for name, value in (evals[-1] if evals else {}).items()},
        "final_loss": None if status == "diverged" else float(columns["loss"][-1]),
        "steps_per_minute": 60_000_000 / n_params,
    }
    (directory / "metadata.json").write_text(json.dumps(metadata))
    return directory


def made_up_columns(
    step: np.ndarray,
    curve: np.ndarray,
    rng: np.random.Generator,
    settings: Config,
    num_dead: int,
    freeze_at: int | None,
) -> dict[str, np.ndarray]:
    """Each column of metrics.csv as an array (steps,)."""
    part, model = step / len(step), settings.model
    moving = np.clip(1.2 * np.exp(-(2 + model.num_layers / 2) * part) + rng.normal(0, 0.02, len(step)), 0.01, 1)
    if freeze_at is not None:
        moving[freeze_at - 1 :] = 0
    early = np.exp(-40 * part) * moving
    midlife = (np.exp(-10 * part) * moving - early).clip(0)
    columns = {name: np.full(len(step), 1.0) for name in STEP_COLUMNS} | {
        "step": step,
        "epoch": step // 100,
        "loss": curve + rng.normal(0, 0.05, len(step)),
        "h_autocorr": 1 - 0.002 / step,
        "h_autocorr_lag": np.where(step > len(step) // 4, 0.95 + 0.04 * part, np.nan),
        "h_spread": 0.1 + (0.2 + model.hidden_dim / 400) * part,
        "h_norm": 5 + 3 * part,
        "dead_moving": moving,
        "live_moving": np.clip(1 - 0.2 * part, 0, 1),
        "lr": np.full(len(step), settings.optimizer.lr),
        "dead_l1_mean": 100 * np.exp(-4 * part) * moving,
        "dead_early": early,
        "dead_midlife": midlife,
        "dead_late": moving - early - midlife,
        "dead_frozen": 1 - moving,
        "updates_lost": 0.3 + 0.6 * part,
    }
    if not num_dead:
        columns |= {name: np.full(len(step), np.nan) for name in STEP_COLUMNS if name.startswith("dead_")}
    return columns


def made_up_eval(step: int, loss: float, rng: np.random.Generator) -> dict[str, float]:
    """One row of evals.csv."""
    row = (
        dict.fromkeys(EVAL_COLUMNS, 0.1)
        | MANY_CLUSTERS
        | NO_ALL_WINDOWS
        | {"step": step, "val_loss": loss, "val_loss_se": 0.02}
    )
    row |= {"context_gain": 0.3, "context_gain_se": 0.01}
    for name, baseline in (("unigram", UNIGRAM), ("tempered", UNIGRAM), ("oracle", ORACLE), ("bigram", BIGRAM)):
        row |= {f"{name}_margin": baseline - loss, f"{name}_margin_se": 0.015}
    return row | {"bits_per_byte": loss / math.log(2) / 3.5}


@pytest.fixture(name="make_run", scope="session")
def make_run_fixture() -> Callable[..., Path]:
    return make_run
