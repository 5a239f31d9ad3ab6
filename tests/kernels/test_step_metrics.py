"""The compiled metrics against torch's, against float64 and ml_dtypes, and against themselves on other CPUs.

Counts and the farthest motion are held exactly: float32 displacements are the same operation by operation, and near the
boundary of two regimes their squares and the sum of these are exact. A sum in float64 has the bound of its roundings.
"""

import ctypes
import math
import platform
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from bounds import FLOAT32, gamma
from compilers import needs_compiler

from marble_sweep.kernels import step_metrics as module
from marble_sweep.kernels.compiler import CompilerError, load_library, native_compiler
from marble_sweep.kernels.step_metrics import CompiledMetrics, Motion, compiled_metrics, in_parts
from marble_sweep.metrics.lattice import lattice_displacement, moving, regimes, token_motion

FLOAT64 = 2.0**-53
WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 64, 100]
DTYPES = [torch.bfloat16, torch.float32]
COUNTS = ("early", "midlife", "late", "frozen", "dead_moving", "live_moving")
Tables = tuple[torch.Tensor, torch.Tensor]

pytestmark = needs_compiler


@pytest.fixture
def compiled() -> CompiledMetrics:
    return CompiledMetrics()


# ------------------------------------------------------------------ embeddings before and after a step


def random_tables(vocab_size: int, width: int, dtype: torch.dtype) -> Tables:
    """Rows that stay, hop, wander and jump."""
    generator = torch.Generator().manual_seed(width)
    before = (torch.randn(vocab_size, width, generator=generator) * 0.02).bfloat16().float()
    sizes = torch.tensor([0.0, 2e-5, 1e-4, 1e-3])[torch.arange(vocab_size) % 4]
    after = before + torch.randn(vocab_size, width, generator=generator) * sizes[:, None]
    return before.to(dtype), after.to(dtype)


def planted_tables(vocab_size: int, width: int, dtype: torch.dtype) -> Tables:
    """Rows from 1 or -4 by whole and half cells, whose L2 lies at sqrt(D) or a quarter beyond it, in squares."""
    generator = np.random.default_rng(width)
    cells = np.zeros((vocab_size, width))
    for row in cells:
        left = width + generator.choice([-0.25, 0.0, 0.25])
        for dimension in generator.permutation(width):
            longest = math.floor(2 * math.sqrt(max(left, 0))) / 2
            row[dimension] = generator.choice([longest, min(1.0, longest), min(0.5, longest)])
            left -= row[dimension] ** 2
    start = np.where(np.arange(vocab_size) % 2, 1.0, -4.0)[:, None]
    towards_zero = np.where(cells % 1, -1, generator.choice([-1, 1], cells.shape))  # cells are halved there alone
    after = start + np.sign(start) * towards_zero * cells * np.abs(start) * 2.0**-7
    tables = torch.tensor(start).expand(vocab_size, width), torch.tensor(after)
    assert torch.equal(tables[1].bfloat16().double(), tables[1]), "must lie on the lattice"
    return tables[0].to(dtype).contiguous(), tables[1].to(dtype)


def any_bits(vocab_size: int, width: int, dtype: torch.dtype) -> Tables:
    """Every kind of number there is: subnormal, both zeros, infinities, NaN with and without its high bits."""
    generator = np.random.default_rng(1000 + width)
    special = np.array(
        [0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x7F7F, 0x7F80, 0xFF80, 0x7F81, 0x7FFF, 0xFFFF], np.uint16
    )
    bits = generator.integers(0, 1 << 16, (2, vocab_size, width), dtype=np.uint16)
    plain = generator.random(bits.shape) < 0.5
    bits[plain] = generator.choice(np.array(special, np.uint16), plain.sum())
    bits[1] = np.where(generator.random((vocab_size, width)) < 0.6, bits[0], bits[1])
    if dtype == torch.bfloat16:
        before, after = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    else:
        low = generator.choice(np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32), bits.shape)
        before, after = torch.from_numpy((bits.astype(np.uint32) << 16 | low).view(np.int32)).view(torch.float32)
    return before, after


TABLES = {"random": random_tables, "planted": planted_tables, "any bits": any_bits}


def rounded(weights: torch.Tensor) -> torch.Tensor:
    """To bfloat16, by ml_dtypes, which rounds subnormal numbers as any other."""
    if weights.dtype == torch.bfloat16:
        return weights
    with np.errstate(all="ignore"):
        return torch.from_numpy(weights.numpy().astype(ml_dtypes.bfloat16).view(np.int16)).view(torch.bfloat16)


def dead_tokens(vocab_size: int, kind: str) -> torch.Tensor:
    return {
        "none": torch.zeros(vocab_size, dtype=torch.bool),
        "all": torch.ones(vocab_size, dtype=torch.bool),
        "some": torch.arange(vocab_size) % 7 < 3,
    }[kind]


def counts(motion: Motion) -> dict[str, int]:
    return {name: getattr(motion, name) for name in COUNTS}


def counts_by_torch(before: torch.Tensor, after: torch.Tensor, dead: torch.Tensor) -> dict[str, int]:
    motion = token_motion(before[dead], after[dead])
    members = regimes(motion, before.shape[1])._asdict()
    named = {name: int(members[name].sum()) for name in ("early", "midlife", "late", "frozen")}
    moved = int((motion.l1 > 0).sum()), int(moving(before[~dead], after[~dead]).sum())
    return named | {"dead_moving": moved[0], "live_moving": moved[1]}


def counts_by_fractions(before: torch.Tensor, after: torch.Tensor, dead: torch.Tensor) -> dict[str, int]:
    """Without any rounding, from the weights themselves; of finite weights."""
    result = dict.fromkeys(COUNTS, 0)
    for token in range(len(before)):
        rows = zip(before[token].tolist(), after[token].tolist(), strict=True)
        cells = [abs(Fraction(new) - Fraction(old)) / cell_of(old) for old, new in rows]
        result["dead_moving" if dead[token] else "live_moving"] += any(cells)
        if dead[token]:
            is_local = sum(cell**2 for cell in cells) <= len(cells)
            far = "midlife" if is_local else "early"
            result["frozen" if not any(cells) else "late" if max(cells) <= 1 else far] += 1
    return result


def cell_of(weight: float) -> Fraction:
    """The distance of a bfloat16 to its neighbour away from zero."""
    exponent = max(math.frexp(weight)[1] - 1, -126) if weight else -126
    return Fraction(2) ** (exponent - 7)


@pytest.mark.parametrize("dead", ["none", "all", "some"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("width", WIDTHS)
def test_counts_and_the_farthest_motion_equal_torchs_exactly(
    width: int, kind: str, dtype: torch.dtype, dead: str, compiled: CompiledMetrics
) -> None:
    before, after = TABLES[kind](203, width, dtype)
    mask = dead_tokens(203, dead)
    motion = compiled.embedding_motion(before, after, mask, torch.ones(width))
    before, after = rounded(before), rounded(after)
    assert counts(motion) == counts_by_torch(before, after, mask)
    if dead != "none":
        linf = token_motion(before[mask], after[mask]).linf.amax().item()
        assert motion.linf == linf or (math.isnan(motion.linf) and math.isnan(linf))


@pytest.mark.parametrize("kind", ["random", "planted"])
@pytest.mark.parametrize("width", WIDTHS)
def test_counts_equal_those_without_rounding(width: int, kind: str, compiled: CompiledMetrics) -> None:
    before, after = TABLES[kind](61, width, torch.bfloat16)
    mask = dead_tokens(61, "some")
    motion = compiled.embedding_motion(before, after, mask, torch.ones(width))
    assert counts(motion) == counts_by_fractions(before, after, mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
def test_rows_longer_than_a_block(dtype: torch.dtype, compiled: CompiledMetrics) -> None:
    before, after = random_tables(5, 3001, dtype)
    mask = dead_tokens(5, "some")
    mean = compiled.summarise(before).mean
    assert (mean - before.double().mean(0)).abs().max() <= FLOAT32
    assert counts(compiled.embedding_motion(before, after, mask, mean)) == counts_by_torch(
        rounded(before), rounded(after), mask
    )


def test_planted_rows_lie_on_both_sides_of_the_boundary(compiled: CompiledMetrics) -> None:
    for width in (4, 9, 64, 100):
        before, after = planted_tables(203, width, torch.bfloat16)
        motion = compiled.embedding_motion(before, after, dead_tokens(203, "all"), torch.ones(width))
        assert min(motion.early, motion.midlife) > 20


@pytest.mark.parametrize("width", WIDTHS)
def test_the_sum_of_displacements_is_one_in_float64(width: int, compiled: CompiledMetrics) -> None:
    before, after = random_tables(203, width, torch.bfloat16)
    mask = dead_tokens(203, "some")
    cells = lattice_displacement(before[mask], after[mask]).abs()
    exact = math.fsum(cells.flatten().tolist())
    motion = compiled.embedding_motion(before, after, mask, torch.ones(width))
    assert motion.l1 == pytest.approx(exact, rel=gamma(cells.numel(), FLOAT64))
    by_torch = token_motion(before[mask], after[mask]).l1.sum().item()
    assert motion.l1 == pytest.approx(by_torch, rel=gamma(cells.numel()))


def test_numbers_that_do_not_exist_stay_so(compiled: CompiledMetrics) -> None:
    before, after = torch.ones(4, 3).bfloat16(), torch.ones(4, 3).bfloat16()
    after[1, 2], after[2, 0] = torch.nan, torch.inf
    one_dead = [torch.arange(4) == token for token in range(3)]
    motions = [compiled.embedding_motion(before, after, dead, torch.ones(3)) for dead in one_dead]
    assert [motion.linf for motion in motions[::2]] == [motion.l1 for motion in motions[::2]] == [0, math.inf]
    assert math.isnan(motions[1].linf)
    assert math.isnan(motions[1].l1)
    assert motions[1].dead_moving == motions[1].frozen == motions[1].late == motions[1].early == 0
    assert [motion.live_moving for motion in motions] == [2, 1, 1]


# --------------------------------------------------------------------------- top tokens


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("width", WIDTHS)
def test_top_tokens_are_those_of_float64(width: int, dtype: torch.dtype, compiled: CompiledMetrics) -> None:
    generator = torch.Generator().manual_seed(width)
    for vocab_size in (3, 1009):
        weights = torch.randn(vocab_size, width, generator=generator).to(dtype)
        mean = torch.randn(width, generator=generator)
        motion = compiled.embedding_motion(weights, weights, dead_tokens(vocab_size, "some"), mean)
        logits = rounded(weights).double() @ mean.double()
        assert [*motion.tokens] == logits.sort(descending=True, stable=True).indices[:3].tolist()


def test_of_equal_products_the_lower_token_comes_first_and_nan_before_all(compiled: CompiledMetrics) -> None:
    def top(values: list[float]) -> list[int]:
        weights = torch.tensor(values)[:, None].bfloat16()
        return [*compiled.embedding_motion(weights, weights, dead_tokens(len(values), "none"), torch.ones(1)).tokens]

    assert top([1, 2, 2, 1, 2]) == [1, 2, 4]
    assert top([-1, -3, -2, -3, -1]) == [0, 4, 2]
    assert top([-math.inf] * 4) == [0, 1, 2]
    assert top([1, 5, math.nan, 7, 6]) == [2, 3, 4]


# ------------------------------------------------------------------ gradients, updates and hidden states


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1001])
def test_the_norm_is_one_in_float64(size: int, dtype: torch.dtype, compiled: CompiledMetrics) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)).mul(1e-25).to(dtype)
    exact = math.sqrt(math.fsum(value * value for value in values.tolist()))
    assert compiled.norm(values) == pytest.approx(exact, rel=gamma(size + 2, FLOAT64), abs=0)


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("direction_dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
def test_updates_are_counted_one_by_one(
    dtype: torch.dtype, direction_dtype: torch.dtype, decays: bool, compiled: CompiledMetrics
) -> None:
    kinds = torch.tensor([0.0, -0.0, 2.0**-133, 1.0, -1.0, torch.inf, torch.nan])
    generator = torch.Generator().manual_seed(0)
    for size, offset in ((0, 0), (1, 3), (8, 1), (1003, 57)):
        directions, before, after = (
            kinds[torch.randint(len(kinds), (size + 60,), generator=generator)] for _ in range(3)
        )
        after = torch.where(torch.rand(len(after), generator=generator) < 0.5, before, after)
        directions, before, after = directions[:size].to(direction_dtype), before.to(dtype), after.to(dtype)
        intended = changed = 0
        rows = zip(directions.tolist(), before[offset:].tolist(), after[offset:].tolist(), strict=False)
        for direction, old, new in rows:
            meant = direction != 0 or (decays and old != 0)
            intended += meant
            changed += meant and new - old != 0
        assert compiled.count_updates(directions, before, after, offset, decays=decays) == (intended, changed)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("width", WIDTHS)
def test_hidden_states_are_summed_up_in_float64(width: int, dtype: torch.dtype, compiled: CompiledMetrics) -> None:
    hidden = (torch.randn(7, 43, width, generator=torch.Generator().manual_seed(width)) + 0.3).to(dtype)
    mean, norm, cosine = compiled.summarise(hidden)
    vectors = hidden.flatten(0, 1).double()
    assert (mean - vectors.mean(0)).abs().max() <= FLOAT32 * vectors.mean(0).abs().max() * 1.001
    norms = vectors.norm(dim=1)
    assert norm == pytest.approx(norms.mean().item(), rel=gamma(301 + width + 2, FLOAT64))
    cosines = vectors @ mean.double() / (norms * mean.double().norm())
    assert cosine == pytest.approx(cosines.mean().item(), abs=gamma(301 + 3 * width + 6, FLOAT64))


def test_a_hidden_state_of_length_zero_has_no_direction(compiled: CompiledMetrics) -> None:
    hidden = torch.ones(2, 3, 4)
    hidden[1, 2] = 0
    assert math.isnan(compiled.summarise(hidden).cosine)


def test_the_history_is_a_ring(compiled: CompiledMetrics) -> None:
    means = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    history = torch.full((3, 5), torch.nan)
    for step, mean in enumerate(means):
        cosines = compiled.remember(history, step, mean)
        for before, cosine in zip((step - 1, step - 3), cosines, strict=True):
            exact = (
                torch.cosine_similarity(means[before].double(), mean.double(), 0).item() if before >= 0 else math.nan
            )
            assert cosine == pytest.approx(exact, abs=gamma(20, FLOAT64), nan_ok=True)
        assert torch.equal(history[step % 3], mean)


# ------------------------------------------------------------- parts, threads, CPUs and compilers


def everything(compiled: CompiledMetrics) -> list[object]:
    """What every function gives, bit by bit."""
    results: list[object] = []
    for width in (1, 3, 4, 11, 64):
        for dtype in DTYPES:
            before, after = random_tables(509, width, dtype)
            mean, norm, cosine = compiled.summarise(before)
            motion = compiled.embedding_motion(before, after, dead_tokens(509, "some"), mean)
            counted = compiled.count_updates(after.flatten(), before.flatten(), after.flatten(), 0, decays=True)
            results += [mean.tolist(), norm, cosine, ctypes.string_at(ctypes.byref(motion), ctypes.sizeof(motion))]
            results += [counted, compiled.norm(after)]
    return results


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_parts_come_in_their_order_and_what_fails_in_one_is_raised(
    num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    assert in_parts(lambda first, last: (first, last), 10, 3) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert in_parts(lambda first, last: (first, last), 0, 3) == [(0, 0)]
    for failing in (0, 4, 8):
        with pytest.raises(ZeroDivisionError):
            in_parts(lambda first, _: 1 / (first - failing), 10, 2)  # noqa: B023


def test_the_number_of_threads_changes_no_bit(compiled: CompiledMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 64)
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(everything(compiled))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("kind", TABLES)
def test_parts_add_up_to_the_whole(kind: str, compiled: CompiledMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (3, 64):
        arguments = *TABLES[kind](203, width, torch.bfloat16), dead_tokens(203, "some"), torch.ones(width)
        whole = compiled.embedding_motion(*arguments)
        for rows in (1, 2, 100):
            monkeypatch.setattr(module, "PART", rows * width)
            parts = compiled.embedding_motion(*arguments)
            assert counts(parts) == counts(whole)
            assert [*parts.tokens] == [*whole.tokens]
            assert parts.linf == pytest.approx(whole.linf, rel=0, abs=0, nan_ok=True)
            assert parts.l1 == pytest.approx(whole.l1, rel=gamma(203 * width, FLOAT64), nan_ok=True)
        monkeypatch.undo()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are instructions of x86-64")
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
def test_other_instructions_change_no_bit(
    flag: str, compiled: CompiledMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU that lacks them; without AVX there are no fused multiply-adds either."""
    monkeypatch.setenv("CC", f"{native_compiler().command[0]} {flag}")
    load_library.cache_clear()
    try:
        other = CompiledMetrics()
    finally:
        load_library.cache_clear()
    assert everything(other) == everything(compiled)


def test_without_a_compiler_torch_measures(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("CC", "no-such-compiler")
    for cached in (load_library, module._compiled_metrics):
        cached.cache_clear()
    try:
        assert compiled_metrics(torch.device("cpu")) is None
        assert "Metrics are not compiled, and take longer without: no C compiler is found" in caplog.text
        with pytest.raises(CompilerError):
            CompiledMetrics()
    finally:
        module._compiled_metrics.cache_clear()


def test_other_devices_have_no_compiled_metrics() -> None:
    assert compiled_metrics(torch.device("meta")) is None
    assert compiled_metrics(torch.device("cpu")) is compiled_metrics(torch.device("cpu")) is not None


# ----------------------------------------------------------------------- what is refused, and what is not


def test_tensors_that_compiled_code_cannot_read_are_refused(compiled: CompiledMetrics) -> None:
    weights, dead, mean = torch.ones(5, 3), torch.ones(5, dtype=torch.bool), torch.ones(3)
    for wrong in (weights.double(), weights.half(), weights.to("meta")):
        with pytest.raises(TypeError, match=r"must be torch\.float32 or torch\.bfloat16 on the CPU, not"):
            compiled.norm(wrong)
        with pytest.raises(TypeError, match="on the CPU"):
            compiled.summarise(wrong)
    for before, after in ((weights, weights.bfloat16()), (weights, weights[:4])):
        with pytest.raises(TypeError, match="must be of one size and dtype"):
            compiled.embedding_motion(before, after, dead, mean)
        with pytest.raises(TypeError, match="must be of one size and dtype"):
            compiled.count_updates(weights, before, after, 0, decays=True)
    with pytest.raises(TypeError, match=r"must be torch\.bool"):
        compiled.embedding_motion(weights, weights, dead.int(), mean)
    for other_dead, other_mean in ((dead[:4], mean), (dead, mean[:2])):
        with pytest.raises(TypeError, match="are not those of 5 x 3"):
            compiled.embedding_motion(weights, weights, other_dead, other_mean)
    for offset in (-1, 1):
        with pytest.raises(TypeError, match="are not of 15 weights"):
            compiled.count_updates(weights, weights, weights, offset, decays=True)
    for history in (torch.ones(2, 4), torch.ones(3, 2).T):
        with pytest.raises(TypeError, match="must be contiguous"):
            compiled.remember(history, 0, mean)


def test_strided_tensors_are_read_in_their_order(compiled: CompiledMetrics) -> None:
    before, after = random_tables(50, 6, torch.bfloat16)
    expected = compiled.embedding_motion(before, after, dead_tokens(50, "some"), torch.ones(6))
    strided = before.T.contiguous().T, after.repeat(1, 2)[:, :6]
    motion = compiled.embedding_motion(*strided, dead_tokens(50, "some"), torch.ones(6))
    assert (counts(motion), motion.l1, motion.linf) == (counts(expected), expected.l1, expected.linf)
