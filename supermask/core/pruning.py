"""The lottery ticket algorithm, whole: from a parent's training and a step, the start of the next run.

Pure: it knows no disk, no engine, no study. Source: paper.md section 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS, rescale_factor
from supermask.core.criteria import Criterion
from supermask.core.masks import keep_top, remaining_after
from supermask.core.rng import Stream, Streams
from supermask.core.types import InitialState, Layer, Masks, NetworkState, PrunableTensor, Snapshot, Weights

if TYPE_CHECKING:
    from torch import Tensor


Scope = Literal["layer", "global", "threshold"]
"""What is kept: the top of each layer, the top of all layers together, or every weight whose score is above 0."""


@dataclass(frozen=True)
class PruneStep:
    """One treatment's way from a run to the next: mask criterion, mask-1 action, mask-0 action, and how much."""

    criterion: Criterion
    mask1: str
    mask0: str
    rates: Mapping[str, float]
    """Prune rate by kind of tensor (`conv`, `hidden`, `output`); under global ranking, the one called `global`; under a
    threshold, none."""
    scope: Scope = "layer"
    levels: int = 1
    """How many levels' worth to prune at once: 1 in a chain, n for one-shot pruning straight to level n."""
    w_init: Snapshot = "start"
    w_final: Snapshot = "end"
    rewind_to: Snapshot = "start"
    rescaled: bool = False
    rescaled_before: bool = True
    """Whether the level before was rescaled too, if this one is; then its weights carry their factor already."""

    @property
    def points(self) -> set[Snapshot]:
        """The points of the parent's trajectory that this step reads."""
        return {self.w_init, self.w_final, self.rewind_to}


@dataclass(frozen=True)
class ParentRun:
    """A finished training, as the next round sees it."""

    start: InitialState
    points: Mapping[Snapshot, NetworkState]
    maskables: Mapping[str, PrunableTensor]
    learned: Callable[[Weights], Weights] | None = None
    """Of a training that learned a mask: what its logits say of each weight, above 0 = keep."""

    def state_at(self, point: Snapshot) -> NetworkState:
        """The parent's weights at a point of its trajectory; `start` (or the iteration it started at) included."""
        return self.start.state if point in ("start", self.start.first_iteration) else self.points[point]

    def layers(self, step: PruneStep) -> dict[str, Layer]:
        """Every maskable tensor between the step's two points."""
        w_init, w_final, rewound = (self.state_at(p).weights for p in (step.w_init, step.w_final, step.rewind_to))
        gradient: Weights = self.state_at("gradient").weights if "gradient" in self.points else {}
        alive, learned = self.start.masks, dict[str, "Tensor"]()
        if self.learned is not None and "end" in self.points:
            learned = self.learned(self.state_at("end").logits)
        return {
            n: Layer(m.std, w_init[n], w_final[n], alive[n], rewound[n], gradient.get(n), learned.get(n))
            for n, m in self.maskables.items()
        }


def prune_and_reset(parent: ParentRun, step: PruneStep, rng: Streams) -> InitialState:
    """One round of the paper: score, keep the top, set what is kept, freeze what is pruned.

    A weight that was dead before keeps its frozen value: it was decided at the level at which it was pruned.
    Raises ValueError if the criterion gives something else than one number a weight.
    Source: paper.md section 1, steps 3 to 5.
    """
    return apply_masks(compute_masks(parent, step, rng), parent, step, rng)


def compute_masks(parent: ParentRun, step: PruneStep, rng: Streams) -> Masks:
    """Step 3: of each layer's alive weights, the highest-scoring stay; exact counts, ties at random.

    Raises ValueError if the criterion gives something else than one number a weight. Source: paper.md section 1.
    """
    scores, alive = compute_scores(parent, step, rng), parent.start.masks
    if step.scope == "threshold":
        return {name: alive[name] & (scores[name] > 0) for name in scores}
    return keep_top(scores, alive, keep_counts(parent, step), rng)


def compute_scores(parent: ParentRun, step: PruneStep, rng: Streams) -> Weights:
    """One score a weight, higher = keep. Raises ValueError if the criterion gives something else.

    Source: paper.md section 1, step 3.
    """
    return {
        name: _score(step.criterion, layer, rng("score", name), name) for name, layer in parent.layers(step).items()
    }


def apply_masks(masks: Masks, parent: ParentRun, step: PruneStep, rng: Streams) -> InitialState:
    """Steps 4 and 5: with these masks, what kept weights start from and where pruned ones are frozen.

    Source: paper.md section 1.
    """
    weights = {}
    for name, layer in parent.layers(step).items():
        kept = MASK1_ACTIONS[step.mask1](layer, masks[name], rng("mask1", name))
        if step.rescaled:
            kept = kept * rescale_factor(step.mask1, layer, masks[name], step.rescaled_before)
        values = MASK0_ACTIONS[step.mask0](layer, masks[name], kept, rng("mask0", name))
        weights[name] = values.where(layer.alive, parent.start.weights[name])
    return InitialState(weights, masks, parent.state_at(step.rewind_to).unmasked, first_iteration(parent, step))


def keep_counts(parent: ParentRun, step: PruneStep) -> dict[str, int] | int:
    """How many weights the next run keeps: in each layer, or in all together under global ranking. Exact.

    Source: paper.md section 1, step 3; one-shot pruning keeps what a chain of as many levels would.
    """
    assert step.scope != "threshold", "a threshold keeps what is above it"
    alive = {name: int(mask.sum()) for name, mask in parent.start.masks.items()}
    if step.scope == "global":
        return remaining_after(sum(alive.values()), step.rates["global"], step.levels)
    return {n: remaining_after(alive[n], step.rates[m.kind], step.levels) for n, m in parent.maskables.items()}


def first_iteration(parent: ParentRun, step: PruneStep) -> int:
    """Where the next run's data order and learning-rate schedule begin: at k after late rewinding to iteration k.

    Source: paper.md section 4 (`rewind`).
    """
    if step.rewind_to == "start":
        return parent.start.first_iteration
    return step.rewind_to if isinstance(step.rewind_to, int) else 0


def _score(criterion: Criterion, layer: Layer, rng: Stream, name: str) -> Tensor:
    import torch

    # A user's criterion that writes into its layer must not change what the weights are rewound to.
    own = replace(layer, w_init=layer.w_init.clone(), w_final=layer.w_final.clone(), alive=layer.alive.clone())
    scores = criterion(replace(own, w_rewind=layer.w_rewind.clone()), rng)
    if isinstance(scores, np.ndarray):
        scores = torch.from_numpy(scores)
    expected = tuple(layer.w_final.shape)
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != expected:
        shape = f" of shape {tuple(scores.shape)}" if hasattr(scores, "shape") else ""
        raise ValueError(
            f"criterion {getattr(criterion, '__name__', criterion)!r} gave {type(scores).__name__}{shape} for {name}; "
            f"it has to give one score a weight, a tensor or array of shape {expected}"
        )
    return scores.detach()
