"""Which products a run uses: decided from times, kept for all runs of a machine, recorded for resumed ones."""

import hashlib
import json
import logging
import time
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
from marble_sweep.training.products import (
    GAIN,
    HOPELESS,
    PROBE,
    REPEATS,
    as_metadata,
    candidates,
    choose_products,
    decide,
    recorded_products,
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
    assert len(seconds["quick"]) == REPEATS
    assert calls == [("slow", PROBE), ("quick", PROBE)] * 2 + [("quick", 1)] * REPEATS


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


# ------------------------------------------------------------------------- resuming


def test_a_resumed_run_keeps_what_it_recorded() -> None:
    config, recorded = tiny_config(), Products("bfloat16", "float32")
    assert recorded_products({"products": as_metadata(recorded, CPU)}, config, CPU) == recorded
    assert recorded_products({}, config, CPU) == DEFAULT, "an earlier version's run"


@pytest.mark.parametrize("recorded", [{}, [], "fused", {"matmul": "float32"}, {"matmul": "float32", "head": "other"}])
def test_damaged_records_are_refused(recorded: object) -> None:
    with pytest.raises(ValueError, match=r"products\.(matmul|head) = .*: must be one that cpu has"):
        recorded_products({"products": recorded}, tiny_config(), CPU)


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("name", COMPILED_HEADS)
def test_to_resume_without_the_runs_compiled_head_is_refused(name: str) -> None:
    recorded = {"products": {"matmul": "float32", "head": name}}
    with pytest.raises(ValueError, match=rf"device.head = {name}: must be another on this machine"):
        recorded_products(recorded, tiny_config(), CPU)
