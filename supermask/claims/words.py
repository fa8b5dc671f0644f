"""What findings come down to, in one line of plain text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from supermask.stats import SIGNIFICANCE, exact_remark
from supermask.study.claim import CHANCE, Clause

_RELATIONS = {
    "above": "is above",
    "below": "is below",
    "at_least": "is at least as good as",
    "at_most": "is at most as good as",
    "matches": "matches",
}

_ALONE = {"holds": "yes", "opposite": "no, the opposite", "undecided": "not significant", "untested": "untested"}
"""Outcome -> what is said of the only level."""


def clause_sentence(finding: ClauseFinding, clause: Clause, telling: int | None, detect: float) -> str:
    """What is claimed, at how many levels it holds, and the numbers of the level that decides it (`telling`)."""
    claimed = f"{clause.treatment} {_RELATIONS[clause.relation]} {clause.reference}{_margin(clause)}"
    if telling is None:
        within = clause.remaining
        where = f" between {within[0]:g}% and {within[1]:g}% of the weights" if within else ""
        return f"{claimed}: no level{where} to compare at."
    parts = [f"{claimed}: {_count(finding.levels)}", _numbers(finding.levels, clause, telling)]
    if finding.verdict != "supported":
        parts += _why_not(finding, clause, detect)
    parts += [f"missing: {text}" for text in finding.missing]
    return "; ".join(part for part in parts if part) + "."


def claim_sentence(verdict: Verdict, clauses: Sequence[ClauseFinding]) -> str:
    """The clause's, where there is one; else how many hold, and the one that the verdict hangs on."""
    if len(clauses) == 1:
        return clauses[0].sentence
    if verdict == "supported":
        return f"All {len(clauses)} parts are supported. The weakest: {max(clauses, key=_weakness).sentence}"
    told = ", ".join(f"{count} {word}" for word, count in Counter(clause.verdict for clause in clauses).items())
    deciding = next(clause for clause in clauses if clause.verdict == verdict)
    return f"Of {len(clauses)} parts: {told}. {deciding.sentence}"


def _weakness(clause: ClauseFinding) -> float:
    """p of the level that a supported clause hangs on."""
    held = [level.p_holm for level in clause.levels if level.outcome == "holds" and level.p_holm is not None]
    return (min if clause.where == "some" else max)(held, default=0.0)


def _margin(clause: Clause) -> str:
    if not clause.margin:
        return ""
    by = "by more than" if clause.relation in ("above", "below") else "within"
    return f" ({by} {clause.margin:g} points)"


def _count(levels: Sequence[LevelFinding]) -> str:
    if len(levels) == 1:
        return _ALONE[levels[0].outcome]
    outcomes = Counter(level.outcome for level in levels)
    shares = [level.remaining for level in levels if math.isfinite(level.remaining)]
    span = f" from {percent(max(shares))}% to {percent(min(shares))}% of the weights" if shares else ""
    said = [f"at {outcomes['holds']} of {len(levels)} levels{span}"]
    if outcomes["opposite"]:
        said.append(f"the opposite at {outcomes['opposite']}")
    if outcomes["untested"]:
        said.append(f"{outcomes['untested']} untested")
    return ", ".join(said)


def _numbers(levels: Sequence[LevelFinding], clause: Clause, telling: int) -> str:
    level = levels[telling]
    if level.difference is None:
        return ""
    place = f"at {percent(level.remaining)}%" if math.isfinite(level.remaining) else "there"
    if len(levels) > 1:
        word = "weakest" if clause.where == "every" else "clearest"
        place = f"{'the opposite clearest' if level.outcome == 'opposite' else word} {place}"
    interval = "" if level.interval95 is None else " [{:+.2f}, {:+.2f}]".format(*level.interval95)
    both = f"{level.n} and {level.n_reference}" if level.test == "Welch t" else f"{level.n}"
    n = f"n = {both} {'pairs' if level.test == 'paired t' else 'seeds'}"
    p = "" if level.p_holm is None else f", {p_text(level.p_holm)}"
    versus = f" over chance, {level.reference_mean:g}%" if clause.reference == CHANCE else ""
    return f"{place}: {level.difference:+.2f}{interval} points{versus}, {n}{p}"


def _why_not(finding: ClauseFinding, clause: Clause, detect: float) -> list[str]:
    said = list(dict.fromkeys(level.note for level in finding.levels if level.outcome == "untested" and level.note))
    mixed = any(level.outcome == "opposite" for level in finding.levels)
    if finding.verdict == "not supported" and not mixed and finding.seeds_needed is not None:
        said.append(f"{finding.seeds_needed:,} seeds would show {clause.margin or detect:g} points with a power of 80%")
    return said


def percent(value: float) -> str:
    """Three digits, two below ten."""
    return f"{value:.2g}" if value < 10 else f"{value:.3g}"


def p_text(p: float) -> str:
from supermask.stats import SIGNIFICANCE, exact_remark
