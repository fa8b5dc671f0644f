"""Certificates of a residual network with batch normalization: they hold, and every fault is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from helpers.trainings import data

from supermask.core.certificate import certify
from supermask.core.pruning import ParentRun, PruneStep, prune_and_reset
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams
from supermask.core.types import InitialState, NetworkState, TrainingResult, Weights
from supermask.engines.job import TrainingJob
from supermask.engines.reference import train
from supermask.networks.registry import named_network

NETWORK = named_network("resnet20-2", (1, 8, 8), 4)
DATA = data((1, 8, 8), 4)
LATE = 6
RECIPE = Recipe("sgd", 0.1, 16, 20, 5, momentum=0.9, weight_decay=1e-4)
STEP = PruneStep("large_final", "rewind", "zero", {"conv": 0.3, "output": 0.1, "hidden": 0.2}, rewind_to=LATE)


@dataclass(frozen=True)
class Case:
    """A run of level 1, all that its certificate is computed from."""

    start: InitialState
    result: TrainingResult
    parent: ParentRun
    step: PruneStep = STEP

    def broken(self) -> dict[str, list[str]]:
        """Return the failed checks."""
        certificate = certify(
            NETWORK.tensors,
            self.start,
            self.result,
            self.parent,
            self.step,
            RECIPE.weight_decay,
            NETWORK.trained_others,
            {"shared.weight": "fc.weight"},
        )
        return {name: items for name, items in certificate.checks.items() if items}


@cache
def correct(mask1: str = "rewind", mask0: str = "zero") -> Case:
    """Train the dense network and one level below it."""
    dense = NETWORK.initial_state(0)
    snapshots = frozenset({LATE})
    parent_result = train([TrainingJob(NETWORK, dense, RECIPE, 0, snapshots)], [DATA])[0]
    parent = ParentRun(dense, {"end": parent_result.end, **parent_result.snapshots}, NETWORK.tensors)
    step = replace(STEP, mask1=mask1, mask0=mask0, rewind_to=LATE if mask1 == "rewind" else "start")
    start = prune_and_reset(parent, step, child_streams(0, "level", 1))
    return Case(start, train([TrainingJob(NETWORK, start, RECIPE, 0)], [DATA])[0], parent, step)


@pytest.mark.slow
@pytest.mark.parametrize("mask1", ["rewind", "reinit", "signed_constant", "reshuffle"])
@pytest.mark.parametrize("mask0", ["zero", "freeze_init"])
def test_certificates_of_correct_runs_hold(mask1: str, mask0: str) -> None:
    assert correct(mask1, mask0).broken() == {}


@pytest.mark.slow
def test_statistics_are_trained_and_rewound() -> None:
    case = correct()
    late = case.parent.snapshots[LATE].unmasked
    assert int(late["bn.num_batches_tracked"]) == LATE
    assert torch.equal(case.start.unmasked["bn.running_mean"], late["bn.running_mean"])
    assert int(case.result.end.unmasked["bn.num_batches_tracked"]) == 20
    anew = correct("reinit").start.unmasked
    assert int(anew["bn.num_batches_tracked"]) == 0
    assert not anew["bn.running_mean"].any()


def with_start(case: Case, **tensors: torch.Tensor) -> Case:
    """Return the case with other unmasked tensors in the initial state; `__` in a name stands for a dot."""
    changed = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return replace(case, start=replace(case.start, unmasked=case.start.unmasked | changed))


def with_end(case: Case, weights: Weights | None = None, unmasked: Weights | None = None) -> Case:
    end = case.result.end
    state = NetworkState(end.weights | (weights or {}), end.unmasked | (unmasked or {}))
    return replace(case, result=replace(case.result, end=state))


def final(case: Case, name: str) -> torch.Tensor:
    return case.parent.snapshots["end"].unmasked[name]


def initial(case: Case, name: str) -> torch.Tensor:
    return case.parent.start.unmasked[name]


def masked(case: Case, name: str, tensor: torch.Tensor) -> Case:
    """Return the case with a mask on a tensor that is none of the kernels."""
    mask = torch.ones(tensor.shape, dtype=torch.bool)
    start = case.start
    return replace(case, start=replace(start, masks=start.masks | {name: mask}, weights=start.weights | {name: tensor}))


def unfrozen(case: Case) -> Case:
    name = "stage2.0.conv1.weight"
    weight = case.result.end.weights[name].clone()
    weight[~case.start.masks[name]] += 1e-3
    return with_end(case, {name: weight})


def held(case: Case, *names: str) -> Case:
    """Return the case in which these tensors end as they started."""
    return with_end(case, unmasked={name: case.start.unmasked[name] for name in names})


FAULTS: dict[str, tuple[Callable[[Case], Case], str, str]] = {
    "a running mean that is not rewound": (
        lambda c: with_start(c, bn__running_mean=final(c, "bn.running_mean")),
        "others_rewound",
        "bn.running_mean",
    ),
    "a running variance that starts anew": (
        lambda c: with_start(c, bn__running_var=initial(c, "bn.running_var")),
        "others_rewound",
        "bn.running_var",
    ),
    "a count of batches that goes on": (
        lambda c: with_start(c, bn__num_batches_tracked=final(c, "bn.num_batches_tracked")),
        "others_rewound",
        "bn.num_batches_tracked",
    ),
    "a batch norm weight that is not rewound": (
        lambda c: with_start(c, bn__weight=final(c, "bn.weight")),
        "others_rewound",
        "bn.weight",
    ),
    "a batch norm bias with one entry off": (
        lambda c: with_start(c, bn__bias=c.start.unmasked["bn.bias"] + torch.tensor([0.0, 1e-6])),
        "others_rewound",
        "bn.bias",
    ),
    "the bias of the last layer rewound to another point": (
        lambda c: with_start(c, fc__bias=initial(c, "fc.bias")),
        "others_rewound",
        "fc.bias",
    ),
    "a buffer that is missing": (
        lambda c: replace(
            c, start=replace(c.start, unmasked={n: t for n, t in c.start.unmasked.items() if n != "bn.running_var"})
        ),
        "others_rewound",
        "bn.running_var",
    ),
    "a batch norm weight that is masked": (
        lambda c: masked(c, "bn.weight", torch.ones(2)),
        "only_kernels_are_masked",
        "bn.weight",
    ),
    "a shared layer counted twice": (
        lambda c: masked(c, "shared.weight", torch.ones(4, 8)),
        "only_kernels_are_masked",
        "shared.weight is masked, but is the same tensor as fc.weight",
    ),
    "a bias of the last layer that is never trained": (
        lambda c: held(c, "fc.bias"),
        "others_train",
        "fc.bias",
    ),
    "a pruned weight that trains": (unfrozen, "frozen_is_frozen", "stage2.0.conv1.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_seen(fault: str) -> None:
    inject, check, item = FAULTS[fault]
    broken = inject(correct()).broken()
    assert any(item in text for text in broken[check]), broken
    assert broken.keys() == {check}


def test_a_tensor_that_is_recorded_as_not_trained_keeps_its_values() -> None:
    case = correct()

    def checks(case: Case, *fixed: str) -> dict[str, list[str]]:
        trained = NETWORK.trained_names - set(fixed)
        return certify(
            NETWORK.tensors, case.start, case.result, case.parent, case.step, trained=trained, fixed=fixed
        ).checks

    assert "others_are_frozen" not in checks(case)
    assert checks(case, "bn.bias", "fc.bias")["others_are_frozen"] == ["bn.bias", "fc.bias"]
    assert checks(held(case, "fc.bias"), "fc.bias")["others_are_frozen"] == []
    assert NETWORK.fixed_names == frozenset()
