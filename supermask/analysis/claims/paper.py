"""The claims about a study: the paper's, which ship as data, and those of the study's own file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from supermask.study import Study
from supermask.study.claims import Claim
from supermask.study.loading import MAX_FILE_BYTES, load_claim
from supermask.study.yaml import Node, parse_yaml, to_python


@dataclass(frozen=True)
class ClaimTask:
    """A claim to be evaluated."""

    number: int | None
    """Number of the paper's claim, 1 to 15; None for a user's own."""
    id: str
    statement: str
    source: str
    study: str
    """Name of the study that can decide it; empty if none is shipped."""
    figure: str
    claim: Claim | None
    """None if it cannot be evaluated."""
    reason_not_evaluable: str = ""
    """Reason if `claim` is None."""


def claims_for_study(study: Study) -> list[ClaimTask]:
    """The paper's claims that this study can decide, by number, then the claims of its file."""
    paper = [_claim_task(node, study) for node in _paper() if _text(node, "study") == study.name]
    own = [ClaimTask(None, c.id, c.statement, c.source, study.name, c.figure, c) for c in study.claims]
    return paper + own


def claims_without_study() -> list[ClaimTask]:
    """The paper's claims that no shipped study can decide."""
    return [
        ClaimTask(
            _number(node), _text(node, "id"), _text(node, "statement"), _text(node, "source"), "", "", None, needs
        )
        for node in _paper()
        if (needs := _text(node, "needs"))
    ]


def studies_with_claims() -> list[str]:
    """Names of the studies that the paper's claims refer to."""
    return list(dict.fromkeys(name for node in _paper() if (name := _text(node, "study"))))


@cache
def _paper() -> tuple[Node, ...]:
    path = Path(str(resources.files("supermask").joinpath("analysis", "claims", "paper.yaml")))
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_FILE_BYTES
    claims = parse_yaml(text, path.name).value
    assert isinstance(claims, tuple)
    return claims


def _claim_task(node: Node, study: Study) -> ClaimTask:
    assert isinstance(node.value, dict)
    own = {key: value for key, value in node.value.items() if key not in ("number", "study")}
    faults: list[str] = []
    # A user's study may have the name of a shipped one and lack treatments that the claim names.
    claim = load_claim(Node(own, node.location), study.treatments, _text(node, "id"), faults)
    problem = "" if claim else "this study lacks treatments of the claim: " + " ".join(faults[:1])
    return ClaimTask(
        _number(node),
        _text(node, "id"),
        _text(node, "statement"),
        _text(node, "source"),
        study.name,
        _text(node, "figure"),
        claim,
        problem,
    )


def _text(node: Node, key: str) -> str:
    return str(to_python(node).get(key, ""))


def _number(node: Node) -> int:
    return int(to_python(node)["number"])
