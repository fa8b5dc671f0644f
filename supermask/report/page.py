"""A report as HTML: one file that opens from disk and asks nobody for anything."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from supermask import __version__
from supermask.report import words
from supermask.report.assets import SCRIPTS, STYLE, inlined, own, plotly_script
from supermask.report.citation import CITATIONS
from supermask.report.content import VERDICTS, Report, plots_of, tables_of
from supermask.report.differences import DIFFERENCES

if TYPE_CHECKING:
    from jinja2 import Environment

Escaped = str
"""HTML."""


def page(report: Report, extra_head: Escaped = "", extra_script: str = "", assets: str | None = None) -> Escaped:
    """The whole page.

    With `assets` None everything is in it: style, scripts, Plotly's too, and the data of figures and tables. A content
    security policy then allows exactly these scripts, by their hashes, and no request whatever. Otherwise `assets` is
    the address that `report.css`, `plotly.min.js` and `report.js` are had from, the data is left out (whoever serves
    it sets `supermask.source`), and the policy is the server's. `extra_head` is trusted HTML; `extra_script` runs last.
    """
    scripts = (
        [inlined(script) for script in (plotly_script(), own_script(), extra_script) if script]
        if assets is None
        else []
    )
    return (
        _templates()
        .get_template("page.html")
        .render(
            report=report,
            sections=sections(report),
            contents=contents(report),
            extra_head=extra_head,
            extra_script=extra_script,
            assets=assets,
            scripts=scripts,
            policy=_policy(scripts),
            style=own(STYLE),
            data=data_blocks(report) if assets is None else "",
            version=__version__,
        )
    )


def own_script() -> str:
    """The page's scripts as one."""
    return "\n".join(own(name) for name in SCRIPTS)


def sections(report: Report) -> dict[str, Escaped]:
    """Section id -> its `section` element, in the order of the page: `summary`, `claims`, each study's id, `making`.

    They hold no data: figures and tables are filled from `plots_of` and `tables_of`.
    """
    common = {"report": report, "verdicts": VERDICTS}
    found = {name: _render(f"{name}.html", **common) for name in ("summary", "claims")}
    found |= {part.id: _render("study.html", part=part, **common) for part in report.studies}
    found["making"] = _render(
        "making.html", differences=DIFFERENCES, citations=CITATIONS, version=__version__, **common
    )
    return found


def contents(report: Report) -> Escaped:
    """The table of contents, a `nav` element."""
    return _render("contents.html", report=report)


def data_blocks(report: Report) -> Escaped:
    """The data of every figure, table and study, each in a block of JSON that no text in it can break out of."""
    blocks = {**plots_of(report), **tables_of(report)} | {f"{part.id}-file": part.file for part in report.studies}
    return "\n".join(
        f'<script type="application/json" id="data-{name}">{json_for_html(value)}</script>'
        for name, value in blocks.items()
    )


def json_for_html(value: Any) -> str:
    """JSON in ASCII, without `<`: neither `</script>` nor `<!--` can be in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _policy(scripts: list[str]) -> str:
    hashes = (b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _render(template: str, **values: Any) -> Escaped:
    return _templates().get_template(template).render(**values)


@lru_cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("supermask", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= words.FILTERS
    return found
