"""Findings in one line of plain text each, and the sentences on the tests behind them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from supermask.analysis.claims.findings import (
    MIN_SEEDS,
    ClaimFinding,
    ClauseFinding,
    Effect,
    Interval,
    LevelFinding,
    Verdict,
)
from supermask.analysis.stats import exact_test_limit
from supermask.core.text import format_p, format_percent, format_range, pluralize
from supermask.study.claims import CHANCE

_RELATIONS = {
    "above": "is above",
    "below": "is below",
    "at_least": "is at least as good as",
    "at_most": "is at most as good as",
    "matches": "matches",
}

_ANSWERS = {
    "holds": "yes",
    "opposite": "no, the opposite",
    "undecided": "not significant",
    "untested": "not tested",
}
"""Outcome of the deciding test -> the first words on it."""


def _answer(result: Effect | LevelFinding) -> str:
    # Without a margin there is no test, and the clause does not hold.
    return _ANSWERS["untested" if result.outcome == "undecided" and result.p is None else result.outcome]


def describe_clause(finding: ClauseFinding) -> str:
    """The clause, the answer of its test, and the numbers behind it."""
    if finding.effect is None:
        band = finding.band
        where = f" between {band[0]:g}% and {band[1]:g}% of the weights" if band else ""
        return f"{_claim(finding)}: no level{where} to compare at."
    if finding.verdict == "no verdict":
        subject = f"{finding.treatment} against {finding.reference}"
        return f"{subject}: {_describe_effect(finding, finding.effect)}."
    if finding.where == "mean":
        parts = [f"{_answer(finding.effect)}; {_describe_effect(finding, finding.effect)}"]
    else:
        parts = [_count_levels(finding.levels, finding.where), _describe_level(finding)]
    parts += [_describe_censoring(finding), *_describe_shortfall(finding)]
    return "; ".join(part for part in [f"{_claim(finding)}: {parts[0]}", *parts[1:]] if part) + "."


def describe_claim(verdict: Verdict, clauses: Sequence[ClauseFinding], study: str = "") -> str:
    """The sentence of a single clause; else the count of each verdict, and the sentence of the deciding clause.

    Without enough data, also the command that trains what is missing.
    """
    hint = _describe_command(clauses, study) if verdict == "not enough data" else ""
    if len(clauses) == 1:
        return clauses[0].sentence + hint
    if verdict == "no verdict":
        return " ".join(clause.sentence for clause in clauses)
    if verdict == "supported":
        return f"All {len(clauses)} clauses are supported. The weakest: {max(clauses, key=_weakness).sentence}"
    counts = ", ".join(
        f"{count} {clause_verdict}" for clause_verdict, count in Counter(clause.verdict for clause in clauses).items()
    )
    deciding = next(clause for clause in clauses if clause.verdict == verdict)
    return f"Of {len(clauses)} clauses: {counts}. {deciding.sentence}{hint}"


def _describe_command(clauses: Sequence[ClauseFinding], study: str) -> str:
    """Sentence on what would give the data that is missing."""
    lacking = [clause for clause in clauses if clause.verdict == "not enough data" and not clause.note]
    if any(" to do" in text for clause in lacking for text in clause.missing):
        return f" `supermask run {study}`, with the same settings, trains what is missing." if study else ""
    if any(_lacks_seeds(clause) for clause in lacking):
        return f" A verdict takes {MIN_SEEDS} seeds on both sides: run it with more seeds, such as seeds={MIN_SEEDS}."
    return ""


def _lacks_seeds(clause: ClauseFinding) -> bool:
    """True if the tests that decide have fewer seeds than a verdict takes."""
    if clause.where == "mean":
        return clause.effect is not None and clause.effect.n < MIN_SEEDS
    return any(level.n < MIN_SEEDS for level in clause.levels)


def _weakness(clause: ClauseFinding) -> float:
    """p of the deciding test of a supported clause: the larger, the weaker."""
    if clause.where == "mean":
        return clause.effect.p or 0.0 if clause.effect else 0.0
    if clause.where == "every":
        return max((level.p for level in clause.levels if level.p is not None), default=0.0)
    return min((level.p_holm for level in clause.levels if level.p_holm is not None), default=0.0)


def _claim(finding: ClauseFinding) -> str:
    """`zero is above freeze_init`, with its margin and the kind of its levels."""
    kind = {"mean": "", "every": " at every level", "some": " at some level"}[finding.where]
    margin = ""
    size = f"{finding.margin:g} {finding.unit}" if finding.margin else ""
    if finding.share is not None:
        size = f"{finding.share:g}% of what {finding.control} loses"
    if size:
        margin = f" ({'by more than' if finding.relation in ('above', 'below') else 'within'} {size})"
    return f"{finding.treatment} {_RELATIONS[finding.relation]} {finding.reference}{margin}{kind}"


def _describe_effect(finding: ClauseFinding, effect: Effect) -> str:
    """`+0.13 [+0.02, +0.24] points, mean over 4 levels from 17.9% to 5% of the weights, n = 5 pairs, p = 0.03; ...`."""
    n = _describe_n(finding, effect.n)
    if effect.difference is None:
        return n
    p_value = effect.p_opposite if effect.outcome == "opposite" else effect.p
    parts = [
        _describe_difference(finding, effect.difference, effect.interval95, effect.reference_mean),
        _describe_levels(finding),
        n,
        "" if p_value is None else format_p(p_value),
    ]
    texts = [", ".join(part for part in parts if part)]
    if finding.share is not None and effect.margin > 0.0:
        texts.append(f"the margin is {effect.margin:.2f} {finding.unit}")
    if effect.error_ratio is not None and finding.reference != CHANCE:
        interval = effect.error_ratio_interval95
        ends = "" if interval is None else " [{:.2f}, {:.2f}]".format(*interval)
        texts.append(f"error rate x {effect.error_ratio:.2f}{ends}")
    return "; ".join(texts)


def _describe_n(finding: ClauseFinding, n: int) -> str:
    return f"n = {pluralize(n, 'seed' if finding.reference == CHANCE else 'pair')}"


def _describe_difference(
    finding: ClauseFinding, difference: float, interval95: Interval, reference_mean: float | None
) -> str:
    digits = 0 if finding.unit == "iterations" else 2
    interval = "" if interval95 is None else " [{:+,.{d}f}, {:+,.{d}f}]".format(*interval95, d=digits)
    versus = f" over chance, {reference_mean:g}%" if finding.reference == CHANCE else ""
    return f"{difference:+,.{digits}f}{interval} {finding.unit}{versus}"


def _describe_levels(finding: ClauseFinding) -> str:
    shares = [level.remaining for level in finding.levels if math.isfinite(level.remaining)]
    if finding.at == "best":
        return "each seed at its best level"
    if len(finding.levels) == 1:
        return f"at {format_percent(shares[0])}% of the weights" if shares else ""
    span = f" from {format_percent(max(shares))}% to {format_percent(min(shares))}% of the weights" if shares else ""
    return f"mean over {len(finding.levels)} levels{span}"


def _count_levels(levels: Sequence[LevelFinding], where: str) -> str:
    if len(levels) == 1:
        return _answer(levels[0])
    outcomes = Counter(level.outcome for level in levels)
    shares = [level.remaining for level in levels if math.isfinite(level.remaining)]
    span = f" from {format_percent(max(shares))}% to {format_percent(min(shares))}% of the weights" if shares else ""
    correction = ", after Holm's correction" if where == "some" else ""
    parts = [f"at {outcomes['holds']} of {len(levels)} levels{span}{correction}"]
    if outcomes["opposite"]:
        parts.append(f"the opposite at {outcomes['opposite']}")
    if outcomes["untested"]:
        parts.append(f"{outcomes['untested']} untested")
    return ", ".join(parts)


def _describe_level(finding: ClauseFinding) -> str:
    """The numbers of the level that decides."""
    if finding.deciding is None:
        return ""
    level = finding.levels[finding.deciding]
    if level.difference is None:
        return ""
    place = f"at {format_percent(level.remaining)}%" if math.isfinite(level.remaining) else "there"
    if len(finding.levels) > 1:
        rank = "weakest" if finding.where == "every" else "clearest"
        place = f"{'the opposite clearest' if level.outcome == 'opposite' else rank} {place}"
    p_claimed, p_opposite = (
        (level.p, level.p_opposite_holm) if finding.where == "every" else (level.p_holm, level.p_opposite)
    )
    p_value = p_opposite if level.outcome == "opposite" else p_claimed
    n = _describe_n(finding, level.n)
    difference = _describe_difference(finding, level.difference, level.interval95, level.reference_mean)
    return f"{place}: {difference}, {n}" + ("" if p_value is None else f", {format_p(p_value)}")


def _describe_censoring(finding: ClauseFinding) -> str:
    counts = [f"in {count} of {pluralize(runs, 'run')} of {label}" for label, count, runs in finding.censored if count]
    if not counts:
        return ""
    return (
        f"censored: {' and '.join(counts)} the loss was lowest at the last iteration, so their true iteration is later"
    )


def _describe_shortfall(finding: ClauseFinding) -> list[str]:
    """Why there is no better verdict."""
    if finding.verdict == "supported":
        return [f"missing: {text}" for text in finding.missing]
    sentences = [finding.note] if finding.note else []
    notes = [finding.effect.note] if finding.where == "mean" and finding.effect else []
    if finding.where != "mean":
        notes = [level.note for level in finding.levels if level.outcome != "holds"]
    if finding.verdict in ("not enough data", "not supported"):
        sentences += [note for note in dict.fromkeys(notes) if note]
    if finding.seeds_needed is not None:
        what = f"{finding.detect:g} {finding.unit}" if finding.detect else "the difference found"
        sentences.append(f"to see {what} takes {finding.seeds_needed:,} seeds (power 80%)")
    return sentences + [f"missing: {text}" for text in finding.missing]


_TESTS = {"paired t": "paired t, over the seeds that both sides have", "one-sample t": "one-sample t, against chance"}


def _quote_relation(relation: str) -> str:
    return f"“{relation.replace('_', ' ')}”"


_TEST_SIDES = {
    ("above", "below"): "two-sided",
    ("at_least", "at_most"): "one-sided against the margin",
    ("matches",): "by two one-sided tests (TOST) that the difference lies within the margin",
}


def describe_tests(findings: Sequence[ClaimFinding]) -> list[str]:
    """Sentences on the tests behind these claims, and on the limit of exact tests; none if nothing was tested."""
    tested = [
        (clause, clause.effect)
        for claim in findings
        for clause in claim.clauses
        if clause.effect is not None and clause.effect.outcome != "untested"
    ]
    if not tested:
        return []
    used = Counter(effect.test for _, effect in tested)
    tests = "; ".join(f"{description} ({used[test]:,})" for test, description in _TESTS.items() if used[test])
    relations = {clause.relation for clause, _ in tested}
    sides = [
        f"{' and '.join(_quote_relation(name) for name in names if name in relations)} {side}"
        for names, side in _TEST_SIDES.items()
        if relations.intersection(names)
    ]
    seeds = sorted({effect.n for _, effect in tested})
    sentences = [
        f"n = {format_range(seeds)} seeds. The tested value of a seed is the mean over levels of its difference at "
        f"equal levels; one test per clause, with the number of clauses: {tests}. Relations are tested "
        f"{', '.join(sides)}. No correction is made over clauses or claims. Levels by themselves are a description: p "
        "is of a level alone; p, Holm is corrected over the levels of its clause."
    ]
    pairs = [effect.n for _, effect in tested if effect.p_sign_flip is not None]
    if pairs:
        too_few = max((n for n in pairs if exact_test_limit(n)), default=0)
        flips = "p, flips: the exact sign-flip test of no difference, two-sided, not corrected."
        sentences.append(f"{flips} {exact_test_limit(too_few)}".strip())
    return sentences
