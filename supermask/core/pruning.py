"""The lottery ticket algorithm: from a parent run and a pruning step to the initial state of the next run.

    masks = compute_masks(parent, step, rng)           # score every weight, keep the top
    start = apply_masks(masks, parent, step, rng)      # set the kept weights, freeze the pruned ones

These are pure functions without disk, engine or study. Source: Zhou et al. 2019, Sec. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS, USES_W_FINAL, rescale_factor
from supermask.core.criteria import ALL_CRITERIA, NEEDS_GRADIENT, Criterion
from supermask.core.initializers import draw_weights
from supermask.core.masks import ALL_TENSORS, is_pruned, keep_top, ranked_groups
from supermask.core.rng import Stream, Streams
from supermask.core.types import InitialState, Layer, Masks, NetworkState, PrunableTensor, Snapshot, Weights

if TYPE_CHECKING:
    from torch import Tensor


Scope = Literal["layer", "global", "threshold"]
"""Set of weights that is ranked together: each layer, all layers, or none (keep every score above 0)."""


@dataclass(frozen=True)
class PruneStep:
    """One pruning round of a treatment: mask criterion, mask-1 action, mask-0 action, and how much to prune."""

    criterion: str | Criterion
    """A name in `ALL_CRITERIA`, the import path of a user's criterion, or a function. Names and paths are plain data
    (`to_data`). Names and functions score weights: a path is replaced by its function first."""
    mask1: str
    """A name in `MASK1_ACTIONS`."""
    mask0: str
    """A name in `MASK0_ACTIONS`."""
    rates: Mapping[str, float]
    """Prune rate by kind of tensor (`conv`, `hidden`, `output`) and by name or pattern of a tensor or layer; for global
    ranking the rate `global`, and names with the rate 0; empty for a threshold."""
    scope: Scope = "layer"
    """`layer`: ranked in each layer; `global`: across all layers; `threshold`: learned scores above 0."""
    levels: int = 1
    """Number of levels to prune at once: 1 in a chain, n for one-shot pruning to level n."""
    w_init: Snapshot = "start"
    """Snapshot that criteria and actions read as w_i."""
    w_final: Snapshot = "end"
    """Snapshot that criteria and actions read as w_f."""
    rewind_to: Snapshot = "start"
    """Snapshot to which the mask-1 action `rewind` sets kept weights."""
    rescaled: bool = False
    """True: multiply the kept weights of a layer by (weights / kept weights)."""
    criterion_source: str | None = None
    """Hash of the source code of a user's criterion; None for a built-in one and for a function."""
    rescaled_before: bool = True
    """True if the previous level was rescaled too, so that its weights contain the factor already."""
    only: tuple[str, ...] = ()
    """Names and patterns of the only tensors that are pruned; empty: all."""
    exclude: tuple[str, ...] = ()
    """Names and patterns of tensors that are never pruned."""

    def __post_init__(self) -> None:
        # Lists, if the step was read from JSON.
        object.__setattr__(self, "only", tuple(self.only))
        object.__setattr__(self, "exclude", tuple(self.exclude))

    @property
    def criterion_name(self) -> str:
        """Name in `ALL_CRITERIA`, import path, or the function's own name."""
        return self.criterion if isinstance(self.criterion, str) else getattr(self.criterion, "__name__", "function")

    @property
    def initial_state_snapshots(self) -> frozenset[Snapshot]:
        """Snapshots of the parent that the child's initial state is computed from, once its masks are known."""
        w_final = {self.w_final} if self.mask0 in USES_W_FINAL else set()
        return frozenset({self.w_init, self.rewind_to} | w_final) - {"start"}

    @property
    def required_snapshots(self) -> frozenset[Snapshot]:
        """Snapshots of the parent needed to score its weights and to compute the child's initial state."""
        scoring: set[Snapshot] = {"gradient"} if self.criterion in NEEDS_GRADIENT else set()
        # The logits of a learned mask are part of the parent's last snapshot.
        scoring |= {"end"} if self.criterion == "learned" else set()
        return self.initial_state_snapshots | ({self.w_final} - {"start"}) | scoring

    def to_data(self) -> dict[str, Any]:
        """Return a JSON-serializable dict. Fields added later are omitted at their default, so existing ids stay."""
        assert isinstance(self.criterion, str), "a step with a function is not plain data"
        data = {**vars(self), "rates": dict(self.rates)}
        if self.rescaled_before:
            del data["rescaled_before"]
        for key in ("only", "exclude"):
            data[key] = list(data[key])
            if not data[key]:
                del data[key]
        return data


@dataclass(frozen=True)
class ParentRun:
    """A finished training as the next pruning round reads it."""

    start: InitialState
    """State from which the parent started training."""
    snapshots: Mapping[Snapshot, NetworkState]
    """Snapshots of the parent's training."""
    prunable: Mapping[str, PrunableTensor]
    """Prunable tensors by name, in the order of the layers."""
    learned: Callable[[Weights], Weights] | None = None
    """Maps logits to mask scores, above 0 = keep. None unless the parent learned a mask."""

    def state_at(self, point: Snapshot) -> NetworkState:
        """Return the parent's state at a snapshot. `start` and its first iteration mean the initial state."""
        return self.start.state if point in ("start", self.start.first_iteration) else self.snapshots[point]

    def layers(self, step: PruneStep) -> dict[str, Layer]:
        """Return the input of criteria and actions: every prunable tensor at the step's snapshots."""
        w_init, w_final, w_rewind = (self.state_at(p).weights for p in (step.w_init, step.w_final, step.rewind_to))
        gradient: Weights = self.state_at("gradient").weights if "gradient" in self.snapshots else {}
        alive, mask_scores = self.start.masks, dict[str, "Tensor"]()
        if self.learned is not None and "end" in self.snapshots:
            mask_scores = self.learned(self.state_at("end").logits)
            # Tensors that the learned mask leaves out have no logits, and keep every weight.
            mask_scores |= {name: mask.float() for name, mask in alive.items() if name not in mask_scores}
        return {
            n: Layer(
                m.std,
                w_init[n],
                w_final[n],
                alive[n],
                w_rewind[n],
                gradient.get(n),
                mask_scores.get(n),
                m.initializer,
                partial(draw_weights, m),
            )
            for n, m in self.prunable.items()
        }


def prune_and_reset(parent: ParentRun, step: PruneStep, rng: Streams) -> InitialState:
    """Run one round of the algorithm: score, keep the top, set the kept weights, freeze the pruned ones.

    Weights that were pruned earlier keep their frozen values: those are decided at the level that prunes the weight.
    Raises ValueError if the criterion does not return one number per weight.
    Source: Zhou et al. 2019, Sec. 1.
    """
    return apply_masks(compute_masks(parent, step, rng), parent, step, rng)


def compute_masks(parent: ParentRun, step: PruneStep, rng: Streams) -> Masks:
    """Keep the highest-scoring alive weights, with exact counts and random ties.

    Raises ValueError if the criterion does not return one number per weight. Source: Zhou et al. 2019, Sec. 2.
    """
    return select_masks(compute_scores(parent, step, rng), parent, step, rng)


def select_masks(scores: Weights, parent: ParentRun, step: PruneStep, rng: Streams) -> Masks:
    """Return the masks of a step from its scores; tensors that the step never prunes keep all alive weights.

    Source: Zhou et al. 2019, Sec. 1 and 2.
    """
    alive = parent.start.masks
    if step.scope == "threshold":
        return {name: alive[name] & (scores[name] > 0) for name in scores}
    pruned = [name for name in scores if is_pruned(name, step.rates, step.only, step.exclude)]
    if not pruned:
        return dict(alive)
    masks = keep_top({n: scores[n] for n in pruned}, {n: alive[n] for n in pruned}, keep_counts(parent, step), rng)
    return {name: masks.get(name, alive[name]) for name in scores}


def compute_scores(parent: ParentRun, step: PruneStep, rng: Streams) -> Weights:
    """Return one score per weight, in the shapes of the kernels; the highest are kept.

    Raises ValueError if the criterion does not return one number per weight. Source: Zhou et al. 2019, Sec. 2.
    """
    criterion = ALL_CRITERIA[step.criterion] if isinstance(step.criterion, str) else step.criterion
    return {name: _score(criterion, layer, rng("score", name), name) for name, layer in parent.layers(step).items()}


def apply_masks(masks: Masks, parent: ParentRun, step: PruneStep, rng: Streams) -> InitialState:
    """Set the kept weights by the mask-1 action and freeze the pruned ones by the mask-0 action.

    Source: Zhou et al. 2019, Sec. 3 and 4.
    """
    weights = {}
    for name, layer in parent.layers(step).items():
        kept = MASK1_ACTIONS[step.mask1](layer, masks[name], rng("mask1", name))
        if step.rescaled:
            kept = kept * rescale_factor(step.mask1, layer, masks[name], step.rescaled_before)
        values = MASK0_ACTIONS[step.mask0](layer, masks[name], kept, rng("mask0", name))
        # Weights pruned at earlier levels stay frozen at the values they were given then.
        weights[name] = values.where(layer.alive, parent.start.weights[name])
    return InitialState(weights, masks, parent.state_at(step.rewind_to).unmasked, first_iteration(parent, step))


def keep_counts(parent: ParentRun, step: PruneStep) -> dict[str, int] | int:
    """Return the exact number of weights to keep: per layer, or in all pruned layers together under
    global ranking.

    One-shot pruning keeps as many as a chain of that many levels. Source: Zhou et al. 2019, Sec. 1.
    """
    assert step.scope != "threshold", "a threshold has no count"
    alive = {name: int(mask.sum()) for name, mask in parent.start.masks.items()}
    kinds = {name: tensor.kind for name, tensor in parent.prunable.items()}
    groups = ranked_groups(alive, kinds, step.scope, step.rates, step.only, step.exclude)
    counts = {name: group.remaining(step.levels) for name, group in groups.items()}
    return counts[ALL_TENSORS] if step.scope == "global" else counts


def first_iteration(parent: ParentRun, step: PruneStep) -> int:
    """Return the iteration at which data order and learning-rate schedule resume: k after late rewinding to k.

    Source: Zhou et al. 2019, authors' response, item 1.
    """
    if step.rewind_to == "start":
        return parent.start.first_iteration
    return step.rewind_to if isinstance(step.rewind_to, int) else 0


def _score(criterion: Criterion, layer: Layer, rng: Stream, name: str) -> Tensor:
    # Clones: a user's criterion that writes into its layer must not change what the weights are rewound to.
    layer_copy = replace(
        layer,
        w_init=layer.w_init.clone(),
        w_final=layer.w_final.clone(),
        alive=layer.alive.clone(),
        w_rewind=layer.w_rewind.clone(),
    )
    returned = criterion(layer_copy, rng)
    expected = tuple(layer.w_final.shape)
    scores = _to_real_scores(returned)
    if scores is None or tuple(scores.shape) != expected:
        raise ValueError(
            f"criterion {getattr(criterion, '__name__', criterion)!r} gave {_describe(returned, expected)} for {name}; "
            f"it has to return one score per weight, a tensor or array of shape {expected} and real numbers, such as "
            "float32"
        )
    return scores


def _to_real_scores(scores: object) -> Tensor | None:
    """Return scores as a tensor that NumPy can read, on the CPU, with equal values; None for all but real numbers.

    Numbers of more than 64 bits count as unsupported: rounding them would make ties that the criterion did not give.
    """
    import torch

    if isinstance(scores, np.ndarray):
        if isinstance(scores, np.ma.MaskedArray) or scores.dtype.kind not in "biuf" or scores.dtype.itemsize > 8:
            return None
        # A copy, because PyTorch reads neither reversed arrays nor foreign byte orders, and warns of read-only ones.
        scores = torch.from_numpy(np.array(scores, dtype=scores.dtype.newbyteorder("="), order="C"))
    if not isinstance(scores, torch.Tensor) or scores.is_nested or scores.layout != torch.strided:
        return None
    if scores.is_meta or scores.is_quantized or scores.is_complex():
        return None
    values = scores.detach().cpu().resolve_neg()
    is_known = not values.is_floating_point() or values.dtype in (torch.float16, torch.float32, torch.float64)
    # bfloat16 and smaller floating-point numbers are float32 numbers, too.
    return values if is_known else values.float()


def _describe(returned: object, expected: tuple[int, ...]) -> str:
    """Return the type and shape of what a criterion returned, with number type and layout if the shape is right."""
    import torch

    text = type(returned).__name__
    if isinstance(returned, torch.Tensor) and returned.is_nested:
        return f"{text}, a nested one"
    if not hasattr(returned, "shape"):
        return text
    text += f" of shape {tuple(returned.shape)}"
    if tuple(returned.shape) != expected:
        return text
    text += f" and type {returned.dtype}" if hasattr(returned, "dtype") else ""
    if isinstance(returned, torch.Tensor) and (returned.is_meta or returned.layout != torch.strided):
        text += f" ({returned.layout}, device {returned.device})"
    return text
