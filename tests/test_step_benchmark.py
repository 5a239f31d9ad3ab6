"""The benchmark of a training step: its contenders run, and its numbers are what they say."""

import time

import pytest
import step
import torch
from plain_gpt import PlainGPT
from step import POLICIES, Clock, Setting
from step_table import table

from marble_sweep.model.transformer import Transformer
from marble_sweep.runs.csv_log import CsvLog
from marble_sweep.training import precision

TINY = Setting(num_layers=1, hidden_dim=4, batch_size=2, seq_len=8)


def test_a_setting_is_read_and_its_products_are_counted() -> None:
    setting = Setting.parse("4L128D@128x128")
    assert setting == Setting(4, 128, 128, 128)
    tokens, weights = 128 * 128, 4 * (3 + 1 + 4 + 4) * 128**2 + 10_000 * 128
    products = tokens * weights + 4 * 2 * 128 * 128 * tokens  # and queries x keys, probabilities x values
    assert setting.flops() == 6 * products


class Steps:
    """Stops after a few, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bool:
        self.count += 1
        return self.count < 3


def test_every_precision_policy_is_a_contender() -> None:
    assert tuple(precision.POLICIES) == POLICIES


def test_the_notebooks_loop_takes_steps() -> None:
    steps = Steps()
    step.train_notebook(TINY, "cpu", steps)
    assert steps.count == 3


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
def test_gpt2_takes_steps(bf16: bool) -> None:
    pytest.importorskip("transformers", reason="the bench extra is not installed")
    steps = Steps()
    step.train_gpt2(TINY, "cpu", steps, bf16=bf16)
    assert steps.count == 3


@pytest.mark.parametrize("name", ["plain bf16", "plain fp32", step.TORCHS_HEAD])
def test_the_plain_loop_takes_steps(name: str) -> None:
    if name == step.TORCHS_HEAD and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    steps = Steps()
    step.train_plain(TINY, "cpu", steps, name)
    assert steps.count == 3


def test_the_plain_model_computes_what_ours_does() -> None:
    """With the same weights its hidden states are those of our transformer, so the same arithmetic is timed."""
    plain, ours = PlainGPT(50, 32, 2, 1, 8), Transformer(50, 8, 2, 32, 1, 128, seed=0)
    names = {"attention_norm": "norms.0", "mlp_norm": "norms.1", "qkv": "attention_in", "projection": "attention_out"}
    names |= {"mlp_up": "mlp.0", "mlp_down": "mlp.2", "final_norm": "blocks.2"}
    state = {}
    for name, value in ours.state_dict().items():
        for part, its_name in names.items():
            name = name.replace(f"{part}.", f"{its_name}.")
        state[name] = value
    plain.load_state_dict(state)
    tokens = torch.arange(16).view(2, 8)
    torch.testing.assert_close(plain(tokens), ours(tokens))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bare", [False, True], ids=["all metrics", "bare"])
def test_ours_takes_steps_and_writes_its_rows(policy: str, bare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, float]] = []
    write = CsvLog.write

    def writing(log: CsvLog, rows: list[dict[str, float]]) -> None:
        written.extend(rows)
        write(log, rows)

    monkeypatch.setattr(CsvLog, "write", writing)
    steps = Steps()
    step.train_ours(TINY, "cpu", steps, f"{policy} bare" if bare else policy)
    assert [row["step"] for row in written] == [1, 2, 3]
    assert steps.count == 3
    assert all((row["loss"] == 0) == bare for row in written)


def test_a_clock_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock("cpu", seconds=10.0)
    durations, going = [50.0, 20.0, *[3.0] * 100], True
    while going:
        now[0] += durations[clock.step]
        going = clock()
    assert clock.step == step.WARM_UP_STEPS + 4  # three steps of 3 s are not yet 10 s
    assert clock.seconds_per_step == 3.0


def test_ratios_are_medians_over_rounds() -> None:
    def row(seconds: float, memory: int) -> dict[str, float]:
        return {
            "seconds_per_step": seconds,
            "memory": memory << 20,
            "first_step": 3.0,
            "import_torch": 1.0,
            "peak": 1e12,
        }

    rounds = {
        "notebook": [row(4.0, 900), row(8.0, 900), row(6.0, 900)],
        "bf16": [row(1.0, 300), row(1.0, 300), row(2.0, 300)],
    }
    found = {"rounds": rounds, "parts": {"head": 0.9, "the rest": 0.1, "step": 1.0}}
    shape = Setting.parse("4L128D@128x128")
    text = table("4L128D@128x128", found, tokens=128 * 128, flops=shape.flops())
    (line,) = [line for line in text.splitlines() if line.startswith("| bf16 |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["bf16", "60.0", "4.00", "16,384", "21.6%", "300", "0.33", "3.0", "2.0"]
    assert "head 900.00 ms (90.0%)" in text
