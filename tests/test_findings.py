"""Claims in docs/findings.md: all fifteen, each with a verdict."""

from __future__ import annotations

from pathlib import Path

from supermask.analysis.claims import ClaimFinding, ClauseFinding
from supermask.analysis.claims.formats import format_markdown

ROOT = Path(__file__).parent.parent


def claims_table(document: str) -> list[list[str]]:
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    first = lines.index("| | claim | verdict | what it comes down to |") + 2
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def test_findings_has_a_verdict_for_each_claim() -> None:
    table = claims_table("docs/findings.md")
    assert [row[0] for row in table] == [str(number) for number in range(1, 16)]
    verdicts = {"**supported**", "**not supported**", "**contradicted**", "**not enough data**"}
    assert {row[2] for row in table} <= verdicts
    assert all(len(row) == 4 and all(row) for row in table)


def test_markdown_escapes_what_markdown_would_read() -> None:
    clause = ClauseFinding("a|b", "above", "c", 0.0, "supported", "a|b <script> is *above* [c](x).", ())
    claim = ClaimFinding("own", None, "It_is | so.", "s", "the `file`", "", "supported", clause.sentence, (clause,))
    text = format_markdown([claim])
    assert text.splitlines()[2] == (r"| own | It\_is \| so. | **supported** | a\|b \<script\> is \*above\* \[c\](x). |")
    assert "1 claim: 1 supported, 0 not supported, 0 contradicted, 0 not enough data." in text
    assert r"- supported: a\|b \<script\> is \*above\* \[c\](x)." in text
