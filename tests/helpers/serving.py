"""A live page over a small store, asked in this process; and notes as a command that trains would write them."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from helpers.stored_study import Carried
from supermask.serve.app import make_app
from supermask.store.files.notes import StatusNotes, note_id
from supermask.study.plan import Plan


@dataclass(frozen=True)
class Page:
    """A browser at the page of a store; every request is one of its own."""

    app: Any

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any request. `options` are httpx's: headers, params."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as asked:
                return await asked.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        """A GET request."""
        return self.request("GET", path, **options)

    def head(self, path: str) -> httpx.Response:
        """A HEAD request."""
        return self.request("HEAD", path)


def client(store: Path, import_criteria: bool = False) -> Page:
    """The page of a store."""
    return Page(make_app(store, import_criteria))


def note_study(store: Path, plan: Plan) -> str:
    """Notes that a study was asked for; gives the note's name."""
    note = {"name": plan.study.name, "study": plan.study.as_data()}
    StatusNotes(store).write("studies", note_id(note), note)
    return note_id(note)


def note_progress(store: Path, study: str, name: str = "0" * 32, **changes: Any) -> None:
    """Notes that a command is at it, in this very process."""
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
    """Notes the validation curve of a run in flight."""
    note = {
        "run": run_id,
        "of": of,
        "updated": time.time(),
        "iterations": [4 * place for place in range(points)],
        "validation_loss": [2.0 / (place + 1) for place in range(points)],
        "validation_accuracy": [min(0.1 + 0.2 * place, 0.9) for place in range(points)],
    }
    StatusNotes(store).write("curves", run_id, note)


def files(carried: Carried) -> set[str]:
    """Every file below a store, to see that nothing was written."""
    return {f"{path} {path.stat().st_mtime_ns}" for path in carried.store.rglob("*")}
