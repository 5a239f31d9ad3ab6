"""Which products a run uses: decided from times, kept for all runs of a machine, recorded for resumed ones."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from compilers import needs_compiler
from helpers import tiny_config

from marble_sweep import groups
from marble_sweep.config import Config
from marble_sweep.kernels import head, softmax
from marble_sweep.kernels.compiler import load_library
from marble_sweep.model import products
from marble_sweep.model.products import COMPILED_HEADS, DEFAULT, HEADS, MATMULS, Products
from marble_sweep.training import products as training_products
from marble_sweep.training.products import (
    GAIN,
    HOPELESS,
    MAX_REPEATS,
    PROBE,
    REPEATS,
    as_metadata,
    candidates,
    choose_products,
    decide,
    recorded_products,
    shared_choice,
    time_candidates,
)

CPU = torch.device("cpu")
VOCAB_SIZE = 64


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARBLE_SWEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one, and with nothing loaded before."""
    load_library.cache_clear()
    head.fused_head.cache_clear()
    softmax.compiled_softmax.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")


def choose(config: Config) -> Products:
    return choose_products(config, CPU, VOCAB_SIZE)


def stored(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in (folder / "cache").glob("products-*/choice.json")]


def rewrite(entry: Path, choice: str) -> None:
    """Have an entry of the cache hold another choice, as if that had been measured."""
    content = json.dumps({"choice": choice}).encode()
    (entry / "choice.json").write_bytes(content)
    digests = {"choice.json": hashlib.sha256(content).hexdigest()}
    (entry / "manifest.json").write_text(json.dumps({"sha256": digests}))


def test_the_schema_offers_what_there_is() -> None:
    assert ("auto", *MATMULS) == groups.MATMULS
    assert ("auto", *HEADS) == groups.HEADS


# ------------------------------------------------------------------------- deciding


def test_the_quickest_single_time_decides() -> None:
    assert decide({"a": [5.0, 3.0, 9.0], "b": [4.0, 4.0, 4.0]}, "b") == "a"


def test_what_was_used_before_stays_unless_another_is_clearly_quicker() -> None:
    assert decide({"a": [GAIN * 1.01], "b": [1.0]}, "b") == "b"
    assert decide({"a": [GAIN * 0.99], "b": [1.0]}, "b") == "a"


def test_what_was_not_timed_is_not_chosen() -> None:
    assert decide({"a": [], "b": [2.0], "c": [1.0]}, "a") == "c"
    assert decide({"a": [], "b": [2.0]}, "b") == "b"


def test_candidates_take_turns_and_the_hopeless_are_left_out() -> None:
    calls = []

    def trial(name: str, share: int) -> None:
        calls.append((name, share))
        ends = time.thread_time() + (0.001 if name == "quick" else 0.001 * 10 * HOPELESS) / share
        while time.thread_time() < ends:
            pass

    seconds = time_candidates(["slow", "quick"], trial)
    assert seconds["slow"] == []
    assert REPEATS <= len(seconds["quick"]) <= MAX_REPEATS
    assert calls[:4] == [("slow", PROBE), ("quick", PROBE)] * 2
    assert set(calls[4:]) == {("quick", 1)}


@pytest.mark.parametrize(
    ("times", "repeats"),
    [
        ([5.0, 5.1, 9.0, 9.0, 9.0], REPEATS),
        ([5.0, 6.0, 9.0, 9.0, 9.0, 7.0, 5.1], 7),
        ([float(2**power) for power in range(MAX_REPEATS)], MAX_REPEATS),
    ],
)
def test_a_least_time_that_came_but_once_is_measured_again(
    times: list[float], repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose other work disturbs most of the repeats."""
    left = [0.0, 0.0, *times]  # of the two small parts first
    monkeypatch.setattr(training_products, "timed", lambda *_: left.pop(0))
    assert time_candidates(["one"], lambda *_: None) == {"one": times[:repeats]}


def test_measuring_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = set()
        time_candidates(["one"], lambda *_: seen.add(torch.get_num_threads()))
        assert (seen, torch.get_num_threads()) == ({1}, 3)
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------- choosing


@pytest.mark.parametrize("precision", ["bf16", "mixed", "fp32"])
def test_a_choice_is_one_of_the_candidates_and_is_kept(precision: str, tmp_path: Path) -> None:
    config = tiny_config(f"precision={precision}")
    chosen = choose(config)
    matmuls, heads = candidates(config, CPU)
    assert chosen.matmul in matmuls
    assert chosen.head in heads
    measured = stored(tmp_path)
    assert len(measured) == (len(matmuls) > 1) + 1
    assert choose(config) == chosen
    assert stored(tmp_path) == measured, "nothing is measured twice"
    assert products.current() == DEFAULT, "to choose is not to use"


def test_what_the_cache_holds_is_what_every_run_takes(tmp_path: Path) -> None:
    """The second of two machines' or processes' measurements does not count."""
    config = tiny_config("precision=fp32")
    choose(config)
    (entry,) = (tmp_path / "cache").glob("products-*")
    for choice in ("float32", "float32_compiled", "fused"):
        content = json.dumps({"choice": choice}).encode()
        (entry / "choice.json").write_bytes(content)
        (entry / "manifest.json").write_text(
            json.dumps({"sha256": {"choice.json": hashlib.sha256(content).hexdigest()}})
        )
        assert choose(config).head == choice


def test_other_shapes_are_other_choices(tmp_path: Path) -> None:
    for width in (4, 8):
        choose(tiny_config("precision=fp32", f"model.hidden_dim={width}"))
    assert len(stored(tmp_path)) == 2


def test_float32_is_never_rounded_inside() -> None:
    """bfloat16 inside would be another precision than the one asked for."""
    matmuls, heads = candidates(tiny_config("precision=fp32"), CPU)
    assert (matmuls, set(heads)) == (["float32"], {"float32", "fused", "float32_compiled"})


def test_what_is_fixed_by_hand_is_not_measured(tmp_path: Path) -> None:
    config = tiny_config("device.matmul=bfloat16", "device.head=float32")
    assert choose(config) == Products("bfloat16", "float32")
    assert stored(tmp_path) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["device.head=bfloat16", "precision=fp32"], "device.head = bfloat16: must be auto, float32, fused, float32_c"),
        (["device.matmul=bfloat16", "precision=fp32"], "device.matmul = bfloat16: must be auto, float32 on cpu"),
        (
            ["device.head=fused", "model.hidden_dim=128"],
            "device.head = fused: must be auto, float32, float32_as_bf16, b",
        ),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as raised:
        choose(tiny_config(*overrides))
    assert message in str(raised.value)


def test_a_gpu_multiplies_operands_as_they_are() -> None:
    cuda = torch.device("cuda")
    assert as_metadata(choose_products(tiny_config(), cuda, VOCAB_SIZE), cuda) is None
    with pytest.raises(ValueError, match=r"device.head = fused: must be auto on cuda"):
        choose_products(tiny_config("device.head=fused"), cuda, VOCAB_SIZE)


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_the_head_is_another_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose(tiny_config("precision=fp32")).head == "float32"
    assert caplog.messages == [
        "The head is not compiled, and training is slower without: no C compiler is found (no-such-compiler)"
    ]


@needs_compiler
@pytest.mark.parametrize("compiled", ["fused", "float32_compiled"])
def test_a_compiler_that_has_gone_is_done_without(
    compiled: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cache names a compiled head, from a time when there was one."""
    config = tiny_config("precision=fp32")
    choose(config)
    (entry,) = (tmp_path / "cache").glob("products-*")
    rewrite(entry, compiled)
    load_library.cache_clear()
    head.fused_head.cache_clear()
    softmax.compiled_softmax.cache_clear()
    monkeypatch.setenv("CC", "false")
    assert choose(config).head == "float32"


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("name", COMPILED_HEADS)
def test_a_head_that_is_asked_for_and_cannot_be_compiled_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device.head = {name}: must be another on this machine: no C"):
        choose(tiny_config(f"device.head={name}"))


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_no_width_has_a_compiled_head(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose(tiny_config("model.hidden_dim=64")).head in set(HEADS) - set(COMPILED_HEADS)
    assert len(caplog.messages) == 1


# ------------------------------------------------------------------- the jobs of one sweep


def on_another_machine(monkeypatch: pytest.MonkeyPatch, quickest: Products) -> None:
    """A machine whose cache is empty and which measures other candidates to be the quickest."""
    monkeypatch.setenv("MARBLE_SWEEP_CACHE", os.environ["MARBLE_SWEEP_CACHE"] + "-of-another")

    def times(names: Sequence[str], _: object) -> dict[str, list[float]]:
        return {name: [2.0 - (name == (quickest.matmul if "fused" not in names else quickest.head))] for name in names}

    monkeypatch.setattr(training_products, "time_candidates", times)


def test_the_first_job_of_a_shape_chooses_for_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, shared = tiny_config(), tmp_path / "sweep" / "products"
    shared.parent.mkdir()
    on_another_machine(monkeypatch, Products("bfloat16", "float32"))
    assert choose_products(config, CPU, VOCAB_SIZE, shared) == Products("bfloat16", "float32")
    assert {path.name: json.loads(path.read_text())["choice"] for path in shared.iterdir()} == {
        "matmul-16x1x64x8x16-bf16.json": "bfloat16",
        "head-16x64-bf16.json": "float32",
    }
    on_another_machine(monkeypatch, Products("float32", "bfloat16"))
    assert choose_products(config, CPU, VOCAB_SIZE, shared) == Products("bfloat16", "float32")
    assert choose_products(config, CPU, VOCAB_SIZE) == Products("float32", "bfloat16"), "a run in no sweep"
    for other in ("model.hidden_dim=8", "precision=bf16_pure"):
        assert choose_products(tiny_config(other), CPU, VOCAB_SIZE, shared) == Products("float32", "bfloat16")


def test_the_jobs_that_choose_at_once_choose_the_same(tmp_path: Path) -> None:
    path = tmp_path / "products" / "head.json"

    def chosen_after_another() -> str:
        assert shared_choice(path, HEADS, lambda: "float32") == "float32", "another job is quicker"
        return "bfloat16"

    assert shared_choice(path, HEADS, chosen_after_another) == "float32"


def test_what_is_fixed_by_hand_is_not_the_sweeps(tmp_path: Path) -> None:
    config = tiny_config("device.matmul=float32", "device.head=float32")
    assert choose_products(config, CPU, VOCAB_SIZE, tmp_path / "products") == Products("float32", "float32")
    assert not (tmp_path / "products").exists()


@pytest.mark.usefixtures("_no_compiler")
def test_a_job_without_the_compiled_head_of_its_sweep_is_refused(tmp_path: Path) -> None:
    """Another head would give other numbers than the sweep's other jobs have."""
    path = tmp_path / "head-16x64-fp32.json"
    path.write_text('{"choice": "fused"}')
    with pytest.raises(ValueError, match="must be possible") as raised:
        choose_products(tiny_config("precision=fp32"), CPU, VOCAB_SIZE, tmp_path)
    assert str(raised.value) == (
        "device.head = fused: must be possible on every machine of the sweep, which chose it "
        f"({path}); on this one: no C compiler is found (no-such-compiler)"
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"choice": "bfloat16"}', '{"choice": ["fused"]}'])
def test_a_sweeps_choice_that_cannot_be_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "head-16x64-fp32.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="must hold the sweep's choice, one of float32, fused") as raised:
        choose_products(tiny_config("precision=fp32"), CPU, VOCAB_SIZE, tmp_path)
    assert str(raised.value).startswith(str(path))


def test_a_pipe_in_place_of_a_sweeps_choice_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "head-16x64-fp32.json")
    with pytest.raises(ValueError, match="must hold the sweep's choice"):
        choose_products(tiny_config("precision=fp32"), CPU, VOCAB_SIZE, tmp_path)


# ------------------------------------------------------------------------- resuming


def test_a_resumed_run_keeps_what_it_recorded() -> None:
    config, recorded = tiny_config(), Products("bfloat16", "float32")
    assert recorded_products({"products": as_metadata(recorded, CPU)}, config, CPU) == recorded
    assert recorded_products({}, config, CPU) == DEFAULT, "an earlier version's run"


def test_other_products_than_the_run_began_with_are_refused() -> None:
    config, recorded = tiny_config("device.head=bfloat16"), {"products": {"matmul": "float32", "head": "float32"}}
    with pytest.raises(ValueError, match=r"device.head = bfloat16: must be auto or float32, with which the run began"):
        recorded_products(recorded, config, CPU)


def test_a_gpu_does_not_go_on_with_a_cpus_run() -> None:
    with pytest.raises(ValueError, match=r"device.type = cuda: must be cpu, to resume a run that began on one"):
        recorded_products({"products": as_metadata(DEFAULT, CPU)}, tiny_config(), torch.device("cuda"))
    assert recorded_products({"products": None}, tiny_config(), torch.device("cuda")) == DEFAULT


@pytest.mark.parametrize("recorded", [{}, [], "fused", {"matmul": "float32"}, {"matmul": "float32", "head": "other"}])
def test_damaged_records_are_refused(recorded: object) -> None:
    with pytest.raises(ValueError, match=r"products\.(matmul|head) = .*: must be one that cpu has"):
        recorded_products({"products": recorded}, tiny_config(), CPU)


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("name", COMPILED_HEADS)
def test_to_resume_without_the_runs_compiled_head_is_refused(name: str) -> None:
    recorded = {"products": {"matmul": "float32", "head": name}}
    said = rf"device.head = {name}: must be possible on this machine, to resume the run: no"
    with pytest.raises(ValueError, match=said):
        recorded_products(recorded, tiny_config(), CPU)
