"""The compiled pass between a head's products, and the heads made of it, against float64."""

import math
import random
import threading
from concurrent.futures import Future

import pytest
import torch
from bounds import gamma
from compilers import needs_compiler
from heads import CHUNKED, Operands, error, exact, example, measured, threads

from marble_sweep.kernels.head import MAX_LANES
from marble_sweep.kernels.softmax import GROUP, PARTS, compiled_softmax, sharing_threads
from marble_sweep.model.loss import CPU_CHUNK_ROWS, needs_shift
from marble_sweep.model.products import Products

pytestmark = needs_compiler

FLOAT32, BFLOAT16 = Products("float32", "float32_compiled"), Products("float32", "bfloat16_compiled")
ROUNDED = Products("float32", "bfloat16")
NORM_ERROR = 1e-6  # of a float32 gradient, relative
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # the largest relative error of rounding to nearest

BLOCK = 32 * MAX_LANES  # words, of the widest vectors
# Below a vector, a vector exactly, a block of vectors and one more, a block and a rest.
VOCAB_SIZES = [1, 2, MAX_LANES - 1, MAX_LANES, 32 * MAX_LANES + 1, 1009]


def gradient(
    logits: torch.Tensor, targets: torch.Tensor, *, shifts: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the pass makes of the logits, and the sums and losses of their rows."""
    logits = logits.clone()
    sums, losses = torch.empty(2, len(logits))
    with sharing_threads() as share:
        compiled_softmax().gradient(logits, targets, sums, losses, needs_shift=shifts, share=share)
    return logits, sums, losses


def logits_of(
    num_rows: int, vocab_size: int, dtype: torch.dtype, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows + vocab_size)
    logits = (scale * torch.randn(num_rows, vocab_size, generator=generator)).to(dtype)
    return logits, torch.randint(vocab_size, (num_rows,), generator=generator)


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize(("scale", "shifts"), [(1.0, False), (1.0, True), (15.0, False), (15.0, True), (1000.0, True)])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_every_number_of_a_pass(vocab_size: int, scale: float, shifts: bool, dtype: torch.dtype) -> None:
    logits, targets = logits_of(GROUP + 3, vocab_size, dtype, scale)
    result, sums, losses = gradient(logits, targets, shifts=shifts)
    rows, wide = torch.arange(len(targets)), logits.double()
    peaks = wide.amax(1, keepdim=True) * shifts
    exps = (wide - peaks).exp()
    true_sums = exps.sum(1)
    # exp is off by 1.6e-7, which the difference of two logits adds half a unit of float32 to; sums add 53 roundings.
    relative = 2e-7 + 2.0**-24 * (wide - peaks).abs().amax().item()
    tail = vocab_size * math.exp(-87)  # what is smaller is not told from it
    assert ((sums.double() - true_sums).abs() <= (relative + 64 * 2.0**-24) * true_sums + tail).all()
    true_losses = wide.logsumexp(1) - wide[rows, targets]
    assert ((losses.double() - true_losses).abs() <= relative + 64 * 2.0**-24 + 2.0**-23 * wide.abs().amax()).all()
    expected = exps.clone()
    expected[rows, targets] -= true_sums
    allowed = (relative + UNIT[dtype]) * expected.abs() + 1.1 * math.exp(-87)
    allowed[rows, targets] += (
        2 * relative + 128 * 2.0**-24
    ) * true_sums  # a difference of what may be near to each other
    assert ((result.double() - expected).abs() <= allowed).all()


def test_bfloat16_is_rounded_to_nearest_with_ties_to_even() -> None:
    """Both dtypes work out the same float32 exponentials of the same logits."""
    logits, targets = logits_of(64, 1009, torch.bfloat16, 3.0)
    narrow, sums, losses = gradient(logits, targets)
    wide, wide_sums, wide_losses = gradient(logits.float(), targets)
    assert torch.equal(narrow, wide.bfloat16())
    assert torch.equal(sums, wide_sums)
    assert torch.equal(losses, wide_losses)
    # 2^(k / 256) is nowhere a tie, but 1 less an even sum may be: 1 - (V - 1) - 1 with all logits zero.
    for vocab_size in (258, 259, 260, 262):
        result, *_ = gradient(torch.zeros(1, vocab_size, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64))
        assert result[0, 0] == torch.tensor(1.0 - vocab_size).bfloat16()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("place", [0, MAX_LANES + 1, 100])
def test_a_logit_that_is_not_finite(place: int, dtype: torch.dtype, value: float) -> None:
    """NaN and infinity make the loss of their row NaN; a logit of -infinity has no probability."""
    logits, targets = logits_of(3, 101, dtype)
    logits[1, place], targets[1] = value, 50
    result, sums, losses = gradient(logits, targets, shifts=True)
    assert losses.isfinite().tolist() == [True, value == -torch.inf, True]
    assert result[[0, 2]].isfinite().all()
    if value == -torch.inf:
        assert result[1, place] <= 1.1 * math.exp(-87)
    else:
        assert sums[1].isnan()
        assert result[1].isnan().any()


def test_a_row_of_negative_infinities_has_no_loss() -> None:
    logits = torch.full((1, 40), -torch.inf)
    assert gradient(logits, torch.zeros(1, dtype=torch.int64), shifts=True)[2].isnan().all()


@pytest.mark.parametrize("vocab_size", [1, 33, 1009])
def test_rows_beside_a_chunk_are_left_alone(vocab_size: int) -> None:
    """A row is not a whole number of vectors: what follows the last one belongs to somebody else."""
    for dtype in UNIT:
        logits, targets = logits_of(5, vocab_size, dtype)
        memory = torch.full((7, vocab_size), 7.0, dtype=dtype)
        memory[1:6] = logits
        sums, losses = torch.empty(2, 5)
        with sharing_threads() as share:
            compiled_softmax().gradient(memory[1:6], targets, sums, losses, needs_shift=False, share=share)
        assert torch.equal(memory[1:6], gradient(logits, targets)[0])
        assert (memory[[0, 6]] == 7).all()


# ----------------------------------------------------------------------------- scores


def scores(logits: torch.Tensor, targets: torch.Tensor, *, shifts: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of all rows against their targets, and their most probable words."""
    losses, words = torch.empty(targets.shape), torch.empty(len(logits), dtype=torch.int64)
    with sharing_threads() as share:
        compiled_softmax().score(logits, targets, losses, words, needs_shift=shifts, share=share)
    return losses, words


@pytest.mark.parametrize(("scale", "shifts"), [(1.0, False), (1.0, True), (15.0, False), (15.0, True), (1000.0, True)])
@pytest.mark.parametrize("vocab_size", [*VOCAB_SIZES, 2 * BLOCK, 2 * BLOCK + 3 * MAX_LANES + 5])
def test_scores_equal_those_of_float64(vocab_size: int, scale: float, shifts: bool) -> None:
    logits, targets = logits_of(GROUP + 3, vocab_size, torch.float32, scale)
    several = torch.stack([targets, (targets + 1) % vocab_size, torch.zeros_like(targets)], dim=1)
    before = logits.clone()
    losses, words = scores(logits, several, shifts=shifts)
    assert torch.equal(logits, before)
    wide = logits.double()
    expected = wide.logsumexp(1, keepdim=True) - wide.gather(1, several)
    peaks = wide.amax(1, keepdim=True) * shifts
    relative = 2e-7 + 2.0**-24 * (wide - peaks).abs().amax().item()  # as in a pass, above
    assert ((losses.double() - expected).abs() <= relative + 64 * 2.0**-24 + 2.0**-23 * wide.abs().amax()).all()
    assert torch.equal(words, wide.argmax(1))


@pytest.mark.parametrize("vocab_size", [1, MAX_LANES + 1, BLOCK + 7, 3 * BLOCK + 70])
def test_of_equally_probable_words_it_is_the_first(vocab_size: int) -> None:
    chance = random.Random(vocab_size)
    logits = torch.zeros(40, vocab_size)
    first = []
    for row in logits:
        equal = sorted(chance.randrange(vocab_size) for _ in range(3))
        row[equal] = 1.0
        first.append(equal[0])
    targets = torch.zeros(40, 1, dtype=torch.int64)
    assert scores(logits, targets)[1].tolist() == first
    assert scores(torch.full((1, vocab_size), -5.0), targets[:1])[1].tolist() == [0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_score_of_a_row_that_is_not_finite(value: float) -> None:
    logits, targets = logits_of(3, 101, torch.float32)
    logits[1] = value
    losses, words = scores(logits, targets[:, None])
    assert losses[:, 0].isfinite().tolist() == [True, False, True]
    assert 0 <= words[1] < 101
    expected = scores(logits[[0, 2]], targets[[0, 2], None])
    assert torch.equal(losses[[0, 2]], expected[0])


@pytest.mark.parametrize("target", [-1, 101])
def test_no_score_against_a_target_beyond_the_vocabulary(target: int) -> None:
    logits, targets = logits_of(3, 101, torch.float32)
    targets[2] = target
    with pytest.raises(IndexError, match=r"targets must be in \[0, 101\)"):
        scores(logits, targets[:, None])


def test_the_number_of_threads_changes_no_score() -> None:
    logits, targets = logits_of(5 * GROUP + 1, 1009, torch.float32)
    results = []
    for number in (1, 2, 5):
        with threads(number):
            results.append(scores(logits, targets[:, None]))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (PARTS, MAX_LANES), (1009, 7)])
def test_accumulate(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    total, values = torch.randn(2, *shape, generator=generator)
    expected = total + values.bfloat16().float()
    with sharing_threads() as share:
        compiled_softmax().accumulate(total, values.bfloat16(), share)
    assert torch.equal(total, expected)


@pytest.mark.parametrize("target", [-1, 101, -(2**40)])
@pytest.mark.parametrize("how", [FLOAT32, BFLOAT16])
def test_a_target_beyond_the_vocabulary_is_refused(how: Products, target: int) -> None:
    hidden, weight, targets = example(10, 3, 101)
    targets[5] = target
    with pytest.raises(IndexError, match=r"targets must be in \[0, 101\)"):
        measured(hidden, weight, targets, how=how)


# ------------------------------------------------------------------------ the heads


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES[2:])  # the gradients of fewer are differences of what is near
@pytest.mark.parametrize("num_rows", [1, GROUP + 1, CPU_CHUNK_ROWS + 5])
@pytest.mark.parametrize("width", [1, 5, 64])
def test_float32_loss_and_gradients_equal_those_of_float64(width: int, num_rows: int, vocab_size: int) -> None:
    hidden, weight, targets = example(num_rows, width, vocab_size, scale=width**-0.5)
    loss, *gradients = measured(hidden, weight, targets, how=FLOAT32)
    true_loss, *true_gradients = exact(hidden, weight, targets)
    assert error(loss, true_loss) < NORM_ERROR
    # A gradient is a sum of terms of both signs, so what is rounded may be larger than the gradient.
    shares = (hidden.double() @ weight.double().T).softmax(1) / num_rows
    shares[torch.arange(num_rows), targets] += 1 / num_rows
    for ours, truth, terms in zip(
        gradients, true_gradients, (shares @ weight.abs().double(), shares.T @ hidden.abs().double()), strict=True
    ):
        roundings = max(num_rows, vocab_size) + width + 80  # of a sum, a logit, its exponential and their sum
        assert ((ours.double() - truth).abs() <= gamma(roundings) * terms).all()


def assert_about_as_good_as_rounded(rows: Operands) -> None:
    """Within two units of bfloat16, and about as near to float64 as with torch's operators between the products."""
    ours, theirs, truths = measured(*rows, how=BFLOAT16), measured(*rows, how=ROUNDED), exact(*rows)
    for name, mine, other, truth in zip(("loss", "hidden", "weight"), ours, theirs, truths, strict=True):
        assert error(mine, truth) < 2.0**-6, name
        assert error(mine, truth) <= 1.5 * error(other, truth) + 2.0**-10, name


@pytest.mark.parametrize("vocab_size", [2, MAX_LANES + 1, 1009])
@pytest.mark.parametrize("num_rows", [7, CPU_CHUNK_ROWS, 2 * CPU_CHUNK_ROWS + 5])
@pytest.mark.parametrize("width", [5, 64])
def test_bfloat16_loss_and_gradients_are_within_its_rounding(width: int, num_rows: int, vocab_size: int) -> None:
    assert_about_as_good_as_rounded(example(num_rows, width, vocab_size, width**-0.5, torch.bfloat16))


def test_the_first_step_of_a_real_heads_size() -> None:
    hidden, weight, targets = example(2 * CPU_CHUNK_ROWS + 9, 64, 10_000, 0.02, torch.bfloat16)
    assert_about_as_good_as_rounded((hidden, weight, targets))


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_logits_beyond_the_range_of_exp(scale: float) -> None:
    """A logit of size s is off by s roundings of float32, however it is computed, and so is its exponential."""
    rows = example(77, 3, 203, scale=scale)
    assert needs_shift(*rows[:2])
    allowed = 2 * 7 * (rows[0] @ rows[1].T).abs().max().item() * 2.0**-24 + NORM_ERROR
    for ours, truth in zip(measured(*rows, how=FLOAT32), exact(*rows), strict=True):
        assert (ours.double() - truth).norm() <= allowed * max(truth.norm().item(), 1.0)
    for ours in measured(rows[0].bfloat16(), rows[1].bfloat16(), rows[2], how=BFLOAT16):
        assert ours.isfinite().all()


@pytest.mark.parametrize("how", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("operand", [0, 1])
def test_what_is_not_finite_reaches_loss_and_gradients(operand: int, value: float, how: Products) -> None:
    dtype = torch.bfloat16 if how == BFLOAT16 else torch.float32
    rows = example(40, 3, 101, dtype=dtype)
    rows[operand][-1, -1] = value
    for ours, theirs in zip(measured(*rows, how=how), measured(*rows, how=CHUNKED), strict=True):
        assert not theirs.isfinite().all()
        assert not ours.isfinite().all()


@pytest.mark.parametrize("how", [FLOAT32, BFLOAT16])
def test_a_head_of_other_strides(how: Products) -> None:
    hidden, weight, targets = example(50, 4, 101, dtype=torch.bfloat16)
    strided = hidden.T.contiguous().T, weight.repeat(1, 2)[:, :4], targets.repeat_interleave(2)[::2]
    for ours, theirs in zip(measured(*strided, how=how), measured(hidden, weight, targets, how=how), strict=True):
        assert error(ours, theirs.double()) < 2.0**-7


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("num_rows", [1, GROUP, 5 * GROUP + 3])
@pytest.mark.parametrize("dtype", UNIT)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype, num_rows: int, shifts: bool) -> None:
    results = []
    for number in (1, 2, 3, 4, 40):
        with threads(number):
            results.append(gradient(*logits_of(num_rows, 1009, dtype), shifts=shifts))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_what_a_thread_raises_is_raised_by_the_call() -> None:
    both = threading.Barrier(2, timeout=60)

    def work(number: int) -> None:
        both.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ArithmeticError(str(number))

    with threads(2), sharing_threads() as share, pytest.raises(ArithmeticError):
        share(range(2), work)


def test_a_thread_that_has_not_begun_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the calling thread may have done all the work before another one begins."""
    done: list[int] = []
    with threads(2), sharing_threads() as share:
        monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", lambda *_: Future())
        share(range(9), done.append)
    assert done == list(range(9))
