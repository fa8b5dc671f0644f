"""Connections of the dashboard: idle ones are closed, their number is limited, malformed requests are answered 400.

uvicorn closes a connection that is idle after a response. It keeps one that never sends a request, sends one byte per
minute, or does not read its response; a few hundred of them take all descriptors of the process.
"""

from __future__ import annotations

import asyncio
import errno
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from socket import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from supermask.serve.http import HEADERS

IDLE_SECONDS = 10.0
"""Interval of the checks. A connection without progress between two of them is closed."""

MAX_CONNECTIONS = 100
"""Open connections; a quarter of the descriptors of the process if that is less."""

WARNING_SECONDS = 60.0
"""Seconds between two warnings about missing descriptors."""

QUEUE_LENGTH = 128
"""Connections that the operating system keeps until they are accepted."""

OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def max_connections() -> int:
    """Return the allowed number of open connections."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, max(soft // 4, 4))


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with an idle timeout, a limit of connections, and security headers on status 400."""

    _progress: tuple[object, ...] = ()
    """Request, state and unsent bytes at the last check."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the idle timer. Above the limit, close the oldest idle connection, or refuse the new one."""
        super().connection_made(transport)
        self._opened = self.loop.time()
        self._timer = self.loop.call_later(IDLE_SECONDS, self._check_progress)
        if len(self.connections) > max_connections():
            others = [other for other in self.connections if isinstance(other, LimitedProtocol) and other is not self]
            idle = [other for other in others if other.is_idle]
            if idle:
                min(idle, key=lambda other: other._opened).transport.abort()
            else:
                self._respond(503, "Too many connections.\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the idle timer."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """True if no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _check_progress(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        progress = (self.cycle, self.is_idle, unsent)
        # While a response is computed, nothing is unsent: that may take as long as it needs.
        if (self.is_idle or unsent) and progress == self._progress:
            # Not `close`, which waits until all bytes are sent.
            self.transport.abort()
            return
        self._progress = progress
        self._timer = self.loop.call_later(IDLE_SECONDS, self._check_progress)

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request with status 400 and the headers of every other response."""
        self._respond(400, f"{msg}\n")

    def _respond(self, status: int, text: str) -> None:
        """Send a whole response outside of the application, and close the connection."""
        if self.cycle is not None:
            # The application may still be answering an earlier part of the request; its response is dropped.
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        extra = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", "connection": "close"}
        headers = [(name.encode(), value.encode()) for name, value in (HEADERS | extra).items()]
        headers.append((b"content-length", str(len(text)).encode()))
        response = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
        for event in (response, h11.Data(data=text.encode()), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()


class LimitedServer(uvicorn.Server):
    """uvicorn server that neither spins nor floods the terminal if the process has no descriptors left."""

    _last_warning = float("-inf")

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start to accept connections."""
        asyncio.get_running_loop().set_exception_handler(self._handle_exception)
        await super().startup(sockets)
        for listening in sockets or ():
            # `create_server` has set the queue to `backlog`, which must be 1 (see `limits`).
            listening.listen(QUEUE_LENGTH)

    def _handle_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in OUT_OF_RESOURCES:
            loop.default_exception_handler(context)
            return
        # asyncio tries again every second, as long as descriptors are missing.
        now = time.monotonic()
        if now - self._last_warning >= WARNING_SECONDS:
            self._last_warning = now
            with suppress(OSError):
                sys.stderr.write(f"supermask: no new connections for now: {error.strerror}.\n")
                sys.stderr.flush()


def limits() -> dict[str, Any]:
    """Return the settings of `uvicorn.Config` for the limits of this module.

    `backlog` is also the number of connections that asyncio accepts in a row, and it reports an error and schedules a
    retry for each of them. With 1 there is one retry per second.
    """
    return {"http": LimitedProtocol, "backlog": 1}


def run_server(config: uvicorn.Config, sockets: Sequence[socket]) -> None:
    """Serve until the process is interrupted."""
    LimitedServer(config).run(sockets=list(sockets))
