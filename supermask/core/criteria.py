"""Mask criteria: one score a weight, higher = keep. The registry below is in the order of the paper's Table 1.

A criterion sees one layer (`types.Layer`) and its own random stream, and returns a tensor of the layer's shape; the
scores of dead weights are not looked at. w_i is `layer.w_init`, w_f is `layer.w_final`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from supermask.core.masks import rank
from supermask.core.rng import Stream
from supermask.core.types import Layer

if TYPE_CHECKING:
    from torch import Tensor

Criterion = Callable[[Layer, Stream], "Tensor"]


def large_final(layer: Layer, rng: Stream) -> Tensor:
    """abs(w_f). Source: paper.md section 3; the original lottery ticket criterion."""
    return layer.w_final.abs()


def small_final(layer: Layer, rng: Stream) -> Tensor:
    """-abs(w_f). Source: paper.md section 3."""
    return -layer.w_final.abs()


def large_init(layer: Layer, rng: Stream) -> Tensor:
    """abs(w_i); needs no training. Source: paper.md section 3."""
    return layer.w_init.abs()


def small_init(layer: Layer, rng: Stream) -> Tensor:
    """-abs(w_i). Source: paper.md section 3."""
    return -layer.w_init.abs()


def large_init_large_final(layer: Layer, rng: Stream) -> Tensor:
    """min(alpha abs(w_f), abs(w_i)), alpha such that both conditions prune alike: min of the two ranks.

    Source: paper.md section 3.
    """
    return rank(layer.w_init.abs(), layer.alive).minimum(rank(layer.w_final.abs(), layer.alive))


def small_init_small_final(layer: Layer, rng: Stream) -> Tensor:
    """-max(alpha abs(w_f), abs(w_i)), alpha as above: minus the max of the two ranks. Source: paper.md section 3."""
    return -rank(layer.w_init.abs(), layer.alive).maximum(rank(layer.w_final.abs(), layer.alive))


def magnitude_increase(layer: Layer, rng: Stream) -> Tensor:
    """abs(w_f) - abs(w_i). Source: paper.md section 3."""
    return layer.w_final.abs() - layer.w_init.abs()


def movement(layer: Layer, rng: Stream) -> Tensor:
    """abs(w_f - w_i). Source: paper.md section 3."""
    return (layer.w_final - layer.w_init).abs()


def random(layer: Layer, rng: Stream) -> Tensor:
    """0 everywhere: `keep_top` settles ties uniformly at random. Source: paper.md section 3; the control."""
    return layer.w_final.new_zeros(layer.w_final.shape)


def large_final_same_sign(layer: Layer, rng: Stream) -> Tensor:
    """abs(w_f) where sign(w_i) = sign(w_f), else 0. Source: paper.md section 3; the best heuristic supermask."""
    return layer.w_final.abs().masked_fill(~_same_sign(layer), 0.0)


def large_final_diff_sign(layer: Layer, rng: Stream) -> Tensor:
    """abs(w_f) where the signs differ, else 0. Source: paper.md section 3; a control."""
    return layer.w_final.abs().masked_fill(_same_sign(layer), 0.0)


def magnitude_increase_same_sign(layer: Layer, rng: Stream) -> Tensor:
    """abs(w_f) - abs(w_i) where sign(w_i) = sign(w_f), below everything else where not.

    Source: paper.md section 3. Differs from the paper: its excluded weights score 0, so that an included weight that
    *shrank* ranks below an excluded one; here excluded weights rank below all included ones (paper.md section 10).
    """
    return magnitude_increase(layer, rng).masked_fill(~_same_sign(layer), -float("inf"))


def magnitude_increase_diff_sign(layer: Layer, rng: Stream) -> Tensor:
    """abs(w_f) - abs(w_i) where the signs differ, below everything else where not.

    Source: paper.md section 3. Differs from the paper: as `magnitude_increase_same_sign`.
    """
    return magnitude_increase(layer, rng).masked_fill(_same_sign(layer), -float("inf"))


def snip(layer: Layer, rng: Stream) -> Tensor:
    """abs(dL/dw * w) at the start of the level, on its first batch; needs no training.

    Source: paper.md section 3. Differs from the paper: the authors store the gradient of the dense network alone and
    so prune one-shot only; here it is taken at each level's start (paper.md section 10).
    """
    assert layer.gradient is not None
    return (layer.gradient * layer.w_init).abs()


def grad(layer: Layer, rng: Stream) -> Tensor:
    """abs(dL/dw) at the start of the level, on its first batch.

    Source: paper.md section 3. Differs from the paper: as `snip`.
    """
    assert layer.gradient is not None
    return layer.gradient.abs()


def learned_mask(layer: Layer, rng: Stream) -> Tensor:
    """What the parent, which learned a mask, says of each weight: above 0 = keep. Source: paper.md section 6."""
    assert layer.mask_scores is not None
    return layer.mask_scores


def _same_sign(layer: Layer) -> Tensor:
    return layer.w_init.sign() == layer.w_final.sign()


CRITERIA: dict[str, Criterion] = {
    "large_final": large_final,
    "small_final": small_final,
    "large_init": large_init,
    "small_init": small_init,
    "large_init_large_final": large_init_large_final,
    "small_init_small_final": small_init_small_final,
    "magnitude_increase": magnitude_increase,
    "movement": movement,
    "random": random,
    "large_final_same_sign": large_final_same_sign,
    "large_final_diff_sign": large_final_diff_sign,
    "magnitude_increase_same_sign": magnitude_increase_same_sign,
    "magnitude_increase_diff_sign": magnitude_increase_diff_sign,
    "snip": snip,
    "grad": grad,
}

ALL_CRITERIA = {**CRITERIA, "learned": learned_mask}
"""Those that a study can name, and the one that follows where a mask was learned."""

NEEDS_GRADIENT = {"snip", "grad"}
"""Criteria that read `layer.gradient`: the parent's run has to keep it."""
