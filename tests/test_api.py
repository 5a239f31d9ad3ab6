"""The public Python API: what it returns, and that it leaves the process as it found it."""

import doctest
import inspect
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import TINY
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

import marble_sweep as ms
from marble_sweep import api, loaded_run
from marble_sweep.checks import CheckError
from marble_sweep.groups import AdamWConfig, MarkovConfig, PydocsConfig, SGDConfig

SIGNATURES = {
    "compose": "(overrides: collections.abc.Sequence[str] = ()) -> marble_sweep.config.Config",
    "train": "(config: marble_sweep.config.Config | collections.abc.Sequence[str] = (), directory: str | "
    "pathlib.Path | None = None, *, tokens: torch.Tensor | None = None, resume: bool = False) -> "
    "marble_sweep.loaded_run.Run",
    "inspect": "(path: str | pathlib.Path, tokenizer: str | pathlib.Path | tokenizers.Tokenizer | None = None, *, "
    "step: int | None = None, as_bfloat16: bool = False) -> marble_sweep.census.census.Census",
    "load_run": "(path: str | pathlib.Path) -> marble_sweep.loaded_run.Run",
    "load_runs": "(*paths: str | pathlib.Path) -> pandas.DataFrame",
    "compare_pairs": "(*paths: str | pathlib.Path) -> pandas.DataFrame",
    "sweep": "(overrides: collections.abc.Sequence[str], grid: collections.abc.Mapping[str, "
    "collections.abc.Sequence[typing.Any]], directory: str | pathlib.Path | None = None) -> marble_sweep.api.Sweep",
    "search": "(overrides: collections.abc.Sequence[str] = (), directory: str | pathlib.Path | None = None) -> "
    "marble_sweep.api.Search",
    "frontier": "(overrides: collections.abc.Sequence[str] = (), directory: str | pathlib.Path | None = None) -> "
    "marble_sweep.api.Frontier",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ms.Run:
    return ms.train(TINY, tmp_path_factory.mktemp("api") / "run")


def test_public_names_and_signatures() -> None:
    classes = {"Census", "Config", "Frontier", "ModelConfig", "Run", "Search", "Sweep"}
    assert set(ms.__all__) == classes | SIGNATURES.keys()
    signatures = {name: str(inspect.signature(getattr(ms, name))) for name in SIGNATURES}
    for defined, public in (
        ("pandas.core.frame", "pandas"),
        ("pathlib._local", "pathlib"),
    ):  # 3.13 tells
        signatures = {name: signature.replace(defined, public) for name, signature in signatures.items()}
    assert signatures == SIGNATURES
    assert set(ms.__all__) <= set(dir(ms))


@pytest.mark.parametrize("module", [api, loaded_run])
def test_docstring_examples_run(module: ModuleType) -> None:
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_compose_is_what_the_command_line_composes() -> None:
    config = ms.compose(["model=2L64D", "optimizer=sgd", "optimizer.lr=1e-3"])
    assert (config.model.name, config.experiment_name) == ("2L64D", "2L64D")
    assert config.optimizer == SGDConfig(lr=1e-3)
    with pytest.raises(ValueError, match=r"model\.num_layers = -1: must be"):
        ms.compose(["model.num_layers=-1"])


def test_a_config_is_built_plainly() -> None:
    config = ms.Config(model=ms.ModelConfig(num_layers=2, hidden_dim=64))
    assert (config.model.name, config.experiment_name) == ("2L64D", "2L64D")
    assert (config.optimizer, config.data) == (AdamWConfig(), PydocsConfig())
    assert ms.Config(data=MarkovConfig()).data.vocab_size == 512


def test_a_run_has_its_numbers_model_and_plots(trained: ms.Run) -> None:
    assert trained.status == "finished"
    assert trained.config == ms.compose(TINY)
    assert list(trained.metrics["step"]) == list(range(1, 41))
    assert list(trained.evals["step"]) == [10, 20, 30, 40]
    assert trained.metadata["n_params"] == sum(part.numel() for part in trained.model().parameters())
    assert trained.snapshots.steps.tolist() == [0, 20, 40]
    assert torch.equal(trained.snapshots.W[-1], trained.model().embedding.weight)
    assert trained.dead_mask.sum() == trained.metadata["n_dead_tokens"]
    assert trained.verdict is not None
    assert trained.verdict.beats_unigram is True
    assert trained.generate("t1 t2", 3).split()[:2] == ["t1", "t2"]
    assert trained.generate("t1", 3, temperature=0) == trained.generate("t1", 3, temperature=0, seed=9)
    assert list(trained.figures()) == ["loss", "lattice", "hidden"]
    shown = trained._repr_html_()
    assert "The model beats unigram loss" in shown
    assert shown.count("data:image/png") == 3


def test_header_and_verdict_are_shown_and_logged(trained: ms.Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = ms.train([*TINY, "trainer.total_steps=2"], trained.path.parent / "shown")
    shown = capsys.readouterr().out
    for text in (shown, (run.path / "run.log").read_text()):
        assert "1L16D, 4,592 parameters" in text
        assert "1. The model beats unigram loss" in text


def test_runs_are_a_table(trained: ms.Run) -> None:
    table = ms.load_runs(trained.path)
    assert isinstance(table, pd.DataFrame)
    assert table.loc[0, "val_loss"] == pytest.approx(trained.evals["val_loss"].iloc[-1])


def test_ids_of_ones_own(tmp_path: Path) -> None:
    ids = torch.arange(4000) % 40
    run = ms.train([*TINY, "trainer.total_steps=2"], tmp_path / "run", tokens=ids)
    assert run.metadata["n_dead_tokens"] == 24
    assert run.metadata["corpus"]["num_val_tokens"] == 400
    assert ms.load_run(run.path).config == run.config
    with pytest.raises(ValueError, match=r"data.vocab_size = 64: must be above every id: number 3 of 4 .* is 64"):
        ms.train(TINY, tmp_path / "other", tokens=torch.tensor([0, 1, 2, 64]))
    with pytest.raises(ValueError, match=r"tokens = \(2,\) torch.float32: must be"):
        ms.train(TINY, tmp_path / "third", tokens=torch.ones(2))


def state_of_process() -> tuple[object, ...]:
    """What a call must leave as it was."""
    root, ours = logging.getLogger(), logging.getLogger("marble_sweep")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    loggers = [(each.level, list(each.handlers), each.propagate) for each in (root, ours)]
    methods = multiprocessing.get_start_method(allow_none=True)
    return dict(os.environ), handlers, loggers, methods, torch.get_num_threads(), os.getcwd(), threading.active_count()


def test_a_call_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = state_of_process()
    ms.train([*TINY, "trainer.total_steps=2", "device.num_threads=2"], tmp_path / "run")
    with pytest.raises(ValueError, match="batch_size"):
        ms.train([*TINY, "trainer.batch_size=100000"], tmp_path / "refused")
    assert state_of_process() == before


def test_hydra_is_left_as_it_was() -> None:
    """A notebook that uses Hydra itself keeps the version of its behaviour that it asked for."""
    code = """
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
import marble_sweep as ms
bases = lambda: [vars(each) for kind, each in Singleton._instances.items() if kind.__name__ == "VersionBase"]
GlobalHydra.instance(), ms.compose()
before = bases()
ms.compose(["model=2L64D"])
assert bases() == before
assert all(getattr(base["version_base"], "major", None) is None for base in before), before
assert not GlobalHydra.instance().is_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_changes_nothing() -> None:
    code = """
import multiprocessing, os, signal, sys, logging
state = lambda: (dict(os.environ), multiprocessing.get_start_method(allow_none=True), signal.getsignal(signal.SIGINT),
                 logging.getLogger().level, list(logging.getLogger().handlers))
before = state()
import marble_sweep
assert "torch" not in sys.modules
marble_sweep.train
assert state() == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_an_interrupt_saves_the_state(tmp_path: Path) -> None:
    def interrupt() -> None:
        rows = tmp_path / "run" / "metrics.csv"
        while not rows.exists() or rows.read_bytes().count(b"\n") < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    overrides = [*TINY, "trainer.total_steps=1000", "trainer.num_evals=1", "trainer.checkpoint_interval=1000"]
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ms.train(overrides, tmp_path / "run")
    thread.join()
    assert ms.load_run(tmp_path / "run").status == "interrupted"
    resumed = ms.train(directory=tmp_path / "run", resume=True)
    whole = ms.train(overrides, tmp_path / "whole")
    columns = [column for column in whole.metrics if column != "tokens_per_second"]
    pd.testing.assert_frame_equal(resumed.metrics[columns], whole.metrics[columns])
    with pytest.raises(ValueError, match="left out with resume=True"):
        ms.train(overrides, tmp_path / "run", resume=True)


def test_values_of_a_grid_are_what_hydra_reads() -> None:
    values: list[Any] = [None, True, 3, 1e-3, "adamw", "a, b (1).txt", "null", [0.9, 0.95]]
    words = [f"key={api._value(value)}" for value in values]
    read = [each.value() for each in OverridesParser.create().parse_overrides(words)]
    assert [str(each) if isinstance(each, QuotedString) else each for each in read[:5]] == values[:5]
    assert [each.text if isinstance(each, QuotedString) else each for each in read[5:]] == values[5:]


@pytest.mark.slow
def test_a_sweep_and_a_search(tmp_path: Path) -> None:
    sweep = ms.sweep(TINY, {"seed": [1, 2]}, tmp_path / "sweep")
    assert sorted(sweep.runs["seed"]) == [1, 2]
    assert set(sweep.runs["status"]) == {"finished"}
    with pytest.raises(ValueError, match=r"model\.foo: no such key"):
        ms.sweep([*TINY, "model.foo=1"], {"seed": [1, 2]}, tmp_path / "refused")
    small = ["model.num_layers=0,1", "model.hidden_dim=2,8", "trainer.total_steps=100", "search.n_trials=4"]
    found = ms.search([*TINY, *small], tmp_path / "search")
    assert found.summary["trials"] == len(found.runs) == 4
    assert str(found).startswith(("The smallest certified size", "Nothing is certified"))


@pytest.mark.slow
def test_a_frontier(tmp_path: Path) -> None:
    found = ms.frontier([*TINY, "model.num_layers=0", "model.hidden_dim=2,4", "search.n_trials=2"], tmp_path)
    assert found.summary["trials"] == len(found.runs) == 2
    assert list(found.sizes["n_params"]) == [164, 328]
    assert "a law needs 5 tuned sizes" in found.law["refused"]
    assert str(found).startswith("The lowest held-out losses after 40 steps")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\0rubbish"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "pipe": replace_by_pipe,
}
READERS = {
    "config.yaml": lambda run: run.config,
    "verdict.json": lambda run: run.verdict,
    "metrics.csv": lambda run: run.metrics,
    "evals.csv": lambda run: run.evals,
    "checkpoints.safetensors": lambda run: (run.snapshots, run.dead_mask),
    "model.safetensors": lambda run: run.model(),
    "tokenizer.json": lambda run: run.tokenizer,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named(name: str, damage: str, trained: ms.Run, tmp_path: Path) -> None:
    run = ms.load_run(shutil.copytree(trained.path, tmp_path / "run"))
    DAMAGES[damage](run.path / name)
    with pytest.raises(ValueError, match=rf"^[^\n]*{name}") as caught:
        READERS[name](run)
    assert type(caught.value) is CheckError


@pytest.mark.parametrize("content", ["{}", '{"criteria": [3]}', '{"criteria": [{"name": "a", "checks": [{"b": 1}]}]}'])
def test_a_verdict_that_is_none(content: str, trained: ms.Run, tmp_path: Path) -> None:
    run = ms.load_run(shutil.copytree(trained.path, tmp_path / "run"))
    (run.path / "verdict.json").write_text(content)
    with pytest.raises(ValueError, match=r"verdict.json: "):
        _ = run.verdict


def test_aliases_in_a_config_are_not_multiplied(trained: ms.Run, tmp_path: Path) -> None:
    run = ms.load_run(shutil.copytree(trained.path, tmp_path / "run"))
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 40)]
    (run.path / "config.yaml").write_text("a0: &a0 x\n" + "".join(levels))
    with pytest.raises(ValueError, match=r"config.yaml: must be YAML \(it has an alias\)"):
        ms.train(directory=run.path, resume=True)
