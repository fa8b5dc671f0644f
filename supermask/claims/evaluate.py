"""Claims against runs: what `supermask claims` and the report say."""

from __future__ import annotations

from collections.abc import Sequence

from supermask.claims.asked import Asked, asked_of, without_a_study
from supermask.claims.deciding import decide
from supermask.claims.evidence import Evidence
from supermask.claims.findings import ClaimFinding, ClauseFinding, Verdict
from supermask.claims.words import claim_sentence
from supermask.study import Study
from supermask.tables import Row

VERDICTS: tuple[Verdict, ...] = ("contradicted", "not supported", "not enough data", "supported")
"""A claim has the first of these that one of its clauses has."""


def evaluate(studies: Sequence[tuple[Study, Sequence[Row]]], whole_paper: bool = False) -> list[ClaimFinding]:
    """Every claim about these studies, the paper's by number, then the studies' own.

    `studies`: each with a row for every run that it plans, done or not. `whole_paper`: also the claims that no study
    can decide yet. Source: paper.md sections 7 and 9.
    """
    found: list[ClaimFinding] = []
    for study, rows in studies:
        evidence = Evidence(study, rows)
        found += [_finding(asked, evidence) for asked in asked_of(study)]
    if whole_paper:
        found += [_undecided(asked) for asked in without_a_study()]
    return sorted(found, key=lambda claim: (claim.number is None, claim.number or 0))


def _finding(asked: Asked, evidence: Evidence) -> ClaimFinding:
    if asked.claim is None:
        return _undecided(asked)
    clauses = tuple(decide(clause, evidence, asked.claim.detect) for clause in asked.claim.clauses)
    verdict = verdict_of(clauses)
    return ClaimFinding(
        id=asked.id,
        number=asked.number,
        statement=asked.statement,
        study=asked.study,
        source=asked.source,
        figure=asked.figure,
        verdict=verdict,
        sentence=claim_sentence(verdict, clauses),
        clauses=clauses,
        dataset=evidence.study.dataset,
        data_notes=evidence.data_notes,
    )


def verdict_of(clauses: Sequence[ClauseFinding]) -> Verdict:
    """A claim is what its worst clause is: all of them have to hold."""
    return next(verdict for verdict in VERDICTS if any(clause.verdict == verdict for clause in clauses))


def _undecided(asked: Asked) -> ClaimFinding:
    why = asked.problem if asked.study else f"It needs {asked.problem}."
    return ClaimFinding(
        asked.id, asked.number, asked.statement, asked.study, asked.source, asked.figure, "not enough data", why, ()
    )
