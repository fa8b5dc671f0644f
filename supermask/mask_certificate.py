"""The certificate of a run that learned a mask: nothing but logits moved, and what is reported can be had again.

Written against NumPy arrays, apart from the code that learns. Source: paper.md sections 6 and 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from supermask.certificate import Certificate
from supermask.learned import Learning
from supermask.promises import as_array, same_bits
from supermask.types import Maskable, Outcome, Start, Weights

if TYPE_CHECKING:
    from torch import Tensor

IMAGES_APART = 2.0
"""Test images, on average over samples, by which the engine that learned and the reference engine may differ."""


TIED = 2
"""Weights of a layer that `edge_popup` may keep too few: those that tie at its cut are all pruned. Of fresh scores two
do at one cut in 500 in FC's first layer, at one in 30 in Conv2's largest, three at one in a thousand there."""


def certify_learning(
    maskables: dict[str, Maskable], dense: Start, start: Start, outcome: Outcome, learning: Learning, test_images: int
) -> Certificate:
    """Checks a run that learned a mask, from its tensors. `dense`: the network of its seed, untrained.

    weights_as_promised: w_i, or s times the multiplier, with the sign of w_i where that is promised.
    weights_are_frozen, others_are_frozen: bit-equal to their start at the end.
    masks_are_binary: the last pass computed with 0 or the weight itself, times size / ones where rescaled.
    kept_share: `edge_popup` kept what was asked, but for ties. logits_are_finite.
    accuracies_reproduced: what the engine saw is what is measured from the stored logits and the seed.
    Source: paper.md sections 6 and 11.
    """
    without = sorted(set(maskables) ^ (set(start.weights) & set(start.logits)))
    if without:
        return Certificate({"every_kernel_has_logits": without})
    states, used = [outcome.end, *outcome.points.values()], outcome.last_pass
    checks: dict[str, list[str]] = {
        "every_kernel_has_logits": [],
        "weights_as_promised": [n for n, m in maskables.items() if not _as_promised(learning, m, dense, start)],
        "weights_are_frozen": _moved(start.weights, [state.weights for state in states]),
        "others_are_frozen": _moved(start.others, [state.others for state in states]),
    }
    if outcome.status == "finished":
        checks |= {
            "logits_are_finite": _not_finite([state.logits for state in states]),
            "masks_are_binary": [n for n, w in start.weights.items() if not _binary(w, used.get(n), learning)],
            "kept_share": _kept_share(outcome, learning),
            "accuracies_reproduced": _not_reproduced(outcome, test_images),
        }
    return Certificate(checks)


def _as_promised(learning: Learning, maskable: Maskable, dense: Start, start: Start) -> bool:
    w_init, weights = as_array(dense.weights[maskable.name]), as_array(start.weights[maskable.name])
    if learning.weights == "init":
        return same_bits(weights, w_init * np.float32(learning.multiplier))
    size = np.float32(maskable.std) * np.float32(learning.multiplier)
    right = ((np.abs(weights) == np.abs(size)) | (w_init == 0)).all()
    as_w_init = (np.sign(weights) == np.sign(w_init * size)).all()
    return bool(right and (learning.weights == "constant" or as_w_init))


def _moved(start: Weights, ends: Sequence[Weights]) -> list[str]:
    return sorted({n for end in ends for n in start.keys() | end.keys() if not _same(start.get(n), end.get(n))})


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and same_bits(as_array(a), as_array(b))


def _not_finite(logits: Sequence[Weights]) -> list[str]:
    return sorted({name for each in logits for name, m in each.items() if not np.isfinite(as_array(m)).all()})


def _binary(weights: Tensor, used: Tensor | None, learning: Learning) -> bool:
    """Each weight of the pass is 0, or the weight itself (inverted, under `signed`), times the one ratio there is."""
    if used is None:
        return False
    w, u = as_array(weights), as_array(used)
    kept = u != 0
    own, seen = w[kept], u[kept]
    if learning.method == "signed":
        own, seen = np.abs(own), np.abs(seen)
    if not learning.rescaled:
        return same_bits(seen, own)
    # A mask may keep a weight that is 0, which cannot be seen.
    most, least = w.size / max(seen.size, 1), w.size / max(seen.size + np.count_nonzero(w == 0), 1)
    ratios = seen.astype(np.float64) / own
    one_ratio = np.ptp(ratios) < 1e-5 * most if ratios.size else True
    return bool(one_ratio and (ratios >= least * (1 - 1e-6)).all() and (ratios <= most * (1 + 1e-6)).all())


def _kept_share(outcome: Outcome, learning: Learning) -> list[str]:
    if learning.method != "edge_popup":
        return []
    broken = []
    for name, used in outcome.last_pass.items():
        kept, asked = int(np.count_nonzero(as_array(used))), round(learning.density * used.numel())
        if not 0 <= min(max(asked, 1), used.numel() - 1) - kept <= TIED:
            broken.append(f"{name}: {kept} kept, {asked} asked")
    return broken


def _not_reproduced(outcome: Outcome, test_images: int) -> list[str]:
    """What the reference engine measured from the stored logits, against what the loop saw while it learned."""
    broken = []
    for name, part in (("early_stop", "selected"), ("final", "final")):
        seen, again = outcome.metrics[f"{name}_test_accuracy"], outcome.supermask[part]["mean"]
        if seen is None or abs(seen - again) * test_images > IMAGES_APART:
            broken.append(f"{name}_test_accuracy: {seen} while it learned, {again} from the stored logits")
    return broken
