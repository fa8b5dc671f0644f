"""A report as HTML: one file that opens from disk and asks nobody for anything.

The page's own files, and Plotly's script: read from where they are installed, never from a network.
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
"""In this order. They define the functions that docs/report.md names, and read the data blocks of the page."""

STYLE = "report.css"


@lru_cache
def read_asset(name: str) -> str:
    """A script or style sheet of this package."""
    return resources.files("supermask").joinpath("reporting", "html", "templates", name).read_text(encoding="utf-8")


@lru_cache
def plotly_script() -> str:
    """Plotly's script, from the installed package `plotly`, of which nothing is imported. Raises MachineError."""
    spec = find_spec("plotly")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    path = next((p for f in folders if (p := f / "package_data" / "plotly.min.js").is_file()), None)
    if path is None:
        raise SystemFailure(
            "the package plotly is not whole: its plotly.min.js is missing; pip install --force-reinstall plotly."
        )
    return path.read_text(encoding="utf-8")


def escape_inline_script(script: str) -> str:
    """A script as the content of a `script` element: what would end it, or hide its end, is written as an escape.

    Both occur in scripts only inside strings and regular expressions, where a backslash changes nothing.
    """
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


Escaped = str
"""HTML."""


def render_report(
    report: Report, extra_head: Escaped = "", extra_script: str = "", assets: str | None = None
) -> Escaped:
    """The whole page.

    With `assets` None everything is in it: style, scripts, Plotly's too, and the data of figures and tables. A content
    security policy then allows exactly these scripts, by their hashes, and no request whatever. Otherwise `assets` is
    the address that `report.css`, `plotly.min.js` and `report.js` are had from, the data is left out (whoever serves
    it sets `supermask.source`), and the policy is the server's. `extra_head` is trusted HTML; `extra_script` runs last.
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
    """The page's scripts as one."""
    return "\n".join(read_asset(name) for name in SCRIPTS)


def sections(report: Report) -> dict[str, Escaped]:
    """Section id -> its `section` element, in the order of the page: `summary`, `claims`, each study's id, `making`.

    They hold no data: figures and tables are filled from `plots_of` and `tables_of`.
    """
    common = {"report": report, "verdicts": VERDICTS}
    found = {name: _render(f"{name}.html", **common) for name in ("summary", "claims")}
    found |= {part.id: _render("study.html", part=part, **common) for part in report.studies}
    found["making"] = _render(
        "making.html", differences=PAPER_DEVIATIONS, citations=CITATIONS, version=__version__, **common
    )
    return found


def table_of_contents(report: Report) -> Escaped:
    """The table of contents, a `nav` element."""
    return _render("contents.html", report=report)


def data_blocks(report: Report) -> Escaped:
    """The data of every figure, table and study, each in a block of JSON that no text in it can break out of."""
    blocks = {**plot_data(report), **table_data(report)} | {f"{part.id}-file": part.file for part in report.studies}
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
        loader=PackageLoader("supermask", "reporting/html/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= filters.FILTERS
    return found
