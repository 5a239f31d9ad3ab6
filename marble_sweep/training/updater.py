"""One optimizer step under a precision policy, and what rounding took from it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from marble_sweep.config import AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from marble_sweep.training.precision import Policy, round_stochastic


def build_optimizers(
    config: OptimizerConfig, parameters: Iterable[tuple[str, Tensor]], *, reference: bool
) -> list[torch.optim.Optimizer]:
    """torch's own optimizers for these parameters: one, or for Muon two.

    `reference` asks for torch's plain loop over parameters, whose arithmetic is the parameters' own
    dtype throughout (the fused kernels widen bfloat16 inside).
    """
    named = dict(parameters)
    everything = list(named.values())
    kernel: dict[str, Any] = {"foreach": False, "fused": False} if reference else {"fused": True}
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if isinstance(config, SGDConfig):
        common |= {"momentum": config.momentum, "nesterov": config.nesterov}
        return [torch.optim.SGD(everything, **common, **kernel)]
    assert isinstance(config, AdamWConfig)
    betas: dict[str, Any] = {"betas": tuple(config.betas), "eps": config.eps}
    if isinstance(config, MuonConfig):
        # Muon orthogonalises matrices that map hidden to hidden; embeddings and vectors are not that.
        matrices = [tensor for name, tensor in named.items() if name.startswith("blocks.") and tensor.ndim == 2]
        others = [tensor for tensor in everything if all(tensor is not matrix for matrix in matrices)]
        adamw = torch.optim.AdamW(others, **common, **betas, **kernel)
        if not matrices:
            return [adamw]
        muon = torch.optim.Muon(matrices, **common, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
        return [muon, adamw]
    optimizer = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return [optimizer(everything, **common, **betas, **kernel)]


class Updater:
    """Holds the optimizers and, where the policy rounds, the float32 copies that they work on.

    Between steps such a copy equals its weight: nothing finer than the lattice survives a step.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, policy: Policy, seed: int) -> None:
        self.policy = policy
        self.weights: list[Tensor] = list(model.parameters())
        names = [name for name, _ in model.named_parameters()]
        self.masters = [weight.detach().float() for weight in self.weights] if policy.rounds else self.weights
        reference = policy.states == torch.bfloat16
        self.optimizers = build_optimizers(config, zip(names, self.masters, strict=True), reference=reference)
        self.rounding = torch.Generator(self.weights[0].device).manual_seed(seed)
        self.decays = config.weight_decay > 0
        # The weights before the last step: one flat tensor, and each weight's view of it.
        self.all_before = torch.cat([weight.detach().flatten() for weight in self.weights])
        sizes = [weight.numel() for weight in self.weights]
        self.before = [
            part.view_as(weight) for part, weight in zip(self.all_before.split(sizes), self.weights, strict=True)
        ]
        self.lr = 0.0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Apply the gradients that backward left, with learning rate lr."""
        self.lr = lr
        torch._foreach_copy_(self.before, self.weights)
        for weight, master in zip(self.weights, self.masters, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.to(master.dtype)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        if self.policy.rounds:
            if self.policy.stochastic:
                for weight, master in zip(self.weights, self.masters, strict=True):
                    weight.copy_(round_stochastic(master, self.rounding))
            else:
                torch._foreach_copy_(self.weights, self.masters)  # rounds to nearest, ties to even
            torch._foreach_copy_(self.masters, self.weights)

    @torch.no_grad()
    def updates_lost(self) -> Tensor:
        """Of all weights that the last step meant to change, the fraction it left as they were.

        A change is meant where the optimizer's direction is not zero: its momentum (the gradient,
        where it keeps none), or the decay of a non-zero weight. Scalar float32; NaN if none was meant.
        """
        if self.lr == 0:
            return torch.full((), torch.nan, device=self.all_before.device)
        states = {id(master): state for each in self.optimizers for master, state in each.state.items()}
        directions = []
        for master in self.masters:
            state = states.get(id(master), {})
            direction = state.get("exp_avg", state.get("momentum_buffer"))
            if direction is None:
                direction = master.grad
            assert direction is not None
            directions.append(direction.flatten())
        # On the CPU a conversion to bool takes a third of the time of a comparison with zero.
        meant = torch.cat(directions).bool()
        if self.decays:
            meant |= self.all_before.bool()
        changed = torch.cat([weight.flatten() for weight in self.weights]).sub_(self.all_before).bool()
        return torch.count_nonzero(meant & ~changed).float() / torch.count_nonzero(meant).float()

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizers' states and the rounding generator's, as flat named tensors."""
        tensors = {"rounding": self.rounding.get_state()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    if value is not None:
                        tensors[f"{number}.{index}.{name}"] = torch.as_tensor(value)
        return tensors

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` saved; the weights must be loaded before."""
        self.rounding.set_state(state_dict["rounding"].cpu())
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in state_dict.items():
                if key.startswith(f"{number}."):
                    _, index, name = key.split(".", 2)
                    state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.policy.rounds:
            torch._foreach_copy_(self.masters, [weight.detach() for weight in self.weights])
