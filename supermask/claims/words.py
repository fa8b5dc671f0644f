"""What findings come down to, in one line of plain text."""

from __future__ import annotations

import math
from collections import Counter

from supermask.claims.findings import ClauseFinding, LevelFinding, Verdict
from supermask.study.claim import CHANCE, Clause

_RELATIONS = {
    "above": "is above",
    "below": "is below",
    "at_least": "is at least as good as",
    "at_most": "is at most as good as",
    "matches": "matches",
}


def clause_sentence(finding: ClauseFinding, clause: Clause, detect: float) -> str:
    """What is claimed, at how many levels it holds, and the numbers of the level that decides it."""
    claimed = f"{clause.treatment} {_RELATIONS[clause.relation]} {clause.reference}{_margin(clause)}"
    levels = finding.levels
    if not levels:
        where = (
            f" between {clause.remaining[0]:g}% and {clause.remaining[1]:g}% of the weights" if clause.remaining else ""
        )
        return f"{claimed}: no level{where} to compare at."
    telling = _telling(finding, clause)
    parts = [f"{claimed}: {_count(finding, clause)}", _numbers(telling, clause)]
    if finding.verdict != "supported":
        parts += _why_not(finding, clause, detect)
    parts += [f"missing: {text}" for text in finding.missing]
    return "; ".join(part for part in parts if part) + "."


def claim_sentence(verdict: Verdict, clauses: tuple[ClauseFinding, ...]) -> str:
    """The clause's, where there is one; else how many hold, and the first that decides the verdict."""
    if len(clauses) == 1:
        return clauses[0].sentence
    counts = Counter(clause.verdict for clause in clauses)
    if verdict == "supported":
        weakest = max(clauses, key=_weakness)
        return f"All {len(clauses)} parts are supported. The weakest: {weakest.sentence}"
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    deciding = next(clause for clause in clauses if clause.verdict == verdict)
    return f"Of {len(clauses)} parts: {told}. {deciding.sentence}"


def _weakness(clause: ClauseFinding) -> float:
    held = [level.p_holm for level in clause.levels if level.outcome == "holds" and level.p_holm is not None]
    return min(held) if held else 0.0


def _margin(clause: Clause) -> str:
    if not clause.margin:
        return ""
    by = "by more than " if clause.relation in ("above", "below") else "within "
    return f" ({by}{clause.margin:g} points)"


def _count(finding: ClauseFinding, clause: Clause) -> str:
    levels, outcomes = finding.levels, Counter(level.outcome for level in finding.levels)
    if len(levels) == 1:
        words = {
            "holds": "it is",
            "opposite": "the opposite is",
            "undecided": "it is not significant",
            "untested": "untested",
        }
        return words[levels[0].outcome]
    shares = [level.remaining for level in levels if math.isfinite(level.remaining)]
    span = f" from {percent(max(shares))}% to {percent(min(shares))}% of the weights" if shares else ""
    said = [f"at {outcomes['holds']} of {len(levels)} levels{span}"]
    if outcomes["opposite"]:
        said.append(f"the opposite at {outcomes['opposite']}")
    if outcomes["untested"]:
        said.append(f"{outcomes['untested']} untested")
    return ", ".join(said)


def _telling(finding: ClauseFinding, clause: Clause) -> LevelFinding:
    """The level that the verdict hangs on: the weakest where all have to hold, the clearest where one has to."""
    tested = [level for level in finding.levels if level.p_holm is not None] or list(finding.levels)
    against = [level for level in tested if level.outcome == "opposite"]
    if against:
        return max(against, key=lambda level: abs(level.difference or 0.0))
    keyed = [(1.0 if level.p is None else level.p, level.level) for level in tested]
    chosen = min(keyed) if clause.where == "some" else max(keyed)
    return tested[keyed.index(chosen)]


def _numbers(level: LevelFinding, clause: Clause) -> str:
    if level.difference is None:
        return ""
    where = f" at {percent(level.remaining)}%" if math.isfinite(level.remaining) else ""
    low, high = level.interval95 or (math.nan, math.nan)
    interval = f" [{low:+.2f}, {high:+.2f}]" if level.interval95 else ""
    n = f"n = {level.n} {'pairs' if level.test == 'paired t' else 'seeds'}"
    p = "" if level.p_holm is None else f", {p_text(level.p_holm)}"
    versus = f" over chance ({level.reference_mean:g}%)" if clause.reference == CHANCE else ""
    return f"{level.difference:+.2f}{interval} points{versus}{where}, {n}{p}"


def _why_not(finding: ClauseFinding, clause: Clause, detect: float) -> list[str]:
    few = [level.note for level in finding.levels if level.outcome == "untested" and level.note]
    said = list(dict.fromkeys(few))
    if finding.verdict == "not supported" and finding.seeds_needed is not None:
        said.append(f"{clause.margin or detect:g} points would be seen with {finding.seeds_needed:,} seeds (power 80%)")
    return said


def percent(value: float) -> str:
    """Three digits, two below ten."""
    return f"{value:.2g}" if value < 10 else f"{value:.3g}"


def p_text(p: float) -> str:
    """`p = 0.021`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
