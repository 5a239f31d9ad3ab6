"""One step's metrics against a recomputation in numpy, and the notebook's own functions written anew."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from bounds import FLOAT32, gamma

from marble_sweep.kernels.step_metrics import compiled_metrics
from marble_sweep.metrics import step as module
from marble_sweep.metrics.step import MEASURED, StepMetrics

V, D, B, T = 40, 12, 3, 5
DEAD = np.arange(V) % 3 == 0


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def _measured_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code where there is a compiler, and torch."""
    if request.param == "torch":
        monkeypatch.setattr(module, "compiled_metrics", lambda device: None)
    elif compiled_metrics(torch.device("cpu")) is None:
        pytest.skip("no C compiler is here")


# ---------------------------------------------------------------- the notebook, in numpy


def notebook_ulp(weights: np.ndarray) -> np.ndarray:
    exponent = weights.view(np.uint16).astype(np.int64) >> 7 & 0xFF
    return 2.0 ** (np.where(exponent == 0, 1, exponent) - 134)


def notebook_displacement(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (after.astype(np.float64) - before.astype(np.float64)) / notebook_ulp(before)


def notebook_fraction_moving(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    return float((np.abs(notebook_displacement(before[mask], after[mask])).sum(axis=1) > 0).mean())


def notebook_top3(weights: np.ndarray, h_mean: np.ndarray) -> list[int]:
    return np.argsort(-(weights.astype(np.float64) @ h_mean), kind="stable")[:3].tolist()


def notebook_autocorr(current: np.ndarray, previous: np.ndarray) -> float:
    return float(current @ previous / (np.linalg.norm(current) * np.linalg.norm(previous)))


# ------------------------------------------------------------------------ random steps


Step = dict[str, torch.Tensor]


def random_step(seed: int, weights_dtype: torch.dtype = torch.bfloat16) -> Step:
    """The arguments of `measure`: tokens that stay, hop, wander and jump, all of them both dead and live."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(V, D, generator=generator) * 0.02
    size = torch.tensor([0.0, 1e-5, 1e-4, 2e-2])[torch.arange(V) % 4]  # coprime with the dead tokens' 3
    after = before + torch.randn(V, D, generator=generator) * size[:, None]
    after[::4] = before[::4]
    return {
        "loss": torch.rand((), generator=generator) * 9,
        "hidden": torch.randn(B, T, D, generator=generator).to(weights_dtype) + 0.5,
        "gradient": torch.randn(V * D + D, generator=generator).to(weights_dtype),
        "prev_embedding": before.to(weights_dtype),
        "embedding": after.to(weights_dtype),
        "updates_lost": torch.rand((), generator=generator),
    }


def to_bf16(weights: torch.Tensor) -> np.ndarray:
    return weights.bfloat16().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def recompute(step: Step, means: list[np.ndarray], lag: int) -> dict[str, float]:
    """Every column in float64, from the arguments of `measure` and the h_means of the steps before."""
    before, after = to_bf16(step["prev_embedding"]), to_bf16(step["embedding"])
    vectors = step["hidden"].float().numpy().astype(np.float64).reshape(B * T, D)
    mean = vectors.mean(axis=0)
    norms = np.linalg.norm(vectors, axis=1)
    cells = np.abs(notebook_displacement(before, after))[DEAD]
    l1, l2, linf = cells.sum(axis=1), np.sqrt((cells**2).sum(axis=1)), cells.max(axis=1)
    top = notebook_top3(after, mean)
    means.append(mean)
    entries = step["gradient"].float().numpy().astype(np.float64)
    return {
        "loss": step["loss"].item(),
        "top1": top[0],
        "top2": top[1],
        "top3": top[2],
        "h_autocorr": notebook_autocorr(mean, means[-2]) if len(means) > 1 else math.nan,
        "dead_moving": notebook_fraction_moving(before, after, DEAD),
        "grad_norm": math.sqrt((entries**2).sum()),
        "h_norm": norms.mean(),
        "h_spread": 1 - np.mean([vector @ mean / np.linalg.norm(vector) / np.linalg.norm(mean) for vector in vectors]),
        "h_autocorr_lag": notebook_autocorr(mean, means[-1 - lag]) if len(means) > lag else math.nan,
        "live_moving": notebook_fraction_moving(before, after, ~DEAD),
        "dead_l1_mean": l1.mean(),
        "dead_linf_max": linf.max(),
        "dead_early": (l2 > math.sqrt(D)).mean(),
        "dead_midlife": ((linf > 1) & (l2 <= math.sqrt(D))).mean(),
        "dead_late": ((linf <= 1) & (l1 > 0)).mean(),
        "dead_frozen": (l1 == 0).mean(),
        "updates_lost": step["updates_lost"].item(),
    }


def metrics(lag: int = 4, dead: np.ndarray = DEAD) -> StepMetrics:
    return StepMetrics(torch.from_numpy(dead), D, lag)


def measured(recorder: StepMetrics, step: Step) -> dict[str, float]:
    values = recorder.measure(**step)
    assert values.dtype == torch.float32
    return dict(zip(MEASURED, values.tolist(), strict=True))


@pytest.mark.parametrize("weights_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("lag", [1, 3])
def test_every_column_equals_a_plain_recomputation(weights_dtype: torch.dtype, lag: int) -> None:
    recorder, means = metrics(lag), list[np.ndarray]()
    for number in range(8):
        step = random_step(number, weights_dtype)
        expected = recompute(step, means, lag)
        # A cosine is the longest way: means of B * T vectors, of which some cancel, then three sums of D products.
        error = gamma(4 * B * T + 3 * (D + 1))
        assert measured(recorder, step) == pytest.approx(expected, rel=error, abs=error, nan_ok=True)
        np.testing.assert_allclose(recorder.latest_mean.numpy(), means[-1], rtol=0, atol=4 * gamma(B * T + 1))
    # The steps exercise what they claim to.
    assert 0 < expected["dead_moving"] < 1
    assert min(expected[f"dead_{regime}"] for regime in ("early", "late", "frozen")) > 0
    regimes = [expected[f"dead_{regime}"] for regime in ("early", "midlife", "late", "frozen")]
    assert sum(regimes) == pytest.approx(1)


def test_midlife_is_counted() -> None:
    step = random_step(0)
    step["prev_embedding"] = torch.ones(V, D).bfloat16()
    step["embedding"] = step["prev_embedding"].clone()
    step["embedding"][3, 0] = 1 + 2 * 2.0**-7  # token 3 is dead; L2 = 2 < sqrt(12)
    values = measured(metrics(), step)
    assert values["dead_midlife"] == pytest.approx(1 / DEAD.sum())
    assert values["dead_frozen"] == pytest.approx(1 - 1 / DEAD.sum())
    assert values["dead_early"] == values["dead_late"] == values["live_moving"] == 0
    assert values["dead_linf_max"] == 2


def test_the_dead_are_told_from_the_living() -> None:
    step = random_step(0)
    step["embedding"] = step["prev_embedding"].clone()
    step["embedding"][~DEAD] += 1
    values = measured(metrics(), step)
    assert (values["dead_moving"], values["live_moving"]) == (0, 1)
    assert (values["dead_frozen"], values["dead_l1_mean"], values["dead_linf_max"]) == (1, 0, 0)


def test_autocorrelations_are_nan_until_there_is_something_to_compare_with() -> None:
    recorder = metrics(lag=3)
    rows = [measured(recorder, random_step(number)) for number in range(5)]
    assert [math.isnan(row["h_autocorr"]) for row in rows] == [True, False, False, False, False]
    assert [math.isnan(row["h_autocorr_lag"]) for row in rows] == [True, True, True, False, False]
    others = [value for row in rows for name, value in row.items() if not name.startswith("h_autocorr")]
    assert all(map(math.isfinite, others))


@pytest.mark.parametrize(
    ("dead", "undefined"),
    [
        (np.zeros(V, bool), ["dead_moving", "dead_l1_mean", "dead_linf_max"]),
        (np.zeros(V, bool), ["dead_early", "dead_midlife", "dead_late", "dead_frozen"]),
        (np.ones(V, bool), ["live_moving"]),
    ],
)
def test_what_no_token_has_is_nan(dead: np.ndarray, undefined: list[str]) -> None:
    recorder = metrics(lag=1, dead=dead)
    measured(recorder, random_step(0))
    values = measured(recorder, random_step(1))
    assert {name: values[name] for name in undefined} == pytest.approx(dict.fromkeys(undefined, math.nan), nan_ok=True)
    assert math.isfinite(values["dead_moving"]) != math.isfinite(values["live_moving"])


@pytest.mark.parametrize("num_dead", [1, 13, 3_699, 10_000])
def test_fractions_are_one_exactly_where_every_token_does_it(num_dead: int) -> None:
    before = torch.ones(10_000, 2).bfloat16()
    dead = torch.arange(10_000) < num_dead
    step = random_step(0) | {"hidden": torch.ones(1, 2, 2), "prev_embedding": before, "embedding": before + 1}
    values = dict(zip(MEASURED, StepMetrics(dead, 2, 1).measure(**step).tolist(), strict=True))
    assert values["dead_moving"] == values["dead_early"] == 1
    assert values["live_moving"] == 1 or num_dead == 10_000


def test_a_live_token_that_runs_off_leaves_the_dead_ones_numbers_alone() -> None:
    step = random_step(0)
    expected = measured(metrics(), step)
    step["prev_embedding"][1, 0], step["embedding"][1, 0] = 0.0, 1.0  # token 1 is live: 2^133 cells overflow a float32
    values = measured(metrics(), step)
    dead = [name for name in MEASURED if name.startswith("dead_")]
    assert {name: values[name] for name in dead} == {name: expected[name] for name in dead}


def test_a_sum_that_float32_cannot_hold_is_infinite() -> None:
    step = random_step(0)
    step["prev_embedding"][:, 0], step["embedding"][:, 0] = 0.0, 2.0**-6  # 2^127 cells, in every row
    values = measured(metrics(), step)
    assert values["dead_linf_max"] == 2.0**127
    assert values["dead_l1_mean"] >= 2.0**127  # infinite where the sum over tokens is one in float32
    step["prev_embedding"][:, 1:4], step["embedding"][:, 1:4] = 0.0, 2.0**-6
    assert measured(metrics(), step)["dead_l1_mean"] == math.inf
    step["embedding"][:, 4] = 2.0**127
    values = measured(metrics(), step)
    assert values["dead_linf_max"] == math.inf
    assert (values["dead_early"], values["dead_moving"]) == (1, 1)


def test_state_round_trip_continues_as_if_unbroken() -> None:
    unbroken, first = metrics(), metrics()
    for number in range(7):
        measured(unbroken, random_step(number))
        measured(first, random_step(number))
    saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = metrics()
    second.load_state_dict(saved)
    assert torch.equal(second.latest_mean, unbroken.latest_mean)
    for number in range(7, 15):
        step = random_step(number)
        assert torch.equal(second.measure(**step), unbroken.measure(**step))


@pytest.mark.parametrize(
    "entries",
    [
        torch.linspace(-0.3, 0.1, 10_000_000),
        torch.linspace(-0.3, 0.1, 10_000_000).bfloat16(),
        torch.full((10_000_000,), 0.1),  # every rounding error has the same sign
        torch.randn(10_000_000, generator=torch.Generator().manual_seed(0)) * 1e-21,  # float32 cannot hold the squares
        torch.randn(10_000_000, generator=torch.Generator().manual_seed(1)).exp() ** 4,  # a few outweigh the rest
        torch.cat([torch.ones(1), torch.full((9_999_999,), 1e-4)]),  # the many would vanish beside the one
    ],
    ids=["line", "bfloat16 line", "equal", "tiny", "heavy tail", "one large"],
)
def test_grad_norm_is_exact_for_millions_of_weights(entries: torch.Tensor) -> None:
    """Sums in float64 are off by 1e7 * 2^-53 at most; what remains is the rounding of the result to float32."""
    exact = math.sqrt(math.fsum((part.double() ** 2).sum().item() for part in entries.split(1_000_000)))
    values = measured(metrics(), random_step(0) | {"gradient": entries})
    assert values["grad_norm"] == pytest.approx(exact, rel=FLOAT32 + 1e7 * 2.0**-53)


def test_grad_norm_of_what_is_no_number() -> None:
    for entry in (math.nan, math.inf):
        entries = torch.ones(100)
        entries[7] = entry
        assert not math.isfinite(measured(metrics(), random_step(0) | {"gradient": entries})["grad_norm"])


def test_a_head_of_its_own_predicts_the_top_tokens_and_a_norm_before_clipping_is_the_norm() -> None:
    step = random_step(3)
    head = torch.randn(V, D, generator=torch.Generator().manual_seed(4))
    norm = torch.tensor(7.5)
    measured = StepMetrics(torch.zeros(V, dtype=torch.bool), D, 1).measure(**step, head=head, norm_before_clipping=norm)
    values = dict(zip(MEASURED, measured.tolist(), strict=True))
    expected = notebook_top3(head.bfloat16().float().numpy(), step["hidden"].double().mean((0, 1)).numpy())
    assert [values["top1"], values["top2"], values["top3"]] == expected
    assert expected != notebook_top3(step["embedding"].float().numpy(), step["hidden"].double().mean((0, 1)).numpy())
    assert values["grad_norm"] == 7.5
