"""What a run's optimizer meant to do with the embedding in a step, seen before its result is rounded."""

import math

import torch
from torch import Tensor

from marble_sweep.groups import AdamWConfig, OptimizerConfig, SGDConfig
from marble_sweep.kernels.step_metrics import compiled_metrics
from marble_sweep.metrics.intended import Rounding, Step, count, count_compiled, decayed, shares
from marble_sweep.training.optimizer import FlatOptimizer
from marble_sweep.training.precision import PrecisionPolicy

EMBEDDING = "embedding.weight"


def rounding_of(policy: PrecisionPolicy) -> Rounding:
    """How a policy brings an update into the embedding."""
    if policy.rounds:
        return Rounding.STOCHASTIC if policy.stochastic else Rounding.NEAREST
    return Rounding.TWICE if policy.param_dtype == torch.bfloat16 else Rounding.MASTERS


class IntendedUpdate:
    """Measures the embedding's intended update in every step of `optimizer`, of which it becomes the observer.

    `shares` has the last step's values in INTENDED's order, on the optimizer's device.
    """

    def __init__(self, optimizer: FlatOptimizer, config: OptimizerConfig, is_dead: Tensor) -> None:
        self.optimizer = optimizer
        self.config = config
        self.is_dead = is_dead
        self.num_tokens = torch.stack([is_dead.sum(), (~is_dead).sum()])
        self.rounding = rounding_of(optimizer.policy)
        self.compiled = compiled_metrics(is_dead.device)  # None: torch counts
        self.shares: Tensor
        optimizer.before_rounding = self._measure

    def step(self) -> Step:
        """What the step that is being taken means to do."""
        before = self.optimizer.prev_params_by_name[EMBEDDING]
        decay = self.optimizer.lr * self.config.weight_decay
        # Adam and SGD add the decay to the gradient, where their moments mix it with that of other steps.
        is_apart = isinstance(self.config, AdamWConfig) and self.config.name != "adam"
        step = Step(before, before, decay if is_apart or decay == 0 else None, self.rounding)
        if self.rounding == Rounding.TWICE:
            return step._replace(target=decayed(step) + self._gradient_part(before))
        return step._replace(target=self.optimizer.master_params_by_name[EMBEDDING])

    def _measure(self) -> None:
        step = self.step()
        compiled, is_dead = self.compiled, self.is_dead
        counts = count(step, is_dead) if compiled is None else count_compiled(compiled, step, is_dead)
        self.shares = shares(counts, self.num_tokens, step)

    def _gradient_part(self, before: Tensor) -> Tensor:
        """What torch's loops in bfloat16 add to the decayed weights, (V, D) float32, before it is rounded.

        Every operation but the last rounds to bfloat16, as theirs do. Where torch's SGD adds vectors it rounds lr and
        momentum too, by 2^-9 of them at most: that is not followed.
        """
        state, config, lr = self.optimizer.state_of(EMBEDDING), self.config, self.optimizer.lr
        if isinstance(config, SGDConfig):
            gradient = self.optimizer.parts(self.optimizer.gradient)[EMBEDDING]
            if config.weight_decay > 0:
                gradient = gradient.add(before, alpha=config.weight_decay)
            if config.momentum > 0:
                buffer = state["momentum_buffer"]
                gradient = gradient.add(buffer, alpha=config.momentum) if config.nesterov else buffer
            return gradient.float() * -lr
        assert isinstance(config, AdamWConfig)
        num_steps = int(state["step"])
        first, second = (1 - beta**num_steps for beta in config.betas)
        spread = (state["exp_avg_sq"].sqrt() / math.sqrt(second)).add_(config.eps)
        return state["exp_avg"].float() * -(lr / first) / spread.float()
