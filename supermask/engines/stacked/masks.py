"""Masks that are learned, of many replicas at once: `engines.learning.masked` with a leading axis."""

from __future__ import annotations

import torch
from torch import Tensor

from supermask.engines.learning import Straight
from supermask.learned import Learning, stacked_coins


def masked(learning: Learning, logits: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """The weights of one pass of each replica, differentiable in the logits; `bernoulli` and `rounded`.

    b w, or b w (size / ones) under dynamic weight rescaling. Shape: that of the logits, `(replicas, *kernel)`; `keys`:
    int32 `(replicas, 2)`, for the coins of `bernoulli`. Source: paper.md section 6.
    """
    soft, fixed = logits.sigmoid(), logits.detach()
    mask = (stacked_coins(keys, fixed) < soft.detach() if learning.method == "bernoulli" else fixed > 0).float()
    b: Tensor = Straight.apply(soft, mask)  # type: ignore[no-untyped-call]
    used = b * weights
    if learning.rescaled:
        # The gradient flows through the ratio: d(ones)/db is 1, at zeros too.
        ones = torch.sum(b.flatten(1), 1).clamp(min=1.0)
        used = used * (mask[0].numel() / ones).view(-1, *[1] * (mask.dim() - 1))
    return used
