"""Facts of each layer of a run: ties drawn at random, and kept weights that changed sign or shrank in training."""

from __future__ import annotations

from supermask.core.masks import count_random_ties, is_pruned
from supermask.core.pruning import ParentRun, PruneStep
from supermask.core.types import InitialState, Masks, NetworkState, Weights

LayerFacts = dict[str, dict[str, int]]
"""Tensor -> counts of weights: `ties_drawn` of a pruned run; `sign_changed` and `shrunk` of a trained one."""


def count_ties_drawn(scores: Weights, masks: Masks, parent: ParentRun, step: PruneStep) -> dict[str, int]:
    """Return the number of kept weights per tensor that the step drew at random among equal scores.

    `scores` and `masks`: those of the step, from `compute_scores` and `select_masks`.
    Source: Zhou et al. 2019, authors' response, item 3.
    """
    # Tensors that the step never prunes are not ranked: under global scope their scores are not at the cut.
    ranked = {n: s for n, s in scores.items() if is_pruned(n, step.rates, step.only, step.exclude)}
    ties = {} if step.scope == "threshold" else count_random_ties(ranked, parent.start.masks, masks, step.scope)
    return {name: ties.get(name, 0) for name in scores}


def count_weight_changes(start: InitialState, end: NetworkState) -> LayerFacts:
    """Return for each tensor the kept weights that changed sign in training, and those that shrank.

    `sign_changed`: w_start and w_end have opposite signs; a weight that starts or ends at 0 has none. `shrunk`:
    abs(w_end) < abs(w_start). Source: Zhou et al. 2019, Sec. 4 and 5.
    """
    facts: LayerFacts = {}
    for name, mask in start.masks.items():
        before, after = start.weights[name][mask], end.weights[name][mask]
        facts[name] = {
            "sign_changed": int((before.sign() * after.sign() < 0).sum()),
            "shrunk": int((after.abs() < before.abs()).sum()),
        }
    return facts
