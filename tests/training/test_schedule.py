"""The learning rate's course, at points worked out by hand and against torch's schedulers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from marble_sweep.groups import ConstantConfig, CosineConfig, LinearConfig, ScheduleConfig, WSDConfig
from marble_sweep.training.schedule import evaluation_steps, lr_scale

TOTALS = st.integers(3, 400)


def course(config: ScheduleConfig, total_steps: int) -> list[float]:
    return [lr_scale(config, step, total_steps) for step in range(1, total_steps + 1)]


def test_constant_is_constant() -> None:
    assert course(ConstantConfig(), 5) == [1.0] * 5


@pytest.mark.parametrize("schedule", [ConstantConfig, CosineConfig, LinearConfig, WSDConfig])
def test_warm_up_is_linear_and_ends_at_the_full_rate(schedule: type[ScheduleConfig]) -> None:
    config = schedule(warmup_steps=4)
    assert course(config, 100)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_constant_after_its_warm_up() -> None:
    assert course(ConstantConfig(warmup_steps=2), 5) == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("step", "scale"),
    [
        (20, 1.0),
        (40, 0.1 + 0.9 * (2 + math.sqrt(2)) / 4),
        (60, 0.55),
        (80, 0.1 + 0.9 * (2 - math.sqrt(2)) / 4),
        (100, 0.1),
    ],
)
def test_cosine_at_quarters_of_its_way(step: int, scale: float) -> None:
    assert lr_scale(CosineConfig(warmup_steps=20, final_fraction=0.1), step, 100) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize(("step", "scale"), [(10, 1.0), (60, 1.0), (61, 0.98), (80, 0.6), (99, 0.22), (100, 0.2)])
def test_wsd_holds_and_then_falls_in_a_line(step: int, scale: float) -> None:
    config = WSDConfig(warmup_steps=10, decay_fraction=0.4, final_fraction=0.2)
    assert lr_scale(config, step, 100) == pytest.approx(scale, rel=1e-12)


def test_wsd_whose_decay_would_reach_into_the_warm_up_begins_after_it() -> None:
    config = WSDConfig(warmup_steps=50, decay_fraction=1.0, final_fraction=0.0)
    assert lr_scale(config, 50, 100) == 1
    assert lr_scale(config, 75, 100) == pytest.approx(0.5)
    assert lr_scale(config, 100, 100) == 0


DECAYING = st.sampled_from([CosineConfig, LinearConfig, WSDConfig])


@given(DECAYING, st.floats(0, 1), TOTALS, st.data(), st.sampled_from([0.2, 0.5, 1.0]))
def test_the_course_rises_to_one_and_then_only_falls_to_its_end(
    schedule: type[CosineConfig],
    final_fraction: float,
    total_steps: int,
    data: st.DataObject,
    decay: float,
) -> None:
    warmup_steps = data.draw(st.integers(0, total_steps - 1))
    config = schedule(warmup_steps=warmup_steps, final_fraction=final_fraction)
    if isinstance(config, WSDConfig):
        config.decay_fraction = decay
    scales = course(config, total_steps)
    assert all(0 <= scale <= 1 for scale in scales)
    assert scales[:warmup_steps] == sorted(scales[:warmup_steps])
    falling = scales[warmup_steps:]
    assert all(after <= before + 1e-12 for before, after in zip(falling, falling[1:], strict=False))
    assert scales[-1] == pytest.approx(final_fraction, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
@pytest.mark.parametrize(
    "config",
    [each(warmup_steps=0, final_fraction=0.5) for each in (CosineConfig, LinearConfig, WSDConfig)],
    ids=["cosine", "linear", "wsd"],
)
def test_the_last_of_very_few_steps_still_gets_the_final_fraction(config: ScheduleConfig, total_steps: int) -> None:
    assert course(config, total_steps)[-1] == pytest.approx(0.5)


def torch_course(scheduler_of: Callable[[torch.optim.Optimizer], LRScheduler], total_steps: int) -> list[float]:
    """The rates that a torch scheduler gives, its step 0 being the rate before the first of ours."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = scheduler_of(optimizer)
    rates = [float(scheduler.get_last_lr()[0])]
    for _ in range(total_steps):
        optimizer.step()
        scheduler.step()
        rates.append(float(scheduler.get_last_lr()[0]))
    return rates


def test_cosine_equals_torchs_annealing() -> None:
    expected = torch_course(lambda optimizer: CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1), 50)
    assert course(CosineConfig(warmup_steps=0, final_fraction=0.1), 50) == pytest.approx(expected[1:], rel=1e-9)


def test_linear_equals_torchs_line() -> None:
    expected = torch_course(lambda optimizer: LinearLR(optimizer, start_factor=1, end_factor=0.1, total_iters=50), 50)
    assert course(LinearConfig(warmup_steps=0, final_fraction=0.1), 50) == pytest.approx(expected[1:], rel=1e-9)


def test_linear_falls_from_the_end_of_its_warm_up() -> None:
    config = LinearConfig(warmup_steps=20, final_fraction=0.2)
    assert [lr_scale(config, step, 100) for step in (20, 40, 100)] == pytest.approx([1.0, 0.8, 0.2], rel=1e-12)


def test_warm_up_equals_torchs_linear_rise() -> None:
    expected = torch_course(lambda optimizer: LinearLR(optimizer, start_factor=1 / 10, total_iters=9), 9)
    assert course(CosineConfig(warmup_steps=10), 50)[:10] == pytest.approx(expected, rel=1e-9)


def test_wsd_equals_torchs_sequence() -> None:
    def sequence(optimizer: torch.optim.Optimizer) -> LRScheduler:
        hold = LinearLR(optimizer, start_factor=1, total_iters=1)
        fall = LinearLR(optimizer, start_factor=1, end_factor=0.25, total_iters=10)
        return SequentialLR(optimizer, [hold, fall], milestones=[40])

    expected = torch_course(sequence, 50)
    config = WSDConfig(warmup_steps=0, decay_fraction=0.2, final_fraction=0.25)
    assert course(config, 50) == pytest.approx(expected[1:], rel=1e-9)


def test_linear_evaluations_are_equally_far_apart_and_end_at_the_end() -> None:
    assert evaluation_steps(5000, 20, "linear") == list(range(250, 5001, 250))
    assert evaluation_steps(1000, 10, "linear") == list(range(100, 1001, 100))
    assert evaluation_steps(40, 3, "linear") == [13, 26, 40]
    assert evaluation_steps(40, 1, "linear") == [40]


def test_geometric_evaluations_are_a_factor_of_root_two_apart_and_end_at_the_end() -> None:
    assert evaluation_steps(400, 9, "geometric") == [25, 35, 50, 71, 100, 141, 200, 283, 400]
    assert evaluation_steps(3, 9, "geometric") == [1, 2, 3]
    assert evaluation_steps(400, 1, "geometric") == [400]
    assert evaluation_steps(10**12, 100_000, "geometric")[0] == 1


@given(TOTALS, st.integers(1, 500))
def test_there_are_never_more_evaluations_than_steps(total_steps: int, num_evals: int) -> None:
    linear, geometric = (evaluation_steps(total_steps, num_evals, name) for name in ("linear", "geometric"))
    assert len(linear) == min(num_evals, total_steps)
    assert max(map(len, (linear, geometric))) <= min(num_evals, total_steps)
    for steps in (linear, geometric):
        assert steps == sorted(set(steps))
        assert steps[0] >= 1
        assert steps[-1] == total_steps
