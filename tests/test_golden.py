"""Twenty float32 steps on one CPU thread against stored losses: what changes them must mean to."""

import csv
import json
from pathlib import Path

import pytest
from bounds import BFLOAT16, gamma
from helpers import tiny_config, train_only

GOLDEN = Path(__file__).parent / "assets" / "losses.json"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_losses_are_the_stored_ones(optimizer: str, tmp_path: Path) -> None:
    overrides = ("model.num_layers=2", "model.hidden_dim=32", "precision=fp32", "trainer.total_steps=20")
    train_only(tiny_config(*overrides, f"optimizer={optimizer}", "optimizer.lr=3e-3"), tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    stored = json.loads(GOLDEN.read_text())[optimizer]
    # Another CPU adds up in another order. An update that is off by a share of it moves the losses by that share of
    # their descent: sums of some 1,000 terms for AdamW. Muon rounds its matrices to bfloat16 five times over; the
    # errors of their 32 x 32 entries have independent signs.
    share = gamma(1000) if optimizer == "adamw" else 5 * BFLOAT16 / 32
    descent = max(stored) - min(stored)
    assert losses == pytest.approx(stored, rel=0, abs=share * descent + gamma(100) * stored[0])
