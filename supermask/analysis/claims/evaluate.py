"""Evaluation of claims: per clause a test at each level, Holm's correction over the levels, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from types import MappingProxyType

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
from supermask.datasets.specs import DatasetSpec, dataset_spec
from supermask.study import Study
from supermask.study.claims import CHANCE, DENSE, LEARNED_MASK_MEASURES, Clause

MIN_SEEDS = 3
"""Seeds needed on each side; with fewer a level is untested."""


def evaluate_clause(clause: Clause, evidence: ClaimData, detect: float) -> ClauseFinding:
    """Test one clause on the rows of its study and return the verdict.

    One test per level, across seeds, and Holm's correction over the levels that the clause names. Two-sided t-tests for
    `above` and `below`, a one-sided test for `at_least` and `at_most`, two one-sided tests (TOST) for `matches`.
    `detect`: the smallest difference of practical interest, in percentage points.
    Source: Zhou et al. 2019, authors' response, items 2 and 4.
    """
    pairs = _pairs(clause, evidence)
    comparisons = [_comparison(ours, theirs, evidence.chance) for ours, theirs in pairs]
    levels = _levels(clause, pairs, comparisons, evidence)
    missing = evidence.describe_missing(clause.treatment, {ours.level for ours, _ in pairs})
    if clause.reference != CHANCE:
        missing += evidence.describe_missing(
            _reference_label(clause, evidence), {theirs.level for _, theirs in pairs if theirs}
        )
    decisive = deciding_level(clause, levels)
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
        seeds_needed=None if decisive is None else _seeds_needed(clause, comparisons[decisive], len(levels), detect),
    )
    return replace(finding, sentence=describe_clause(finding, clause, decisive, detect))


def deciding_level(clause: Clause, levels: Sequence[LevelFinding]) -> int | None:
    """Index of the level that decides the verdict; None without levels.

    The level of largest p if all levels have to hold, of smallest p if one has to. Where the opposite is significant,
    the level of largest opposite difference.
    """
    tested = [index for index, level in enumerate(levels) if level.p is not None] or list(range(len(levels)))
    if not tested:
        return None
    opposite = [index for index in tested if levels[index].outcome == "opposite"]
    if opposite:
        return max(opposite, key=lambda index: abs(levels[index].difference or 0.0))
    by_p = [(1.0 if (p := levels[index].p) is None else p, index) for index in tested]
    return (min(by_p) if clause.where == "some" else max(by_p))[1]


def _pairs(clause: Clause, evidence: ClaimData) -> list[tuple[LevelValues, LevelValues | None]]:
    """(treatment, reference) at each level of the clause; the reference is None for chance."""
    cells = evidence.best_level if clause.at == "best" else evidence.levels
    ours = cells(clause.treatment, clause.measure)
    if clause.remaining is not None:
        most, least = clause.remaining
        low, high = least * (1 - DENSITY_TOLERANCE), most * (1 + DENSITY_TOLERANCE)
        ours = {level: cell for level, cell in ours.items() if low <= cell.remaining <= high}
    if clause.reference == CHANCE:
        return [(cell, None) for cell in ours.values()]
    # The dense network has no measure of learned masks: its accuracy at early stopping takes part instead.
    is_mask_measure = clause.reference == DENSE and clause.measure in LEARNED_MASK_MEASURES
    theirs = cells(
        _reference_label(clause, evidence), "early_stop_test_accuracy" if is_mask_measure else clause.measure
    )
    if clause.at == "best" or clause.reference == DENSE:
        return [(cell, reference) for cell in ours.values() for reference in theirs.values()]
    return [
        (cell, theirs[level])
        for level, cell in ours.items()
        if level in theirs and math.isclose(cell.remaining, theirs[level].remaining, rel_tol=DENSITY_TOLERANCE)
    ]


def _reference_label(clause: Clause, evidence: ClaimData) -> str:
    return evidence.dense_label(clause.treatment) if clause.reference == DENSE else clause.reference


def _comparison(ours: LevelValues, theirs: LevelValues | None, chance: float) -> Comparison | None:
    """The comparison, or None if a side has fewer than `MIN_SEEDS` seeds."""
    if len(ours.values) < MIN_SEEDS or (theirs is not None and len(theirs.values) < MIN_SEEDS):
        return None
    return compare_to_constant(ours.values, chance) if theirs is None else compare(ours.values, theirs.values)


def _levels(
    clause: Clause,
    pairs: Sequence[tuple[LevelValues, LevelValues | None]],
    comparisons: Sequence[Comparison | None],
    evidence: ClaimData,
) -> list[LevelFinding]:
    claimed_ps = [None if c is None else _p_claimed(clause, c) for c in comparisons]
    opposite_ps = [None if c is None else _p_opposite(clause, c) for c in comparisons]
    findings = []
    for (ours, theirs), c, p, p_holm, p_opposite in zip(
        pairs, comparisons, claimed_ps, holm(claimed_ps), holm(opposite_ps), strict=True
    ):
        outcome: str = "undecided"
        if c is None or (p is None and p_opposite is None):
            outcome = "untested"
        elif p_holm is not None and p_holm < SIGNIFICANCE and _has_claimed_sign(clause, c):
            outcome = "holds"
        elif p_opposite is not None and p_opposite < SIGNIFICANCE and not _has_claimed_sign(clause, c):
            outcome = "opposite"
        findings.append(_level(ours, theirs, c, (p, p_holm, p_opposite), outcome, evidence.chance))
    return findings


def _level(
    ours: LevelValues,
    theirs: LevelValues | None,
    c: Comparison | None,
    ps: tuple[float | None, float | None, float | None],
    outcome: str,
    chance: float,
) -> LevelFinding:
    """`ps`: p of the clause, the same after Holm's correction, and p of its opposite after Holm's correction."""
    mean = fmean(ours.values.values()) if ours.values else None
    reference_mean = chance if theirs is None else fmean(theirs.values.values()) if theirs.values else None
    difference = None if mean is None or reference_mean is None else mean - reference_mean
    return LevelFinding(
        level=ours.level,
        remaining=ours.remaining,
        n=len(ours.values),
        n_reference=None if theirs is None else len(theirs.values),
        test=c.test if c else "none",
        mean=mean,
        reference_mean=reference_mean,
        difference=c.difference if c else difference,
        interval95=c.interval95 if c else None,
        hedges_g=c.hedges_g if c else None,
        p=ps[0],
        p_holm=ps[1],
        outcome=outcome,  # type: ignore[arg-type]
        note=c.note if c else f"fewer than {MIN_SEEDS} seeds on a side",
        hedges_g_interval95=effect_interval(c) if c else None,
        p_opposite_holm=ps[2],
        p_sign_flip=None if c is None or theirs is None else paired_sign_flip_p(ours.values, theirs.values),
    )


def _signed_margin(clause: Clause) -> float:
    """The bound on the difference (treatment - reference) that the clause claims, in percentage points."""
    return {"above": 1.0, "below": -1.0, "at_least": -1.0, "at_most": 1.0, "matches": 0.0}[
        clause.relation
    ] * clause.margin


def _has_claimed_sign(clause: Clause, c: Comparison) -> bool:
    if clause.relation == "matches":
        return abs(c.difference) < clause.margin
    beyond = c.difference - _signed_margin(clause)
    return beyond > 0 if clause.relation in ("above", "at_least") else beyond < 0


def _p_claimed(clause: Clause, c: Comparison) -> float | None:
    """p of the null hypothesis that the clause does not hold at this level."""
    if clause.relation == "matches":
        return equivalence(c, clause.margin).p
    if clause.relation in ("at_least", "at_most"):
        return one_sided_p(c, _signed_margin(clause), "greater" if clause.relation == "at_least" else "less")
    return c.p if clause.margin == 0 else _two_sided(c, _signed_margin(clause))


def _p_opposite(clause: Clause, c: Comparison) -> float | None:
    """p of the null hypothesis that the opposite of the clause does not hold at this level."""
    if clause.relation == "matches":
        # The opposite of "within the margin" is "beyond it", tested on the side of the difference.
        is_positive = c.difference > 0
        return one_sided_p(c, clause.margin if is_positive else -clause.margin, "greater" if is_positive else "less")
    if clause.relation in ("at_least", "at_most"):
        return one_sided_p(c, _signed_margin(clause), "less" if clause.relation == "at_least" else "greater")
    return _p_claimed(clause, c)


def _two_sided(c: Comparison, shift: float) -> float | None:
    p = one_sided_p(c, shift, "greater" if c.difference > shift else "less")
    return None if p is None else min(1.0, 2.0 * p)


def _verdict(clause: Clause, levels: Sequence[LevelFinding]) -> Verdict:
    outcomes = [level.outcome for level in levels]
    holds, opposite, untested = (outcomes.count(outcome) for outcome in ("holds", "opposite", "untested"))
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


def _seeds_needed(clause: Clause, comparison: Comparison | None, num_levels: int, detect: float) -> int | None:
    """Seeds for a power of 80% at the margin, or at `detect` without one, with the spread of this level.

    Conservative: at the significance of the first step of Holm's correction over `num_levels` levels.
    """
    spread = None if comparison is None else paired_spread(comparison)
    difference = clause.margin or detect
    if comparison is None or not spread or not difference:
        return None
    return seeds_needed(difference, spread, alpha=SIGNIFICANCE / num_levels, paired=comparison.test != "Welch t")


VERDICTS: tuple[Verdict, ...] = ("contradicted", "not supported", "not enough data", "supported")
"""A claim has the first of these verdicts that one of its clauses has."""


def evaluate_claims(
    studies: Sequence[tuple[Study, Sequence[Row]]],
    whole_paper: bool = False,
    own_data: Mapping[str, DatasetSpec] = MappingProxyType({}),
) -> list[ClaimFinding]:
    """Evaluate every claim about these studies: the paper's by number, then the studies' own.

    `studies`: each with one row per planned run, finished or not. `whole_paper`: include the paper's claims that no
    shipped study can decide. `own_data`: specifications of datasets that are not in `DATASETS`, by name.

    Source: Zhou et al. 2019, Sec. 2 to 5; statistics: authors' response, items 2 and 4.
    """
    findings: list[ClaimFinding] = []
    for study, rows in studies:
        evidence = ClaimData(study, rows, dataset_spec(study.dataset, own_data.get(study.dataset)).classes)
        findings += [_evaluate_task(task, evidence) for task in claims_for_study(study)]
    if whole_paper:
        findings += [_not_evaluable(task) for task in claims_without_study()]
    return sorted(findings, key=lambda claim: (claim.number is None, claim.number or 0))


def _evaluate_task(task: ClaimTask, evidence: ClaimData) -> ClaimFinding:
    if task.claim is None:
        return _not_evaluable(task)
    clauses = tuple(evaluate_clause(clause, evidence, task.claim.detect) for clause in task.claim.clauses)
    verdict = combine_verdicts(clauses)
    return ClaimFinding(
        id=task.id,
        number=task.number,
        statement=task.statement,
        study=task.study,
        source=task.source,
        figure=task.figure,
        verdict=verdict,
        sentence=describe_claim(verdict, clauses),
        clauses=clauses,
        dataset=evidence.study.dataset,
        data_notes=evidence.data_notes,
    )


def combine_verdicts(clauses: Sequence[ClauseFinding]) -> Verdict:
    """The verdict of a claim: that of its worst clause, since all have to hold."""
    return next(verdict for verdict in VERDICTS if any(clause.verdict == verdict for clause in clauses))


def _not_evaluable(task: ClaimTask) -> ClaimFinding:
    reason = task.reason_not_evaluable if task.study else f"It needs {task.reason_not_evaluable}."
    return ClaimFinding(
        task.id, task.number, task.statement, task.study, task.source, task.figure, "not enough data", reason, ()
    )
