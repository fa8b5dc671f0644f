"""Certificate of a run that learned a mask: frozen weights, binary masks, and accuracies that can be reproduced.

As in `certificate`: NumPy arrays, no formula shared with the learning of masks (only `MaskLearning`, its settings,
and `PrunableTensor`), and a check fails only on evidence that a correct run cannot produce.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from supermask.core.certificate import SMALLEST_NORMAL, Certificate
from supermask.core.invariants import bitwise_equal, is_included, to_numpy
from supermask.core.learned_masks import MaskLearning
from supermask.core.types import InitialState, PrunableTensor, TrainingResult, Weights

if TYPE_CHECKING:
    from torch import Tensor


ACCURACY_TOLERANCE = 2.0
"""Number of test images, averaged over samples, by which the learning and the reference engine may differ."""

BLANK_LOSS_MARGIN = 1e-6
"""Nats by which the loss of a network whose logits are all equal may differ from ln(classes): float32 rounding."""

TIE_SHARE = 0.01
"""Share of the test images whose two largest logits may be equal except for rounding if all weights are constants.
Measured: up to 0.6% of the test images of digits."""

MAX_TIED = 2
"""Weights of a layer by which the mask of `edge_popup` may always be too small: it prunes all weights that tie at its
cut. With fresh scores two weights tie at 1 in 500 cuts in FC's first layer and at 1 in 30 in Conv2's largest; three at
1 in 1,000. A larger shortfall is allowed up to the number of final logits that are equal (`_max_invisible`)."""


def certify_learned_mask(
    prunable: dict[str, PrunableTensor],
    dense: InitialState,
    start: InitialState,
    result: TrainingResult,
    learning: MaskLearning,
    test_images: int,
    free: Collection[str] = (),
) -> Certificate:
    """Check a run that learned a mask. `dense`: the untrained network of its seed.

    `free`: unmasked tensors that may change: running statistics, and biases if they are trained beside the mask.

    every_kernel_has_logits: the tensors that are masked, and no others.
    weights_as_promised: w_i, or s times the multiplier, with the sign of w_i where that is promised.
    weights_are_frozen, others_are_frozen: bit-equal to the initial state at the end, and the initial state to `dense`.
    others_are_finite: those that may change are finite numbers.
    masks_are_binary: the last pass used 0 or the weight itself, times (size / ones) with rescaling; without a mask the
    weights themselves.
    kept_share: `edge_popup` kept the requested count, except for ties.
    logits_are_finite: no NaN and no infinity.
    accuracies_reproduced: accuracies during learning equal those measured from the stored logits and the seed.
    Source: Zhou et al. 2019, Sec. 5.
    """
    masked = {name for name in prunable if is_included(name, learning.only, learning.exclude)}
    unmatched = sorted((set(prunable) ^ set(start.weights)) | (masked ^ set(start.logits)))
    if unmatched:
        return Certificate({"every_kernel_has_logits": unmatched})
    states, used = [result.end, *result.snapshots.values()], result.last_sampled_weights
    checks: dict[str, list[str]] = {
        "every_kernel_has_logits": [],
        "weights_as_promised": [n for n, m in prunable.items() if not _check_base_weights(learning, m, dense, start)],
        "weights_are_frozen": _find_changed(start.weights, [state.weights for state in states]),
        "others_are_frozen": sorted(
            {*_find_changed(start.unmasked, [dense.unmasked])}
            | ({*_find_changed(start.unmasked, [state.unmasked for state in states])} - set(free))
        ),
    }
    if free:
        free_tensors = [{name: state.unmasked[name] for name in free} for state in states]
        checks["others_are_finite"] = [] if result.status == "diverged" else _find_non_finite(free_tensors)
    notes: dict[str, list[str]] = {}
    if result.status == "finished":
        classes = len(next(reversed(start.weights.values())))
        unequal, notes["accuracies_reproduced"] = _check_reproduced(result, learning, test_images, classes)
        checks |= {
            "logits_are_finite": _find_non_finite([state.logits for state in states]),
            "masks_are_binary": [
                n
                for n, w in start.weights.items()
                if not (_check_binary_mask(w, used.get(n), learning) if n in masked else _is_equal(w, used.get(n)))
            ],
            "kept_share": _check_kept_share(result, learning),
            "accuracies_reproduced": unequal,
        }
    return Certificate(checks, {name: items for name, items in notes.items() if items})


def _check_base_weights(
    learning: MaskLearning, tensor: PrunableTensor, dense: InitialState, start: InitialState
) -> bool:
    w_init, weights = to_numpy(dense.weights[tensor.name]), to_numpy(start.weights[tensor.name])
    if learning.weights == "init":
        return bitwise_equal(weights, w_init * np.float32(learning.multiplier))
    size = np.float32(tensor.std) * np.float32(learning.multiplier)
    right = ((np.abs(weights) == np.abs(size)) | (w_init == 0)).all()
    as_w_init = (np.sign(weights) == np.sign(w_init * size)).all()
    return bool(right and (learning.weights == "constant" or as_w_init))


def _find_changed(start: Weights, ends: Sequence[Weights]) -> list[str]:
    return sorted({n for end in ends for n in start.keys() | end.keys() if not _is_equal(start.get(n), end.get(n))})


def _is_equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and bitwise_equal(to_numpy(a), to_numpy(b))


def _find_non_finite(logits: Sequence[Weights]) -> list[str]:
    return sorted(
        {name for state_logits in logits for name, m in state_logits.items() if not np.isfinite(to_numpy(m)).all()}
    )


def _check_binary_mask(weights: Tensor, used: Tensor | None, learning: MaskLearning) -> bool:
    """Each weight of the pass is 0 or the weight itself (inverted under `signed`), times one common ratio."""
    if used is None:
        return False
    w, u = to_numpy(weights), to_numpy(used)
    kept = u != 0
    original, sampled = w[kept], u[kept]
    if learning.method == "signed":
        original, sampled = np.abs(original), np.abs(sampled)
    if not learning.rescaled:
        return bitwise_equal(sampled, original)
    # A mask may keep a weight whose value is 0, or flushed to 0. It looks pruned, so the ratio has a range.
    zeros = np.count_nonzero(np.abs(w) < SMALLEST_NORMAL)
    most, least = w.size / max(sampled.size, 1), w.size / max(sampled.size + zeros, 1)
    ratios = sampled.astype(np.float64) / original
    one_ratio = np.ptp(ratios) < 1e-5 * most if ratios.size else True
    return bool(one_ratio and (ratios >= least * (1 - 1e-6)).all() and (ratios <= most * (1 + 1e-6)).all())


def _check_kept_share(result: TrainingResult, learning: MaskLearning) -> list[str]:
    if learning.method != "edge_popup":
        return []
    broken = []
    for name, used in result.last_sampled_weights.items():
        if name not in result.end.logits:
            continue
        kept, expected = int(np.count_nonzero(to_numpy(used))), round(learning.density * used.numel())
        missing = min(max(expected, 1), used.numel() - 1) - kept
        if missing < 0 or (missing > MAX_TIED and missing > _max_invisible(result, name)):
            broken.append(f"{name}: {kept} kept, {expected} asked")
    return broken


def _max_invisible(result: TrainingResult, name: str) -> int:
    """Return how many weights of a correct mask can be missing: all but one of the largest tie, and kept zeros."""
    zeros = np.count_nonzero(np.abs(to_numpy(result.end.weights[name])) < SMALLEST_NORMAL)
    _, counts = np.unique(to_numpy(result.end.logits[name]), return_counts=True)
    return int(counts.max(initial=1)) - 1 + int(zeros)


def _check_reproduced(
    result: TrainingResult, learning: MaskLearning, test_images: int, classes: int
) -> tuple[list[str], list[str]]:
    """Compare accuracies measured from the stored logits with those measured during learning: (failed, notes).

    A loss of ln(classes) means that the network's logits are all equal, or so small that engines flush them to 0
    differently: its accuracies are those of ties.
    """
    failed, notes = [], []
    ties = 0.0 if learning.weights == "init" else TIE_SHARE * test_images
    for name, part in (("early_stop", "selected"), ("final", "final")):
        measured, repeated = result.metrics[f"{name}_test_accuracy"], result.supermask[part]["mean"]
        message = f"{name}_test_accuracy: {measured} during learning, {repeated} from the stored logits"
        # Rounded, because 10 / 17 - 8 / 17 is more than 2 / 17.
        images = np.inf if measured is None else round(abs(measured - repeated) * test_images, 6)
        is_blank = measured is not None and abs(result.supermask[part]["loss"] - np.log(classes)) < BLANK_LOSS_MARGIN
        if not images <= max(ACCURACY_TOLERANCE, ties) and not is_blank:
            failed.append(message)
        elif images > ACCURACY_TOLERANCE:
            notes.append(f"{message}; equal logits can cause this")
    return failed, notes
