"""Connections to a running server: idle ones are closed, missing descriptors and malformed requests do no harm."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from supermask.serve.http import HEADERS

PROGRAM = """
import sys
from supermask.serve import connections
for setting in sys.argv[2:]:
    name, _, value = setting.partition("=")
    setattr(connections, name, eval(value))
from supermask.cli import main
main(["serve", "--store", sys.argv[1], "--port", "0"])
"""


@dataclass
class Server:
    """A server process."""

    port: int
    process: subprocess.Popen[str]

    def connect(self) -> socket.socket:
        """Open a connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.settimeout(60)
        return connection

    def get(self, path: str = "/live.json") -> bytes:
        """Send a request on a new connection; return the whole response."""
        with self.connect() as connection:
            connection.sendall(request(path, "Connection: close"))
            return read_all(connection)


@contextmanager
def serving(store: Path, *settings: str, descriptors: int | None = None) -> Iterator[Server]:
    def limit() -> None:
        if descriptors is not None:
            resource = pytest.importorskip("resource")
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    store.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, str(store), *settings]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit if descriptors else None
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        match = re.match(r"http://127\.0\.0\.1:(\d+)/", line)
        assert match, line + process.stderr.read()
        yield Server(int(match[1]), process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def request(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def errors(server: Server) -> str:
    """Kill the server; return its standard error."""
    server.process.kill()
    return server.process.communicate()[1]


@pytest.mark.slow
def test_connections_without_progress_are_closed(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "IDLE_SECONDS=0.3") as server:
        silent, partial, waiting = (server.connect() for _ in range(3))
        with silent, partial, waiting:
            partial.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            waiting.sendall(request("/live.json", "Content-Length: 1000000"))
            assert read_all(silent) == read_all(partial) == b""
            assert b"200 OK" in read_all(waiting)
        with server.connect() as trickling:
            # A byte per check is not progress, only a complete request is.
            text, sent = request("/live.json", *(f"X-{number}: 1" for number in range(500))), 0
            try:
                while sent < len(text):
                    sent += trickling.send(text[sent : sent + 1])
                    time.sleep(0.05)
            except OSError:
                pass
            assert sent < len(text)
        assert b"200 OK" in server.get()
        assert errors(server) == ""


@pytest.mark.slow
def test_client_that_does_not_read_is_closed(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "IDLE_SECONDS=0.3") as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with connection:
            connection.settimeout(60)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(request("/static/plotly.min.js"))
            time.sleep(2)
            received = read_all(connection)
        assert len(received) < 3_000_000
        assert len(server.get("/static/plotly.min.js")) > 3_000_000
        assert errors(server) == ""


@pytest.mark.slow
def test_connection_in_use_is_kept(tmp_path: Path) -> None:
    """A connection that sends a request now and then is used again, not replaced."""
    with serving(tmp_path / "store", "IDLE_SECONDS=3") as server:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.connect()
        first = connection.sock
        for _ in range(12):
            connection.request("GET", "/live.json")
            response = connection.getresponse()
            assert response.status == 200 and response.read()
            time.sleep(0.5)
        assert connection.sock is first
        connection.close()


@pytest.mark.slow
def test_too_many_connections(tmp_path: Path) -> None:
    """New connections replace idle ones."""
    with serving(tmp_path / "store", "MAX_CONNECTIONS=8") as server, ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(50)]
        assert b"200 OK" in server.get()
        assert read_all(idle[0]) == b""
        assert errors(server) == ""


@pytest.mark.slow
def test_connections_leave_descriptors_for_files(tmp_path: Path) -> None:
    """The limit of connections is a quarter of the descriptors."""
    with serving(tmp_path / "store", descriptors=40) as server:
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(server.connect())
            assert b"HTTP/1.1 200 OK" in server.get()
        assert errors(server) == ""


@pytest.mark.slow
def test_missing_descriptors_are_one_warning(tmp_path: Path) -> None:
    """Without the limit of connections: the server does not retry in a loop, and serves again afterwards."""
    setting = "max_connections=lambda: 1_000_000"
    with serving(tmp_path / "store", setting, "IDLE_SECONDS=3600", descriptors=40) as server:
        with ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(server.connect())
            time.sleep(3)  # asyncio retries every second
        assert b"HTTP/1.1 200 OK" in server.get()
        assert errors(server) == "supermask: no new connections for now: Too many open files.\n"


MALFORMED = [
    b"NONSENSE\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    b"GET /" + b"a" * 200_000,
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    b"GET /static/page.js HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nNONSENSE\r\n\r\n",
]


@pytest.mark.slow
def test_malformed_requests_are_400_with_the_headers(tmp_path: Path) -> None:
    with serving(tmp_path / "store") as server:
        for data in MALFORMED:
            with server.connect() as connection:
                connection.sendall(data)
                answer = read_all(connection)
            last = answer[answer.rindex(b"HTTP/1.1 ") :].decode("latin-1")
            head = last.partition("\r\n\r\n")[0].lower().split("\r\n")
            assert head[0].startswith(("http/1.1 400", "http/1.1 405", "http/1.1 200")), data[:60]
            assert all(f"{name}: {value}".lower() in head for name, value in HEADERS.items()), (data[:60], head)
        with server.connect() as connection:
            connection.sendall(MALFORMED[0])
            assert b"400 Bad Request" in read_all(connection)
        assert errors(server) == ""
