"""The reference engine's optimizers: Adam and SGD by PyTorch's fused kernels.

They call the functions that `torch.optim.Adam` and `torch.optim.SGD` call with `fused=True`, so the bits are the same.
The classes would import PyTorch's compiler, which takes a second and 70 MB per process, and 20 us more per step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from supermask.core.recipe import Recipe
from supermask.engines.training import OptimizerState


class FusedOptimizer:
    """The optimizer of a recipe without weight decay, which the caller adds: one pass over the memory per tensor."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """Tensor -> its state, by PyTorch's names; from its first gradient on."""

    @torch.no_grad()
    def step(self, tensors: Iterable[Tensor], learning_rate: float) -> None:
        """Update those of the tensors that have a gradient, in place."""
        trained = [tensor for tensor in tensors if tensor.grad is not None]
        if self.recipe.optimizer == "sgd":
            self._sgd_step(trained, learning_rate)
        else:
            self._adam_step(trained, learning_rate)

    def named_state(self, tensors: Mapping[str, Tensor]) -> OptimizerState:
        """Return the state of each of the named tensors, on the CPU; `step`, Adam's count of steps, has shape ()."""
        return {
            name: {
                key: value.to("cpu", memory_format=torch.contiguous_format)
                for key, value in self.state.get(tensor, {}).items()
            }
            for name, tensor in tensors.items()
        }

    def load_named_state(self, tensors: Mapping[str, Tensor], state: OptimizerState, steps: int) -> None:
        """Set the state of the named tensors. `steps`: Adam's count of steps where the state has none."""
        for name, values in state.items():
            tensor = tensors[name].detach()
            # In the tensor's memory layout: the kernels step through both in the order of memory.
            loaded = {key: torch.empty_like(tensor).copy_(v) for key, v in values.items() if key != "step"}
            if "exp_avg" in values:
                # A tensor takes no step where it has no gradient, so counts differ if a network skips layers.
                count = values["step"].item() if "step" in values else steps
                loaded["step"] = torch.tensor(float(count), dtype=torch.float32, device=tensor.device)
            self.state[tensors[name]] = loaded

    def _adam_step(self, tensors: list[Tensor], learning_rate: float) -> None:
        for tensor in tensors:
            if tensor not in self.state:
                self.state[tensor] = {
                    "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                    "exp_avg": torch.zeros_like(tensor),
                    "exp_avg_sq": torch.zeros_like(tensor),
                }
        states = [self.state[tensor] for tensor in tensors]
        beta1, beta2 = self.recipe.betas
        adam(
            tensors,
            _gradients(tensors),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=learning_rate,
            weight_decay=0.0,
            eps=self.recipe.eps,
            maximize=False,
        )

    def _sgd_step(self, tensors: list[Tensor], learning_rate: float) -> None:
        # Two calls: the kernel takes tensors at their first step, which have no momentum yet, or later ones.
        first = [tensor for tensor in tensors if self._momentum_buffer(tensor) is None]
        later = [tensor for tensor in tensors if self._momentum_buffer(tensor) is not None]
        for group in (first, later):
            buffers = [self._momentum_buffer(tensor) for tensor in group]
            sgd(
                group,
                _gradients(group),
                buffers,
                fused=True,
                weight_decay=0.0,
                momentum=self.recipe.momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=self.recipe.nesterov,
                maximize=False,
            )
            # With momentum, `sgd` creates the buffers of a first step in the list.
            for tensor, buffer in zip(group, buffers, strict=True):
                if buffer is not None:
                    self.state[tensor] = {"momentum_buffer": buffer}

    def _momentum_buffer(self, tensor: Tensor) -> Tensor | None:
        return self.state.get(tensor, {}).get("momentum_buffer")


def _gradients(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.grad for tensor in tensors if tensor.grad is not None]
