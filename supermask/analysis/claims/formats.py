"""Claim findings as text for a terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from supermask.analysis.claims.findings import ClaimFinding, ClauseFinding, Effect, LevelFinding, Verdict
from supermask.core.text import Row, pluralize
from supermask.datasets.specs import data_notices, demo_notice
from supermask.store.tables import to_csv

MARKS: dict[Verdict, str] = {"supported": "+", "not supported": "-", "contradicted": "x", "not enough data": "?"}
_DEMO_MARK = "*"
WIDTH = 110
"""Characters per line of text."""


def format_text(findings: Sequence[ClaimFinding]) -> str:
    """One paragraph per claim: statement, verdict, result."""
    lines: list[str] = []
    for claim in findings:
        number = f"{claim.name}." if claim.number is not None else f"{claim.id}:"
        verdict = claim.verdict.upper() if claim.verdict == "contradicted" else claim.verdict
        lines += textwrap.wrap(
            f"{MARKS.get(claim.verdict, _DEMO_MARK)} {number} {claim.statement}", WIDTH, subsequent_indent="  "
        )
        # The sentence says what is missing where no run was evaluated.
        study = f" ({', '.join(filter(None, (claim.study, claim.setting)))})" if claim.study else ""
        result = f"{verdict}{study}. {claim.sentence}"
        lines += [*textwrap.wrap(result, WIDTH, initial_indent="  ", subsequent_indent="  "), ""]
    return "\n".join([*lines, count_line(findings)]) + "\n"


def claim_notices(findings: Sequence[ClaimFinding]) -> list[str]:
    """Sentences to show before the verdicts: demonstration data, and notes on the data."""
    notes = dict.fromkeys(note for claim in findings for note in claim.data_notes)
    return [text for text in (demo_notice(claim.dataset for claim in findings), *data_notices(notes)) if text]


def count_line(findings: Sequence[ClaimFinding]) -> str:
    """`15 claims: 9 supported, 5 not supported, 0 contradicted, 1 not enough data.`; parts of a claim count each."""
    counts = Counter(claim.verdict for claim in findings)
    decided = len(findings) - counts["no verdict"]
    demo = f"{pluralize(counts['no verdict'], 'claim')} shown on a demonstration, without a verdict."
    if not decided:
        return demo
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS)
    return f"{pluralize(decided, 'claim')}: {parts}." + (f" {demo}" if counts["no verdict"] else "")


def format_markdown(findings: Sequence[ClaimFinding]) -> str:
    """A table with one row per claim, then a section per claim with its clauses."""
    lines = ["| | claim | runs | verdict | what it comes down to |", "|---|---|---|---|---|"]
    for claim in findings:
        cells = (
            _escape_markdown(claim.name),
            _escape_markdown(claim.statement),
            _escape_markdown(claim.setting or "none"),
            f"**{claim.verdict}**",
            _escape_markdown(claim.sentence),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", count_line(findings)]
    for claim in findings:
        lines += ["", f"### {_escape_markdown(claim.name)}. {_escape_markdown(claim.statement)}", ""]
        lines.append(
            f"**{claim.verdict}** ({_escape_markdown(claim.source)})"
            + (f"; study `{claim.study}`" if claim.study else "")
            + (f", {_escape_markdown(claim.setting)}." if claim.setting else ".")
        )
        lines += ["", *(f"- {clause.verdict}: {_escape_markdown(clause.sentence)}" for clause in claim.clauses)]
        if not claim.clauses:
            lines.append(_escape_markdown(claim.sentence))
    return "\n".join(lines) + "\n"


def _escape_markdown(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_|<>&\[\]])", r"\\\1", text)


def format_json(findings: Sequence[ClaimFinding]) -> str:
    """All fields of the findings, as a JSON list."""
    data = _without_nan([asdict(claim) for claim in findings])
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    """The value with None for NaN: a learned mask that is to do has no density yet."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_csv(findings: Sequence[ClaimFinding]) -> str:
    """Per claim and clause one row for the mean over the band and one per level; else one row per claim."""
    rows = list(_rows(findings))
    columns = dict.fromkeys(column for row in rows for column in row)
    return to_csv(rows, list(columns))


def _rows(findings: Sequence[ClaimFinding]) -> Iterator[Row]:
    for claim in findings:
        claim_columns: Row = {"claim": claim.number, "part": claim.part, "id": claim.id, "study": claim.study}
        claim_columns |= {"dataset": claim.dataset, "setting": claim.setting, "verdict": claim.verdict}
        for clause in claim.clauses:
            if clause.effect is not None:
                yield claim_columns | _clause_row(clause) | _effect_row(clause.effect)
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
        "share": clause.share,
        "control": clause.control,
        "where": clause.where,
        "unit": clause.unit,
        "clause_verdict": clause.verdict,
        "seeds_needed": clause.seeds_needed,
    }


def _effect_row(effect: Effect) -> Row:
    low, high = effect.error_ratio_interval95 or (None, None)
    return _shared_columns("band", effect) | {
        "error_ratio": effect.error_ratio,
        "error_ratio_low95": low,
        "error_ratio_high95": high,
    }


def _shared_columns(endpoint: str, finding: Effect | LevelFinding) -> Row:
    """Columns that the mean over the band and a level have."""
    low, high = finding.interval95 or (None, None)
    g_low, g_high = finding.hedges_g_interval95 or (None, None)
    names = ("test", "mean", "reference_mean", "difference", "p", "p_opposite", "p_sign_flip", "outcome", "note")
    return {
        "endpoint": endpoint,
        "n": finding.n,
        **{name: getattr(finding, name) for name in names},
        "difference_low95": low,
        "difference_high95": high,
        "hedges_g": finding.hedges_g,
        "hedges_g_low95": g_low,
        "hedges_g_high95": g_high,
    }


def _level_row(level: LevelFinding) -> Row:
    return _shared_columns("level", level) | {
        "level": level.level,
        "weights_remaining_percent": level.remaining,
        "p_holm": level.p_holm,
        "p_opposite_holm": level.p_opposite_holm,
    }
