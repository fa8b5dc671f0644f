"""The page's own files, and Plotly's script: read from where they are installed, never from a network."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from supermask.errors import MachineError

SCRIPTS = ("plots.js", "tables.js", "page.js")
"""In this order. They define the functions that docs/report.md names, and read the data blocks of the page."""

STYLE = "report.css"


@lru_cache
def own(name: str) -> str:
    """A script or style sheet of this package."""
    return resources.files("supermask").joinpath("report", "templates", name).read_text(encoding="utf-8")


@lru_cache
def plotly_script() -> str:
    """Plotly's script, from the installed package `plotly`, of which nothing is imported. Raises MachineError."""
    spec = find_spec("plotly")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    path = next((p for f in folders if (p := f / "package_data" / "plotly.min.js").is_file()), None)
    if path is None:
        raise MachineError(
            "the package plotly is not whole: its plotly.min.js is missing; pip install --force-reinstall plotly."
        )
    return path.read_text(encoding="utf-8")


def inlined(script: str) -> str:
    """A script as the content of a `script` element: what would end it, or hide its end, is written as an escape.

    Both occur in scripts only inside strings and regular expressions, where a backslash changes nothing.
    """
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
