"""A local server with the part of the Hub's protocol that uploads and downloads of a repository use.

Repositories, preupload, LFS batch, upload, commit (newline-delimited JSON) and resolve, as huggingface_hub calls them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" * 6 + "abcd"

LFS_SUFFIXES = (".safetensors",)
"""Suffixes of the files that the Hub asks for as LFS objects."""


@dataclass
class FakeHub:
    """State of the server: repository -> file -> content, and what was asked of it."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    """`METHOD path` of every request."""
    messages: list[str] = field(default_factory=list)
    """Commit messages."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by SHA-256."""
    token: str | None = None
    """Token that writing needs; None lets anyone write."""
    status: int = 0
    """Status of every answer, if it is not 0."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._download(with_body=True)

    def do_HEAD(self) -> None:
        self._download(with_body=False)

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        content = self._body()
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, {})

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        body, path = self._body(), self.path.partition("?")[0]
        if self.hub.status:
            return self._answer(self.hub.status, {"error": "as the test wants it"})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        repo = path.removeprefix("/api/models/").removeprefix("/")
        if repo.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        name, _, action = repo.rpartition("/")[0].rpartition("/")
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if action == "commit":
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        return self._answer(404, {"error": "unknown"})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if name in self.hub.repositories:
            return self._answer(409, {"error": "exists", "url": f"{self.hub.address}/{name}"})
        self.hub.repositories[name] = {}
        if wanted.get("visibility") == "private":
            self.hub.private.add(name)
        return self._answer(200, {"url": f"{self.hub.address}/{name}", "name": name})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            href = f"{self.hub.address}/objects/{item['oid']}"
            known = item["oid"] in self.hub.objects
            objects.append({**item, **({} if known else {"actions": {"upload": {"href": href, "header": {}}}})})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repositories[name][value["path"]] = self.hub.objects[value["oid"]]
        url = f"{self.hub.address}/{name}/commit/{COMMIT}"
        self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def _download(self, with_body: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.status:
            return self._answer(self.hub.status, {"error": "as the test wants it"})
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name not in self.hub.repositories:
            return self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self._answer(404, {"error": "revision"}, {"X-Error-Code": "RevisionNotFound"})
        if file not in self.hub.repositories[name]:
            return self._answer(404, {"error": "entry"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = self.hub.repositories[name][file]
        tag = hashlib.sha256(content).hexdigest()
        self.send_response(200)
        for key, value in {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LFS_SUFFIXES) else "regular"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve an empty Hub on 127.0.0.1 while the context is open."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
