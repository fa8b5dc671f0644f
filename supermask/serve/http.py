"""What a request has to be before anything looks at it, and what every answer says: a page for this machine alone.

A page of another site can make a browser ask 127.0.0.1: it is told nothing (its Host is refused under DNS rebinding,
and no answer may be read, embedded or framed by it).

The page's own files: templates, scripts and styles, the report's and Plotly's. Read once, kept in memory.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from supermask.reporting.html.page import SCRIPTS, STYLE, plotly_script, read_asset

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = re.compile(rb"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""Any port: a tunnel may end at another one."""

METHODS = ("GET", "HEAD")

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data: blob:",
        # Plotly makes style elements.
        "style-src 'self' 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer, refusals included."""

NO_STORE = "no-store"
"""Cache-Control of an answer that says nothing else."""


class LocalhostMiddleware:
    """Around an application: refuses other hosts (421) and methods (405), and adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _add_headers(message.get("headers", []))
            await send(message)

        if not _is_localhost([value for name, value in scope["headers"] if name == b"host"]):
            await _refuse(guarded, 421, "This page is at 127.0.0.1 or localhost, and under no other name.\n")
        elif scope["method"] not in METHODS:
            allow = (b"allow", ", ".join(METHODS).encode())
            await _refuse(guarded, 405, "This page can be read, and nothing else.\n", allow)
        else:
            await self._app(scope, receive, guarded)


def _is_localhost(hosts: list[bytes]) -> bool:
    return len(hosts) == 1 and HOST.fullmatch(hosts[0]) is not None


def _add_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.decode().lower() not in HEADERS]
    ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    if not any(name.lower() == b"cache-control" for name, _ in kept):
        ours.append((b"cache-control", NO_STORE.encode()))
    return kept + ours


async def _refuse(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(text)).encode())
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind, length, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})


MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}


@dataclass(frozen=True)
class StaticFile:
    """A file that is served as it is."""

    content: bytes
    media_type: str

    @property
    def version(self) -> str:
        """Changes with its content: a browser keeps a file for as long as it is this one."""
        return hashlib.sha256(self.content).hexdigest()[:12]


class StaticAssets:
    """Everything that is served without looking at the store."""

    def __init__(self) -> None:
        folder = resources.files("supermask.serve").joinpath("static")
        found = {file.name: file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in MEDIA_TYPES}
        found["plotly.min.js"] = plotly_script().encode()
        found |= {name: read_asset(name).encode() for name in (*SCRIPTS, STYLE)}
        self.static = {name: StaticFile(content, MEDIA_TYPES[Path(name).suffix]) for name, content in found.items()}
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
