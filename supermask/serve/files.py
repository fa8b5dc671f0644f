"""The page's own files: templates, scripts and styles, the report's and Plotly's. Read once, kept in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from supermask.report.assets import SCRIPTS, STYLE, own, plotly_script

KINDS = {".js": "text/javascript", ".css": "text/css"}


@dataclass(frozen=True)
class File:
    """A file that is served as it is."""

    content: bytes
    media_type: str

    @property
    def version(self) -> str:
        """Changes with its content: a browser keeps a file for as long as it is this one."""
        return hashlib.sha256(self.content).hexdigest()[:12]


class Files:
    """Everything that is served without looking at the store."""

    def __init__(self) -> None:
        folder = resources.files("supermask.serve").joinpath("static")
        found = {file.name: file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in KINDS}
        found["plotly.min.js"] = plotly_script().encode()
        found |= {name: own(name).encode() for name in (*SCRIPTS, STYLE)}
        self.static = {name: File(content, KINDS[Path(name).suffix]) for name, content in found.items()}
        self._templates = Environment(
            loader=PackageLoader("supermask.serve"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        versions = {name: file.version for name, file in self.static.items()}
        self._templates.globals["static"] = lambda name: f"/static/{name}?v={versions[name]}"

    def page(self, template: str, **values: Any) -> str:
        """A page as HTML; every value is escaped."""
        return self._templates.get_template(template).render(**values)
