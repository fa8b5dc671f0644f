"""Supermasks that are learned: logits over weights that never move. What each method does with them, as formulas.

A logit m stands for every maskable weight w. A method makes of the logits a mask b in every forward pass; the network
computes with b w (times a layer's size / ones, under dynamic weight rescaling), and the gradient with respect to b
passes straight through to the logits. No torch at import, no engine, no disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from supermask.core.initializers import truncated_normal
from supermask.core.masks import keep_top, rank
from supermask.core.pruning import ParentRun, PruneStep, compute_scores, keep_counts
from supermask.core.rng import Streams, child_streams, random_stream
from supermask.core.types import InitialState, Masks, PrunableTensor, Weights

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["bernoulli", "rounded", "edge_popup", "signed"]
Base = Literal["init", "signed_constant", "constant"]

METHODS: dict[str, str] = {
    "bernoulli": "b ~ Bernoulli(sigmoid(m)), drawn anew in every forward pass",
    "rounded": "b = 1 where sigmoid(m) > 0.5, else 0",
    "edge_popup": "b = 1 at the top share `density` of m in each layer, else 0",
    "signed": "b = 1 where m > `threshold`, -1 where m < -`threshold`, else 0",
}
"""The paper's two, and two later rivals (Ramanujan et al. 2020; Koster et al. 2022)."""

SIGMOID = ("bernoulli", "rounded")
"""Methods whose gradient passes to sigmoid(m); the others' passes to m."""


@dataclass(frozen=True)
class MaskLearning:
    """How a mask is learned; with the recipe (optimiser, learning rate, batch, length) part of a run's identity."""

    method: Method = "bernoulli"
    weights: Base = "init"
    """What the mask is put on: w_i, sign(w_i) s, or s with a random sign; s is the layer's initial deviation."""
    multiplier: float = 1.0
    """Of the weights."""
    rescaled: bool = False
    """Dynamic weight rescaling: times (weights in layer / ones in this pass's mask), gradient included."""
    start_logit: float = 0.0
    """Where every logit of `bernoulli` and `rounded` begins; `edge_popup` and `signed` draw from the initialiser."""
    confidence: float = 0.0
    """Of a mask that starts from a heuristic one: logits +c where that keeps, -c elsewhere."""
    graded: bool = False
    """Then, logits by rank of the heuristic's scores instead: 2 c (rank - share pruned), rank in (0, 1]."""
    density: float = 0.5
    """Share of each layer's weights that `edge_popup` keeps."""
    threshold: float = 0.01
    """Of `signed`."""
    samples: int = 10
    """Single samples whose mean accuracy is the accuracy of a `bernoulli` supermask; the other methods need one."""
    hardened_at: tuple[float, ...] = ()
    """Densities at which the mask of each layer's highest logits is measured too."""

    @property
    def num_samples(self) -> int:
        """Networks that are measured for one accuracy: `samples`, or one where there is nothing to draw."""
        return self.samples if self.method == "bernoulli" else 1

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "hardened_at": list(self.hardened_at)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> MaskLearning:
        """The inverse of `to_data`."""
        return cls(**{**data, "hardened_at": tuple(data["hardened_at"])})


# --- where it starts ---


def initial_mask_state(
    learning: MaskLearning,
    tensors: Mapping[str, PrunableTensor],
    dense: InitialState,
    seed: int,
    parent: ParentRun | None,
    step: PruneStep | None,
    rng: Streams,
) -> InitialState:
    """Where a run that learns a mask begins: weights that stay, a mask of all ones, logits.

    `tensors` and `dense`: the network's prunable tensors and its initial state. With a parent and a step, logits come
    from the mask that the step's criterion gives (`rng`: the step's streams).
    Raises as `ticket.next_scores` does. Source: paper.md section 6 (learned; started from a heuristic: answer 8, open).
    """
    weights = {
        n: base_weights(learning, m, dense.weights[n], child_streams(seed, "supermask")) for n, m in tensors.items()
    }
    if parent is not None and step is not None:
        logits = heuristic_logits(learning, parent, step, rng)
    else:
        logits = {
            n: initial_logits(learning, m, weights[n], child_streams(seed, "supermask")) for n, m in tensors.items()
        }
    return InitialState(weights, dense.masks, dense.unmasked, 0, logits)


def base_weights(learning: MaskLearning, maskable: PrunableTensor, w_init: Tensor, rng: Streams) -> Tensor:
    """What the mask of one layer is put on: w_i, sign(w_i) s, or s with a random sign; times the multiplier.

    Shape: that of `w_init`. Source: paper.md section 6.
    """
    weights = w_init
    if learning.weights == "signed_constant":
        weights = w_init.sign() * maskable.std
    elif learning.weights == "constant":
        signs = 2 * rng("signs", maskable.name).integers(0, 2, size=maskable.shape) - 1
        weights = w_init.new_tensor(np.float32(maskable.std) * signs.astype(np.float32))
    return weights * np.float32(learning.multiplier).item()


def initial_logits(learning: MaskLearning, maskable: PrunableTensor, weights: Tensor, rng: Streams) -> Tensor:
    """Logits before training: `start_logit` everywhere, or for `edge_popup` and `signed` draws of the initialiser.

    Shape: that of the kernel. Source: paper.md section 6 ("start 0"). Differs from the paper: it says nothing of the
    rivals' scores; equal ones would tie (`edge_popup`) or hide every weight (`signed`).
    """
    if learning.method in SIGMOID:
        return weights.new_full(maskable.shape, learning.start_logit)
    return weights.new_tensor(truncated_normal(maskable.shape, maskable.std, rng("scores", maskable.name)))


def heuristic_logits(learning: MaskLearning, parent: ParentRun, step: PruneStep, rng: Streams) -> Weights:
    """+c where the step's criterion keeps and -c elsewhere; or 2 c (rank - share pruned), so that the cut is at 0.

    Graded logits are above 0 exactly where it keeps: of weights that tie at the cut, those that are kept share their
    ranks, and those that are not. Source: paper.md section 6 (answer 8, open).
    """
    scores, alive = compute_scores(parent, step, rng), parent.start.masks
    masks = keep_top(scores, alive, keep_counts(parent, step), rng)
    c, logits = learning.confidence, {}
    for name, mask in masks.items():
        logits[name] = mask.float() * (2 * c) - c
        if learning.graded:
            share = int(mask.sum()) / mask.numel()
            above, below = rank(scores[name], mask) * share, (rank(scores[name], ~mask) - 1) * (1 - share)
            logits[name] = (above.where(mask, below) * (2 * c)).float()
    return logits


# --- what logits say ---


def mask_scores(learning: MaskLearning, logits: Tensor) -> Tensor:
    """What is above 0 exactly where the mask is not: m; m minus the cut of `edge_popup`; |m| - threshold of `signed`.

    The highest are the weights that top-k hardening keeps. Source: paper.md section 6.
    """
    if learning.method == "edge_popup":
        return logits - edge_popup_threshold(logits, learning.density)
    if learning.method == "signed":
        return logits.abs() - np.float32(learning.threshold).item()
    return logits


def edge_popup_threshold(logits: Tensor, density: float) -> Tensor:
    """The highest of a layer's logits that is *not* kept: b = 1 above it. Ties at the cut are all pruned.

    Source: Ramanujan et al. 2020 (paper.md section 6).
    """
    flat = logits.flatten()
    return flat.kthvalue(flat.numel() - edge_popup_count(flat.numel(), density)).values


def edge_popup_count(size: int, density: float) -> int:
    """How many weights of a layer edge-popup keeps, if no logits are equal: round(density * size), but not all or none.

    Source: Ramanujan et al. 2020 (paper.md section 6).
    """
    return max(1, min(size - 1, round(density * size)))


def threshold_masks(learning: MaskLearning, logits: Weights) -> Masks:
    """The mask without chance: True where p > 0.5 (or where the method keeps, or inverts).

    Source: paper.md section 6.
    """
    return {name: mask_scores(learning, m) > 0 for name, m in logits.items()}


def inversion_signs(learning: MaskLearning, logits: Tensor) -> Tensor | float:
    """What kept weights are multiplied by: -1 where `signed` inverts, else 1. Source: Koster et al. 2022."""
    return logits.sign() if learning.method == "signed" else 1.0


def probabilities(learning: MaskLearning, logits: Tensor) -> Tensor:
    """The chance of each weight to be in a pass's mask: sigmoid(m), or 0 and 1. Source: paper.md section 6."""
    return logits.sigmoid() if learning.method == "bernoulli" else (mask_scores(learning, logits) > 0).float()


# --- chance: the same coins in every engine ---


def sampling_keys(seed: int, purpose: str, name: str, first: int, last: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Two 32-bit keys for each of the passes `first` to `last - 1` of one layer, `(last - first, 2)`.

    Those of pass t depend on (seed, purpose, name, t) alone: splitmix64 of a draw of their stream, plus t.
    """
    base = random_stream(seed, "supermask", purpose, name).integers(2**64, dtype=np.uint64, endpoint=False)
    with np.errstate(over="ignore"):
        z = base + np.arange(first, last, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.stack([(z & np.uint64(0xFFFFFFFF)).astype(np.uint32), (z >> np.uint64(32)).astype(np.uint32)], axis=1)


def uniform_samples(keys: np.ndarray[Any, np.dtype[np.uint32]], like: Tensor) -> Tensor:
    """A uniform number in [0, 1) for each weight, of 24 bits: b = coin < p. Shape and device: those of `like`.

    Weight number j, in C order, has mix(mix(j + k0) xor k1) >> 8, over 2^24; mix is a bijection of 32-bit words.
    """
    return batched_uniform_samples(keys_as_int32(keys[None], like), like[None])[0]


def keys_as_int32(keys: np.ndarray[Any, np.dtype[np.uint32]], like: Tensor) -> Tensor:
    """Keys as int32 of the same bits, of which PyTorch knows more; on the device of `like`."""
    import torch

    return torch.from_numpy(keys.view(np.int32)).to(like.device)


def batched_uniform_samples(keys: Tensor, like: Tensor) -> Tensor:
    """`coins` of several passes at once: row r of `keys`, int32 `(n, 2)`, holds the words of the keys of `like[r]`."""
    import torch

    words = torch.arange(like[0].numel(), dtype=torch.int32, device=like.device)
    words = _hash32(_hash32(words + keys[:, :1]) ^ keys[:, 1:])
    return ((words >> 8) & 0xFFFFFF).float().mul_(2.0**-24).reshape(like.shape)


def _hash32(words: Tensor) -> Tensor:
    # int32 products wrap; its shift to the right is arithmetic, so what it brings in is masked away.
    words = (words ^ ((words >> 16) & 0xFFFF)) * 0x21F0AAAD
    words = (words ^ ((words >> 15) & 0x1FFFF)) * _signed_word(0xD35A2D97)
    return words ^ ((words >> 15) & 0x1FFFF)


def _signed_word(word: int) -> int:
    return (int(word) ^ 0x80000000) - 0x80000000
