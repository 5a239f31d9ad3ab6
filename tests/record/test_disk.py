"""What a record takes is said before the run, and refused where it cannot fit."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import compose_config, tiny_config, train_only

from marble_sweep.checks import CheckError
from marble_sweep.humanize import file_size
from marble_sweep.record import disk
from marble_sweep.record.disk import record_bytes, require_disk, sweep_line
from marble_sweep.record.store import BITS
from marble_sweep.run import build_model, last_hidden
from marble_sweep.runs.files import write_json
from marble_sweep.runs.status import read_metadata
from marble_sweep.training.precision import POLICIES
from marble_sweep.training.recorder import NAMES
from marble_sweep.training.trainer import Trainer

Usage = namedtuple("Usage", "total used free")


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))


@pytest.mark.parametrize("precision", POLICIES)
def test_a_weight_takes_the_bytes_of_its_bits(precision: str) -> None:
    assert disk.ITEM_BYTES[precision] == BITS[NAMES[POLICIES[precision].param_dtype]].itemsize
    assert 1 <= disk.WEIGHT_RATIOS[precision].usual < disk.WEIGHT_RATIOS[precision].best


@pytest.mark.parametrize("precision", POLICIES)
def test_hidden_states_take_the_bytes_that_the_model_gives(precision: str) -> None:
    plain = tiny_config("recorder=full", f"precision={precision}")
    probed = tiny_config("recorder=full", "recorder.probe_windows=3", f"precision={precision}")
    model = build_model(probed, 64).to(POLICIES[precision].param_dtype)
    hidden = last_hidden(probed, model, torch.zeros(3, probed.trainer.seq_len, dtype=torch.int64))
    counted = record_bytes(probed).estimate - record_bytes(plain).estimate
    assert abs(counted - (probed.trainer.total_steps + 1) * hidden.nbytes / disk.HIDDEN_RATIO.usual) <= 1


def test_all_weights_of_all_steps() -> None:
    config = compose_config("recorder=full", "recorder.every=10", "model=4L128D")
    raw = 501 * 10_000 * 128 * 2
    bytes_of_it = record_bytes(config)
    assert bytes_of_it.least == round(raw / disk.WEIGHT_RATIOS["bf16"].best)
    assert raw / disk.WEIGHT_RATIOS["bf16"].usual < bytes_of_it.estimate < raw / disk.WEIGHT_RATIOS["bf16"].usual + 5e6
    assert record_bytes(compose_config("model=4L128D")) == (0, 0)
    assert record_bytes(compose_config("recorder=tracers")).estimate < bytes_of_it.estimate
    assert record_bytes(compose_config("recorder=dead"), 100).least == round(5000 * 100 * 16 / disk.NORM_RATIO.best)
    assert record_bytes(config, num_steps=1000).least < bytes_of_it.least / 4


def test_a_record_that_cannot_fit_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("recorder=full", "trainer.total_steps=100000")
    least = record_bytes(config).least
    with_free(monkeypatch, least - 1)
    line = f"recorder = full: must be one whose record fits: it would take about .* of disk, {file_size(least)} if "
    with pytest.raises(CheckError, match=line):
        train_only(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
    with_free(monkeypatch, least)
    assert require_disk("full", record_bytes(config), tmp_path / "not" / "there") == least


@pytest.mark.parametrize("metadata", [{"status": "running"}, {"status": "failed", "step": 11}])
def test_the_steps_that_the_state_has_need_no_more_disk(
    metadata: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """metadata.json has no step of a run that was killed, and a later one of a run that failed."""
    config = tiny_config("recorder=full", "trainer.total_steps=12")
    train = Trainer.train
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda self, _: train(self, lambda: self.step == 7))
        train_only(config, tmp_path)
    write_json(tmp_path / "metadata.json", read_metadata(tmp_path) | metadata)
    least = record_bytes(config, num_steps=5).least
    with_free(monkeypatch, least - 1)
    with pytest.raises(CheckError, match=f"{file_size(least)} if it compressed"):
        train_only(config, tmp_path, resume=True)
    with_free(monkeypatch, least)
    assert train_only(config, tmp_path, resume=True) == "finished"


def test_a_run_says_what_its_record_takes(tmp_path: Path) -> None:
    config = tiny_config("recorder=full", "trainer.total_steps=3")
    train_only(config, tmp_path / "run")
    said = read_metadata(tmp_path / "run")["record_disk"]
    assert said["estimated_bytes"] == record_bytes(config).estimate
    assert 0 < said["free_bytes"] <= shutil.disk_usage(tmp_path).total


def test_a_sweep_says_what_its_records_take_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [tiny_config(f"recorder={kind}", f"seed={seed}") for kind in ("full", "none", "dead") for seed in (1, 2)]
    assert sweep_line(jobs[2:4], tmp_path) is None
    with_free(monkeypatch, 10**9)
    total = sum(record_bytes(job).estimate for job in jobs)
    assert sweep_line(jobs, tmp_path) == (
        f"4 recorded runs: about {file_size(total)} of disk, estimated from other runs; 1.0 GB are free"
    )
    with_free(monkeypatch, total - 1)
    assert str(sweep_line(jobs, tmp_path)).endswith("are free, which may not be enough")
    (tmp_path / "0" / "record").mkdir(parents=True)
    (tmp_path / "0" / "record" / "zarr.json").write_bytes(bytes(total))  # of a sweep that goes on
    assert str(sweep_line(jobs, tmp_path)).startswith("4 recorded runs: about 0.0 kB of disk")
    with_free(monkeypatch, 0)
    with pytest.raises(CheckError, match="recorder = full: must be one whose record fits: it would take about "):
        sweep_line([tiny_config("recorder=full", "trainer.total_steps=100000")], tmp_path / "new")
