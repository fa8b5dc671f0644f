"""The paper's networks: layers as plain data, their prunable tensors, and the PyTorch modules.

Parameter counts and costs are known without importing torch; `build_module` makes the module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from supermask.core.errors import UserError, did_you_mean
from supermask.core.initializers import draw_weights
from supermask.core.rng import random_stream
from supermask.core.types import InitialState, PrunableTensor, TensorKind

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Conv:
    """3x3 convolution, stride 1, "same" padding, then ReLU."""

    name: str
    inputs: int
    outputs: int
    side: tuple[int, int]
    """Height and width of the output, in pixels."""


@dataclass(frozen=True)
class Pool:
    """2x2 max-pooling, stride 2; an odd last row or column is dropped."""

    name: str


@dataclass(frozen=True)
class Dense:
    """Fully connected layer, then ReLU, except after the last."""

    name: str
    inputs: int
    outputs: int
    last: bool


Architecture = tuple[Conv | Pool | Dense, ...]

CONV_CHANNELS: dict[str, tuple[int, ...]] = {
    "conv2": (64, 64),
    "conv4": (64, 64, 128, 128),
    "conv6": (64, 64, 128, 128, 256, 256),
    "conv8": (64, 64, 128, 128, 256, 256, 512, 512),
}
"""Output channels; 2x2 max-pooling after each pair.

Source: Zhou et al. 2019, supplement, Table S1; `conv8`: Ramanujan et al. 2020.
"""

CONV_HEAD = (256, 256)
FC_WIDTHS = (300, 100)
NETWORK_NAMES = ("fc", "conv2", "conv4", "conv6", "conv8")


def canonical_name(name: str) -> str:
    """Return the canonical name of a network: `fc` is `fc-300-100`. Raises UserError for an unknown name."""
    if name == "fc":
        return "fc-" + "-".join(map(str, FC_WIDTHS))
    if name in CONV_CHANNELS or re.fullmatch(r"fc(-[1-9][0-9]{0,5})+", name):
        return name
    raise UserError(
        f"{name!r} is not a network{did_you_mean(name, NETWORK_NAMES)} "
        f"Allowed: {', '.join(NETWORK_NAMES)}, or fc with the widths of its hidden layers, such as fc-300-100."
    )


def architecture(name: str, image_shape: tuple[int, int, int], classes: int) -> Architecture:
    """Return the layers of a network for images of `image_shape` (channels, height, width), in order.

    Raises UserError for an unknown name, or for images that are too small for its max-pooling layers.
    Source: Zhou et al. 2019, supplement, Table S1.
    """
    name = canonical_name(name)
    if name.startswith("fc"):
        channels, height, width = image_shape
        return _dense(channels * height * width, tuple(int(w) for w in name.split("-")[1:]), classes)
    layers: list[Conv | Pool | Dense] = []
    channels, height, width = image_shape
    for i, outputs in enumerate(CONV_CHANNELS[name], start=1):
        layers.append(Conv(f"conv{i}", channels, outputs, (height, width)))
        channels = outputs
        if i % 2 == 0:
            layers.append(Pool(f"pool{i // 2}"))
            height, width = height // 2, width // 2
    if height * width == 0:
        raise UserError(
            f"{name} halves its images {i // 2} times: {image_shape[1]}x{image_shape[2]} pixels are too few."
        )
    return tuple(layers) + _dense(channels * height * width, CONV_HEAD, classes)


def _dense(inputs: int, widths: tuple[int, ...], classes: int) -> tuple[Dense, ...]:
    sizes = (inputs, *widths, classes)
    last = len(sizes) - 2
    return tuple(Dense(f"fc{i + 1}", sizes[i], sizes[i + 1], i == last) for i in range(last + 1))


def prunable_tensors(layers: Architecture) -> dict[str, PrunableTensor]:
    """Return the prunable tensors by name: every Linear and Conv kernel, never a bias.

    Source: Zhou et al. 2019, Sec. 1.
    """
    tensors = {}
    for layer in layers:
        if isinstance(layer, Conv):
            tensors[f"{layer.name}.weight"] = PrunableTensor(
                f"{layer.name}.weight", (layer.outputs, layer.inputs, 3, 3), "conv"
            )
        elif isinstance(layer, Dense):
            kind: TensorKind = "output" if layer.last else "hidden"
            tensors[f"{layer.name}.weight"] = PrunableTensor(
                f"{layer.name}.weight", (layer.outputs, layer.inputs), kind
            )
    return tensors


def count_multiplications(layers: Architecture) -> int:
    """Multiplications in the forward pass of one image; a training step needs about three times as many."""
    total = 0
    for layer in layers:
        if isinstance(layer, Conv):
            total += 9 * layer.inputs * layer.outputs * layer.side[0] * layer.side[1]
        elif isinstance(layer, Dense):
            total += layer.inputs * layer.outputs
    return total


def initial_state(layers: Architecture, seed: int, initializer: str = "glorot_normal") -> InitialState:
    """Return the dense network of a seed: weights of the initializer, zero biases, masks of all ones.

    Every tensor is drawn from its own stream, (seed, "init", name). Source: Zhou et al. 2019, supplement.
    """
    import torch

    tensors = {n: replace(t, initializer=initializer) for n, t in prunable_tensors(layers).items()}
    weights = {n: torch.from_numpy(draw_weights(t, random_stream(seed, "init", n))) for n, t in tensors.items()}
    masks = {n: torch.ones(t.shape, dtype=torch.bool) for n, t in tensors.items()}
    biases = {n.removesuffix("weight") + "bias": torch.zeros(t.shape[0]) for n, t in tensors.items()}
    return InitialState(weights, masks, biases)


def build_module(layers: Architecture) -> nn.Sequential:
    """Return an `nn.Sequential` whose `state_dict` has the names of `initial_state`, with PyTorch's own values."""
    from collections import OrderedDict

    from torch import nn

    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in layers:
        if isinstance(layer, Conv):
            modules[layer.name] = nn.Conv2d(layer.inputs, layer.outputs, 3, padding="same")
            modules[f"{layer.name}_relu"] = nn.ReLU()
        elif isinstance(layer, Pool):
            modules[layer.name] = nn.MaxPool2d(2)
        else:
            modules.setdefault("flatten", nn.Flatten())
            modules[layer.name] = nn.Linear(layer.inputs, layer.outputs)
            if not layer.last:
                modules[f"{layer.name}_relu"] = nn.ReLU()
    return nn.Sequential(modules)
