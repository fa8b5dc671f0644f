"""Every public function that implements a fact of the paper says where it stands there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from supermask.analysis.masks import layers, overlap, weights
from supermask.core import actions, certificate, criteria, masks, pruning


def public_functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    ]


FUNCTIONS = [f for module in (criteria, actions, pruning, certificate) for f in public_functions(module)]
FUNCTIONS += [masks.keep_top, masks.prune_count, masks.rank]
FUNCTIONS += [
    layers.layer_densities,
    weights.weight_distribution,
    overlap.layer_overlaps,
    overlap.chance_overlap,
    weights.pixel_map,
]
FUNCTIONS += [weights.weight_plane, layers.sign_agreement, layers.sign_agreement_between, layers.unit_connectivity]


def test_none_is_overlooked() -> None:
    registered = {*criteria.CRITERIA.values(), *actions.MASK1_ACTIONS.values(), *actions.MASK0_ACTIONS.values()}
    assert registered <= set(FUNCTIONS)
    assert {pruning.prune_and_reset, certificate.certify} <= set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.__module__.split('.')[-1]}.{f.__name__}")
def test_docstring_names_its_source(function: Callable[..., Any]) -> None:
    text = inspect.getdoc(function)
    assert text
    assert "Source:" in text
    assert "section" in text.split("Source:")[1]
