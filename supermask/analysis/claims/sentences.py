"""Findings in one line of plain text each, and the sentences on the tests behind them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from supermask.analysis.claims.findings import ClaimFinding, ClauseFinding, LevelFinding, Verdict
from supermask.analysis.stats import exact_test_limit
from supermask.core.text import format_p, format_percent, format_range
from supermask.study.claims import CHANCE, Clause

_RELATIONS = {
    "above": "is above",
    "below": "is below",
    "at_least": "is at least as good as",
    "at_most": "is at most as good as",
    "matches": "matches",
}

_SINGLE_LEVEL_WORDING = {
    "holds": "yes",
    "opposite": "no, the opposite",
    "undecided": "not significant",
    "untested": "untested",
}
"""Outcome -> wording for a clause with a single level."""


def describe_clause(finding: ClauseFinding, clause: Clause, decisive: int | None, detect: float) -> str:
    """The clause, the number of levels at which it holds, and the numbers of the decisive level.

    `decisive`: index of that level, None if there is no level to compare at.
    """
    claim = f"{clause.treatment} {_RELATIONS[clause.relation]} {clause.reference}{_margin(clause)}"
    if decisive is None:
        band = clause.remaining
        where = f" between {band[0]:g}% and {band[1]:g}% of the weights" if band else ""
        return f"{claim}: no level{where} to compare at."
    parts = [f"{claim}: {_count_levels(finding.levels)}", _describe_numbers(finding.levels, clause, decisive)]
    if finding.verdict != "supported":
        parts += _describe_shortfall(finding, clause, detect)
    parts += [f"missing: {text}" for text in finding.missing]
    return "; ".join(part for part in parts if part) + "."


def describe_claim(verdict: Verdict, clauses: Sequence[ClauseFinding]) -> str:
    """The sentence of a single clause; else the count of each verdict, and the sentence of the deciding clause."""
    if len(clauses) == 1:
        return clauses[0].sentence
    if verdict == "supported":
        return f"All {len(clauses)} parts are supported. The weakest: {max(clauses, key=_weakness).sentence}"
    counts = ", ".join(
        f"{count} {clause_verdict}" for clause_verdict, count in Counter(clause.verdict for clause in clauses).items()
    )
    deciding = next(clause for clause in clauses if clause.verdict == verdict)
    return f"Of {len(clauses)} parts: {counts}. {deciding.sentence}"


def _weakness(clause: ClauseFinding) -> float:
    """p of the deciding level of a supported clause: the larger, the weaker."""
    ps = [level.p_holm for level in clause.levels if level.outcome == "holds" and level.p_holm is not None]
    return (min if clause.where == "some" else max)(ps, default=0.0)


def _margin(clause: Clause) -> str:
    if not clause.margin:
        return ""
    by = "by more than" if clause.relation in ("above", "below") else "within"
    return f" ({by} {clause.margin:g} points)"


def _count_levels(levels: Sequence[LevelFinding]) -> str:
    if len(levels) == 1:
        return _SINGLE_LEVEL_WORDING[levels[0].outcome]
    outcomes = Counter(level.outcome for level in levels)
    shares = [level.remaining for level in levels if math.isfinite(level.remaining)]
    span = f" from {format_percent(max(shares))}% to {format_percent(min(shares))}% of the weights" if shares else ""
    parts = [f"at {outcomes['holds']} of {len(levels)} levels{span}"]
    if outcomes["opposite"]:
        parts.append(f"the opposite at {outcomes['opposite']}")
    if outcomes["untested"]:
        parts.append(f"{outcomes['untested']} untested")
    return ", ".join(parts)


def _describe_numbers(levels: Sequence[LevelFinding], clause: Clause, decisive: int) -> str:
    level = levels[decisive]
    if level.difference is None:
        return ""
    place = f"at {format_percent(level.remaining)}%" if math.isfinite(level.remaining) else "there"
    if len(levels) > 1:
        rank = "weakest" if clause.where == "every" else "clearest"
        place = f"{'the opposite clearest' if level.outcome == 'opposite' else rank} {place}"
    interval = "" if level.interval95 is None else " [{:+.2f}, {:+.2f}]".format(*level.interval95)
    seeds = f"{level.n} and {level.n_reference}" if level.test == "Welch t" else f"{level.n}"
    n = f"n = {seeds} {'pairs' if level.test == 'paired t' else 'seeds'}"
    p_value = level.p_opposite_holm if level.outcome == "opposite" else level.p_holm
    p = "" if p_value is None else f", {format_p(p_value)}"
    versus = f" over chance, {level.reference_mean:g}%" if clause.reference == CHANCE else ""
    return f"{place}: {level.difference:+.2f}{interval} points{versus}, {n}{p}"


def _describe_shortfall(finding: ClauseFinding, clause: Clause, detect: float) -> list[str]:
    sentences = list(
        dict.fromkeys(level.note for level in finding.levels if level.outcome == "untested" and level.note)
    )
    has_opposite = any(level.outcome == "opposite" for level in finding.levels)
    if finding.verdict == "not supported" and not has_opposite and finding.seeds_needed is not None:
        points = f"{clause.margin or detect:g} points"
        sentences.append(f"to see {points} takes {finding.seeds_needed:,} seeds (power 80%)")
    return sentences


_TESTS = {
    "paired t": "paired t, where both sides have the same seeds",
    "Welch t": "Welch's t, where they differ",
    "one-sample t": "one-sample t, against chance",
}


def _quote_relation(relation: str) -> str:
    return f"“{relation.replace('_', ' ')}”"


_TEST_SIDES = {
    ("above", "below"): "two-sided",
    ("at_least", "at_most"): "one-sided against the margin",
    ("matches",): "by two one-sided tests (TOST) that the difference lies within the margin",
}


def describe_tests(findings: Sequence[ClaimFinding]) -> list[str]:
    """Sentences on the tests behind these claims, and on the limit of exact tests; none if nothing was tested."""
    clauses = [clause for claim in findings for clause in claim.clauses]
    tested = [(clause, level) for clause in clauses for level in clause.levels if level.test in _TESTS]
    if not tested:
        return []
    used = Counter(level.test for _, level in tested)
    tests = "; ".join(f"{description} ({used[test]:,})" for test, description in _TESTS.items() if used[test])
    relations = {clause.relation for clause, _ in tested}
    sides = [
        f"{' and '.join(_quote_relation(name) for name in names if name in relations)} {side}"
        for names, side in _TEST_SIDES.items()
        if relations.intersection(names)
    ]
    seeds = sorted({level.n for _, level in tested})
    sentences = [
        f"n = {format_range(seeds)} seeds. Tests, with the number of comparisons: {tests}. Relations are tested "
        f"{', '.join(sides)}. p is of a level alone; p, Holm is corrected over the levels of its part, not over parts "
        "or claims."
    ]
    pairs = [level.n for _, level in tested if level.p_sign_flip is not None]
    if pairs:
        too_few = max((n for n in pairs if exact_test_limit(n)), default=0)
        flips = "p, flips: the exact sign-flip test of no difference at that level alone, two-sided, not corrected."
        sentences.append(f"{flips} {exact_test_limit(too_few)}".strip())
    return sentences
