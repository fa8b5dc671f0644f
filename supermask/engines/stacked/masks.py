"""Masks that are learned, of many replicas at once: `engines.learning.masked` with a leading axis."""

from __future__ import annotations

import torch
from torch import Tensor

from supermask.engines.learning import Straight
from supermask.learned import SIGMOID, Learning, edge_popup_kept, stacked_coins


def masked(learning: Learning, logits: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """The weights of one pass of each replica, differentiable in the logits.

    b w, or b w (size / ones) under dynamic weight rescaling. Shape: that of the logits, `(replicas, *kernel)`; `keys`:
    int32 `(replicas, 2)`, for the coins of `bernoulli`. Source: paper.md section 6.
    """
    soft = logits.sigmoid() if learning.method in SIGMOID else logits
    b: Tensor = Straight.apply(soft, _mask(learning, soft.detach(), logits.detach(), keys))  # type: ignore[no-untyped-call]
    used = b * weights
    if learning.rescaled:
        # The gradient flows through the ratio: d(ones)/db is 1, at zeros too; the sign of b where it may invert.
        counted = b.abs() if learning.method == "signed" else b
        ones = torch.sum(counted.flatten(1), 1).clamp(min=1.0)
        used = used * (logits[0].numel() / ones).view(-1, *[1] * (logits.dim() - 1))
    return used


def _mask(learning: Learning, soft: Tensor, logits: Tensor, keys: Tensor) -> Tensor:
    if learning.method == "bernoulli":
        return (stacked_coins(keys, logits) < soft).float()
    if learning.method == "rounded":
        return (logits > 0).float()
    if learning.method == "signed":
        return logits.sign() * (logits.abs() > learning.threshold)
    each = logits.flatten(1)
    cut = each.kthvalue(each.shape[1] - edge_popup_kept(each.shape[1], learning.density), 1, keepdim=True).values
    return (each > cut).float().view_as(logits)
