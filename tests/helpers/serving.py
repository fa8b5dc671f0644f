"""Dashboard of a small store, requested in this process, and notes as a training command writes them."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from helpers.stored_study import TrainedStudy
from supermask.serve.app import make_app
from supermask.store.files.notes import StatusNotes, note_id
from supermask.study.plan import Plan

SUBJECT = {"network": "fc-8", "dataset": "digits"}
"""Query of the stored study's network and dataset."""


def every_address(run_id: str) -> list[str]:
    """Return one address of every kind that the dashboard serves."""
    return [
        "/",
        "/live.json",
        "/explore",
        "/explore/choices.json",
        "/explore/runs.json?network=fc-8&dataset=digits",
        "/explore/curves.json?network=fc-8&dataset=digits",
        "/explore/runs.csv?network=fc-8&dataset=digits",
        f"/run/{run_id}",
        f"/run/{run_id}/curve.json",
        f"/run/{run_id}/pixels.png",
        f"/run/{run_id}/mask/0.png",
        "/report/contents.json",
        "/static/page.js",
        "/static/serve.css",
    ]


@dataclass(frozen=True)
class Page:
    """HTTP client of a dashboard. Every request opens its own connection."""

    app: Any

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request. `options`: headers and params of httpx."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as http:
                return await http.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Send a GET request."""
        return self.request("GET", path, **options)

    def head(self, path: str) -> httpx.Response:
        """Send a HEAD request."""
        return self.request("HEAD", path)


def client(store: Path, import_criteria: bool = False) -> Page:
    """Return a client of the dashboard of a store."""
    return Page(make_app(store, import_criteria))


def note_study(store: Path, plan: Plan) -> str:
    """Write the note of a study; return its name."""
    note = {"name": plan.study.name, "study": plan.study.as_data()}
    StatusNotes(store).write("studies", note_id(note), note)
    return note_id(note)


def note_progress(store: Path, study: str, name: str = "0" * 32, **changes: Any) -> None:
    """Write the progress note of a command that runs in this process."""
    now = time.time()
    note: dict[str, Any] = {
        "studies": [study],
        "state": "running",
        "message": "",
        "pid": os.getpid(),
        "host": platform.node(),
        "workers": 2,
        "began": now - 60,
        "updated": now,
        "tasks": 18,
        "left": 5,
        "seconds_left": 42.0,
        "in_flight": [],
        "failures": [],
    }
    StatusNotes(store).write("progress", name, note | changes)


def note_curve(store: Path, run_id: str, points: int = 4, of: int = 12) -> None:
    """Write the validation curve of a run that is being trained."""
    note = {
        "run": run_id,
        "of": of,
        "updated": time.time(),
        "iterations": [4 * index for index in range(points)],
        "validation_loss": [2.0 / (index + 1) for index in range(points)],
        "validation_accuracy": [min(0.1 + 0.2 * index, 0.9) for index in range(points)],
    }
    StatusNotes(store).write("curves", run_id, note)


def files(trained: TrainedStudy) -> set[str]:
    """Return every file of a store with its modification time, to check that nothing was written."""
    return {f"{path} {path.stat().st_mtime_ns}" for path in trained.store.rglob("*")}
