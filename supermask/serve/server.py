"""Web server of the dashboard: binds a port of localhost and runs uvicorn."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

from supermask.api.runs import open_store
from supermask.core.errors import SystemFailure, UserError

ADDRESS = "127.0.0.1"
"""Loopback only. There is no option for another address, because the dashboard has no authentication."""

PORT = 8080

SHUTDOWN_SECONDS = 2
"""Grace period of open connections when the server ends."""


def serve(
    store: Path | None = None,
    port: int = PORT,
    import_criteria: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the dashboard of a store until Ctrl-C. Port 0 takes a free port; `on_ready` is called with the address.

    Raises UserError, before anything is served, if there is no such store or if the port cannot be used.
    """
    import uvicorn

    from supermask.serve.app import make_app
    from supermask.serve.connections import limits, run_server

    app = make_app(open_store(store).root, import_criteria)
    listening = bind_socket(port)
    config = uvicorn.Config(
        app,
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        **limits(),
    )
    on_ready(f"http://{ADDRESS}:{listening.getsockname()[1]}/")
    try:
        run_server(config, [listening])
    except KeyboardInterrupt:
        # Ctrl-C is the normal way to end the server.
        pass
    finally:
        listening.close()


def bind_socket(port: int) -> socket.socket:
    """Bind a listening socket to a port of localhost. Raises UserError, with a free port, if it cannot be used."""
    # asyncio disables Nagle's algorithm only if the protocol is given; with it every response takes 40 ms.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Otherwise the port stays in use for a minute after the server has ended.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
        listening.listen()
    except OSError as error:
        listening.close()
        reasons = {errno.EADDRINUSE: "is used by another program", errno.EACCES: "needs administrator rights"}
        if error.errno not in reasons:
            raise SystemFailure(f"port {port} cannot be used: {error.strerror or error}.") from error
        hint = f"give another, such as --port {_free_port(port)}"
        raise UserError(f"port {port} {reasons[error.errno]}: {hint}.") from error
    return listening


def _free_port(near: int) -> int:
    """Return a port that is free now: one of the next twenty, else any."""
    for port in [*range(max(near, 1024) + 1, min(near + 20, 65535) + 1), 0]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
            try:
                candidate.bind((ADDRESS, port))
            except OSError:
                continue
            return int(candidate.getsockname()[1])
    return 0
