"""Each optimizer under each precision policy, against torch's own optimizer driven by hand."""

import copy
import math
from typing import Any

import pytest
import torch
from bounds import BFLOAT16, gamma
from safetensors.torch import load, save
from tiny_model import Tiny, give, gradients
from torch import nn

from marble_sweep.groups import AdamConfig, AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from marble_sweep.training import optimizer as module
from marble_sweep.training.optimizer import FlatOptimizer
from marble_sweep.training.precision import POLICIES, round_stochastic

OPTIMIZERS = {
    "adamw": AdamWConfig(lr=1e-3, weight_decay=0.1),
    "adam": AdamConfig(lr=1e-3, weight_decay=0.01),
    "sgd": SGDConfig(lr=1e-2, weight_decay=0.01, momentum=0.9, nesterov=True),
    "sgd without momentum": SGDConfig(lr=1e-2, momentum=0.0),
    "muon": MuonConfig(lr=1e-3, weight_decay=0.1, momentum=0.9),
}
every_optimizer = pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_policy = pytest.mark.parametrize("precision", POLICIES)


def plain_optimizers(config: OptimizerConfig, model: nn.Module, **kernel: bool) -> list[torch.optim.Optimizer]:
    """Torch's optimizers for a model, as a user who knows nothing of policies would write them."""
    weights = list(model.parameters())
    if isinstance(config, SGDConfig):
        settings: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
        return [torch.optim.SGD(weights, lr=config.lr, weight_decay=config.weight_decay, **settings, **kernel)]
    adam: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, **kernel}
    adam |= {"lr": config.lr, "weight_decay": config.weight_decay}
    if isinstance(config, MuonConfig):
        matrices = [model.get_parameter(f"blocks.{block}.weight") for block in range(2)]
        rest = [weight for weight in weights if all(weight is not matrix for matrix in matrices)]
        settings = {"lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
        muon = torch.optim.Muon(matrices, **settings, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(rest, **adam)]
    return [{"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.name](weights, **adam)]


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [each.detach().clone() for each in model.parameters()]


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.flatten() for each in tensors])


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert [each.dtype for each in first] == [each.dtype for each in second]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------- the policies, step by step


@every_optimizer
def test_bf16_is_a_float32_step_from_the_lattice_rounded_to_nearest(config: OptimizerConfig) -> None:
    model = Tiny(torch.bfloat16)
    flat_optimizer = FlatOptimizer(model, config, POLICIES["bf16"], seed=0)
    wide = copy.deepcopy(model).float()
    optimizers = plain_optimizers(config, wide, fused=True)
    for step in range(8):
        grads, lr = gradients(model, step), config.lr * (1 - step / 10)
        give(model, grads)
        flat_optimizer.step(lr)
        give(wide, [grad.float() for grad in grads])
        set_lr(optimizers, lr)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            for weight in wide.parameters():
                weight.copy_(weight.to(torch.bfloat16).float())
        assert_same(weights(model), [weight.bfloat16() for weight in weights(wide)])
    states = [value for each in flat_optimizer.optimizers for state in each.state.values() for value in state.values()]
    assert {value.dtype for value in states if value is not None} <= {torch.float32}


def test_bf16_adamw_equals_the_formula_in_float64() -> None:
    """AdamW written out, so that nothing rests on torch's kernels; rounding may differ at a tie alone."""
    config = OPTIMIZERS["adamw"]
    model = Tiny(torch.bfloat16)
    flat_optimizer = FlatOptimizer(model, config, POLICIES["bf16"], seed=0)
    first = [torch.zeros(each.shape, dtype=torch.float64) for each in model.parameters()]
    second = [each.clone() for each in first]
    differing = total = 0
    for step in range(1, 9):
        start, grads = weights(model), gradients(model, step)
        give(model, grads)
        flat_optimizer.step(config.lr)
        for index, (weight, grad) in enumerate(zip(start, grads, strict=True)):
            first[index] = 0.9 * first[index] + 0.1 * grad.double()
            second[index] = 0.999 * second[index] + 0.001 * grad.double() ** 2
            direction = first[index] / (1 - 0.9**step) / ((second[index] / (1 - 0.999**step)).sqrt() + 1e-8)
            expected = weight.double() * (1 - config.lr * config.weight_decay) - config.lr * direction
            differing += int((weights(model)[index] != expected.float().bfloat16()).sum())
            total += weight.numel()
    assert differing <= total / 1000


@every_optimizer
def test_bf16_pure_is_torchs_optimizer_on_a_bfloat16_model(config: OptimizerConfig) -> None:
    model = Tiny(torch.bfloat16)
    # torch's SGD rounds once more where a kernel's vectors end: it must see the weights in the same flat tensor.
    as_one = config.name == "sgd"
    twin = nn.ParameterList([flat(weights(model))]) if as_one else copy.deepcopy(model)
    flat_optimizer = FlatOptimizer(model, config, POLICIES["bf16_pure"], seed=0)
    optimizers = plain_optimizers(config, twin)
    for step in range(8):
        grads = gradients(model, step)
        give(model, grads)
        give(twin, [flat(grads)] if as_one else grads)
        flat_optimizer.step(config.lr)
        for optimizer in optimizers:
            optimizer.step()
        assert_same([flat(weights(model))], [flat(weights(twin))])
    for optimizer in flat_optimizer.optimizers:
        for state in optimizer.state.values():
            kept = {name: value.dtype for name, value in state.items() if name != "step" and value is not None}
            assert set(kept.values()) <= {torch.bfloat16}
            assert kept or config.name == "sgd"


@every_optimizer
@pytest.mark.parametrize("precision", ["mixed", "fp32"])
def test_float32_weights_take_torchs_plain_step(config: OptimizerConfig, precision: str) -> None:
    model = Tiny()
    twin = copy.deepcopy(model)
    flat_optimizer = FlatOptimizer(model, config, POLICIES[precision], seed=0)
    optimizers = plain_optimizers(config, twin)
    for step in range(8):
        give(model, gradients(model, step))
        give(twin, gradients(twin, step))
        flat_optimizer.step(config.lr)
        for optimizer in optimizers:
            optimizer.step()
    # A fused kernel and a plain loop round some ten times a step, of weights and of steps. Where Muon's matrices differ
    # by that, their rounding to bfloat16 may fall to the other side: a unit in its last place, of a step.
    of_step = gamma(10) if config.name != "muon" else gamma(1, 2 * BFLOAT16)
    for ours, theirs, start in zip(weights(model), weights(twin), weights(Tiny()), strict=True):
        assert ours.dtype == torch.float32
        moved = (theirs - start).abs().max() + 8 * config.lr
        assert ((ours - theirs).abs() <= 8 * gamma(10) * theirs.abs() + of_step * moved).all()


@every_optimizer
def test_bf16_stochastic_rounds_the_float32_step_at_random(config: OptimizerConfig) -> None:
    model = Tiny(torch.bfloat16)
    flat_optimizer = FlatOptimizer(model, config, POLICIES["bf16_stochastic"], seed=5)
    wide = copy.deepcopy(model).float()
    optimizers = plain_optimizers(config, wide, fused=True)
    rounding = torch.Generator().manual_seed(5)
    nearest = True
    for step in range(8):
        grads = gradients(model, step)
        give(model, grads)
        flat_optimizer.step(config.lr)
        give(wide, [grad.float() for grad in grads])
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            for weight in wide.parameters():
                rounded = round_stochastic(weight, rounding)
                nearest &= torch.equal(rounded, weight.bfloat16())
                weight.copy_(rounded.float())
        assert_same(weights(model), [weight.bfloat16() for weight in weights(wide)])
    assert not nearest, "the test would not tell it from bf16"


@every_optimizer
@pytest.mark.parametrize("precision", ["bf16", "bf16_stochastic"])
def test_nothing_finer_than_the_lattice_survives_a_step(config: OptimizerConfig, precision: str) -> None:
    model = Tiny(torch.bfloat16)
    flat_optimizer = FlatOptimizer(model, config, POLICIES[precision], seed=0)
    for step in range(3):
        give(model, gradients(model, step))
        flat_optimizer.step(config.lr)
        assert_same([flat_optimizer.master_params], [flat(weights(model)).float()])


@every_policy
def test_before_holds_the_weights_from_before_the_step(precision: str) -> None:
    policy = POLICIES[precision]
    model = Tiny(policy.param_dtype)
    flat_optimizer = FlatOptimizer(model, OPTIMIZERS["adamw"], policy, seed=0)
    for step in range(2):
        start = weights(model)
        give(model, gradients(model, step))
        flat_optimizer.step(1e-2)
        assert_same(list(flat_optimizer.prev_params_by_name.values()), start)
        assert not torch.equal(flat_optimizer.prev_params_by_name["embedding.weight"], model.embedding.weight)


@every_policy
def test_the_parameters_are_views_of_one_flat_tensor(precision: str) -> None:
    model = Tiny(POLICIES[precision].param_dtype)
    start = weights(model)
    flat_optimizer = FlatOptimizer(model, OPTIMIZERS["adamw"], POLICIES[precision], seed=0)
    assert_same(weights(model), start)
    flat_optimizer.weights.fill_(3)
    assert all((weight == 3).all() for weight in weights(model))
    assert load(save(dict(model.state_dict()))).keys() == model.state_dict().keys()


def test_a_parameter_without_a_gradient_is_a_mistake() -> None:
    model = Tiny()
    flat_optimizer = FlatOptimizer(model, OPTIMIZERS["adamw"], POLICIES["fp32"], seed=0)
    give(model, gradients(model, 0))
    model.embedding.weight.grad = None
    with pytest.raises(AssertionError):
        flat_optimizer.step(1e-3)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = Tiny()
    muon, adamw = FlatOptimizer(model, OPTIMIZERS["muon"], POLICIES["fp32"], seed=0).optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    taken = [[names[each.data_ptr()] for each in optimizer.param_groups[0]["params"]] for optimizer in (muon, adamw)]
    assert sorted(taken[0]) == ["blocks.0.weight", "blocks.1.weight"]
    assert sorted([*taken[0], *taken[1]]) == sorted(names.values())


def test_muon_without_blocks_is_adamw() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4))
    (adamw,) = FlatOptimizer(model, OPTIMIZERS["muon"], POLICIES["fp32"], seed=0).optimizers
    assert isinstance(adamw, torch.optim.AdamW)


# ------------------------------------------------------------------------- updates lost


@pytest.fixture(params=["compiled", "torch"])
def _counted_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(module, "compiled_metrics", lambda device: None)


def train(
    model: Tiny, config: OptimizerConfig, precision: str, steps: int = 3, scale: float = 1e-2, seed: int = 0
) -> FlatOptimizer:
    flat_optimizer = FlatOptimizer(model, config, POLICIES[precision], seed)
    for step in range(steps):
        give(model, gradients(model, step, scale))
        flat_optimizer.step(config.lr)
    return flat_optimizer


@pytest.mark.usefixtures("_counted_by")
@every_optimizer
@every_policy
@pytest.mark.parametrize("decays", [True, False], ids=["decay", "no decay"])
def test_updates_lost_equals_a_plain_recount(config: OptimizerConfig, precision: str, decays: bool) -> None:
    config, policy = copy.copy(config), POLICIES[precision]
    config.weight_decay = 0.1 if decays else 0.0
    model = Tiny(policy.param_dtype)
    with torch.no_grad():
        model.embedding.weight[0] = 0  # nothing there for decay to move
    flat_optimizer = FlatOptimizer(model, config, policy, seed=0)
    pushed = [torch.zeros(each.shape, dtype=torch.bool) for each in model.parameters()]
    for step in range(4):
        start, grads = weights(model), gradients(model, step, 1e-3)
        for grad in grads:
            grad[..., step:] = 0  # a direction that was pushed once and not again keeps its momentum
        give(model, grads)
        flat_optimizer.step(config.lr)
        meant = lost = 0
        for index, (old, new) in enumerate(zip(start, weights(model), strict=True)):
            remembers = not isinstance(config, SGDConfig) or config.momentum > 0
            pushed[index] = (grads[index] != 0) | (pushed[index] & remembers)
            if config.name == "adam" and decays:
                pushed[index] |= old != 0  # its decay goes into the momentum
            for push, before, after in zip(pushed[index].flatten(), old.flatten(), new.flatten(), strict=True):
                if push or (decays and before != 0):
                    meant += 1
                    lost += bool(before == after)
        measured = flat_optimizer.updates_lost()
        assert measured.dtype == torch.float32
        assert measured.item() == pytest.approx(
            lost / meant if meant else math.nan, rel=2.0**-23, nan_ok=True
        )  # a quotient


@pytest.mark.parametrize("name", ["adamw", "adam", "muon"])
def test_a_tiny_step_is_lost_on_the_lattice_and_kept_in_float32(name: str) -> None:
    config = copy.copy(OPTIMIZERS[name])
    config.lr, config.weight_decay = 1e-5, 0.0
    lattice, fine = Tiny(torch.bfloat16), Tiny()
    with torch.no_grad():
        for parameter in [*lattice.parameters(), *fine.parameters()]:
            parameter.uniform_(0.1, 0.2)
    assert train(lattice, config, "bf16").updates_lost().item() == 1
    assert train(fine, config, "fp32").updates_lost().item() < 0.01


def test_a_large_step_is_never_lost() -> None:
    config = AdamWConfig(lr=0.5, weight_decay=0.0)
    assert train(Tiny(torch.bfloat16), config, "bf16").updates_lost().item() == 0


def test_stochastic_rounding_loses_some_of_what_rounding_to_nearest_loses_whole() -> None:
    config = AdamWConfig(lr=1e-4, weight_decay=0.0)
    models = [Tiny(torch.bfloat16) for _ in range(2)]
    with torch.no_grad():
        for parameter in [each for model in models for each in model.parameters()]:
            parameter.uniform_(0.1, 0.2)
    assert train(models[0], config, "bf16").updates_lost().item() == 1
    assert 0.3 < train(models[1], config, "bf16_stochastic").updates_lost().item() < 0.99


@pytest.mark.usefixtures("_counted_by")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_where_nothing_was_meant_nothing_counts(name: str) -> None:
    config = copy.copy(OPTIMIZERS[name])
    config.weight_decay = 0.0
    model = Tiny(torch.bfloat16)
    flat_optimizer = FlatOptimizer(model, config, POLICIES["bf16"], seed=0)
    give(model, [torch.zeros_like(each) for each in model.parameters()])
    flat_optimizer.step(config.lr)
    assert math.isnan(flat_optimizer.updates_lost().item())
    one = [torch.zeros_like(each) for each in model.parameters()]
    one[0][3, 2] = 1.0  # a single intended change, in the embedding, large enough
    give(model, one)
    flat_optimizer.step(0.5)
    assert flat_optimizer.updates_lost().item() == 0


@pytest.mark.usefixtures("_counted_by")
def test_decay_moves_only_what_is_not_zero() -> None:
    model = Tiny(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.weight[0] = 1.0
    flat_optimizer = FlatOptimizer(model, AdamWConfig(lr=1e-6, weight_decay=0.1), POLICIES["bf16"], seed=0)
    give(model, [torch.zeros_like(each) for each in model.parameters()])
    flat_optimizer.step(1e-6)
    assert flat_optimizer.updates_lost().item() == 1  # the six of them, all too little
    flat_optimizer.step(1.0)
    assert flat_optimizer.updates_lost().item() == 0


@every_optimizer
@every_policy
def test_counting_what_was_lost_changes_nothing(config: OptimizerConfig, precision: str) -> None:
    model = Tiny(POLICIES[precision].param_dtype)
    flat_optimizer = FlatOptimizer(model, config, POLICIES[precision], seed=0)
    start, grads = weights(model), gradients(model, 0)
    give(model, grads)
    flat_optimizer.step(config.lr)
    after, first = weights(model), flat_optimizer.updates_lost()
    assert torch.equal(flat_optimizer.updates_lost(), first)
    assert_same(list(flat_optimizer.prev_params_by_name.values()), start)
    assert_same(weights(model), after)
    assert_same([parameter.grad for parameter in model.parameters() if parameter.grad is not None], grads)


def test_a_learning_rate_of_zero_means_no_change() -> None:
    """The last step of wsd, by default: what was not meant is not lost."""
    model = Tiny(torch.bfloat16)
    flat_optimizer = FlatOptimizer(model, OPTIMIZERS["adamw"], POLICIES["bf16"], seed=0)
    give(model, gradients(model, 0))
    flat_optimizer.step(0.0)
    assert_same(weights(model), list(flat_optimizer.prev_params_by_name.values()))
    assert math.isnan(flat_optimizer.updates_lost().item())


# -------------------------------------------------------------------------------- state


@every_optimizer
@every_policy
def test_a_resumed_optimizer_goes_on_bit_for_bit(config: OptimizerConfig, precision: str) -> None:
    policy = POLICIES[precision]
    model = Tiny(policy.param_dtype)
    flat_optimizer = FlatOptimizer(model, config, policy, seed=3)
    for step in range(3):
        give(model, gradients(model, step))
        flat_optimizer.step(config.lr * (step + 1))
    saved = save({name: tensor.contiguous() for name, tensor in flat_optimizer.state_dict().items()})
    start = weights(model)

    fresh = Tiny(policy.param_dtype)
    with torch.no_grad():
        for parameter, weight in zip(fresh.parameters(), start, strict=True):
            parameter.copy_(weight)
    resumed = FlatOptimizer(fresh, config, policy, seed=99)
    resumed.load_state_dict(load(saved))
    assert save({name: tensor.contiguous() for name, tensor in resumed.state_dict().items()}) == saved
    for step in range(3, 7):
        for each, its_optimizer in ((model, flat_optimizer), (fresh, resumed)):
            give(each, gradients(each, step))
            its_optimizer.step(config.lr)
        assert_same(weights(fresh), weights(model))
        assert resumed.updates_lost().item() == flat_optimizer.updates_lost().item()
    assert not torch.equal(start[0], weights(model)[0])


@every_policy
def test_weights_loaded_after_the_optimizer_was_made_are_the_ones_it_moves(precision: str) -> None:
    """A resume builds the optimizer around fresh weights and then loads the old ones into them."""
    policy = POLICIES[precision]
    model = Tiny(policy.param_dtype)
    flat_optimizer = FlatOptimizer(model, OPTIMIZERS["adamw"], policy, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    flat_optimizer.load_state_dict(flat_optimizer.state_dict())
    give(model, [torch.ones_like(each) for each in model.parameters()])
    flat_optimizer.step(0.25)
    assert all(((weight - 1.75 + 0.05).abs() < 0.02).all() for weight in weights(model))


def test_a_state_of_nothing_yet_can_be_taken_up() -> None:
    model = Tiny(torch.bfloat16)
    flat_optimizer = FlatOptimizer(model, OPTIMIZERS["muon"], POLICIES["bf16"], seed=0)
    resumed = FlatOptimizer(copy.deepcopy(model), OPTIMIZERS["muon"], POLICIES["bf16"], seed=1)
    resumed.load_state_dict(load(save(flat_optimizer.state_dict())))
    for each in (flat_optimizer, resumed):
        for weight in each.parameters.values():
            weight.grad = torch.ones_like(weight)
        each.step(1e-3)
    assert_same([resumed.weights], [flat_optimizer.weights])


def test_states_are_plain_named_tensors() -> None:
    flat_optimizer = train(Tiny(torch.bfloat16), OPTIMIZERS["muon"], "bf16")
    state = flat_optimizer.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert {"rounding", "0.0.momentum_buffer", "0.1.momentum_buffer", "1.0.exp_avg", "1.0.step"} <= set(state)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.float32), ("bf16_pure", torch.bfloat16)])
def test_states_are_saved_in_the_dtype_that_they_have(precision: str, dtype: torch.dtype) -> None:
    state = train(Tiny(torch.bfloat16), OPTIMIZERS["adamw"], precision).state_dict()
    assert {value.dtype for name, value in state.items() if name.endswith(("exp_avg", "exp_avg_sq"))} == {dtype}
