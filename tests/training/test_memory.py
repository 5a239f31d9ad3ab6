"""The estimate of a run's memory: below what a run takes, near it, and what cannot fit is one line."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_config

from marble_sweep.kernels.head import MAX_WIDTH
from marble_sweep.run import run
from marble_sweep.training import memory
from marble_sweep.training.memory import container_bytes, corpus_bytes, require_memory, training_bytes

CPU = torch.device("cpu")
LAG = "verdict.direction_lag"
# Some 100 to 300 MB each: what Python and torch take beside them hardly counts.
LARGE = [
    ("model.hidden_dim=768", "model.num_layers=2"),
    ("model.hidden_dim=64", "model.num_layers=4", "trainer.batch_size=256", "trainer.seq_len=64"),
    ("data.vocab_size=40000", "model.hidden_dim=128", "model.num_layers=0"),
]
MEASURE = """
import sys
from pathlib import Path
from helpers import tiny_config
from marble_sweep.run import run
few = ("trainer.total_steps=2", "data.val_fraction=0")
# Not ru_maxrss, which begins with that of the process that started this one.
peak = lambda: 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
run(tiny_config(*few), Path(sys.argv[1]) / "small", show=False)
before = peak()
run(tiny_config("data.num_tokens=40000", *few, *sys.argv[2:]), Path(sys.argv[1]) / "large", show=False)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("sizes", LARGE, ids=" ".join)
@pytest.mark.parametrize("kind", ["bf16 adamw", "bf16_pure adamw", "mixed muon", "fp32 sgd"])
def test_a_run_takes_what_was_estimated_and_not_much_more(sizes: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    precision, optimizer = kind.split()
    words = [f"precision={precision}", f"optimizer={optimizer}", *sizes]
    config = tiny_config("data.num_tokens=40000", *words)
    estimate = max(sum(training_bytes(config, CPU).values()), corpus_bytes(config))
    command = [sys.executable, "-c", MEASURE, str(tmp_path), *words]
    path = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | path)
    measured = int(result.stdout.split()[-1])
    assert estimate <= measured, f"{estimate / 1e6:.0f} MB estimated, {measured / 1e6:.0f} MB taken"
    assert estimate > measured / 6, f"{estimate / 1e6:.0f} MB estimated, {measured / 1e6:.0f} MB taken"


def test_a_narrow_models_logits_count_as_the_compiled_head_holds_them() -> None:
    """The estimate must not exceed what a run takes, and that head has eight rows of them at a time."""
    wide, narrow = (
        training_bytes(tiny_config("data.vocab_size=60000", "model.num_layers=0", f"model.hidden_dim={width}"), CPU)
        for width in (MAX_WIDTH + 1, MAX_WIDTH)
    )
    assert wide["activations"] > 100 * 60_000 * 2
    assert 8 * 60_000 * 4 <= narrow["activations"] < 9 * 60_000 * 4


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("model.hidden_dim=131072", "model.num_layers=10000"), "model.hidden_dim"),
        (("trainer.batch_size=1000000000", "trainer.seq_len=1048576"), "trainer.batch_size"),
        (("trainer.total_steps=1000000000", "verdict.direction_lag=1000000000", "model.hidden_dim=128"), LAG),
        (("data.num_tokens=1000000000", "data.vocab_size=65536", "data.branching=40000"), "data.num_tokens"),
    ],
    ids=str,
)
def test_what_cannot_fit_is_refused_before_it_is_made(
    overrides: tuple[str, ...], field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:   20971520 kB\nSwapFree:   0 kB\n")  # the same 20 GiB wherever the test runs
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    config = tiny_config(*overrides)
    with pytest.raises(ValueError, match="must be smaller for the run to fit in memory") as caught:
        require_memory(config, CPU)
    line = str(caught.value)
    assert line.startswith(f"{field} = ")
    assert "GiB" in line
    assert "\n" not in line
    with pytest.raises(ValueError, match="to fit in memory"):
        run(config, tmp_path / "run", show=False)
    assert not (tmp_path / "run" / "config.yaml").exists(), "the directory is left free for a better run"


def test_what_fits_is_taken_and_where_nothing_is_known_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    require_memory(config, CPU)
    needed = sum(training_bytes(config, CPU).values())
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    enough = max(needed, corpus_bytes(config)) // 1024 + 1
    meminfo.write_text(f"MemAvailable: {enough} kB\nSwapFree: 0 kB\n")
    require_memory(config, CPU)
    meminfo.write_text(f"MemAvailable: {enough // 2} kB\nSwapFree: 0 kB\n")
    with pytest.raises(ValueError, match="must be smaller"):
        require_memory(config, CPU)
    meminfo.write_text(f"MemAvailable: {enough // 2} kB\nSwapFree: {enough} kB\n")
    require_memory(config, CPU)
    meminfo.unlink()
    require_memory(config, CPU)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert container_bytes() is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 600\nfile 300\n")
    assert container_bytes() == 400  # files in the cache make room
    with pytest.raises(ValueError, match="must be smaller"):
        require_memory(tiny_config(), CPU)
    (tmp_path / "memory.max").write_text("max\n")
    assert container_bytes() is None


def test_the_number_of_weights_is_exact_however_large() -> None:
    config = tiny_config()
    model = replace(config.model, num_layers=10_000, hidden_dim=2**17, mlp_ratio=1000.0)
    width, mlp = 2**17, 1000 * 2**17
    block = 4 * width + 4 * (width + 1) * width + (width + 1) * mlp + (mlp + 1) * width
    expected = (64 + 16) * width + 10_000 * block + 2 * width
    assert replace(config, model=model).num_parameters == expected
