"""Every public function that implements a fact of the paper says where it stands there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from supermask import actions, certificate, criteria, masks, ticket
from supermask.analysis import density, distribution, overlap, pixels, plane, signs, units


def public_functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    ]


FUNCTIONS = [f for module in (criteria, actions, ticket, certificate) for f in public_functions(module)]
FUNCTIONS += [masks.keep_top, masks.prune_count, masks.rank]
FUNCTIONS += [density.densities, distribution.distribution_of, overlap.overlaps, overlap.chance_of, pixels.pixel_map]
FUNCTIONS += [plane.plane_of, signs.sign_agreement, signs.sign_agreement_between, units.connected_units]


def test_none_is_overlooked() -> None:
    registered = {*criteria.CRITERIA.values(), *actions.MASK1_ACTIONS.values(), *actions.MASK0_ACTIONS.values()}
    assert registered <= set(FUNCTIONS)
    assert {ticket.next_start, certificate.certify} <= set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.__module__.split('.')[-1]}.{f.__name__}")
def test_docstring_names_its_source(function: Callable[..., Any]) -> None:
    text = inspect.getdoc(function)
    assert text
    assert "Source:" in text
    assert "section" in text.split("Source:")[1]
