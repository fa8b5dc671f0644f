"""A port of this machine, and the application behind it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

from supermask.api.runs import open_store
from supermask.core.errors import SystemFailure, UserError

ADDRESS = "127.0.0.1"
"""This machine alone: there is no option for another one."""

PORT = 8080

SHUTDOWN_SECONDS = 2
"""Seconds that open connections have when the server ends."""


def serve(
    store: Path | None = None,
    port: int = PORT,
    import_criteria: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Shows a store in the browser until Ctrl-C; `say` is told the address. Port 0 takes any that is free.

    Raises UserError before anything is served: no such store, or a port that cannot be had.
    """
    import uvicorn

    from supermask.serve.app import make_app

    app = make_app(open_store(store).root, import_criteria)
    listening = bind_socket(port)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    on_ready(f"http://{ADDRESS}:{listening.getsockname()[1]}/")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        # The way to end it, not a failure.
        pass
    finally:
        listening.close()


def bind_socket(port: int) -> socket.socket:
    """A socket at a port of this machine. Raises UserError naming a free one, where this one cannot be had."""
    # With its protocol named: otherwise asyncio leaves Nagle's algorithm on, and every answer takes 40 ms.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Otherwise a port stays taken for a minute after the server has ended.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
        listening.listen()
    except OSError as error:
        listening.close()
        why = {errno.EADDRINUSE: "is taken by another program", errno.EACCES: "is for the administrator alone"}
        if error.errno not in why:
            raise SystemFailure(f"port {port} of this machine cannot be used: {error.strerror or error}.") from error
        raise UserError(f"port {port} {why[error.errno]}: give another, such as --port {_free_port(port)}.") from error
    return listening


def _free_port(near: int) -> int:
    """A port that is free now: the next one that is, or any."""
    for port in [*range(max(near, 1024) + 1, min(near + 20, 65535) + 1), 0]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
            try:
                tried.bind((ADDRESS, port))
            except OSError:
                continue
            return int(tried.getsockname()[1])
    return 0
