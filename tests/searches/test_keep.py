"""search.keep: whose tensors stay, and what a run without them says. And the disk that a search is said to take."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pretender
import pytest
import torch
from helpers import tiny_config, train_only
from pretender import Pretender
from safetensors.torch import save_file

import marble_sweep as ms
from marble_sweep.census.source import run_source
from marble_sweep.checks import CheckError
from marble_sweep.groups import AdamWConfig, OptimizerConfig, PrecisionConfig, SGDConfig
from marble_sweep.humanize import file_size
from marble_sweep.record.reader import Record
from marble_sweep.run import run
from marble_sweep.runs.removed import TENSORS, remove_tensors
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import read_metadata, run_directories
from marble_sweep.sample import load_model
from marble_sweep.searches import disk, keep, worker
from marble_sweep.searches.disk import disk_bytes, disk_line
from marble_sweep.searches.outcome import SearchResult
from marble_sweep.searches.trial_record import Standing, TrialRecord
from marble_sweep.searches.worker import Params
from marble_sweep.training.optimizer import build_optimizers
from marble_sweep.training.precision import POLICIES


class Keeper(Pretender):
    """Every run leaves tensors; one trial may crash."""

    crashing: int | None = None  # the number of the trial that does

    def leave_run(self, number: int, params: Params) -> Path:
        directory = super().leave_run(number, params)
        for name in TENSORS:
            save_file({"weight": torch.zeros(3)}, directory / name)
        if number == self.crashing:
            metadata = read_metadata(directory) | {"status": "failed", "reason": "RuntimeError: boom"}
            (directory / "metadata.json").write_text(json.dumps(metadata))
        return directory


def searched(folder: Path, monkeypatch: pytest.MonkeyPatch, kept: str, crashing: int | None = None) -> Keeper:
    base = replace(pretender.BASE, search=replace(pretender.BASE.search, keep=kept))
    monkeypatch.setattr(pretender, "BASE", base)
    for name in ("draw_frontier", "write_page"):
        monkeypatch.setattr(worker, name, lambda *_: None)
    keeper = Keeper(folder, 1)
    keeper.crashing = crashing
    keeper.search.run(keeper.train)
    return keeper


def with_tensors(folder: Path) -> set[str]:
    """The runs that have all their tensors; of the others none is left."""
    counts = {run.name: sum((run / name).exists() for name in TENSORS) for run in run_directories(folder)}
    assert set(counts.values()) <= {0, len(TENSORS)}
    return {name for name, count in counts.items() if count}


@pytest.mark.parametrize("kept", ["all", "best", "none"])
def test_whose_tensors_stay_once_a_search_has_ended(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = searched(tmp_path, monkeypatch, kept)
    (of_threshold,) = keeper.search.result().as_json("settled")["thresholds"]
    answer = of_threshold["answer"]
    assert answer["confirmed"]
    everyone = {run.name for run in run_directories(tmp_path)}
    expected = {"all": everyone, "best": {str(answer["trial"])}, "none": set()}[kept]
    assert with_tensors(tmp_path) == expected
    for run_dir in run_directories(tmp_path):
        assert Run.read(run_dir).evals != []
        setting = None if run_dir.name in expected else f"search.keep={kept}"
        assert read_metadata(run_dir).get("tensors_removed") == setting


def test_what_crashed_can_be_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trial of a configuration crashes; a later one, in another directory here, replaces it."""
    keeper = searched(tmp_path, monkeypatch, "none", crashing=1)
    outcomes = [record.outcome for record in keeper.search.result().records]
    assert outcomes.count("failed") == 1
    assert with_tensors(tmp_path) == set()
    alone = replace(keeper.search.result(), recorded=None, trials=keeper.search.result().trials[:2])
    assert [record.outcome for record in alone.records] == ["below", "failed"]
    assert [path.name for path in keep.unneeded(alone, is_over=True)] == ["0"]


class Trial(NamedTuple):
    user_attrs: dict[str, Any]


def made(*records: TrialRecord, kept: str = "none") -> Any:
    """A result of these trials, in directories by their numbers, and with no answer."""
    trials = [Trial({"result": {"directory": str(record.number)}}) for record in records]
    base = tiny_config("certify.stop=true", f"search.keep={kept}")
    return SearchResult(pretender.Pretender(Path(), 1).search.space, base, trials, [], recorded=records)  # type: ignore[arg-type]


def test_what_may_be_continued_for_another_threshold_stays_until_the_search_is_over() -> None:
    open_for_one = {"4.0": Standing("certified", {40: 0.1}), "3.0": Standing(None, {})}
    first = TrialRecord(0, 0, (0.0,), 0, "certified", {}, "4.0", open_for_one)
    assert keep.unneeded(made(first), is_over=False) == []
    assert keep.unneeded(made(first), is_over=True) == [Path("0")]
    closed = open_for_one | {"3.0": Standing("below", {})}
    continued = TrialRecord(1, 0, (0.0,), 0, "below", {}, "3.0", closed)
    assert keep.unneeded(made(first, continued), is_over=False) == [Path("0"), Path("1")]
    running = TrialRecord(1, 0, (0.0,), 0, "running", {}, "3.0")
    assert keep.unneeded(made(first, running), is_over=True) == []


def test_what_may_become_the_answer_stays() -> None:
    """A larger certified size is the answer again where the smaller one fails on fresh seeds."""
    larger = TrialRecord(0, 5, (0.0,), 0, "certified", {40: 0.1})
    smaller = TrialRecord(1, 3, (0.0,), 0, "certified", {40: 0.1})
    failed = TrialRecord(2, 1, (0.0,), 0, "below", {40: -0.1})
    assert keep.unneeded(made(larger, smaller, failed, kept="best"), is_over=False) == [Path("2")]


# --------------------------------------------------------------------------------------- a run without its tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    train_only(tiny_config("trainer.total_steps=2", "trainer.num_evals=1", "precision=fp32"), directory)
    return directory


def test_a_run_without_tensors_says_so(trained: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(trained, directory)
    (directory / "record" / "W").mkdir(parents=True)
    assert run_source(directory, None) is not None
    remove_tensors(directory, "search.keep=none")
    line = "must still be there; search.keep=none has removed the tensors of this run"
    with pytest.raises(CheckError, match=f"model.safetensors: {line}"):
        load_model(directory)
    with pytest.raises(CheckError, match=f"checkpoints.safetensors: {line}"):
        _ = ms.load_run(directory).snapshots
    with pytest.raises(CheckError, match=f"checkpoints.safetensors: {line}"):
        run_source(directory, None)
    with pytest.raises(CheckError, match=f"state.safetensors: {line}"):
        run(ms.load_run(directory).config, directory, resume=True, show=False)
    with pytest.raises(CheckError, match=f"record: {line}"):
        Record.open(directory)
    assert len(ms.load_run(directory).metrics) == 2
    assert (directory / "unigram.safetensors").exists()


def test_a_removal_that_is_cut_short_is_known_and_finished_later(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(trained, directory)

    def killed(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_tensors(directory, "search.keep=none")
    assert read_metadata(directory)["tensors_removed"] == "search.keep=none"
    load_model(directory)  # what is there can be used
    remove_tensors(directory, "search.keep=none")
    assert not any((directory / name).exists() for name in TENSORS)


# --------------------------------------------------------------------------------------------------- disk


def test_the_tensors_of_a_trial_are_estimated(trained: Path) -> None:
    """The states of generators and of metrics that do not grow with the model are left: some 20 kB."""
    estimate = disk_bytes(ms.load_run(trained).config).tensors
    measured = sum((trained / name).stat().st_size for name in TENSORS)
    assert estimate <= measured <= estimate + 30_000


@pytest.mark.parametrize("precision", POLICIES)
@pytest.mark.parametrize("optimizer", [AdamWConfig(), SGDConfig(momentum=0.9), SGDConfig(momentum=0.0)])
def test_bytes_of_a_weight(precision: str, optimizer: OptimizerConfig) -> None:
    policy = POLICIES[precision]
    assert disk.WEIGHT_BYTES[precision] == policy.param_dtype.itemsize
    assert disk.MOMENT_BYTES[precision] == policy.optimizer_dtype.itemsize
    config = tiny_config()
    config = replace(config, optimizer=optimizer, precision=PrecisionConfig(name=precision))
    weight = torch.zeros(4, requires_grad=True)
    weight.grad = torch.ones(4)
    (built,) = build_optimizers(optimizer, weight, {}, reference=True)
    built.step()
    kept = [value for value in built.state[weight].values() if torch.is_tensor(value) and value.numel() == 4]
    assert len(kept) == disk.num_moments(config)


def test_the_line_warns_where_a_search_may_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smallest, largest = tiny_config("search.n_trials=1000"), tiny_config("search.n_trials=1000", "model=4L128D")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10**9))  # type: ignore[attr-defined]
    line = disk_line(smallest, largest, tmp_path, 1)
    one = sum(disk_bytes(largest))
    assert line == (
        f"Disk: a trial takes about {file_size(sum(disk_bytes(smallest)))} (smallest size) to {file_size(one)} "
        f"(largest); 1.0 GB are free. Warning: 1,000 trials of the largest size would take {file_size(1000 * one)}"
    )
    largest = replace(largest, search=replace(largest.search, keep="best"))
    assert "Warning" not in disk_line(smallest, largest, tmp_path, 1)
    assert f"{file_size(disk_bytes(largest).tensors)} of it until" in disk_line(smallest, largest, tmp_path, 1)
    assert "Warning: 1,000 trials would take" in disk_line(smallest, largest, tmp_path, 1000)


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(1, "0.0 kB"), (9_940, "9.9 kB"), (14e6, "14 MB"), (3.2e12, "3200 GB")]
)
def test_sizes_of_files(num_bytes: float, text: str) -> None:
    assert file_size(num_bytes) == text
