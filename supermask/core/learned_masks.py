"""Learned supermasks: one logit per weight is trained while the weights stay fixed. Formulas of each method.

Every prunable weight w has a logit m. In every forward pass a method turns the logits into a mask b. The network
computes with b * w, times (weights in layer / ones in b) under dynamic weight rescaling. The gradient with respect to
b passes straight through to the logits. Nothing here imports torch at import time or knows an engine or a disk.
Source: Zhou et al. 2019, Sec. 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from supermask.core.initializers import truncated_normal
from supermask.core.masks import is_pruned, rank
from supermask.core.pruning import ParentRun, PruneStep, compute_scores, select_masks
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
"""The paper's two methods, and two later ones (Ramanujan et al. 2020; Koster et al. 2022)."""

SIGMOID = ("bernoulli", "rounded")
"""Methods whose gradient passes to sigmoid(m); that of the others passes to m."""


@dataclass(frozen=True)
class MaskLearning:
    """Settings of mask learning; with the recipe (optimizer, learning rate, batch, length) part of a run's identity."""

    method: Method = "bernoulli"
    """A key of `METHODS`, which has the formulas."""
    weights: Base = "init"
    """Fixed weights under the mask: w_i, sign(w_i) * s, or s with a random sign; s is the layer's initial deviation."""
    multiplier: float = 1.0
    """Factor of the fixed weights."""
    rescaled: bool = False
    """Dynamic weight rescaling: multiply by (weights in layer / ones in this pass's mask), in the gradient too."""
    start_logit: float = 0.0
    """Initial logit of `bernoulli` and `rounded`; `edge_popup` and `signed` draw truncated Glorot normal ones."""
    confidence: float = 0.0
    """Magnitude c of the initial logits of a mask that starts from a heuristic one: +c where it keeps, else -c."""
    graded: bool = False
    """Use logits by rank of the heuristic's scores instead: 2 c (rank - share pruned), rank in (0, 1]."""
    density: float = 0.5
    """Share of each layer's weights that `edge_popup` keeps."""
    threshold: float = 0.01
    """Threshold of `signed`."""
    samples: int = 10
    """Number of mask samples whose mean accuracy is the accuracy of a `bernoulli` supermask."""
    hardened_at: tuple[float, ...] = ()
    """Densities at which the mask of each layer's highest logits is evaluated too."""
    others_lr: float = 0.0
    """Learning rate of biases and normalization parameters, beside that of the logits; 0: they stay as they are."""
    only: tuple[str, ...] = ()
    """Names and patterns of the only tensors that are masked; empty: all."""
    exclude: tuple[str, ...] = ()
    """Names and patterns of tensors that are never masked: all their weights are kept, and they have no logits."""

    @property
    def num_samples(self) -> int:
        """Number of networks evaluated for one accuracy: `samples`, or 1 for deterministic masks."""
        return self.samples if self.method == "bernoulli" else 1

    def to_data(self) -> dict[str, Any]:
        """JSON-serializable dict. Fields added later are omitted at their default, so existing ids stay."""
        data = {**asdict(self), "hardened_at": list(self.hardened_at)}
        if not self.others_lr:
            del data["others_lr"]
        for key in ("only", "exclude"):
            data[key] = list(data[key])
            if not data[key]:
                del data[key]
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> MaskLearning:
        """Inverse of `to_data`."""
        lists = {key: tuple(data[key]) for key in ("hardened_at", "only", "exclude") if key in data}
        return cls(**{**data, **lists})

    def masks_tensor(self, name: str) -> bool:
        """Return False for a tensor that is never masked, by `only` or `exclude`."""
        return is_pruned(name, {}, self.only, self.exclude)


# --- initial state ---


def initial_mask_state(
    learning: MaskLearning,
    tensors: Mapping[str, PrunableTensor],
    dense: InitialState,
    seed: int,
    parent: ParentRun | None,
    step: PruneStep | None,
    rng: Streams,
) -> InitialState:
    """Return the initial state of a run that learns a mask: fixed weights, masks of all ones, logits of masked tensors.

    `tensors` and `dense`: the network's prunable tensors and its initial state. With a parent and a step, the logits
    come from the mask of the step's criterion; `rng` has the step's streams.
    Raises ValueError as `pruning.compute_scores` does.
    Source: Zhou et al. 2019, Sec. 5; started from a heuristic: authors' response, item 8 (open).
    """
    weights = {
        n: base_weights(learning, tensor, dense.weights[n], child_streams(seed, "supermask"))
        for n, tensor in tensors.items()
    }
    if parent is not None and step is not None:
        logits = heuristic_logits(learning, parent, step, rng)
    else:
        logits = {
            n: initial_logits(learning, tensor, weights[n], child_streams(seed, "supermask"))
            for n, tensor in tensors.items()
            if learning.masks_tensor(n)
        }
    return InitialState(weights, dense.masks, dense.unmasked, 0, logits)


def base_weights(learning: MaskLearning, tensor: PrunableTensor, w_init: Tensor, rng: Streams) -> Tensor:
    """Return the fixed weights of one layer: w_i, sign(w_i) * s, or s with a random sign; times the multiplier.

    Shape of `w_init`. Source: Zhou et al. 2019, Sec. 5.
    """
    weights = w_init
    if learning.weights == "signed_constant":
        weights = w_init.sign() * tensor.std
    elif learning.weights == "constant":
        signs = 2 * rng("signs", tensor.name).integers(0, 2, size=tensor.shape) - 1
        weights = w_init.new_tensor(np.float32(tensor.std) * signs.astype(np.float32))
    return weights * np.float32(learning.multiplier).item()


def initial_logits(learning: MaskLearning, tensor: PrunableTensor, weights: Tensor, rng: Streams) -> Tensor:
    """Return the logits before training: `start_logit` everywhere; Glorot normal draws for later methods.

    Shape of the kernel. Equal logits would all tie under `edge_popup` and mask every weight under `signed`.
    Source: Zhou et al. 2019, Sec. 5 (logits start at 0).
    """
    if learning.method in SIGMOID:
        return weights.new_full(tensor.shape, learning.start_logit)
    return weights.new_tensor(truncated_normal(tensor.shape, tensor.glorot_std, rng("scores", tensor.name)))


def heuristic_logits(learning: MaskLearning, parent: ParentRun, step: PruneStep, rng: Streams) -> Weights:
    """Return logits of +c where the step's criterion keeps, else -c; or 2 c (rank - share pruned) if `graded`.

    Graded logits are above 0 exactly where the criterion keeps. Of weights that tie at the cut, the kept ones share one
    rank and the pruned ones another. Source: Zhou et al. 2019, authors' response, item 8 (open).
    """
    scores = compute_scores(parent, step, rng)
    masks = select_masks(scores, parent, step, rng)
    c, logits = learning.confidence, {}
    for name, mask in masks.items():
        if not learning.masks_tensor(name):
            continue
        logits[name] = mask.float() * (2 * c) - c
        if learning.graded:
            share = int(mask.sum()) / mask.numel()
            above, below = rank(scores[name], mask) * share, (rank(scores[name], ~mask) - 1) * (1 - share)
            logits[name] = (above.where(mask, below) * (2 * c)).float()
    return logits


# --- from logits to masks ---


def mask_scores(learning: MaskLearning, logits: Tensor) -> Tensor:
    """Return scores that are above 0 exactly where the mask keeps: m; m - cut for `edge_popup`; |m| - threshold for
    `signed`.

    Masks of a given density keep the highest scores. Source: Zhou et al. 2019, Sec. 5.
    """
    if learning.method == "edge_popup":
        return logits - edge_popup_threshold(logits, learning.density)
    if learning.method == "signed":
        return logits.abs() - np.float32(learning.threshold).item()
    return logits


def edge_popup_threshold(logits: Tensor, density: float) -> Tensor:
    """Return the highest logit of a layer that is *not* kept: b = 1 above it. Ties at the cut are all pruned.

    Source: Ramanujan et al. 2020.
    """
    flat = logits.flatten()
    return flat.kthvalue(flat.numel() - edge_popup_count(flat.numel(), density)).values


def edge_popup_count(size: int, density: float) -> int:
    """Number of weights of a layer that edge-popup keeps without ties: round(density * size), at least 1, never all.

    Source: Ramanujan et al. 2020.
    """
    return max(1, min(size - 1, round(density * size)))


def threshold_masks(learning: MaskLearning, logits: Weights, start: Masks) -> Masks:
    """Return the deterministic mask: True where p > 0.5, or where the method keeps or inverts a weight.

    `start`: the masks before learning, which tensors without logits keep. Source: Zhou et al. 2019, Sec. 5.
    """
    return {name: mask_scores(learning, logits[name]) > 0 if name in logits else mask for name, mask in start.items()}


def expected_kept_shares(learning: MaskLearning, logits: Weights, start: Masks) -> tuple[dict[str, float], float]:
    """Return the expected share of ones in the mask, per tensor and over all; 1 for a tensor without logits."""
    shares = {n: float(probabilities(learning, logits[n]).double().mean()) if n in logits else 1.0 for n in start}
    sizes = {name: mask.numel() for name, mask in start.items()}
    return shares, sum(shares[n] * size for n, size in sizes.items()) / sum(sizes.values())


def inversion_signs(learning: MaskLearning, logits: Tensor) -> Tensor | float:
    """Return the factor of kept weights: -1 where `signed` inverts, else 1. Source: Koster et al. 2022."""
    return logits.sign() if learning.method == "signed" else 1.0


def probabilities(learning: MaskLearning, logits: Tensor) -> Tensor:
    """Probability of each weight to be in a pass's mask: sigmoid(m), or 0 and 1. Source: Zhou et al. 2019, Sec. 5."""
    return logits.sigmoid() if learning.method == "bernoulli" else (mask_scores(learning, logits) > 0).float()


# --- counter-based uniform numbers, identical in every engine ---


def sampling_keys(seed: int, purpose: str, name: str, first: int, last: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return two 32-bit keys for each of the passes `first` to `last - 1` of one layer, shape `(last - first, 2)`.

    The keys of pass t depend on (seed, purpose, name, t) only: splitmix64 of a draw of their stream, plus t.
    """
    base = random_stream(seed, "supermask", purpose, name).integers(2**64, dtype=np.uint64, endpoint=False)
    with np.errstate(over="ignore"):
        z = base + np.arange(first, last, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.stack([(z & np.uint64(0xFFFFFFFF)).astype(np.uint32), (z >> np.uint64(32)).astype(np.uint32)], axis=1)


def uniform_samples(keys: np.ndarray[Any, np.dtype[np.uint32]], like: Tensor) -> Tensor:
    """Return one uniform number in [0, 1) of 24 bits per weight: b = number < p. Shape and device of `like`.

    Weight number j in C order has (mix(mix(j + k0) xor k1) >> 8) / 2^24; mix is a bijection of 32-bit words.
    """
    return batched_uniform_samples(keys_as_int32(keys[None], like), like[None])[0]


def keys_as_int32(keys: np.ndarray[Any, np.dtype[np.uint32]], like: Tensor) -> Tensor:
    """Return the keys as int32 with the same bits, which PyTorch supports better, on the device of `like`."""
    import torch

    return torch.from_numpy(keys.view(np.int32)).to(like.device)


def batched_uniform_samples(keys: Tensor, like: Tensor) -> Tensor:
    """Return `uniform_samples` of n passes at once; `keys` is int32 `(n, 2)`, `like` is `(n, *shape)`."""
    import torch

    words = torch.arange(like[0].numel(), dtype=torch.int32, device=like.device)
    words = _hash32(_hash32(words + keys[:, :1]) ^ keys[:, 1:])
    return ((words >> 8) & 0xFFFFFF).float().mul_(2.0**-24).reshape(like.shape)


def _hash32(words: Tensor) -> Tensor:
    # int32 products wrap, as wanted. The right shift is arithmetic, so the copies of the sign bit are masked away.
    words = (words ^ ((words >> 16) & 0xFFFF)) * 0x21F0AAAD
    words = (words ^ ((words >> 15) & 0x1FFFF)) * _signed_word(0xD35A2D97)
    return words ^ ((words >> 15) & 0x1FFFF)


def _signed_word(word: int) -> int:
    return (int(word) ^ 0x80000000) - 0x80000000
