"""What a request has to be before anything looks at it, and what every answer says: a page for this machine alone.

A page of another site can make a browser ask 127.0.0.1: it is told nothing (its Host is refused under DNS rebinding,
and no answer may be read, embedded or framed by it).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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

FRESH = "no-store"
"""Cache-Control of an answer that says nothing else."""


class Guard:
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
                message["headers"] = _with_ours(message.get("headers", []))
            await send(message)

        if not _is_ours([value for name, value in scope["headers"] if name == b"host"]):
            await _refuse(guarded, 421, "This page is at 127.0.0.1 or localhost, and under no other name.\n")
        elif scope["method"] not in METHODS:
            allow = (b"allow", ", ".join(METHODS).encode())
            await _refuse(guarded, 405, "This page can be read, and nothing else.\n", allow)
        else:
            await self._app(scope, receive, guarded)


def _is_ours(hosts: list[bytes]) -> bool:
    return len(hosts) == 1 and HOST.fullmatch(hosts[0]) is not None


def _with_ours(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.decode().lower() not in HEADERS]
    ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    if not any(name.lower() == b"cache-control" for name, _ in kept):
        ours.append((b"cache-control", FRESH.encode()))
    return kept + ours


async def _refuse(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(text)).encode())
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind, length, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})
