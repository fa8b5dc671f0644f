"""Exceptions of workers on their way to the supervisor: plain data, never pickled objects."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from supermask.core.errors import SystemFailure, UserError
from supermask.execution import local
from supermask.execution.tasks import TaskResult, WorkerConfig, WorkerError
from supermask.store import CorruptEntry


class UnpicklableError(Exception):
    """Arrives nowhere by pickle: it is made of other arguments than the exception records."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(reason)

    def __str__(self) -> str:
        raise AttributeError("no text")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UserError("give another"), UserError, "^give another$"),
        (CorruptEntry("ab", "it is cut short"), SystemFailure, "^ab in the store is damaged: it is cut short"),
        (OSError(28, "No space left on device", "a/b"), SystemFailure, r"^system error: No space left .* \(a/b\)\.$"),
        (KeyError("level"), RuntimeError, "^a worker process failed: KeyError: 'level'"),
        (UnpicklableError(3, reason="x"), RuntimeError, "^a worker process failed: .*UnpicklableError: <exception str"),
    ],
    ids=["user", "system", "disk", "fault", "unpicklable"],
)
def test_errors_of_workers_are_plain_data(error: Exception, kind: type[Exception], text: str) -> None:
    class FailingWorker:
        def run_chains(self, *_: object) -> list[TaskResult]:
            raise error

    main_end, worker_end = multiprocessing.Pipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_init_worker", lambda: None)
        patch.setattr(local, "get_worker", lambda _: FailingWorker())
        main_end.send((WorkerConfig(Path("store")), []))
        main_end.send(None)
        local.serve_assignments(worker_end)
    answer = main_end.recv()
    assert isinstance(answer, WorkerError)
    with pytest.raises(kind, match=text) as raised:
        raise answer.error()
    assert ("in run_chains" in "".join(getattr(raised.value, "__notes__", []))) == (kind is RuntimeError)
