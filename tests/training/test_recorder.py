"""A recorder writes what the model had after every step, changes nothing in training, and goes on after any end."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_config, train_only

import marble_sweep
from marble_sweep.checks import CheckError
from marble_sweep.metrics.intended import INTENDED
from marble_sweep.metrics.lattice import token_motion
from marble_sweep.record.norms import motion_norms, rounded
from marble_sweep.record.reader import Record
from marble_sweep.record.store import Contents, RecordStore
from marble_sweep.sweeps.child import assign_run_dir
from marble_sweep.training.recorder import Recorder, bits_of
from marble_sweep.training.trainer import Trainer

PRECISIONS = ("bf16", "mixed", "bf16_stochastic")
SHORT = ("trainer.total_steps=12", "trainer.checkpoint_interval=5")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """The bits of the embedding at step 0 and after every step, kept as the loop takes them."""
    kept: dict[int, Any] = {}
    start, take_step = Trainer.start, Trainer.take_step

    def keep(trainer: Trainer) -> None:
        kept[trainer.step] = bits_of(trainer.model.embedding.weight.detach().cpu()).copy()

    def keeping_start(trainer: Trainer) -> None:
        keep(trainer)
        start(trainer)

    def keeping_step(trainer: Trainer) -> None:
        take_step(trainer)
        keep(trainer)

    monkeypatch.setattr(Trainer, "start", keeping_start)
    monkeypatch.setattr(Trainer, "take_step", keeping_step)
    return kept


def recorded(run_dir: Path) -> dict[int, Any]:
    return {
        int(step): bits
        for steps, block in Record.open(run_dir).blocks()
        for step, bits in zip(steps, block, strict=True)
    }


def assert_same(record: dict[int, Any], seen: dict[int, Any]) -> None:
    assert [*record] == sorted(seen)
    assert all(np.array_equal(record[step], seen[step]) for step in seen)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_record_has_every_step_of_the_model(precision: str, tmp_path: Path, seen: dict[int, Any]) -> None:
    train_only(tiny_config("recorder=full", f"precision={precision}", *SHORT), tmp_path / "run")
    assert_same(recorded(tmp_path / "run"), seen)
    record = Record.open(tmp_path / "run")
    assert record.h_mean.shape == (12, 16)
    assert record.intended is not None
    assert tuple(record.intended.columns) == INTENDED


@pytest.mark.parametrize(
    "recorder",
    [
        ["full"],
        pytest.param(["dead"], marks=pytest.mark.slow),
        pytest.param(["tracers", "recorder.num_tracers=3"], marks=pytest.mark.slow),
    ],
)
def test_a_recorder_leaves_training_as_it_is(recorder: list[str], tmp_path: Path) -> None:
    settings = {"without": ["none"], "with": [*recorder, "recorder.probe_windows=2"]}
    for name, (kind, *more) in settings.items():
        train_only(tiny_config(f"recorder={kind}", *more, "precision=bf16_stochastic", *SHORT), tmp_path / name)
    assert rows_without_speed(tmp_path / "with") == rows_without_speed(tmp_path / "without")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in settings]
    assert models[0] == models[1]


def rows_without_speed(run_dir: Path) -> list[str]:
    return [line.rpartition(",")[0] for line in (run_dir / "metrics.csv").read_text().splitlines()]


def test_every_third_step(tmp_path: Path, seen: dict[int, Any]) -> None:
    train_only(tiny_config("recorder=full", "recorder.every=3", *SHORT), tmp_path / "run")
    assert_same(recorded(tmp_path / "run"), {step: bits for step, bits in seen.items() if step % 3 == 0})
    assert len(Record.open(tmp_path / "run").h_mean) == 12


def test_tracers_are_drawn_by_their_own_seed_or_given(tmp_path: Path, seen: dict[int, Any]) -> None:
    drawn = {}
    for seed in (1, 2):
        config = tiny_config("recorder=tracers", "recorder.num_tracers=5", f"recorder.seed={seed}", *SHORT)
        train_only(config, tmp_path / f"{seed}")
        record = Record.open(tmp_path / f"{seed}")
        assert record.dead_mask[record.token_ids].all()
        drawn[seed] = record.token_ids.tolist()
        assert_same(recorded(tmp_path / f"{seed}"), {step: bits[drawn[seed]] for step, bits in seen.items()})
    assert drawn[1] != drawn[2]
    train_only(tiny_config("recorder=tracers", "recorder.token_ids=[7,0]", *SHORT), tmp_path / "given")
    assert_same(recorded(tmp_path / "given"), {step: bits[[7, 0]] for step, bits in seen.items()})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_norms_of_the_dead_are_those_of_their_motion(precision: str, tmp_path: Path, seen: dict[int, Any]) -> None:
    train_only(tiny_config("recorder=dead", f"precision={precision}", *SHORT), tmp_path / "run")
    record = Record.open(tmp_path / "run")
    assert record.norms is not None
    assert np.array_equal(record.token_ids, np.flatnonzero(record.dead_mask))
    for step in range(1, 13):
        rows = [torch.from_numpy(seen[number][record.token_ids].copy()) for number in (step - 1, step)]
        before, after = (row.view(torch.bfloat16 if row.dtype == torch.uint16 else torch.float32) for row in rows)
        motion = token_motion(before.bfloat16(), after.bfloat16())
        change = torch.linalg.vector_norm(after.double() - before.double(), dim=1)
        for column, expected in enumerate([*motion, change]):
            # Sums of 16 float32, in any order: relative errors of 16 roundings.
            np.testing.assert_allclose(record.norms[step - 1, :, column], expected.numpy(), rtol=16 * 2**-24)


def test_norms_know_what_is_not_finite() -> None:
    before = torch.tensor([[1.0, torch.inf], [torch.nan, 0.0], [0.0, -0.0]])
    after = torch.tensor([[1.0, 2.0], [1.0, 0.0], [0.0, 2.0**-133]])
    for dtype in (torch.bfloat16, torch.float32):
        norms = motion_norms(*(bits_of(rows.to(dtype)) for rows in (before, after)))
        assert np.isnan(norms[:2, :3]).all()
        assert norms[2, :3].tolist() == [1, 1, 1]


def test_rounding_to_bfloat16_is_torchs() -> None:
    """Of float32 next to ties, on both sides."""
    high = torch.arange(2**16, dtype=torch.int32) << 16
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    values = (high[:, None] | low).view(torch.float32)
    ours, theirs = rounded(values.numpy()), values.bfloat16().float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_the_probe_is_recorded_as_the_model_sees_it(tmp_path: Path) -> None:
    train_only(tiny_config("recorder=full", "recorder.probe_windows=2", *SHORT), tmp_path / "run")
    steps, hidden = map(np.concatenate, zip(*Record.open(tmp_path / "run").hidden_blocks(), strict=True))
    assert steps.tolist() == [*range(13)]
    assert hidden.shape == (13, 2, 16, 16)
    assert hidden.dtype == np.uint16
    assert not np.array_equal(hidden[0], hidden[-1])


@pytest.mark.parametrize(("probe", "most"), [(None, 32), ((2, 16, 16), 32), ((16, 512, 128), 3), ((64, 512, 128), 2)])
def test_hidden_states_that_wait_count_among_the_copies(
    probe: tuple[int, ...] | None, most: int, tmp_path: Path
) -> None:
    """float32: 16 windows of 512 x 128 are 4 MiB, of 16 MiB that may wait unless two steps are more."""
    give = None if probe is None else torch.zeros(probe).clone
    config, is_dead = tiny_config("recorder=full").recorder, torch.zeros(8, dtype=torch.bool)
    recorder = Recorder(config, tmp_path / "record", torch.zeros(8, 4), is_dead, give)
    recorder.open(0)
    recorder.close()
    assert len(recorder.copies) == most + 2  # one is written, one is filled


@pytest.mark.parametrize(
    "recorder",
    [
        ["full"],
        pytest.param(["full", "recorder.every=4"], marks=pytest.mark.slow),
        ["dead"],
        pytest.param(["tracers", "recorder.num_tracers=3"], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_leaves_the_record_of_one_that_never_stopped(
    recorder: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(f"recorder={recorder[0]}", *recorder[1:], *SHORT)
    train_only(config, tmp_path / "whole")
    train = Trainer.train
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda self, _: train(self, lambda: self.step == 7))
        assert train_only(config, tmp_path / "run") == "interrupted"
    assert Record.open(tmp_path / "run").last_step == 7
    (tmp_path / "run" / "lifecycle.parquet").write_bytes(b"of the shorter record")
    assert train_only(config, tmp_path / "run", resume=True) == "finished"
    assert files(tmp_path / "run" / "record") == files(tmp_path / "whole" / "record")
    assert not (tmp_path / "run" / "lifecycle.parquet").exists()


@pytest.mark.slow
def test_after_a_kill_there_is_neither_a_gap_nor_a_twin(tmp_path: Path) -> None:
    """SIGKILL after step 9, whose rows are written; the state is that of step 5."""
    config = tiny_config("recorder=full", *SHORT)
    train_only(config, tmp_path / "whole")
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path\n"
        "from helpers import tiny_config, train_only\n"
        "from marble_sweep.training.trainer import Trainer\n"
        "take_step = Trainer.take_step\n"
        "def killing(self):\n"
        "    take_step(self)\n"
        "    if self.step == 9:\n"
        "        self.recorder.background.submit(self.recorder.store.commit); self.recorder.background.wait()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer.take_step = killing\n"
        f"train_only(tiny_config('recorder=full', *{SHORT!r}), Path(sys.argv[1]))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "run"), str(Path(__file__).parents[1])]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert Record.open(tmp_path / "run").last_step == 9
    assert train_only(config, tmp_path / "run", resume=True) == "finished"
    assert files(tmp_path / "run" / "record") == files(tmp_path / "whole" / "record")


def test_a_run_that_diverges_has_a_record_up_to_that_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop looks at the losses only now and then: steps later than the one with a NaN are dropped."""
    config = tiny_config("recorder=full", "optimizer=sgd", "optimizer.lr=1e30", *SHORT)
    monkeypatch.setattr("marble_sweep.training.trainer.FLUSH_SECONDS", 1e9)
    assert train_only(config, tmp_path / "run") == "diverged"
    steps = (tmp_path / "run" / "metrics.csv").read_text().count("\n") - 1
    assert 0 < steps < 5
    assert [*recorded(tmp_path / "run")] == [*range(steps + 1)]
    assert train_only(config, tmp_path / "run", resume=True) == "diverged"


def test_a_record_that_is_not_the_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("recorder=full", *SHORT)
    train = Trainer.train
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda self, _: train(self, lambda: self.step == 7))
        train_only(config, tmp_path / "run")
        train_only(tiny_config("recorder=full", "seed=7", *SHORT), tmp_path / "other")
    (tmp_path / "run" / "record").rename(tmp_path / "mine")
    with pytest.raises(CheckError, match="record: must be there"):
        train_only(config, tmp_path / "run", resume=True)
    (tmp_path / "other" / "record").rename(tmp_path / "run" / "record")
    with pytest.raises(CheckError, match="its weights at step 7 are not the model's"):
        train_only(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize("recorder", ["full", "none"])
def test_a_new_run_replaces_no_record(recorder: str, tmp_path: Path) -> None:
    """One that is there without a run was imported."""
    bits = np.arange(24, dtype=np.uint16).reshape(2, 4, 3)
    store = RecordStore(tmp_path / "record", Contents("full", np.arange(4), np.arange(4) < 2, 3, "bfloat16"))
    for step in range(2):
        store.append(step, weights=bits[step])
    store.commit()
    config = tiny_config(f"recorder={recorder}", *SHORT)
    with pytest.raises(CheckError, match=r"hydra.run.dir = .*: must be a new directory: this one holds a record"):
        train_only(config, tmp_path)
    with pytest.raises(CheckError, match=r"directory = .*: must be a new one: this one holds a record"):
        marble_sweep.train(tokens=torch.arange(100), directory=tmp_path)
    assert np.array_equal(Record.open(tmp_path).weights([*range(4)]), bits)
    assert {path.name for path in tmp_path.iterdir()} <= {"record", ".lock"}
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    (tmp_path / "record").rename(tmp_path / "sweep" / "0" / "record")
    assert assign_run_dir(config, tmp_path / "sweep", 0) == (tmp_path / "sweep" / "1", False)


def test_a_run_that_is_refused_leaves_its_directory_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("recorder=full", *SHORT)
    with monkeypatch.context() as patch:
        patch.delattr("marble_sweep.run.write_what_is_known")
        with pytest.raises(NameError):
            train_only(config, tmp_path)
    assert train_only(config, tmp_path) == "finished"


@pytest.mark.parametrize(
    ("recorder", "line"),
    [
        (["tracers"], r"recorder.num_tracers = 100: must be at most 24, the number of dead tokens"),
        (
            ["tracers", "recorder.token_ids=[3,64]"],
            r"recorder.token_ids = 64: must be below 64, the size of the vocabulary",
        ),
        (
            ["dead", "data.dead_fraction=0"],
            r"recorder = dead: must be none, tracers with token_ids, or full: no token is dead",
        ),
        (
            ["full", "recorder.probe_windows=100000"],
            r"recorder.probe_windows = 100000: must be at most 1,125, the windows of",
        ),
    ],
)
def test_what_does_not_fit_the_vocabulary_is_refused(recorder: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=line):
        train_only(tiny_config(f"recorder={recorder[0]}", *recorder[1:]), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
