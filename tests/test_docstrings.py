"""Docstrings: sources of the paper's facts, forbidden openings, and citations of the paper itself."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import supermask
from supermask.analysis.masks import layers, overlap, weights
from supermask.core import actions, certificate, criteria, mask_certificate, masks, pruning

PACKAGE = Path(supermask.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

SOURCE = re.compile(
    r"Source:\s+Zhou\s+et\s+al\.\s+2019,\s+(Sec\.\s+\d|Figs?\.\s+S?\d|Table\s+S?\d|supplement|authors'\s+response,\s+items?\s+\d)"
)

FORBIDDEN_OPENING = re.compile(r"(What|Who|Whose|Where|Whether|How|Which|When|Of)\b")


def public_functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    ]


FUNCTIONS = [
    f for module in (criteria, actions, pruning, certificate, mask_certificate) for f in public_functions(module)
]
FUNCTIONS += [masks.keep_top, masks.prune_count, masks.rank]
FUNCTIONS += [
    layers.layer_densities,
    weights.weight_distribution,
    overlap.layer_overlaps,
    overlap.chance_overlap,
    weights.pixel_map,
]
FUNCTIONS += [weights.weight_plane, layers.sign_agreement, layers.sign_agreement_between, layers.unit_connectivity]


def test_every_criterion_and_action_is_checked() -> None:
    registered = {*criteria.CRITERIA.values(), *actions.MASK1_ACTIONS.values(), *actions.MASK0_ACTIONS.values()}
    assert registered <= set(FUNCTIONS)
    assert {pruning.prune_and_reset, certificate.certify, mask_certificate.certify_learned_mask} <= set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.__module__.split('.')[-1]}.{f.__name__}")
def test_docstring_has_a_source_in_the_paper(function: Callable[..., Any]) -> None:
    assert SOURCE.search(inspect.getdoc(function) or ""), inspect.getdoc(function)


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring, including the strings below fields and constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", [])
        # The body of a lambda or a conditional expression is an expression, not a list.
        for statement in body if isinstance(body, list) else []:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_docstring_opens_with_a_relative_clause(path: Path) -> None:
    openings = [(line, text[:60]) for line, text in docstrings(path) if FORBIDDEN_OPENING.match(text.strip())]
    assert openings == []


def test_docstrings_below_fields_are_found() -> None:
    texts = [text for _, text in docstrings(PACKAGE / "core" / "types.py")]
    assert len(texts) > 20


@pytest.mark.parametrize("folder", ["supermask", "tests", "docs", "benchmarks", "examples"])
def test_working_notes_are_not_cited(folder: str) -> None:
    """Code and docs cite the paper, not notes about it."""
    notes = "paper" + ".md section"
    root = PACKAGE.parent / folder
    citing = [
        path.relative_to(PACKAGE.parent).as_posix()
        for path in [*root.rglob("*.py"), *root.rglob("*.md"), *root.rglob("*.yaml")]
        if notes in path.read_text(encoding="utf-8")
    ]
    assert citing == []
