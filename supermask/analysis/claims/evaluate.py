"""Claims against runs: what `supermask claims` and the report say.

One clause against the runs: a test at each level, Holm over the levels, a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from supermask.analysis.claims.evidence import ClaimData, LevelValues
from supermask.analysis.claims.findings import ClaimFinding, ClauseFinding, LevelFinding, Verdict
from supermask.analysis.claims.paper import ClaimTask, claims_for_study, claims_without_study
from supermask.analysis.claims.sentences import describe_claim, describe_clause
from supermask.analysis.stats import (
    SIGNIFICANCE,
    Comparison,
    compare,
    compare_to_constant,
    effect_interval,
    equivalence,
    holm,
    one_sided_p,
    paired_sign_flip_p,
    paired_spread,
    seeds_needed,
)
from supermask.analysis.summary import DENSITY_TOLERANCE
from supermask.core.text import Row
from supermask.study import Study
from supermask.study.claims import CHANCE, DENSE, LEARNED_MASK_MEASURES, Clause

MIN_SEEDS = 3
"""Below this many seeds on a side nothing is decided."""


def evaluate_clause(clause: Clause, evidence: ClaimData, detect: float) -> ClauseFinding:
    """What the runs say of one clause. `detect`: the smallest difference that would matter, percentage points.

    Every level by itself, across seeds; Holm over the levels that the clause looks at. Two-sided t-tests for `above`
    and `below`, a one-sided one for `at_least` and `at_most`, two one-sided ones for `matches`.
    Source: paper.md section 7.
    """
    pairs = _pairs(clause, evidence)
    compared = [_comparison(ours, theirs, evidence.chance) for ours, theirs in pairs]
    levels = _levels(clause, pairs, compared, evidence)
    missing = evidence.describe_missing(clause.treatment, {ours.level for ours, _ in pairs})
    if clause.reference != CHANCE:
        missing += evidence.describe_missing(clause.reference, {theirs.level for _, theirs in pairs if theirs})
    telling = deciding_level(clause, levels)
    finding = ClauseFinding(
        treatment=clause.treatment,
        relation=clause.relation,
        reference=clause.reference,
        margin=clause.margin,
        verdict=_verdict(clause, levels),
        sentence="",
        levels=tuple(levels),
        missing=tuple(missing),
        where=clause.where,
        seeds_needed=None if telling is None else _seeds_needed(clause, compared[telling], len(levels), detect),
    )
    return replace(finding, sentence=describe_clause(finding, clause, telling, detect))


def deciding_level(clause: Clause, levels: Sequence[LevelFinding]) -> int | None:
    """Index of the level that the verdict hangs on: the weakest where all have to hold, the clearest where one has to.

    Where the opposite holds at some, the clearest of these.
    """
    tested = [index for index, level in enumerate(levels) if level.p is not None] or list(range(len(levels)))
    if not tested:
        return None
    reverse = [index for index in tested if levels[index].outcome == "opposite"]
    if reverse:
        return max(reverse, key=lambda index: abs(levels[index].difference or 0.0))
    by_p = [(1.0 if (p := levels[index].p) is None else p, index) for index in tested]
    return (min(by_p) if clause.where == "some" else max(by_p))[1]


def _pairs(clause: Clause, evidence: ClaimData) -> list[tuple[LevelValues, LevelValues | None]]:
    """Each level that the clause looks at, with what it is compared with there; None for chance."""
    cells = evidence.best_level if clause.at == "best" else evidence.levels
    ours = cells(clause.treatment, clause.measure)
    if clause.remaining is not None:
        most, least = clause.remaining
        within = (least * (1 - DENSITY_TOLERANCE), most * (1 + DENSITY_TOLERANCE))
        ours = {level: cell for level, cell in ours.items() if within[0] <= cell.remaining <= within[1]}
    if clause.reference == CHANCE:
        return [(cell, None) for cell in ours.values()]
    # What only learned masks have is compared with the dense network's accuracy at early stopping.
    learned_alone = clause.reference == DENSE and clause.measure in LEARNED_MASK_MEASURES
    theirs = cells(clause.reference, "early_stop_test_accuracy" if learned_alone else clause.measure)
    if clause.at == "best" or clause.reference == DENSE:
        return [(cell, other) for cell in ours.values() for other in theirs.values()]
    return [
        (cell, theirs[level])
        for level, cell in ours.items()
        if level in theirs and math.isclose(cell.remaining, theirs[level].remaining, rel_tol=DENSITY_TOLERANCE)
    ]


def _comparison(ours: LevelValues, theirs: LevelValues | None, chance: float) -> Comparison | None:
    """None where there are too few seeds."""
    if len(ours.values) < MIN_SEEDS or (theirs is not None and len(theirs.values) < MIN_SEEDS):
        return None
    return compare_to_constant(ours.values, chance) if theirs is None else compare(ours.values, theirs.values)


def _levels(
    clause: Clause,
    pairs: Sequence[tuple[LevelValues, LevelValues | None]],
    compared: Sequence[Comparison | None],
    evidence: ClaimData,
) -> list[LevelFinding]:
    claimed = [None if c is None else _p(clause, c) for c in compared]
    opposite = [None if c is None else _p_reverse(clause, c) for c in compared]
    found = []
    for (ours, theirs), c, p, p_holm, p_opposite in zip(
        pairs, compared, claimed, holm(claimed), holm(opposite), strict=True
    ):
        outcome: str = "undecided"
        if c is None or (p is None and p_opposite is None):
            outcome = "untested"
        elif p_holm is not None and p_holm < SIGNIFICANCE and _has_claimed_sign(clause, c):
            outcome = "holds"
        elif p_opposite is not None and p_opposite < SIGNIFICANCE and not _has_claimed_sign(clause, c):
            outcome = "opposite"
        found.append(_level(ours, theirs, c, (p, p_holm, p_opposite), outcome, evidence.chance))
    return found


def _level(
    ours: LevelValues,
    theirs: LevelValues | None,
    c: Comparison | None,
    ps: tuple[float | None, float | None, float | None],
    outcome: str,
    chance: float,
) -> LevelFinding:
    """`ps`: of the clause; the same by Holm; of its reverse, by Holm."""
    mean = fmean(ours.values.values()) if ours.values else None
    other = chance if theirs is None else fmean(theirs.values.values()) if theirs.values else None
    few = f"fewer than {MIN_SEEDS} seeds on a side"
    return LevelFinding(
        level=ours.level,
        remaining=ours.remaining,
        n=len(ours.values),
        n_reference=None if theirs is None else len(theirs.values),
        test=c.test if c else "none",
        mean=mean,
        reference_mean=other,
        difference=c.difference if c else None if mean is None or other is None else mean - other,
        interval95=c.interval95 if c else None,
        hedges_g=c.hedges_g if c else None,
        p=ps[0],
        p_holm=ps[1],
        outcome=outcome,  # type: ignore[arg-type]
        note=c.note if c else few,
        hedges_g_interval95=effect_interval(c) if c else None,
        p_opposite_holm=ps[2],
        p_sign_flip=None if c is None or theirs is None else paired_sign_flip_p(ours.values, theirs.values),
    )


def _signed_margin(clause: Clause) -> float:
    """What the difference has to be above, or below."""
    return {"above": 1.0, "below": -1.0, "at_least": -1.0, "at_most": 1.0, "matches": 0.0}[
        clause.relation
    ] * clause.margin


def _has_claimed_sign(clause: Clause, c: Comparison) -> bool:
    if clause.relation == "matches":
        return abs(c.difference) < clause.margin
    beyond = c.difference - _signed_margin(clause)
    return beyond > 0 if clause.relation in ("above", "at_least") else beyond < 0


def _p(clause: Clause, c: Comparison) -> float | None:
    """Of the clause at this level: how often so much speaks for it by chance where it is not so."""
    if clause.relation == "matches":
        return equivalence(c, clause.margin).p
    if clause.relation in ("at_least", "at_most"):
        return one_sided_p(c, _signed_margin(clause), "greater" if clause.relation == "at_least" else "less")
    return c.p if clause.margin == 0 else _two_sided(c, _signed_margin(clause))


def _p_reverse(clause: Clause, c: Comparison) -> float | None:
    """Of its reverse."""
    if clause.relation == "matches":
        # Beyond the margin on the side where the difference is.
        over = c.difference > 0
        return one_sided_p(c, clause.margin if over else -clause.margin, "greater" if over else "less")
    if clause.relation in ("at_least", "at_most"):
        return one_sided_p(c, _signed_margin(clause), "less" if clause.relation == "at_least" else "greater")
    return _p(clause, c)


def _two_sided(c: Comparison, shift: float) -> float | None:
    p = one_sided_p(c, shift, "greater" if c.difference > shift else "less")
    return None if p is None else min(1.0, 2.0 * p)


def _verdict(clause: Clause, levels: Sequence[LevelFinding]) -> Verdict:
    outcomes = [level.outcome for level in levels]
    holds, opposite, untested = (outcomes.count(word) for word in ("holds", "opposite", "untested"))
    if clause.where == "some":
        if holds:
            return "not supported" if opposite else "supported"
        if opposite:
            return "contradicted"
        return "not enough data" if untested or not outcomes else "not supported"
    if opposite:
        return "contradicted"
    if untested or not outcomes:
        return "not enough data"
    return "supported" if holds == len(outcomes) else "not supported"


def _seeds_needed(clause: Clause, compared: Comparison | None, levels: int, detect: float) -> int | None:
    """Seeds at which a difference that matters would be seen with a power of 80%, at this level among so many.

    On the safe side of Holm: at the significance of its first step.
    """
    spread = None if compared is None else paired_spread(compared)
    difference = clause.margin or detect
    if compared is None or not spread or not difference:
        return None
    return seeds_needed(difference, spread, alpha=SIGNIFICANCE / levels, paired=compared.test != "Welch t")


VERDICTS: tuple[Verdict, ...] = ("contradicted", "not supported", "not enough data", "supported")
"""A claim has the first of these that one of its clauses has."""


def evaluate_claims(studies: Sequence[tuple[Study, Sequence[Row]]], whole_paper: bool = False) -> list[ClaimFinding]:
    """Every claim about these studies, the paper's by number, then the studies' own.

    `studies`: each with a row for every run that it plans, done or not. `whole_paper`: also the claims that no study
    can decide yet. Source: paper.md sections 7 and 9.
    """
    found: list[ClaimFinding] = []
    for study, rows in studies:
        evidence = ClaimData(study, rows)
        found += [_finding(asked, evidence) for asked in claims_for_study(study)]
    if whole_paper:
        found += [_not_evaluable(asked) for asked in claims_without_study()]
    return sorted(found, key=lambda claim: (claim.number is None, claim.number or 0))


def _finding(asked: ClaimTask, evidence: ClaimData) -> ClaimFinding:
    if asked.claim is None:
        return _not_evaluable(asked)
    clauses = tuple(evaluate_clause(clause, evidence, asked.claim.detect) for clause in asked.claim.clauses)
    verdict = combine_verdicts(clauses)
    return ClaimFinding(
        id=asked.id,
        number=asked.number,
        statement=asked.statement,
        study=asked.study,
        source=asked.source,
        figure=asked.figure,
        verdict=verdict,
        sentence=describe_claim(verdict, clauses),
        clauses=clauses,
        dataset=evidence.study.dataset,
        data_notes=evidence.data_notes,
    )


def combine_verdicts(clauses: Sequence[ClauseFinding]) -> Verdict:
    """A claim is what its worst clause is: all of them have to hold."""
    return next(verdict for verdict in VERDICTS if any(clause.verdict == verdict for clause in clauses))


def _not_evaluable(asked: ClaimTask) -> ClaimFinding:
    why = asked.reason_not_evaluable if asked.study else f"It needs {asked.reason_not_evaluable}."
    return ClaimFinding(
        asked.id, asked.number, asked.statement, asked.study, asked.source, asked.figure, "not enough data", why, ()
    )
