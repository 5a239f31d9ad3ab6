"""The compiled head against float64, for widths, vocabularies and numbers of rows that leave rests everywhere."""

import pytest
import torch
from compilers import needs_compiler
from heads import CHUNKED, error, exact, example, measured, threads

from marble_sweep.kernels import head
from marble_sweep.kernels.head import GROUP, MAX_LANES, MAX_PARTS, fused_head, most_parts
from marble_sweep.model.loss import SAFE_LOGIT, needs_shift

pytestmark = needs_compiler

WIDTHS = [1, 2, 3, 4, 5, 8, 11, 16, 24]
NORM_ERROR = 1e-6  # of a float32 gradient, relative; thrice what was measured at most


@pytest.mark.parametrize("vocab_size", [2, MAX_LANES - 1, MAX_LANES, 1009])
@pytest.mark.parametrize("num_rows", [1, GROUP, GROUP * MAX_PARTS + 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_loss_and_gradients_equal_those_of_float64(width: int, num_rows: int, vocab_size: int) -> None:
    rows = example(num_rows, width, vocab_size, scale=0.5)
    for ours, truth in zip(measured(*rows), exact(*rows), strict=True):
        assert error(ours, truth) < NORM_ERROR


@pytest.mark.parametrize("width", [1, 4, 16])
def test_a_real_heads_size(width: int) -> None:
    rows = example(501, width, 10_000, scale=0.1)
    for ours, truth in zip(measured(*rows), exact(*rows), strict=True):
        assert error(ours, truth) < NORM_ERROR


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_logits_beyond_the_range_of_exp(width: int, scale: float) -> None:
    """A logit of size s is off by s roundings of float32, however it is computed, and so is its exponential."""
    rows = example(77, width, 203, scale=scale)
    assert needs_shift(*rows[:2])
    largest = (rows[0] @ rows[1].T).abs().max().item()
    loss, *gradients = measured(*rows)
    true_loss, *true_gradients = exact(*rows)
    allowed = (width + 4) * largest * 2.0**-24
    assert abs(loss.item() - true_loss.item()) < 2 * allowed
    for ours, truth in zip(gradients, true_gradients, strict=True):
        assert error(ours, truth) < 2 * allowed + NORM_ERROR


def test_rows_whose_logits_are_all_far_below_zero() -> None:
    """The zeros that fill up the vocabulary's last vector are no logits: nothing may be measured against them."""
    hidden, weight, targets = example(11, 2, 101)
    hidden, weight = -hidden.abs() - 1, weight.abs() + 500
    for ours, truth in zip(measured(hidden, weight, targets), exact(hidden, weight, targets), strict=True):
        assert error(ours, truth) < 6 * 3000 * 2.0**-24


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 0.0])
def test_subnormal_and_no_weights(scale: float) -> None:
    hidden, weight, targets = example(19, 4, 101, scale=scale)
    loss, hidden_grad, weight_grad = measured(hidden, weight, targets)
    true_loss, true_hidden_grad, true_weight_grad = exact(hidden, weight, targets)
    assert error(loss, true_loss) < NORM_ERROR
    assert error(weight_grad, true_weight_grad) < NORM_ERROR
    # What comes of subnormal numbers may be taken for zero.
    assert (hidden_grad.double() - true_hidden_grad).abs().max() <= 1e-6 * true_hidden_grad.abs().max() + 2.0**-126


@pytest.mark.parametrize("width", WIDTHS)
def test_bfloat16_is_the_float32_result_rounded_once(width: int) -> None:
    """bfloat16 operands are float32 numbers too; only the gradients are rounded, each to half a unit."""
    hidden, weight, targets = example(130, width, 509, dtype=torch.bfloat16)
    loss, *gradients = measured(hidden, weight, targets)
    wide_loss, *wide_gradients = measured(hidden.float(), weight.float(), targets)
    assert torch.equal(loss, wide_loss)
    for narrow, wide in zip(gradients, wide_gradients, strict=True):
        assert narrow.dtype == torch.bfloat16
        assert torch.equal(narrow, wide.bfloat16())


@pytest.mark.parametrize("num_rows", [1, 9, 300, 2032])
def test_the_number_of_threads_changes_no_bit(num_rows: int) -> None:
    rows = example(num_rows, 4, 1009)
    results = []
    for number in (1, 2, 3, 4, 40):
        with threads(number):
            results.append(measured(*rows))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize(("width", "vocab_size", "parts"), [(4, 1_000_000, 8), (48, 10_000, 16), (48, 150_000, 4)])
def test_the_gradients_of_all_parts_are_bounded(width: int, vocab_size: int, parts: int) -> None:
    assert most_parts(width, vocab_size) == parts
    assert parts * width * vocab_size * 4 <= 2**27


def test_a_large_vocabulary_has_fewer_parts_whatever_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "PARTS_SIZE", 4 * 4 * 1024)
    rows = example(300, 4, 1009)
    with threads(1):
        few = measured(*rows)
    for ours, truth in zip(few, exact(*rows), strict=True):
        assert error(ours, truth) < NORM_ERROR
    with threads(7):
        assert all(map(torch.equal, measured(*rows), few))
    monkeypatch.setattr(head, "PARTS_SIZE", 16 * 4 * 1024)
    assert not torch.equal(measured(*rows)[2], few[2]), "their sum is taken in another order"


def test_the_same_twice_and_whatever_the_memory_held_before() -> None:
    rows = example(300, 5, 1009)
    first = measured(*rows)
    for size in (MAX_LANES * 64, 5 * 1024 * MAX_PARTS):
        torch.full((size,), torch.nan)  # freed at once, for the next allocation to find
        assert all(map(torch.equal, measured(*rows), first))


@pytest.mark.parametrize("width", WIDTHS)
def test_it_equals_the_chunked_head(width: int) -> None:
    rows = example(333, width, 777)
    for ours, theirs in zip(measured(*rows), measured(*rows, how=CHUNKED), strict=True):
        assert error(ours, theirs.double()) < 2 * NORM_ERROR


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("operand", [0, 1])
def test_what_is_not_finite_reaches_loss_and_gradients(operand: int, value: float) -> None:
    rows = example(40, 3, 101)
    rows[operand][-1, -1] = value
    for ours, theirs in zip(measured(*rows), measured(*rows, how=CHUNKED), strict=True):
        assert not theirs.isfinite().all()
        assert not ours.isfinite().all()


@pytest.mark.parametrize("target", [-1, 101, -(2**40)])
def test_a_target_beyond_the_vocabulary_is_refused(target: int) -> None:
    hidden, weight, targets = example(10, 3, 101)
    targets[5] = target
    with pytest.raises(IndexError, match=r"targets must be in \[0, 101\)"):
        measured(hidden, weight, targets)


def test_operands_that_compiled_code_cannot_read_are_refused() -> None:
    hidden, weight, targets = example(10, 3, 101)
    for operands in ((hidden.double(), weight), (hidden, weight.half())):
        with pytest.raises(TypeError, match="operands must be float32 or bfloat16 on the CPU"):
            fused_head(3)(*operands, targets, safe_logit=SAFE_LOGIT, gradients=True)
    with pytest.raises(TypeError, match="operands must be of width 3, not 2"):
        fused_head(3)(hidden, weight[:, :2], targets, safe_logit=SAFE_LOGIT, gradients=True)
    for few in (targets[:-1], targets.int()):
        with pytest.raises(TypeError, match="targets must be 10 of int64"):
            fused_head(3)(hidden, weight, few, safe_logit=SAFE_LOGIT, gradients=True)


def test_operands_of_any_strides() -> None:
    hidden, weight, targets = example(50, 4, 101)
    expected = measured(hidden, weight, targets)
    strided = hidden.T.contiguous().T, weight.repeat(1, 2)[:, :4], targets.repeat_interleave(2)[::2]
    assert all(map(torch.equal, measured(*strided), expected))


def test_no_rows_at_all() -> None:
    result = fused_head(3)(
        torch.empty(0, 3), torch.ones(7, 3), torch.empty(0, dtype=torch.int64), safe_logit=SAFE_LOGIT, gradients=True
    )
    assert result.loss == 0
    assert result.grad_weight is not None
    assert torch.equal(result.grad_weight, torch.zeros(7, 3))


def test_an_exponential_is_within_its_bound() -> None:
    """softmax over two words is 1 / (1 + exp(-x)): its loss for x from -59 to 0 shows exp."""
    logits = torch.linspace(-59.0, 0.0, 20_011)[:, None]
    weight = torch.tensor([[1.0], [0.0]])
    result = fused_head(1)(
        logits, weight, torch.zeros(len(logits), dtype=torch.int64), safe_logit=SAFE_LOGIT, gradients=True
    )
    assert result.grad_hidden is not None
    truth = torch.expm1(logits.double().neg()).add(2).reciprocal()  # the first word's probability
    # d loss / d x = p - 1 is near -1 where p is small: p itself is the gradient of the second word's loss.
    other = fused_head(1)(
        logits, weight, torch.ones(len(logits), dtype=torch.int64), safe_logit=SAFE_LOGIT, gradients=True
    )
    assert other.grad_hidden is not None
    relative = (other.grad_hidden.double() / truth - 1).abs()
    # exp2's 1.6e-7; x log2(e) is rounded, and log2(e) itself, each x half units; the sum, the quotient.
    allowed = 1.6e-7 + (2 * logits.double().abs() + 4) * 2.0**-24
    assert (relative <= allowed).all()
