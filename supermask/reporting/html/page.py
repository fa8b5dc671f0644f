"""HTML page of a report: one file that opens from disk and makes no request.

Style, scripts and Plotly are read from the installed packages, never from a network.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supermask import __version__
from supermask.core.errors import SystemFailure
from supermask.reporting.html import filters
from supermask.reporting.html.content import VERDICTS, Report, plot_data, table_data
from supermask.reporting.html.paper import CITATIONS, PAPER_DEVIATIONS

if TYPE_CHECKING:
    from jinja2 import Environment

SCRIPTS = ("plots.js", "tables.js", "page.js")
"""Scripts in their order. They read the data blocks of the page; docs/report.md documents their functions."""

STYLE = "report.css"


@lru_cache
def read_asset(name: str) -> str:
    """Return the text of a script or style sheet of this package."""
    return resources.files("supermask").joinpath("reporting", "html", "templates", name).read_text(encoding="utf-8")


@lru_cache
def plotly_script() -> str:
    """Return Plotly's script from the installed package `plotly`. Raises SystemFailure if it is missing."""
    # Found without importing plotly, which takes longer than building a report.
    spec = find_spec("plotly")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    path = next((p for f in folders if (p := f / "package_data" / "plotly.min.js").is_file()), None)
    if path is None:
        raise SystemFailure(
            "the package plotly is incomplete: plotly.min.js is missing; run pip install --force-reinstall plotly."
        )
    return path.read_text(encoding="utf-8")


def escape_inline_script(script: str) -> str:
    """Escape a script for a `script` element, so that nothing in it ends the element.

    `</script` and `<!--` occur in scripts only in strings and regular expressions, where a backslash has no effect.
    """
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


Escaped = str
"""HTML in which all text is escaped."""


def render_report(
    report: Report, extra_head: Escaped = "", extra_script: str = "", assets: str | None = None
) -> Escaped:
    """Render the whole page.

    If `assets` is None, the page contains style, scripts, Plotly and the data of figures and tables; its content
    security policy allows exactly these scripts, by hash, and no request. Otherwise `assets` is the base address of
    `report.css`, `plotly.min.js` and `report.js`, the data is omitted (the server sets `supermask.source`), and the
    server sets the policy. `extra_head` is trusted HTML; `extra_script` runs last.
    """
    scripts = (
        [escape_inline_script(script) for script in (plotly_script(), page_script(), extra_script) if script]
        if assets is None
        else []
    )
    return (
        _templates()
        .get_template("page.html")
        .render(
            report=report,
            sections=sections(report),
            contents=table_of_contents(report),
            extra_head=extra_head,
            extra_script=extra_script,
            assets=assets,
            scripts=scripts,
            policy=_policy(scripts),
            style=read_asset(STYLE),
            data=data_blocks(report) if assets is None else "",
            version=__version__,
        )
    )


def page_script() -> str:
    """Return the scripts of the page as one."""
    return "\n".join(read_asset(name) for name in SCRIPTS)


def sections(report: Report) -> dict[str, Escaped]:
    """Return section id -> `section` element in the order of the page: `summary`, `claims`, study ids, `provenance`.

    On a demonstration the claims come after the studies.

    The elements contain no data: figures and tables are filled from `plot_data` and `table_data`.
    """
    common = {"report": report, "verdicts": VERDICTS}
    claims = {"claims": _render("claims.html", **common)}
    figures = {part.id: _render("study.html", part=part, **common) for part in report.studies}
    # A demonstration gives no verdict, so its figures come first.
    rendered = {"summary": _render("summary.html", **common)}
    rendered |= figures | claims if report.is_demonstration else claims | figures
    rendered["provenance"] = _render(
        "provenance.html", deviations=PAPER_DEVIATIONS, citations=CITATIONS, version=__version__, **common
    )
    return rendered


def table_of_contents(report: Report) -> Escaped:
    """Return the table of contents as a `nav` element."""
    return _render("contents.html", report=report)


def data_blocks(report: Report) -> Escaped:
    """Return the data of every figure, table and study as JSON `script` elements that no text in them can end."""
    blocks = {**plot_data(report), **table_data(report)} | {f"{part.id}-file": part.file for part in report.studies}
    return "\n".join(
        f'<script type="application/json" id="data-{name}">{json_for_html(value)}</script>'
        for name, value in blocks.items()
    )


def json_for_html(value: Any) -> str:
    """Return ASCII JSON without `<`, so that it cannot contain `</script>` or `<!--`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _policy(scripts: list[str]) -> str:
    hashes = (b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _render(template: str, **values: Any) -> Escaped:
    return _templates().get_template(template).render(**values)


@lru_cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("supermask", "reporting/html/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters.FILTERS
    return environment
