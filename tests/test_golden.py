"""Twenty float32 steps on one CPU thread against stored losses: what changes them must mean to."""

import csv
import json
from pathlib import Path

import pytest
from helpers import tiny_config

from marble_sweep.run import run

GOLDEN = Path(__file__).parent / "assets" / "losses.json"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_losses_are_the_stored_ones(optimizer: str, tmp_path: Path) -> None:
    overrides = ("model.num_layers=2", "model.hidden_dim=32", "precision=fp32", "trainer.total_steps=20")
    run(tiny_config(*overrides, f"optimizer={optimizer}", "optimizer.lr=3e-3"), tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())[optimizer], rel=1e-4)
