"""The verdicts in docs/findings.md: those of the published tables. `python -m helpers.findings` writes them."""

from __future__ import annotations

from pathlib import Path

from supermask.analysis.claims.formats import format_markdown
from supermask.api.reports import claims

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "findings.md"
BEGIN, END = "<!-- claims: begin -->\n", "<!-- claims: end -->\n"


def verdicts() -> str:
    """Return what `supermask claims --rows results/*.parquet --format markdown` prints."""
    findings, _ = claims([], rows=sorted((ROOT / "results").glob("*.parquet")))
    return format_markdown(findings)


def page() -> str:
    """Return the page with the verdicts of the published tables."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{verdicts()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
