"""One optimizer step under a precision policy, and what rounding took from it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from marble_sweep.groups import AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from marble_sweep.kernels.step_metrics import CompiledMetrics, compiled_metrics
from marble_sweep.metrics.step import exact_norm
from marble_sweep.training.precision import PrecisionPolicy, round_stochastic

CLIP_EPS = 1e-6  # torch's own: a gradient of norm 0 stays finite


def build_optimizers(
    config: OptimizerConfig, weights: Tensor, parts: Mapping[str, Tensor], *, reference: bool
) -> list[torch.optim.Optimizer]:
    """torch's own optimizers: one for all weights as a flat tensor, or, for Muon, two for its named parts.

    `reference` asks for torch's plain loop over parameters, whose arithmetic is the parameters' own
    dtype throughout (the fused kernels compute in float32 inside).
    """
    kernel: dict[str, Any] = {"foreach": False, "fused": False} if reference else {"fused": True}
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if isinstance(config, SGDConfig):
        common |= {"momentum": config.momentum, "nesterov": config.nesterov}
        return [torch.optim.SGD([weights], **common, **kernel)]
    assert isinstance(config, AdamWConfig)
    betas: dict[str, Any] = {"betas": tuple(config.betas), "eps": config.eps}
    # Muon orthogonalises matrices that map hidden to hidden; embeddings and vectors are not that.
    matrices = [part for name, part in parts.items() if name.startswith("blocks.") and part.ndim == 2]
    if isinstance(config, MuonConfig) and matrices:
        others = [part for part in parts.values() if all(part is not matrix for matrix in matrices)]
        muon = torch.optim.Muon(matrices, **common, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(others, **common, **betas, **kernel)]
    optimizer = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return [optimizer([weights], **common, **betas, **kernel)]


class FlatOptimizer:
    """Holds the optimizers and, where the policy rounds, the float32 copy of the weights that they work on.

    Between steps the copy equals the weights: nothing finer than the lattice survives a step. All weights lie
    in one flat tensor, of which the model's parameters become views, so that a step takes a few operations
    on it instead of as many on each parameter.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, policy: PrecisionPolicy, seed: int) -> None:
        self.policy = policy
        self.parameters = dict(model.named_parameters())
        self.weights = torch.cat([parameter.detach().flatten() for parameter in self.parameters.values()])
        for name, part in self.parts(self.weights).items():
            self.parameters[name].data = part
        self.prev_params = self.weights.clone()  # before the last step
        self.prev_params_by_name = self.parts(self.prev_params)
        self.master_params = self.weights.float() if policy.rounds else self.weights
        self.gradient = torch.zeros_like(self.master_params)  # of the last step
        self.master_params.grad = self.gradient
        parts, gradients = self.parts(self.master_params), self.parts(self.gradient)
        self.master_params_by_name = parts
        for name, part in parts.items():
            part.grad = gradients[name]
        self.gradients = list(gradients.values())
        reference = policy.optimizer_dtype == torch.bfloat16
        self.optimizers = build_optimizers(config, self.master_params, parts, reference=reference)
        optimized = {id(tensor) for optimizer in self.optimizers for tensor in optimizer.param_groups[0]["params"]}
        self.optimized = [tensor for tensor in (self.master_params, *parts.values()) if id(tensor) in optimized]
        self.rounding_generator = torch.Generator(self.weights.device).manual_seed(seed)
        self.compiled = compiled_metrics(self.weights.device)  # None: torch counts updates
        self.decays = config.weight_decay > 0
        self.grad_clip = config.grad_clip
        self.norm_before_clipping: Tensor | None = None  # of the last step's gradient; None where nothing is clipped
        self.lr = 0.0
        self.before_rounding: Callable[[], None] | None = None  # called when the optimizers have stepped

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """Each parameter's view of a flat tensor, by its name."""
        pieces = flat.split([parameter.numel() for parameter in self.parameters.values()])
        return {
            name: piece.view(parameter.shape)
            for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def zero_grad(self) -> None:
        """Let backward begin anew."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Apply the gradients that backward left, with learning rate lr."""
        self.lr = lr
        self.prev_params.copy_(self.weights)
        gradients = []
        for parameter in self.parameters.values():
            assert parameter.grad is not None
            gradients.append(parameter.grad)
        torch._foreach_copy_(self.gradients, gradients)
        if self.grad_clip is not None:
            self.norm_before_clipping = self._clip_gradient(self.grad_clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        if self.before_rounding is not None:
            self.before_rounding()
        if self.policy.rounds:
            rounded = (
                round_stochastic(self.master_params, self.rounding_generator)
                if self.policy.stochastic
                else self.master_params
            )
            self.weights.copy_(rounded)  # rounds to nearest, ties to even
            self.master_params.copy_(self.weights)

    def _clip_gradient(self, max_norm: float) -> Tensor:
        """Scale the gradient down to an L2 norm of max_norm where it is longer; returns its norm before, float32.

        As torch.nn.utils.clip_grad_norm_ does, but with a norm that is exact, and without waiting for a GPU.
        """
        norm = torch.tensor(self.compiled.norm(self.gradient)) if self.compiled else exact_norm(self.gradient).float()
        self.gradient.mul_((max_norm / (norm + CLIP_EPS)).clamp(max=1.0))
        return norm

    def updates_lost(self) -> Tensor:
        """Of all weights that the last step was to change, the fraction it left as they were.

        A weight is to change where the optimizer's direction is not zero (its momentum, or the gradient where it
        keeps none), or where decay applies to a non-zero weight. Scalar float32; NaN if no weight is.
        """
        if self.lr == 0:
            return torch.full((), torch.nan, device=self.weights.device)
        directions = [self._direction(tensor) for tensor in self.optimized]
        if self.compiled:
            return self._fraction_lost(self.compiled, directions)
        # On the CPU a conversion to bool takes a third of the time of a comparison with zero.
        pushed = [direction.flatten().bool() for direction in directions]
        intended = torch.cat(pushed) if len(pushed) > 1 else pushed[0]
        if self.decays:
            intended |= self.prev_params.bool()
        num_intended = torch.count_nonzero(intended)
        num_changed = torch.count_nonzero(intended.logical_and_((self.weights - self.prev_params).bool()))
        return (num_intended - num_changed).float() / num_intended.float()

    def _fraction_lost(self, compiled: CompiledMetrics, directions: Sequence[Tensor]) -> Tensor:
        """The same, of the directions of all weights in their order."""
        num_intended = num_changed = offset = 0
        for direction in directions:
            counts = compiled.count_updates(direction, self.prev_params, self.weights, offset, decays=self.decays)
            num_intended, num_changed = num_intended + counts[0], num_changed + counts[1]
            offset += direction.numel()
        return torch.tensor((num_intended - num_changed) / num_intended if num_intended else torch.nan)

    def state_of(self, name: str) -> dict[str, Any]:
        """What an optimizer keeps of a parameter; of tensors, its part."""
        for optimizer in self.optimizers:
            if self.master_params in optimizer.state:
                state = optimizer.state[self.master_params]
                return {key: self.parts(value)[name] if value.numel() > 1 else value for key, value in state.items()}
            if self.master_params_by_name[name] in optimizer.state:
                return optimizer.state[self.master_params_by_name[name]]
        return {}

    def _direction(self, tensor: Tensor) -> Tensor:
        """Where the last step pushed a tensor that an optimizer was given; the same shape."""
        for optimizer in self.optimizers:
            state = optimizer.state.get(tensor, {})
            for name in ("exp_avg", "momentum_buffer"):
                if state.get(name) is not None:
                    return state[name]
        assert tensor.grad is not None
        return tensor.grad

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizers' states and the rounding generator's, as flat named tensors."""
        tensors = {"rounding": self.rounding_generator.get_state()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    if value is not None:
                        tensors[f"{number}.{index}.{name}"] = torch.as_tensor(value)
        return tensors

    def blank_state_dict(self, step: int) -> dict[str, Tensor]:
        """The names, shapes and dtypes of what `state_dict` gives after `step` steps."""
        tensors = {"rounding": self.rounding_generator.get_state()}
        for number, optimizer in enumerate(self.optimizers if step > 0 else ()):
            names = ["momentum_buffer"] if optimizer.defaults.get("momentum") else []
            if "betas" in optimizer.defaults:
                tensors |= {
                    f"{number}.{i}.step": torch.zeros(()) for i in range(len(optimizer.param_groups[0]["params"]))
                }
                names = ["exp_avg", "exp_avg_sq"]
            for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
                tensors |= {f"{number}.{i}.{name}": parameter for name in names}
        return tensors

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` saved; the weights must be loaded before."""
        self.rounding_generator.set_state(state_dict["rounding"].cpu())
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in state_dict.items():
                if key.startswith(f"{number}."):
                    _, index, name = key.split(".", 2)
                    state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.policy.rounds:
            self.master_params.copy_(self.weights)
