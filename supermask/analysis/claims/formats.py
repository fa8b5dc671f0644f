"""Claim findings as text for a terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from supermask.analysis.claims.findings import ClaimFinding, ClauseFinding, LevelFinding, Verdict
from supermask.core.text import Row, pluralize
from supermask.datasets.specs import data_notices, demo_notice
from supermask.store.tables import to_csv

MARKS: dict[Verdict, str] = {"supported": "+", "not supported": "-", "contradicted": "x", "not enough data": "?"}
WIDTH = 110
"""Characters per line of text."""


def format_text(findings: Sequence[ClaimFinding]) -> str:
    """One paragraph per claim: statement, verdict, result."""
    lines: list[str] = []
    for claim in findings:
        number = f"{claim.number}." if claim.number is not None else f"{claim.id}:"
        verdict = claim.verdict.upper() if claim.verdict == "contradicted" else claim.verdict
        lines += textwrap.wrap(f"{MARKS[claim.verdict]} {number} {claim.statement}", WIDTH, subsequent_indent="  ")
        study = f" ({claim.study})" if claim.study else ""
        result = f"{verdict}{study}. {claim.sentence}"
        lines += [*textwrap.wrap(result, WIDTH, initial_indent="  ", subsequent_indent="  "), ""]
    return "\n".join([*lines, count_line(findings)]) + "\n"


def claim_notices(findings: Sequence[ClaimFinding]) -> list[str]:
    """Sentences to show before the verdicts: demonstration data, and notes on the data."""
    notes = dict.fromkeys(note for claim in findings for note in claim.data_notes)
    return [text for text in (demo_notice(claim.dataset for claim in findings), *data_notices(notes)) if text]


def count_line(findings: Sequence[ClaimFinding]) -> str:
    """`15 claims: 9 supported, 5 not supported, 0 contradicted, 1 not enough data.`"""
    counts = Counter(claim.verdict for claim in findings)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS)
    return f"{pluralize(len(findings), 'claim')}: {parts}."


def format_markdown(findings: Sequence[ClaimFinding]) -> str:
    """A table with one row per claim, then a section per claim with its clauses."""
    lines = ["| | claim | verdict | what it comes down to |", "|---|---|---|---|"]
    for claim in findings:
        cells = (
            _escape_markdown(_name(claim)),
            _escape_markdown(claim.statement),
            f"**{claim.verdict}**",
            _escape_markdown(claim.sentence),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", count_line(findings)]
    for claim in findings:
        lines += ["", f"### {_escape_markdown(_name(claim))}. {_escape_markdown(claim.statement)}", ""]
        lines.append(
            f"**{claim.verdict}** ({_escape_markdown(claim.source)})"
            + (f"; study `{claim.study}`." if claim.study else ".")
        )
        lines += ["", *(f"- {clause.verdict}: {_escape_markdown(clause.sentence)}" for clause in claim.clauses)]
        if not claim.clauses:
            lines.append(_escape_markdown(claim.sentence))
    return "\n".join(lines) + "\n"


def _name(claim: ClaimFinding) -> str:
    return claim.id if claim.number is None else str(claim.number)


def _escape_markdown(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_|<>&\[\]])", r"\\\1", text)


def format_json(findings: Sequence[ClaimFinding]) -> str:
    """All fields of the findings, as a JSON list."""
    return json.dumps([asdict(claim) for claim in findings], indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def format_csv(findings: Sequence[ClaimFinding]) -> str:
    """One row per claim, clause and level; a claim without a tested level has one row."""
    rows = list(_rows(findings))
    columns = dict.fromkeys(column for row in rows for column in row)
    return to_csv(rows, list(columns))


def _rows(findings: Sequence[ClaimFinding]) -> Iterator[Row]:
    for claim in findings:
        claim_columns: Row = {"claim": claim.number, "id": claim.id, "study": claim.study, "dataset": claim.dataset}
        claim_columns["verdict"] = claim.verdict
        for clause in claim.clauses:
            for level in clause.levels:
                yield claim_columns | _clause_row(clause) | _level_row(level)
        if not any(clause.levels for clause in claim.clauses):
            yield claim_columns


def _clause_row(clause: ClauseFinding) -> Row:
    return {
        "treatment": clause.treatment,
        "relation": clause.relation,
        "reference": clause.reference,
        "margin": clause.margin,
        "clause_verdict": clause.verdict,
    }


def _level_row(level: LevelFinding) -> Row:
    low, high = level.interval95 or (None, None)
    g_low, g_high = level.hedges_g_interval95 or (None, None)
    columns = (
        "test",
        "mean",
        "reference_mean",
        "difference",
        "p",
        "p_holm",
        "p_opposite_holm",
        "p_sign_flip",
        "outcome",
        "note",
    )
    return {
        "level": level.level,
        "weights_remaining_percent": level.remaining,
        "n": level.n,
        "n_reference": level.n_reference,
        **{name: getattr(level, name) for name in columns},
        "difference_low95": low,
        "difference_high95": high,
        "hedges_g": level.hedges_g,
        "hedges_g_low95": g_low,
        "hedges_g_high95": g_high,
    }
