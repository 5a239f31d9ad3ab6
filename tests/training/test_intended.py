"""The rule predicts motion in both directions, entry by entry: real steps of every optimizer under every policy."""

import math

import pytest
import torch
from tiny_model import Tiny, give, gradients

from marble_sweep.groups import AdamConfig, AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from marble_sweep.metrics.intended import INTENDED, Rounding, loses_decay, motion_chance
from marble_sweep.training.intended import EMBEDDING, IntendedUpdate
from marble_sweep.training.optimizer import FlatOptimizer
from marble_sweep.training.precision import POLICIES

OPTIMIZERS = {
    "adamw": AdamWConfig(lr=1e-3, weight_decay=0.1),
    "adam": AdamConfig(lr=1e-3, weight_decay=0.01),
    "sgd": SGDConfig(lr=1e-2, weight_decay=0.01, momentum=0.9),
    "nesterov": SGDConfig(lr=1e-2, weight_decay=0.01, momentum=0.9, nesterov=True),
    "sgd without momentum": SGDConfig(lr=1e-2, weight_decay=0.01, momentum=0.0),
    "muon": MuonConfig(lr=1e-3, weight_decay=0.1, momentum=0.9),
}
every_optimizer = pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
LR = 1e-3
IS_DEAD = torch.arange(20) % 3 == 0


class Watched:
    """A tiny model whose steps are watched, one at a time."""

    def __init__(self, config: OptimizerConfig, precision: str) -> None:
        policy = POLICIES[precision]
        self.model = Tiny(policy.param_dtype)
        self.optimizer = FlatOptimizer(self.model, config, policy, seed=0)
        self.intended = IntendedUpdate(self.optimizer, config, IS_DEAD)
        self.measure = self.optimizer.before_rounding
        self.optimizer.before_rounding = self.watch

    def watch(self) -> None:
        assert self.measure is not None
        self.measure()
        step = self.intended.step()
        self.step = step._replace(before=step.before.clone(), target=step.target.clone())

    def take(self, number: int) -> torch.Tensor:
        """Whether each entry of the embedding moved on the bfloat16 lattice, (20, 6) bool."""
        give(self.model, gradients(self.model, number))
        self.optimizer.step(LR)
        after, before = self.model.embedding.weight, self.optimizer.prev_params_by_name[EMBEDDING]
        return after.detach().bfloat16() != before.bfloat16()

    def size_of_gradients(self) -> torch.Tensor:
        """The sum of the sizes of what an SGD's step is made of, (20, 6) float32."""
        gradient = self.optimizer.parts(self.optimizer.gradient)[EMBEDDING]
        buffer = self.optimizer.state_of(EMBEDDING).get("momentum_buffer", gradient)
        return gradient.float().abs() + buffer.float().abs() + self.step.before.float().abs() * 0.01

    def share(self, name: str) -> float:
        return float(self.intended.shares[INTENDED.index(name)])


@pytest.mark.parametrize("precision", [name for name in POLICIES if name != "bf16_stochastic"])
@every_optimizer
def test_what_the_rule_says_moves_moves_and_nothing_else(config: OptimizerConfig, precision: str) -> None:
    watched = Watched(config, precision)
    # Where torch adds vectors of bfloat16 it rounds their factors, lr and momentum, too: each by 2^-9 of it.
    rounds_factors = isinstance(config, SGDConfig) and precision == "bf16_pure"
    seen = set()
    for number in range(30):
        moved, step = watched.take(number), watched.step
        slack = watched.size_of_gradients() * LR / 2**7 if rounds_factors else torch.zeros_like(step.target)
        low, high = (motion_chance(step._replace(target=step.target + sign * slack)) for sign in (-1, 1))
        is_sure = low == high
        assert torch.equal(motion_chance(step).bool()[is_sure], moved[is_sure])
        assert is_sure.float().mean() > (0.9 if rounds_factors else 0.999)
        seen |= {*moved.flatten().tolist()}
        for kind, rows in (("dead", IS_DEAD), ("live", ~IS_DEAD)):
            expected = float(moved[rows].any(dim=1).float().mean())
            if is_sure.all():
                assert watched.share(f"{kind}_predicted_moving") == pytest.approx(expected, rel=1e-6)
    assert seen == {True, False}


@every_optimizer
def test_stochastic_rounding_moves_as_much_as_expected(config: OptimizerConfig) -> None:
    """The sum of independent draws lies within five standard deviations of its mean."""
    watched = Watched(config, "bf16_stochastic")
    total = mean = variance = 0.0
    for number in range(200):
        total += float(watched.take(number).sum())
        chance = motion_chance(watched.step).double()
        mean += float(chance.sum())
        variance += float((chance * (1 - chance)).sum())
    assert variance > 100
    assert abs(total - mean) < 5 * math.sqrt(variance)


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure", "mixed"])
def test_a_lost_decay_changes_nothing(precision: str) -> None:
    """A twin without decay takes the same steps; what it ends as is what a weight with a lost decay ends as."""
    config = AdamWConfig(lr=1e-3, weight_decay=2.0)
    watched, twin = Watched(config, precision), Watched(AdamWConfig(lr=1e-3, weight_decay=0.0), precision)
    watched.take(0)
    twin.take(0)
    lost = loses_decay(watched.step)
    with_decay, without = (each.model.embedding.weight.detach() for each in (watched, twin))
    if precision == "bf16_pure":  # what is lost there is lost before the gradient comes
        assert torch.equal(with_decay[lost], without[lost])
        assert 0 < lost.float().mean() < 1
    elif precision == "bf16":
        assert torch.equal(with_decay == without, lost)
        assert 0 < lost.float().mean() < 1
    else:
        assert not lost.any()
    decays = watched.step.before != 0
    assert watched.share("dead_decay_lost") == pytest.approx(float(lost[IS_DEAD][decays[IS_DEAD]].float().mean()))


def test_a_decay_that_adam_mixes_with_the_gradient_is_no_part() -> None:
    watched = Watched(OPTIMIZERS["adam"], "bf16")
    watched.take(0)
    assert watched.step.decay is None
    assert math.isnan(watched.share("dead_decay_lost"))
    assert watched.intended.rounding == Rounding.NEAREST
