"""Passes of probe images that tell which parameters training changes: those that get a gradient."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from supermask.networks.layers import count_multiplications, layer_weights
from supermask.networks.module_output import extract_logits, probe_loss
from supermask.networks.network import seeded_draws

PROBE_IMAGES = 4
"""Images of the forward passes of an examination; batch normalization needs more than one."""
TRAINING_PROBES = 16
"""Most passes in training mode that look for a gradient of every parameter, each under another seed."""
VARIED_IMAGES = 256
"""Most images of every such pass but the first."""
MAX_PROBE_MULTIPLICATIONS = 2**30
"""Multiplications of such a forward pass, as far as `PROBE_IMAGES` images need no more. Half a second on one core."""


@dataclass(frozen=True)
class GradientPass:
    """One forward and backward pass of probe images."""

    trained: frozenset[str]
    """Parameters with a gradient."""
    output_layer: nn.Module | None
    """Layer that gives the logits."""
    multiplications: int
    """Multiplications of the forward pass of one image."""


def run_gradient_passes(
    module: nn.Module, images: Tensor, image_shape: tuple[int, int, int], name: str
) -> Iterator[GradientPass]:
    """Yield passes in training mode until every parameter that can be trained had a gradient in one of them.

    The first pass is enough for most modules. Others skip layers at random, or choose them by their images: further
    passes have other seeds and more varied images. A forward pass in evaluation mode then counts multiplications.
    """
    with seeded_draws(0):
        before = generator_states()
        first = _gradient_pass(module.train(), images, name)
        draws = before != generator_states()
    yield first
    missing = {n for n, p in module.named_parameters() if p.requires_grad} - first.trained
    if not missing:
        return
    count = min(max(MAX_PROBE_MULTIPLICATIONS // max(first.multiplications, 1), PROBE_IMAGES), VARIED_IMAGES)
    for seed in range(1, TRAINING_PROBES):
        later = None
        # Values beyond [0, 1], and other numbers of images, may be errors in the module.
        with seeded_draws(seed), suppress(Exception):
            later = _gradient_pass(module.train(), _varied_images(image_shape, count, seed), name)
        if later is not None:
            yield later
            missing -= later.trained
        if not missing:
            break
    if draws:
        # Layers that training skips at random multiply too.
        with seeded_draws(0), torch.no_grad():
            yield _gradient_pass(module.eval(), images, name)


def _gradient_pass(module: nn.Module, images: Tensor, name: str) -> GradientPass:
    calls: list[tuple[nn.Module, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda layer, _, output: calls.append((layer, output)))
        for layer in {id(layer): layer for _, (layer, _, _) in layer_weights(module)}.values()
    ]
    for parameter in module.parameters():
        parameter.grad = None
    try:
        logits = extract_logits(module(images.clone()), name)
        if logits.requires_grad:
            probe_loss(logits).backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    return GradientPass(
        frozenset(n for n, p in module.named_parameters() if p.requires_grad and p.grad is not None),
        next((layer for layer, output in reversed(calls) if _gives_logits(output, logits)), None),
        sum(count_multiplications(layer, output) for layer, output in calls) // len(images),
    )


def generator_states() -> tuple[bytes, Any, Any]:
    """Return the states of torch's, NumPy's and Python's global generators; equal if no number was drawn between."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_position = (numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"], numpy_state["has_gauss"])
    return torch.default_generator.get_state().numpy().tobytes(), numpy_position, random.getstate()


def _gives_logits(output: Any, logits: Tensor) -> bool:
    return isinstance(output, Tensor) and output.shape[:2] == logits.shape


def probe_images(image_shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Return random images in [0, 1], `(PROBE_IMAGES, channels, height, width)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(PROBE_IMAGES, *image_shape, generator=generator)


def _varied_images(image_shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Return noise `(count, channels, height, width)` of many scales and offsets, of pixels or of 4x4 patches.

    In [0, 1] for odd seeds; others are centered and exceed it, as normalized pixels do.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = image_shape
    pixels = torch.randn(count, *image_shape, generator=generator)
    patches = torch.randn(count, channels, min(height, 4), min(width, 4), generator=generator)
    is_coarse, scale, offset = torch.rand(3, count, 1, 1, 1, generator=generator)
    noise = torch.where(is_coarse < 0.5, torch.nn.functional.interpolate(patches, (height, width)), pixels)
    # Standard deviations of 1/4 to 4.
    noise.mul_((4 * scale - 2).exp2())
    if seed % 2:
        return noise.add_(offset).clamp_(0, 1)
    return noise.mul_(4).add_(2 * offset - 1)
