"""Lifecycles of runs that were really trained and recorded, against what the runs wrote besides."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import tiny_config, train_only
from plain_lifecycle import plain_tokens
from planted_records import Planted

import marble_sweep as ms
from marble_sweep.lifecycle.command import main
from marble_sweep.lifecycle.of_run import analyse_run, open_record
from marble_sweep.record.reader import Record

SHORT = ("trainer.total_steps=15", "trainer.num_evals=1", "trainer.checkpoint_interval=1")


def trained(folder: Path, recorder: str, precision: str) -> Path:
    config = tiny_config(f"recorder={recorder}", f"precision={precision}", *SHORT)
    train_only(config, folder)
    return folder


@pytest.fixture(scope="module", params=[pytest.param("bf16_pure", marks=pytest.mark.slow), "mixed"], name="run_dir")
def recorded_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("recorded") / "run", "full", request.param)


def test_a_recorded_run_lives_as_its_metrics_say(run_dir: Path) -> None:
    run = ms.load_run(run_dir)
    life = run.lifecycle(quiet_window=5)
    metrics = run.metrics.set_index("step")
    np.testing.assert_allclose(life.steps["moving"], metrics["dead_moving"], atol=1e-7)
    np.testing.assert_array_equal(life.steps["lr"], metrics["lr"])
    is_dead = life.tokens["is_dead"].to_numpy()
    np.testing.assert_array_equal(is_dead, run.dead_mask.numpy())
    weights = run.snapshots.W.double().numpy()[:, is_dead]  # bfloat16: the masters of `mixed` are rounded
    centroid = weights.mean(axis=1)
    spread = np.sqrt(np.square(weights - centroid[:, None]).sum(axis=2).mean(axis=1))
    np.testing.assert_allclose(life.steps["radius"], spread[1:], rtol=2.0**-8)
    axis = -run.snapshots.h_mean[-1].double().numpy()
    np.testing.assert_allclose(life.axis, axis / np.linalg.norm(axis), rtol=1e-5, atol=1e-6)
    assert all(life.tokens["text"])


def test_a_recorded_run_lives_as_plain_loops_say(run_dir: Path) -> None:
    record = Record.open(run_dir)
    bits = np.concatenate([bits for _, bits in record.blocks()])
    plain = plain_tokens(Planted(bits, record.dead_mask, record.h_mean))
    tokens = analyse_run(run_dir, open_record(run_dir)).tokens
    for phase in ("early", "midlife", "late"):
        np.testing.assert_array_equal(tokens[f"last_{phase}"], [token.last(phase) for token in plain])
    np.testing.assert_array_equal(tokens["last_motion"], [token.last("early", "midlife", "late") for token in plain])


@pytest.mark.slow
def test_norms_alone_give_the_same_phases(run_dir: Path, tmp_path: Path) -> None:
    config = ms.load_run(run_dir).config
    dead = analyse_run(trained(tmp_path / "dead", "dead", config.precision.name), open_record(tmp_path / "dead"))
    full = analyse_run(run_dir, open_record(run_dir))
    columns = ["token", "text", "last_early", "last_midlife", "last_late", "last_motion", "longest_pause", "phase"]
    expected = full.tokens.loc[full.tokens["is_dead"], columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(dead.tokens[columns], expected)
    pd.testing.assert_series_equal(dead.steps["moving"], full.steps["moving"])


def test_the_command_reads_a_recorded_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--quiet-window", "5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("recorded    full (positions of all tokens), 64 tokens, ")
    assert ("masters" in text) == (ms.load_run(run_dir).config.precision.name == "mixed")
    assert len(pd.read_parquet(run_dir / "lifecycle.parquet")) == 64
