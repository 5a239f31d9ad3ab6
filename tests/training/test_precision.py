"""Stochastic rounding, and what each policy says of its dtypes."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marble_sweep.groups import PRECISIONS
from marble_sweep.training.precision import POLICIES, round_stochastic


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bfloat16 at or nearest below and at or nearest above each float32, as float64."""
    exact = values.astype(np.float64)
    with np.errstate(over="ignore"):
        nearest = values.astype(ml_dtypes.bfloat16)
    infinity = ml_dtypes.bfloat16(np.inf)
    below = np.where(nearest.astype(np.float64) <= exact, nearest, np.nextafter(nearest, -infinity))
    above = np.where(nearest.astype(np.float64) >= exact, nearest, np.nextafter(nearest, infinity))
    return below.astype(np.float64), above.astype(np.float64)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50), st.integers(0, 99)
)
def test_only_the_two_neighbours_come_out(values: list[float], seed: int) -> None:
    exact = np.array(values, dtype=np.float32)
    rounded = round_stochastic(torch.from_numpy(exact), generator(seed))
    assert rounded.dtype == torch.bfloat16
    below, above = neighbours(exact)
    given_back = rounded.double().numpy()
    assert ((given_back == below) | (given_back == above)).all()


def test_both_neighbours_come_out() -> None:
    values = torch.full((1_000,), 1 + 2.0**-8)  # half way between 1 and the next
    assert set(round_stochastic(values, generator()).tolist()) == {1.0, 1 + 2.0**-7}


@pytest.mark.parametrize("share", [2**-16, 0.01, 0.25, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("base", [1.0, -1.0, 0.0157470703125, -3e-40])
def test_the_mean_is_the_value(base: float, share: float) -> None:
    base = float(torch.tensor(base).bfloat16())
    bits = torch.tensor(base).view(torch.int32) + round(share * 2**16)
    value = bits.view(torch.float32)
    count = 200_000
    drawn = round_stochastic(value.expand(count).contiguous(), generator()).double()
    cell = float((torch.tensor(base).view(torch.int32) + 2**16).view(torch.float32)) - base
    sigma = abs(cell) * np.sqrt(share * (1 - share) / count)
    assert abs(drawn.mean().item() - value.double().item()) < 5 * sigma


def test_the_mean_over_many_values_is_theirs() -> None:
    values = torch.randn(400_000, generator=generator(1)) * 0.02
    below, above = neighbours(values.numpy())
    error = round_stochastic(values, generator(2)).double().numpy() - values.double().numpy()
    variance = (values.double().numpy() - below) * (above - values.double().numpy())
    assert abs(error.sum()) < 5 * np.sqrt(variance.sum())
    assert (error**2).sum() == pytest.approx(variance.sum(), rel=0.02)  # neighbours are drawn one by one


def test_values_on_the_lattice_stay() -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32)
    lattice = bits.to(torch.uint16).view(torch.bfloat16)
    finite = lattice[lattice.isfinite()]
    rounded = round_stochastic(finite.float(), generator())
    assert torch.equal(rounded.view(torch.int16), finite.view(torch.int16)), "bit for bit, signs of zero too"


def test_what_is_no_number_stays_so() -> None:
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan])
    # A NaN whose only bit is among those cut off must not become an infinity.
    faint = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    for seed in range(5):
        rounded = round_stochastic(torch.cat([values, faint]), generator(seed))
        assert rounded[:2].tolist() == [torch.inf, -torch.inf]
        assert rounded[2:].isnan().all()


def test_draws_come_from_the_generator_alone() -> None:
    values = torch.randn(1_000, generator=generator(1))
    before = torch.get_rng_state()
    first, second = (round_stochastic(values, generator(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, round_stochastic(values, generator(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_policy_of_the_config_is_there() -> None:
    assert tuple(POLICIES) == PRECISIONS


@pytest.mark.parametrize(
    ("name", "stored", "product"),
    [
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("bf16_pure", torch.bfloat16, torch.bfloat16),
        ("bf16_stochastic", torch.bfloat16, torch.bfloat16),
        ("mixed", torch.float32, torch.bfloat16),
        ("fp32", torch.float32, torch.float32),
    ],
)
def test_products_are_computed_where_the_policy_says(name: str, stored: torch.dtype, product: torch.dtype) -> None:
    policy = POLICIES[name]
    weight = torch.ones(4, 4, dtype=policy.param_dtype)
    with policy.autocast(weight.device):
        assert (weight @ weight).dtype == product
    assert weight.dtype == stored
