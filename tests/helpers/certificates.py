"""A correct chain of two levels that a test falsifies, and what its certificate checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from helpers.tiny import MASKABLES, RATES, chain, level_streams, parent_of, step_with, train
from supermask.core.certificate import Certificate, certify
from supermask.core.criteria import CRITERIA
from supermask.core.pruning import PruneStep, apply_masks
from supermask.core.types import InitialState, TrainingResult

PLAIN = PruneStep(CRITERIA["large_final"], "rewind", "zero", RATES)
ALWAYS = {"only_kernels_are_masked", "no_layer_is_emptied", "frozen_is_frozen", "biases_train"}
ALWAYS |= {"optimizer_holds_nothing_frozen"}
OF_CHILDREN = ALWAYS | {"kept_count", "dead_stays_dead", "mask1_promise", "mask0_promise", "others_rewound"}


class Case:
    """Two levels of a correct chain. The second run is the one that a test falsifies."""

    def __init__(self, **changes: Any) -> None:
        self.step = step_with(PLAIN, **changes)
        runs = chain([self.step] * 2)
        self.parent = parent_of(*runs[1])
        self.start, self.result = runs[2]

    def certificate(self, start: InitialState | None = None, result: TrainingResult | None = None) -> Certificate:
        """Return the certificate of the run, with its start (then trained correctly) or its result replaced."""
        if start is not None and result is None:
            result = train(start, 2)
        return certify(MASKABLES, start or self.start, result or self.result, self.parent, self.step)

    def start_with(self, name: str, values: Tensor) -> InitialState:
        """Return the run's start with one kernel replaced."""
        return replace(self.start, weights={**self.start.weights, name: values})

    def masks_with(self, name: str, mask: Tensor) -> InitialState:
        """Return the run's start with one mask replaced and its values recomputed."""
        return apply_masks({**self.start.masks, name: mask}, self.parent, self.step, level_streams(2))


def failed_checks(certificate: Certificate) -> dict[str, list[str]]:
    assert certificate.passed == (not any(certificate.checks.values()))
    return {check: layers for check, layers in certificate.checks.items() if layers}


def changed(tensor: Tensor, where: Tensor, value: float, count: int = 1) -> Tensor:
    """Return a copy in which the first `count` weights of `where` are `value`."""
    copy = tensor.clone()
    places = where.flatten().nonzero().flatten()[:count]
    assert len(places) == count
    copy.view(-1)[places] = torch.tensor(value, dtype=copy.dtype)
    return copy
