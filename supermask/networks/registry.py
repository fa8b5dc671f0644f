"""Networks by name: the paper's, residual networks, VGG and wide residual networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from supermask.core.errors import UserError, did_you_mean
from supermask.core.initializers import OWN
from supermask.networks import sequential
from supermask.networks.cifar_resnet import cifar_resnet_facts
from supermask.networks.network import Network, NetworkFacts, is_user_network, sequential_network
from supermask.networks.sequential import architecture

if TYPE_CHECKING:
    from torch import nn

ImageShape = tuple[int, int, int]

CIFAR_RESNETS = (20, 32, 44, 56, 110)
DEFAULT_WIDTH = 16
"""Channels of the first stage of a residual network for CIFAR. Source: He et al. 2015, Sec. 4.2."""

NETWORK_NAMES = (
    *sequential.NETWORK_NAMES,
    *(f"resnet{depth}" for depth in CIFAR_RESNETS),
    "resnet18",
    "resnet50",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "wrn-28-10",
)
NETWORK_FORMS = (
    "fc with the widths of its hidden layers, at most 999,999 each (fc-300-100), a residual network with the width of "
    "its first stage (resnet20-8), or a wide residual network (wrn-DEPTH-FACTOR, with DEPTH = 6 n + 4)"
)
"""Names with numbers that are networks too, as part of a message."""


def canonical_name(name: str) -> str:
    """Return the canonical name of a network: `fc` is `fc-300-100`. Raises UserError for an unknown name."""
    if match := re.fullmatch(r"resnet(\d+)(?:-([1-9]\d{0,3}))?", name, re.ASCII):
        depth, width = int(match[1]), match[2]
        if depth in CIFAR_RESNETS:
            return f"resnet{depth}" if int(width or DEFAULT_WIDTH) == DEFAULT_WIDTH else name
        if depth in (18, 50) and width is None:
            return name
    if re.fullmatch(r"vgg(11|13|16|19)", name, re.ASCII):
        return name
    if match := re.fullmatch(r"wrn-([1-9]\d{0,3})-([1-9]\d{0,2})", name, re.ASCII):
        if int(match[1]) >= 10 and int(match[1]) % 6 == 4:
            return name
        raise UserError(f"{name!r}: the depth of a wide residual network is 6n + 4: 10, 16, 22, 28, 34, 40 ...")
    try:
        return sequential.canonical_name(name)
    except UserError:
        raise UserError(
            f"{name!r} is not a network{suggest_network(name)} Allowed: {', '.join(NETWORK_NAMES)}, {NETWORK_FORMS}."
        ) from None


def is_layer_chain(name: str | None) -> bool:
    """Return whether each layer of a network reads the previous one alone: `fc`, `conv` and `vgg` networks.

    False for residual networks, whose shortcuts pass layers by, and for networks that are not known here: import paths,
    other names, None.
    """
    if name is None or is_user_network(name):
        return False
    try:
        return not canonical_name(name).startswith(("resnet", "wrn"))
    except UserError:
        return False


def suggest_network(name: str) -> str:
    """Return `; did you mean 'resnet20-4'?`: the nearest depth where the name has one, else the nearest name."""
    match = re.fullmatch(r"(resnet|vgg|conv)(\d{1,4})(-[1-9]\d{0,3})?", name, re.ASCII)
    if match is None:
        return did_you_mean(name, NETWORK_NAMES)
    kind, depth, width = match[1], int(match[2]), match[3] or ""
    depths = CIFAR_RESNETS if width and kind == "resnet" else _depths(kind)
    nearest = min(depths, key=lambda known: (abs(known - depth), known))
    return f"; did you mean '{kind}{nearest}{width if kind == 'resnet' else ''}'?"


def _depths(kind: str) -> list[int]:
    """Return the depths of the networks named by a kind and a number."""
    return [int(name.removeprefix(kind)) for name in NETWORK_NAMES if re.fullmatch(rf"{kind}\d+", name)]


def named_network(name: str, image_shape: ImageShape, classes: int, initializer: str = "glorot_normal") -> Network:
    """Return a network by its name, for images of `image_shape` (channels, height, width).

    Raises UserError for an unknown name, or for images that are too small.
    """
    name = canonical_name(name)
    make = _module_factory(name, image_shape, classes)
    if make is not None:
        facts = _module_facts(name, image_shape, classes, initializer == OWN)
        return Network(name, facts, None, initializer, make)
    network = sequential_network(architecture(name, image_shape, classes), name, initializer)
    assert network.facts is not None
    return replace(network, facts=replace(network.facts, image_shape=image_shape))


@lru_cache(maxsize=64)
def _module_facts(name: str, image_shape: ImageShape, classes: int, with_values: bool) -> NetworkFacts:
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    if name.startswith("resnet") and numbers[0] in CIFAR_RESNETS and not with_values:
        return cifar_resnet_facts(numbers[0], (*numbers, DEFAULT_WIDTH)[1], image_shape, classes)
    from supermask.networks.examination import shipped_module_facts

    make = _module_factory(name, image_shape, classes)
    assert make is not None
    return shipped_module_facts(make, image_shape, classes, name, with_values)


def _module_factory(name: str, image_shape: ImageShape, classes: int) -> Callable[[], nn.Module] | None:
    """Return a function that makes the module of a canonical name; None for the paper's networks."""
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    if name.startswith(("resnet", "wrn")):
        return partial(_residual_network, name.partition("-")[0], tuple(numbers), image_shape, classes)
    if name.startswith("vgg"):
        return partial(_vgg, numbers[0], image_shape, classes)
    return None


def _residual_network(kind: str, numbers: tuple[int, ...], image_shape: ImageShape, classes: int) -> nn.Module:
    from supermask.networks.residual import CifarResNet, ImageNetResNet, WideResNet

    if kind == "wrn":
        return WideResNet(numbers[0], numbers[1], image_shape[0], classes)
    if numbers[0] in CIFAR_RESNETS:
        width = numbers[1] if len(numbers) > 1 else DEFAULT_WIDTH
        return CifarResNet(numbers[0], width, image_shape[0], classes)
    blocks, bottleneck = ((2, 2, 2, 2), False) if numbers[0] == 18 else ((3, 4, 6, 3), True)
    return ImageNetResNet(blocks, bottleneck, image_shape, classes)


def _vgg(depth: int, image_shape: ImageShape, classes: int) -> nn.Module:
    from supermask.networks.vgg import VGG

    return VGG(depth, image_shape, classes)
