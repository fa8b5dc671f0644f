"""HTTP layer of the dashboard: middleware that protects a server on localhost, and its templates and static files.

Any web site can make a browser send requests to 127.0.0.1. Under DNS rebinding its Host header is foreign and refused;
otherwise the response headers forbid the site to read, embed or frame the answer.
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
"""Allowed Host headers. Any port is allowed, because an SSH tunnel may end at another one."""

METHODS = ("GET", "HEAD")

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data: blob:",
        # Plotly creates style elements.
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
"""Headers of every response, errors included."""

NO_STORE = "no-store"
"""Cache-Control of responses that set none."""


class LocalhostMiddleware:
    """ASGI middleware: refuses foreign hosts (421) and methods that write (405), adds `HEADERS` to every response.

    Starlette's TrustedHostMiddleware accepts several Host headers and no IPv6 address, so the check is done here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = _add_headers(message.get("headers", []))
            await send(message)

        if not _is_localhost([value for name, value in scope["headers"] if name == b"host"]):
            await _refuse(send_with_headers, 421, "This page is served at 127.0.0.1 or localhost only.\n")
        elif scope["method"] not in METHODS:
            allow = (b"allow", ", ".join(METHODS).encode())
            await _refuse(send_with_headers, 405, "This page is read-only: use GET or HEAD.\n", allow)
        else:
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception:
                # A failure of the error page itself; uvicorn's answer to it has no headers.
                if not started:
                    await _refuse(send_with_headers, 500, "The server failed; the traceback is in its terminal.\n")
                raise


def _is_localhost(hosts: list[bytes]) -> bool:
    return len(hosts) == 1 and HOST.fullmatch(hosts[0]) is not None


def _add_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    # Replaced rather than appended: a browser joins duplicates of these headers in different ways.
    kept = [(name, value) for name, value in headers if name.decode().lower() not in HEADERS]
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    if not any(name.lower() == b"cache-control" for name, _ in kept):
        added.append((b"cache-control", NO_STORE.encode()))
    return kept + added


async def _refuse(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    content_length = (b"content-length", str(len(text)).encode())
    content_type = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [content_type, content_length, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})


MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}


@dataclass(frozen=True)
class StaticFile:
    """A file that is served unchanged."""

    content: bytes
    media_type: str

    @property
    def version(self) -> str:
        """Hash of the content. It is part of the address, so browsers fetch a changed file again."""
        return hashlib.sha256(self.content).hexdigest()[:12]


class StaticAssets:
    """Scripts, style sheets and templates, read once and kept in memory.

    They come from three packages (this one, the static report, plotly), which Starlette's StaticFiles would serve with
    everything else in their folders.
    """

    def __init__(self) -> None:
        folder = resources.files("supermask.serve").joinpath("static")
        files = {file.name: file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in MEDIA_TYPES}
        files["plotly.min.js"] = plotly_script().encode()
        files |= {name: read_asset(name).encode() for name in (*SCRIPTS, STYLE)}
        self.static = {name: StaticFile(content, MEDIA_TYPES[Path(name).suffix]) for name, content in files.items()}
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
        """Render a template as HTML; every value is escaped."""
        return self._templates.get_template(template).render(**values)
