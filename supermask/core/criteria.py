"""Mask criteria: one score per weight; the highest scores are kept.

A criterion gets one layer (`core.types.Layer`) and a random stream of its own, and returns a tensor of the layer's
shape: `(out, in)` for Linear, `(out, in, height, width)` for Conv. Scores of pruned weights are ignored. In the
formulas w_i is `layer.w_init` and w_f is `layer.w_final`.

A new criterion: one function here, a line in `CRITERIA`, and in `NEEDS_GRADIENT` if it reads `layer.gradient`; the
places outside this file are listed in docs/architecture.md, "To add ...".
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
"""(layer, rng) -> scores of the layer's shape."""


def large_final(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_f), the original lottery ticket criterion. Source: Zhou et al. 2019, Sec. 2, Fig. 3."""
    return layer.w_final.abs()


def small_final(layer: Layer, rng: Stream) -> Tensor:
    """Score -abs(w_f), the opposite of `large_final`. Source: Zhou et al. 2019, Sec. 2, Fig. 3."""
    return -layer.w_final.abs()


def large_init(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_i); needs no training. Source: Zhou et al. 2019, Sec. 2, Fig. 3."""
    return layer.w_init.abs()


def small_init(layer: Layer, rng: Stream) -> Tensor:
    """Score -abs(w_i); needs no training. Source: Zhou et al. 2019, Sec. 2, Fig. 3."""
    return -layer.w_init.abs()


def large_init_large_final(layer: Layer, rng: Stream) -> Tensor:
    """Score min(alpha abs(w_f), abs(w_i)): both the initial and the final magnitude have to be large.

    alpha is chosen per layer so that each of the two conditions prunes the same share. That is the smaller of the two
    ranks among the layer's alive weights.
    Source: Zhou et al. 2019, Sec. 2, Fig. 3.
    """
    return rank(layer.w_init.abs(), layer.alive).minimum(rank(layer.w_final.abs(), layer.alive))


def small_init_small_final(layer: Layer, rng: Stream) -> Tensor:
    """Score -max(alpha abs(w_f), abs(w_i)): minus the larger of the two ranks, alpha as in `large_init_large_final`.

    Source: Zhou et al. 2019, Sec. 2, Fig. 3.
    """
    return -rank(layer.w_init.abs(), layer.alive).maximum(rank(layer.w_final.abs(), layer.alive))


def magnitude_increase(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_f) - abs(w_i). Source: Zhou et al. 2019, Sec. 2, Fig. 3."""
    return layer.w_final.abs() - layer.w_init.abs()


def movement(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_f - w_i). Source: Zhou et al. 2019, Sec. 2, Fig. 3."""
    return (layer.w_final - layer.w_init).abs()


def random(layer: Layer, rng: Stream) -> Tensor:
    """Score 0 everywhere, the control: `keep_top` breaks ties uniformly at random.

    Source: Zhou et al. 2019, Sec. 2, Fig. 3.
    """
    return layer.w_final.new_zeros(layer.w_final.shape)


def large_final_same_sign(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_f) where sign(w_i) = sign(w_f), else 0: the best heuristic supermask.

    Source: Zhou et al. 2019, Sec. 5, Fig. 7.
    """
    return layer.w_final.abs().masked_fill(~_same_sign(layer), 0.0)


def large_final_diff_sign(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_f) where sign(w_i) differs from sign(w_f), else 0: a control. Source: Zhou et al. 2019, Sec. 5."""
    return layer.w_final.abs().masked_fill(_same_sign(layer), 0.0)


def magnitude_increase_same_sign(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_f) - abs(w_i) where sign(w_i) = sign(w_f), else minus infinity.

    Source: Zhou et al. 2019, Sec. 5, Fig. 7.
    Differs from the paper: the authors' excluded weights score 0, so an included weight that *shrank* ranks below an
    excluded one. Here excluded weights rank below all included ones.
    """
    return magnitude_increase(layer, rng).masked_fill(~_same_sign(layer), -float("inf"))


def magnitude_increase_diff_sign(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_f) - abs(w_i) where sign(w_i) differs from sign(w_f), else minus infinity: a control.

    Source: Zhou et al. 2019, Sec. 5, Fig. 7. Differs from the paper: as `magnitude_increase_same_sign`.
    """
    return magnitude_increase(layer, rng).masked_fill(_same_sign(layer), -float("inf"))


def magnitude_increase_same_sign_literal(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(w_f) - abs(w_i) where sign(w_i) = sign(w_f), else 0: the variant of the authors' code.

    Excluded weights score 0, so an included weight that shrank ranks below them, and they tie with each other. To be
    compared with `magnitude_increase_same_sign`. Source: Zhou et al. 2019, Sec. 5, Fig. 7.
    """
    return magnitude_increase(layer, rng).masked_fill(~_same_sign(layer), 0.0)


def snip(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(dL/dw * w_i) at the start of the level, on its first batch; needs no training.

    Source: Zhou et al. 2019, Sec. 2; Lee et al. 2019.
    Differs from the paper: the authors store the gradient of the dense network only and so prune one-shot only. Here
    the gradient is taken at the start of each level.
    """
    assert layer.gradient is not None
    return (layer.gradient * layer.w_init).abs()


def grad(layer: Layer, rng: Stream) -> Tensor:
    """Score abs(dL/dw) at the start of the level, on its first batch; needs no training.

    Source: Zhou et al. 2019, Sec. 2. Differs from the paper: as `snip`.
    """
    assert layer.gradient is not None
    return layer.gradient.abs()


def learned_mask(layer: Layer, rng: Stream) -> Tensor:
    """Score of the mask that the parent learned; weights with a score above 0 are kept.

    Source: Zhou et al. 2019, Sec. 5.
    """
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
    "magnitude_increase_same_sign_literal": magnitude_increase_same_sign_literal,
    "snip": snip,
    "grad": grad,
}
"""Criteria that a study file can name."""

ALL_CRITERIA = {**CRITERIA, "learned": learned_mask}
"""`CRITERIA` and the criterion of runs that follow a learned mask."""

NEEDS_GRADIENT = {"snip", "grad"}
"""Criteria that read `layer.gradient`, so the parent's run has to keep that snapshot."""
