"""Any module in a stack: a forward pass of all replicas by `torch.func.vmap`, and the check that comes before it.

Shapes: R replicas, N distinct mini-batches (N <= R), B images of a batch, C channels, H and W height and width in
pixels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from supermask.core.errors import quote
from supermask.core.types import Weights
from supermask.engines.precision import matmul_precision
from supermask.engines.stacked.forward import BatchGroup
from supermask.networks.module_output import extract_logits
from supermask.networks.network import Network, seeded_draws

PROBE_IMAGES = 4
"""Images per replica in the check of a module."""

RELATIVE_TOLERANCE = 1e-3
"""Largest difference in a tensor of the check, relative to its largest value. Rounding gives about 1e-6; a gradient
that passes the kink of a ReLU on another side, 1e-4; values of another replica, about 1."""

NOISE_TOLERANCE = 1e-5
"""The same, relative to the largest value of all tensors: the gradient of a bias before a normalization is rounding
alone."""


class ModuleForward:
    """Forward pass of a stack of modules: `torch.func.vmap` of one module over stacked tensors.

    The module gives the code only; all of its tensors are replaced. Buffers that a pass in training mode changes
    (running statistics) are changed in place in the stacked tensors.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self._module = network.build().to(device)
        self.widest_layer = 0

    def __call__(
        self,
        tensors: Weights,
        inputs: Tensor,
        groups: Sequence[BatchGroup],
        batch_of_replica: Tensor,
        *,
        is_training: bool,
    ) -> Tensor:
        """Logits (R, B, K). `inputs` (N, B, C, H, W); `batch_of_replica` (R,): index of the batch of each replica."""
        if self._module.training != is_training:
            self._module.train(is_training)
        if len(inputs) == 1:
            # Images that all replicas share stay unstacked: the first layer is then one wide layer.
            return self._vectorized(0, None)(tensors, inputs[0])
        if len(inputs) != len(batch_of_replica):
            inputs = inputs.index_select(0, batch_of_replica)
        return self._vectorized(0, 0)(tensors, inputs)

    def _vectorized(self, *in_dims: int | None) -> Callable[..., Tensor]:
        def logits(tensors: Weights, inputs: Tensor) -> Tensor:
            return extract_logits(functional_call(self._module, tensors, (inputs,)))

        vectorized: Callable[..., Tensor] = vmap(logits, in_dims)
        return vectorized


def module_obstacle(network: Network, device: str) -> str:
    """Return why a module cannot be trained in a stack, as the end of a sentence after "it"; empty if it can.

    A module is trusted if two replicas, computed together, have the logits, gradients and buffers of each alone.
    Checked once per process, network and device.
    """
    # The code of a user's network is known by its function alone; that of the others by the network's name.
    return _module_obstacle(network, network.make if network.is_user_code else None, device)


@lru_cache(maxsize=64)
def _module_obstacle(network: Network, make: object, device_name: str) -> str:
    assert network.facts is not None, "a network is examined before an engine is selected"
    device = torch.device(device_name)
    with seeded_draws(0), catch_warnings(), matmul_precision("float32", device):
        # PyTorch computes such an operation one replica at a time, and says so.
        filterwarnings("error", message=".*performance drop")
        module = network.build().to(device)
        if obstacle := _plain_obstacle(module):
            return obstacle
        try:
            return _compare(network, module, device)
        except Exception as error:  # raised by PyTorch or by the module, which vmap gives tensors of another kind
            return _explain(error)


def _plain_obstacle(module: nn.Module) -> str:
    """Reason that the module's attributes give, or an empty text."""
    for prefix, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is None and layer.track_running_stats:
            return f"has batch normalization with momentum=None ({quote(prefix or type(layer).__name__)})"
        for key, value in vars(layer).items():
            if not key.startswith("_") and any(_tensors(value)):
                name = f"{prefix}.{key}" if prefix else key
                return f"has tensors outside of its state_dict ({quote(name)}): register them with register_buffer"
    return ""


def _tensors(value: Any) -> Iterator[bool]:
    """Yield True for every tensor in a value, and in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield True
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _compare(network: Network, module: nn.Module, device: torch.device) -> str:
    """Compare two replicas computed together with each of them alone."""
    facts = network.facts
    assert facts is not None
    states = [_perturbed_state(network, seed, device) for seed in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, PROBE_IMAGES, *facts.image_shape, generator=generator).to(device)
    labels = torch.arange(2 * PROBE_IMAGES, device=device).remainder(facts.classes).view(2, -1)
    trained = sorted({*network.tensors, *network.trained_names})
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    together = _pass_of_stack(ModuleForward(network, device), stacked, trained, images, labels)
    alone = [_pass_of_one(module, states[r], images[r], images[0], labels[r], trained) for r in (0, 1)]
    for what, stacked_values in together.items():
        scale = max(float(value.abs().max()) for part in alone for value in part[what].values())
        for name, values in stacked_values.items():
            for value, part in zip(values, alone, strict=True):
                if not _is_close(value, part[what][name], scale):
                    where = f" ({quote(name)})" if name else ""
                    return f"has other {what} under torch.func.vmap than one replica at a time{where}"
    return ""


def _perturbed_state(network: Network, seed: int, device: torch.device) -> Weights:
    """Initial tensors of a seed, changed a little, so that no two replicas have an equal one (weights of ones)."""
    start, generator = network.initial_state(seed), torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in {**start.weights, **start.unmasked}.items():
        if tensor.is_floating_point():
            # Above the former value: a running variance stays positive.
            tensor = tensor + (0.01 + 0.1 * tensor.abs()) * torch.rand(tensor.shape, generator=generator)
        tensors[name] = tensor.to(device, copy=True)
    return tensors


def _pass_of_stack(
    forward: ModuleForward, tensors: Weights, trained: Sequence[str], images: Tensor, labels: Tensor
) -> dict[str, Weights]:
    """Logits, gradients and buffers of a pass in training mode, and logits of a later evaluation of the first images.

    Each with a leading axis of replicas.
    """
    index = torch.arange(2, device=images.device)
    for name in trained:
        tensors[name].requires_grad_()
    logits = forward(tensors, images, (), index, is_training=True)
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)
    gradients = torch.autograd.grad(losses.sum(), [tensors[name] for name in trained])
    with torch.no_grad():
        evaluated = forward(tensors, images[:1], (), index, is_training=False)
    return _named(logits, gradients, tensors, trained, evaluated)


def _pass_of_one(
    module: nn.Module,
    tensors: Weights,
    images: Tensor,
    evaluated_images: Tensor,
    labels: Tensor,
    trained: Sequence[str],
) -> dict[str, Weights]:
    """The same of one replica alone."""
    for name in trained:
        tensors[name].requires_grad_()
    logits = extract_logits(functional_call(module.train(), tensors, (images,)))
    gradients = torch.autograd.grad(cross_entropy(logits, labels), [tensors[name] for name in trained])
    with torch.no_grad():
        evaluated = extract_logits(functional_call(module.eval(), tensors, (evaluated_images,)))
    return _named(logits, gradients, tensors, trained, evaluated)


def _named(
    logits: Tensor, gradients: Sequence[Tensor], tensors: Weights, trained: Sequence[str], evaluated: Tensor
) -> dict[str, Weights]:
    return {
        "logits": {"": logits.detach()},
        "gradients": dict(zip(trained, gradients, strict=True)),
        "buffers": {name: tensor.detach() for name, tensor in tensors.items() if name not in trained},
        "logits in evaluation mode": {"": evaluated},
    }


def _is_close(value: Tensor, expected: Tensor, scale: float) -> bool:
    tolerance = RELATIVE_TOLERANCE * float(expected.abs().max()) + NOISE_TOLERANCE * scale
    return value.shape == expected.shape and float((value.double() - expected.double()).abs().max()) <= tolerance


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "randomness" in text:
        return "draws random numbers in training (dropout), which a stack cannot draw per replica"
    if operation := re.search(r"batching rule (?:not implemented )?for ([\w:.]+)", text, re.IGNORECASE):
        return f"uses {operation[1].rstrip('.')}, which PyTorch cannot compute for several replicas at once"
    return f"fails under torch.func.vmap: {type(error).__name__}: {text.partition('. ')[0]}"
