"""The chunked head against a softmax over all logits in float64."""

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from bounds import FLOAT32, gamma
from compilers import has_compiler, needs_compiler
from operators import Operators
from torch.utils._python_dispatch import TorchDispatchMode

from marble_sweep.kernels.head import MAX_LANES, MAX_PARTS
from marble_sweep.model import products
from marble_sweep.model.loss import (
    ARGMAX_BLOCK,
    CPU_CHUNK_ROWS,
    SAFE_LOGIT,
    linear_cross_entropy,
    needs_shift,
    token_losses,
)
from marble_sweep.model.products import COMPILED_HEADS, HEADS, Products

V, D = 61, 16


@pytest.fixture(
    autouse=True,
    params=["float32_as_bf16", *(pytest.param(name, marks=needs_compiler) for name in ("fused", "float32_compiled"))],
)
def head(request: pytest.FixtureRequest) -> Iterator[str]:
    """All heads that round no logits are held to the same."""
    with products.using(Products(matmul="float32", head=request.param)):
        yield request.param


# Below a chunk, one row, a chunk exactly, one row more, several and a bit.
NUM_ROWS = [1, 7, CPU_CHUNK_ROWS, CPU_CHUNK_ROWS + 1, 3 * CPU_CHUNK_ROWS + 129]


Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # hidden, weight, targets; loss and the gradients of both


def example(num_rows: int, dtype: torch.dtype = torch.float32, vocab_size: int = V, scale: float = 1.0) -> Tensors:
    generator = torch.Generator().manual_seed(num_rows)
    hidden = torch.randn(num_rows, D, generator=generator).to(dtype)
    weight = (torch.randn(vocab_size, D, generator=generator) * scale).to(dtype)
    targets = torch.randint(vocab_size, (num_rows,), generator=generator)
    return hidden, weight, targets


def exact(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, factor: float = 1.0) -> Tensors:
    """Loss and gradients in float64, written out: no autograd, no cross_entropy."""
    hidden, weight = hidden.detach().double(), weight.detach().double()
    logits = hidden @ weight.T
    logits -= logits.amax(1, keepdim=True)
    sums = logits.exp().sum(1, keepdim=True)
    rows = torch.arange(len(targets))
    loss = (sums.log()[:, 0] - logits[rows, targets]).mean()
    logits_grad = logits.exp() / sums
    logits_grad[rows, targets] -= 1
    logits_grad *= factor / len(targets)
    return loss * factor, logits_grad @ weight, logits_grad.T @ hidden


def bounds(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, factor: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """How far float32 may be off from `exact`, entry by entry, whatever the order of its sums.

    An error in a logit is a relative one in its exponential; the softmax has two of them, and its sum's.
    """
    hidden, weight = hidden.detach().double(), weight.detach().double()
    rows, (vocab_size, width) = len(targets), weight.shape
    logits, sizes = hidden @ weight.T, (hidden.abs() @ weight.abs().T).amax(1, keepdim=True)
    off = gamma(width + 3) * sizes  # of every logit of a row: the product, and taking the maximum off
    relative = torch.expm1(2 * off) + gamma(vocab_size + 8)  # of every probability
    loss = logits.logsumexp(1, keepdim=True) - logits.gather(1, targets[:, None])
    loss_off = relative + off + gamma(4) * (sizes + math.log(vocab_size)) + gamma(rows + 8) * loss
    terms = logits.softmax(1).scatter_add(1, targets[:, None], torch.ones(rows, 1, dtype=torch.float64))
    terms *= abs(factor) / rows
    hidden_off = (terms @ weight.abs()) * (relative + gamma(vocab_size + 8))
    weight_off = ((relative + gamma(rows + 8)) * terms).T @ hidden.abs()
    return loss_off.mean() * abs(factor), hidden_off, weight_off, loss_off


def assert_within(
    measured: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], bound: Sequence[torch.Tensor]
) -> None:
    for name, ours, truth, allowed in zip(("loss", "hidden", "weight"), measured, expected, bound, strict=False):
        allowed = allowed + 2.0**-126  # what is smaller float32 takes for zero
        assert ((ours.double() - truth).abs() <= allowed).all(), name


def gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    factor: float = 1.0,
    function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = linear_cross_entropy,
) -> Tensors:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = factor * function(hidden, weight, targets)
    hidden_grad, weight_grad = torch.autograd.grad(loss, (hidden, weight))
    return loss.detach(), hidden_grad, weight_grad


def relative_error(measured: torch.Tensor, exact: torch.Tensor) -> float:
    return ((measured.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_float32_equals_the_full_softmax(num_rows: int) -> None:
    rows = example(num_rows)
    measured = gradients(*rows)
    assert {each.dtype for each in measured} == {torch.float32}
    assert_within(measured, exact(*rows), bounds(*rows))


@pytest.mark.parametrize("factor", [3.0, 1 / 128, -1.0])
def test_gradients_scale_with_what_flows_in(factor: float) -> None:
    rows = example(CPU_CHUNK_ROWS + 5)
    assert_within(gradients(*rows, factor=factor), exact(*rows, factor=factor), bounds(*rows, factor=factor))


def plain_bf16(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(hidden @ weight.T, targets)


def assert_as_good_as_plain(
    rows: Tensors, measured: Sequence[torch.Tensor], *, largest: float, factor: float, rest: float
) -> None:
    """Loss and gradients are within `largest` of the exact ones, and about as near as the plain formula's."""
    plain, expected = gradients(*rows, function=plain_bf16), exact(*rows)
    for name, ours, theirs, truth in zip(("loss", "hidden", "weight"), measured, plain, expected, strict=True):
        error = relative_error(ours, truth)
        assert error < largest, name
        assert error <= factor * relative_error(theirs, truth) + rest, name


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_bfloat16_is_no_worse_than_the_plain_formula(num_rows: int) -> None:
    rows = example(num_rows, torch.bfloat16)
    measured = gradients(*rows)
    assert [tensor.dtype for tensor in measured] == [torch.float32, torch.bfloat16, torch.bfloat16]
    # A unit in bfloat16's last place.
    assert_as_good_as_plain(rows, measured, largest=2.0**-7, factor=1.2, rest=2.0**-12)


@pytest.mark.parametrize("name", ["bfloat16", pytest.param("bfloat16_compiled", marks=needs_compiler)])
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_logits_in_bfloat16_are_about_as_good_as_the_plain_formula(num_rows: int, name: str) -> None:
    """These heads round their logits, as the plain formula does."""
    rows = example(num_rows, torch.bfloat16)
    with products.using(Products(matmul="float32", head=name)):
        measured = gradients(*rows)
    # Two units in bfloat16's last place; rows divided by their sums are rounded once more than there.
    assert_as_good_as_plain(rows, measured, largest=2.0**-6, factor=2, rest=2.0**-10)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_what_multiplies(name: str) -> None:
    """The dtypes of the operands tell the ways of torch's apart; the fused one multiplies nothing in torch."""
    multiplied: set[torch.dtype] = set()

    def watch(operator: str, operands: list[torch.Tensor], _: object) -> None:
        if operator.split(".")[0] in ("aten::mm", "aten::addmm_"):
            multiplied.update(operand.dtype for operand in operands)

    if name in COMPILED_HEADS and not has_compiler():
        pytest.skip("no C compiler is here")
    with products.using(Products(matmul="float32", head=name)), Operators(watch):
        gradients(*example(CPU_CHUNK_ROWS + 5, torch.bfloat16))
    expected = {"fused": set(), "bfloat16": {torch.bfloat16}, "bfloat16_compiled": {torch.bfloat16}}
    assert multiplied == expected.get(name, {torch.float32})


def test_a_loss_in_bfloat16_does_not_gather_rounding_over_many_chunks() -> None:
    """What torch's own chunked loss gets wrong: it adds the chunks up in bfloat16."""
    rows = example(40 * CPU_CHUNK_ROWS + 3, torch.bfloat16, scale=0.02)
    loss, _, weight_grad = gradients(*rows)
    expected, _, expected_weight_grad = exact(*rows)
    assert abs(loss.item() - expected.item()) <= bounds(*rows)[0]
    assert relative_error(weight_grad, expected_weight_grad) < 2.0**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_neither_overflow_nor_underflow(dtype: torch.dtype) -> None:
    rows = example(9, dtype, scale=100.0)
    measured, expected = gradients(*rows), exact(*rows)
    if dtype == torch.float32:
        assert_within(measured, expected, bounds(*rows))
    for ours, truth in zip(measured, expected, strict=True):
        assert relative_error(ours, truth) < 2.0**-7
    losses, _ = token_losses(rows[0], rows[1], rows[2][:, None])
    assert abs(losses.mean().item() - expected[0].item()) <= bounds(*rows)[0]


@pytest.mark.parametrize("bound", [0.99 * SAFE_LOGIT, 1.01 * SAFE_LOGIT])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_logits_about_the_bound_of_what_needs_no_shift(bound: float, sign: float) -> None:
    """All logits of a row near +bound or -bound, the largest ones that come without a shift and beyond it."""
    generator = torch.Generator().manual_seed(4)
    hidden, weight = torch.zeros(5, D), torch.randn(V, D, generator=generator)
    hidden[:, 0], weight[:, 0] = sign, 4.0
    hidden *= bound / weight.norm(dim=1).amax()
    targets = torch.arange(5)
    assert needs_shift(hidden, weight) == (bound > SAFE_LOGIT)
    rows = hidden, weight, targets
    assert_within(gradients(*rows), exact(*rows), bounds(*rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_no_number_makes_the_loss_none(dtype: torch.dtype, value: float, where: int) -> None:
    rows = example(CPU_CHUNK_ROWS + 3, dtype)
    rows[where][-1, -1] = value
    assert not gradients(*rows)[0].isfinite()
    assert not token_losses(rows[0], rows[1], rows[2][:, None])[0].mean().isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_predicted_almost_surely_keep_an_exact_gradient(dtype: torch.dtype) -> None:
    """softmax - one-hot is the difference of two near ones there: it must be taken before any rounding."""
    weight = torch.eye(V, D)
    hidden = 14 * torch.eye(D)
    rows = hidden.to(dtype), weight.to(dtype), torch.arange(D)
    loss, hidden_grad, _ = gradients(*rows)
    expected_loss, expected_hidden_grad, _ = exact(*rows)
    assert expected_loss < 1e-4
    # Products with zeros are exact; what is rounded is a sum of V terms, its logarithm, 14 in size, and the difference.
    assert loss.item() == pytest.approx(expected_loss.item(), abs=gamma(V + 4) + 3 * 14 * FLOAT32)
    assert relative_error(hidden_grad, expected_hidden_grad) < 2.0**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeated_targets_and_a_tied_weight(dtype: torch.dtype) -> None:
    """The head's weight is the embedding too: both paths' gradients meet in it."""
    embedding = example(3, dtype)[1].requires_grad_()
    tokens = torch.tensor([5, 5, 5, 0, V - 1])
    (measured,) = torch.autograd.grad(linear_cross_entropy(embedding[tokens], embedding, tokens.flip(0)), embedding)
    twin = embedding.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(twin[tokens] @ twin.T, tokens.flip(0)), twin)
    assert relative_error(measured, expected) < (gamma(2 * (V + D)) if dtype == torch.float32 else 2.0**-7)


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_one_gradient_alone(wanted: str) -> None:
    rows, place = example(CPU_CHUNK_ROWS + 1), ("hidden", "weight").index(wanted)
    rows[place].requires_grad_()
    (measured,) = torch.autograd.grad(linear_cross_entropy(*rows), rows[place])
    assert ((measured.double() - exact(*rows)[1 + place]).abs() <= bounds(*rows)[1 + place]).all()


def test_without_gradients_only_the_loss() -> None:
    rows = example(CPU_CHUNK_ROWS + 1)
    loss = linear_cross_entropy(*rows)
    assert not loss.requires_grad
    assert abs(loss.item() - exact(*rows)[0].item()) <= bounds(*rows)[0]
    assert linear_cross_entropy(rows[0].requires_grad_(), *rows[1:]).requires_grad
    with torch.no_grad():
        assert linear_cross_entropy(*rows).item() == loss.item()


def test_gradients_pass_gradcheck() -> None:
    """Central differences of steps of 1e-2: they are off by its square, and by float32's rounding divided by it."""
    hidden, weight, targets = example(5, torch.float64, vocab_size=9)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(hidden.float(), weight.float(), targets).double()

    rows = hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(loss, rows, eps=1e-2, atol=2e-4, rtol=1e-3)


def test_a_second_derivative_is_refused() -> None:
    """Its gradient is made in the forward pass, so what would come of it is not the second derivative."""
    hidden, weight, targets = example(3)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    (gradient,) = torch.autograd.grad(loss.square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class LargestTensor(TorchDispatchMode):
    """Watches every operation and remembers the largest tensor that one put out."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_never_exist_as_a_whole(dtype: torch.dtype) -> None:
    num_rows, vocab_size = 8 * CPU_CHUNK_ROWS, 300
    hidden, weight, targets = example(num_rows, dtype, vocab_size)
    with LargestTensor() as plain:
        gradients(hidden, weight, targets, function=plain_bf16)
    assert plain.numel >= num_rows * vocab_size, "the watch works"
    with LargestTensor() as ours:
        gradients(hidden, weight, targets)
    # Either way as large for any number of rows: logits of a chunk, or the compiled head's gradient in parts.
    assert ours.numel <= max(CPU_CHUNK_ROWS * vocab_size, MAX_PARTS * D * (vocab_size + MAX_LANES))
    with LargestTensor() as scoring:
        token_losses(hidden, weight, targets[:, None])
    assert scoring.numel < CPU_CHUNK_ROWS * (vocab_size + ARGMAX_BLOCK)


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_score_equals_the_full_softmax(num_rows: int, dtype: torch.dtype) -> None:
    hidden, weight, targets = example(num_rows, dtype)
    targets = torch.stack([targets, targets.flip(0), (targets + 1) % V], dim=1)
    losses, top = token_losses(hidden.requires_grad_(), weight.requires_grad_(), targets)
    log_probs = (hidden.double() @ weight.double().T).log_softmax(1)
    expected = -log_probs.gather(1, targets)
    assert (losses.shape, losses.dtype, top.shape, top.dtype) == (
        targets.shape,
        torch.float32,
        (num_rows,),
        torch.int64,
    )
    assert not losses.requires_grad
    allowed = bounds(hidden, weight, targets[:, 0])[3]  # products of bfloat16 are exact in float32: one bound for both
    assert ((losses.double() - expected.detach()).abs() <= 2 * allowed).all()
    short = log_probs.amax(1) - log_probs.gather(1, top[:, None])[:, 0]
    assert (short <= 2 * allowed[:, 0]).all()


@pytest.mark.parametrize("vocab_size", [1, ARGMAX_BLOCK - 1, ARGMAX_BLOCK, 3 * ARGMAX_BLOCK, 3 * ARGMAX_BLOCK + 1])
def test_the_most_probable_token_is_found_in_every_block(vocab_size: int) -> None:
    weight = torch.arange(1.0, vocab_size + 1).diag()  # row i's logits are all zero but the i-th
    hidden = torch.eye(vocab_size)
    _, top = token_losses(hidden, weight, torch.zeros(vocab_size, 1, dtype=torch.int64))
    assert top.tolist() == list(range(vocab_size))
    _, top = token_losses(-torch.ones(1, vocab_size), weight, torch.zeros(1, 1, dtype=torch.int64))
    assert top.tolist() == [0], "all logits negative: what pads the last block is not taken"
