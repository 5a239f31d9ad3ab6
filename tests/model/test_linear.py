"""Linear layers and attention in bfloat16, by the CPU's own products and by float32 ones."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from bounds import BFLOAT16, gamma
from operators import Operators

from marble_sweep.model import linear, products, transformer
from marble_sweep.model.linear import Linear, _WideLinear
from marble_sweep.model.products import Products
from marble_sweep.model.transformer import Transformer

either_way = pytest.mark.parametrize("has_units", [True, False], ids=["own", "float32"], indirect=True)


@pytest.fixture
def has_units(request: pytest.FixtureRequest) -> Iterator[None]:
    with products.using(Products(matmul="bfloat16" if request.param else "float32", head="float32")):
        yield


def layer_and_inputs(
    dtype: torch.dtype, num_in: int = 48, num_out: int = 40
) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layer = Linear(num_in, num_out).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    inputs = torch.randn(6, 50, num_in, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(6, 50, num_out, generator=generator).to(dtype)
    return layer, inputs, grad


def exact(layer: Linear, inputs: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients in float64, written out."""
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    rows, grads = inputs.detach().double().flatten(0, 1), grad.double().flatten(0, 1)
    return [rows @ weight.T + bias, grads @ weight, grads.T @ rows, grads.sum(0)]


def sizes(layer: Linear, inputs: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """The same sums over the sizes of their terms, to which rounding errors are relative."""
    twin = Linear(layer.in_features, layer.out_features).to(layer.weight.dtype)
    twin.load_state_dict({name: value.abs() for name, value in layer.state_dict().items()})
    return exact(twin, inputs.detach().abs(), grad.abs())


def measured(layer: Linear, inputs: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    output = layer(inputs)
    grads = torch.autograd.grad(output, (inputs, layer.weight, layer.bias), grad.to(output.dtype))
    return [output.detach().flatten(0, 1), grads[0].flatten(0, 1), *grads[1:]]


def test_gradients_of_widened_products_pass_gradcheck() -> None:
    """The products are linear, so a wide step costs nothing; the weight's gradient is rounded to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 5), (3, 5), (3,))
    operands = tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    assert torch.autograd.gradcheck(_WideLinear.apply, operands, eps=0.1, atol=1e-5, rtol=BFLOAT16)


@pytest.mark.parametrize("has_units", [False], indirect=True)
@pytest.mark.parametrize("rows", [7, 100, 300, 1000])
def test_float32_products_are_the_exact_ones_rounded_once(
    rows: int, has_units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "WIDE_ROWS", rows)  # of 300
    case = layer_and_inputs(torch.bfloat16)
    for ours, truth, size in zip(measured(*case), exact(*case), sizes(*case), strict=True):
        assert ours.dtype == torch.bfloat16
        # Half a unit in the last place, and what float32 sums of at most 300 terms lose where they nearly cancel.
        bound = BFLOAT16 * truth.abs() + (1 + BFLOAT16) * gamma(300 + 2) * size
        assert ((ours.double() - truth).abs() <= bound).all()


@either_way
def test_products_are_within_bfloat16s_rounding_of_float64(has_units: None) -> None:
    case = layer_and_inputs(torch.bfloat16)
    for ours, truth in zip(measured(*case), exact(*case), strict=True):
        assert ((ours.double() - truth).norm() / truth.norm()).item() < 2.0**-8


@either_way
def test_autocast_multiplies_in_bfloat16_and_leaves_gradients_in_float32(has_units: None) -> None:
    layer, inputs, grad = layer_and_inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(inputs)
        grads = torch.autograd.grad(output, (inputs, layer.weight, layer.bias), grad.bfloat16())
    assert output.dtype == torch.bfloat16
    assert {each.dtype for each in grads} == {torch.float32}
    rounded = F.linear(inputs.detach().bfloat16().double(), *(each.bfloat16().double() for each in layer.parameters()))
    operands = (each.bfloat16().double().abs() for each in (inputs.detach(), *layer.parameters()))
    bound = BFLOAT16 * rounded.abs() + (1 + BFLOAT16) * gamma(48 + 2) * F.linear(*operands)
    assert ((output.detach().double() - rounded).abs() <= bound).all()


@pytest.mark.parametrize("has_units", [False], indirect=True)
def test_float32_is_left_as_it_is(has_units: None) -> None:
    layer, inputs, _ = layer_and_inputs(torch.float32)
    assert torch.equal(layer(inputs), F.linear(inputs, layer.weight, layer.bias))


@pytest.mark.parametrize("has_units", [False], indirect=True)
def test_without_units_no_product_of_a_model_is_in_bfloat16(has_units: None) -> None:
    """Those are what such a CPU takes a hundred times as long for."""
    multiplied: list[tuple[str, torch.dtype]] = []

    def watch(operator: str, operands: list[torch.Tensor], _: object) -> None:
        name = operator.split(".")[0]
        if any(word in name for word in ("mm", "attention", "linear", "dot")):
            multiplied.extend((name, operand.dtype) for operand in operands)

    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(0))
    for weights, autocasts in ((torch.bfloat16, False), (torch.float32, True)):
        model = Transformer(50, 16, 2, 32, 2, 128, seed=0).to(weights)
        with Operators(watch), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocasts):
            hidden = model(tokens)
            hidden.sum().backward()
    names = {name for name, _ in multiplied}
    assert "aten::mm" in names
    assert any("attention" in name for name in names)
    assert torch.bfloat16 not in {dtype for _, dtype in multiplied}


@pytest.mark.parametrize("has_units", [False], indirect=True)
def test_backward_keeps_no_float32_copy_of_an_operand(has_units: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    narrow, save = transformer.save_as_bf16, torch.autograd.function.FunctionCtx.save_for_backward

    def seen(saved: torch.Tensor) -> torch.Tensor:
        kept.append(narrow(saved))
        return kept[-1]

    def saving(context: torch.autograd.function.FunctionCtx, *tensors: torch.Tensor) -> None:
        kept.extend(tensors)
        save(context, *tensors)

    monkeypatch.setattr(transformer, "save_as_bf16", seen)
    monkeypatch.setattr(torch.autograd.function.FunctionCtx, "save_for_backward", saving)
    model = Transformer(50, 16, 1, 32, 2, 128, seed=0).bfloat16()
    model(torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(0)))
    operands = [each for each in kept if each.ndim in (2, 4)]
    assert len(operands) == 4 * 2 + 4  # inputs and weight of four layers; queries, keys, values and output
    assert {each.dtype for each in operands} == {torch.bfloat16}
