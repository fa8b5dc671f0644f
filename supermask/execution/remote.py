"""Runs trained away from here: what a process of a cluster is given, what it checks, does and gives back."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from supermask import __version__
from supermask.core.errors import SystemFailure, UserError
from supermask.execution.checkpoints import TaskInterrupted
from supermask.execution.tasks import Chain, TaskResult, WorkerConfig
from supermask.execution.worker import get_worker
from supermask.store import Store
from supermask.store.files.disk import translate_os_errors

SESSIONS_DIR = "clusters"
"""The folder of a store with one for each command that is carried out on a cluster."""

ACTIVE_MARKER = "wanted"
"""The file in it that is there as long as the command wants its runs: every node has to see it, and sees it go."""

POLL_SECONDS = 0.3
"""Between two looks at that file."""

PARENT_SECONDS = 20.0
"""How long a node waits for its file system to show what another node has committed."""

FORWARDED_VARIABLES = ("SUPERMASK_CACHE",)
"""Variables of the environment that go along; data and store go as absolute paths."""


@dataclass(frozen=True)
class RemoteJob:
    """Lines of runs to train, and all that a process on another machine has to know for it."""

    site: WorkerConfig
    lines: Sequence[Chain]
    session_dir: Path
    """The command's folder in the store."""
    version: str
    """Of supermask, which has to be the same there."""
    modules: tuple[str, ...]
    """Where a user's own modules are looked for."""
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RemoteError:
    """What a UserError (`users`) or a MachineError said there."""

    text: str
    is_user_error: bool

    def error(self) -> UserError | SystemFailure:
        """To be raised here."""
        return (UserError if self.is_user_error else SystemFailure)(self.text)


RemoteResult = Sequence[TaskResult] | RemoteError | None
"""None: it was stopped; checkpoints are in the store, as is what had ended before."""


class RemoteSession:
    """A command's folder in the store while its runs are trained on a cluster, and in it whether it wants them."""

    def __init__(self, site: WorkerConfig) -> None:
        self.kept = False
        """Whether the folder stays at the end: there are logs in it."""
        self.folder = site.store / SESSIONS_DIR / secrets.token_hex(16)
        # What is looked for in the current folder here, is there too.
        self._site = replace(site, data_dir=site.data_dir or Path("data").absolute())
        with translate_os_errors(self.folder):
            self.folder.mkdir(parents=True)
            (self.folder / ACTIVE_MARKER).touch()

    def job(self, lines: Sequence[Chain]) -> RemoteJob:
        """For one process."""
        here = tuple(str(Path(place or ".").absolute()) for place in sys.path)
        sent = tuple((name, os.environ[name]) for name in FORWARDED_VARIABLES if name in os.environ)
        return RemoteJob(self._site, lines, self.folder, __version__, here, sent)

    def cancel(self) -> None:
        """Whoever trains for it saves a checkpoint and ends."""
        (self.folder / ACTIVE_MARKER).unlink(missing_ok=True)


@contextmanager
def remote_session(site: WorkerConfig) -> Iterator[RemoteSession]:
    """An order, which is gone at the end."""
    order = RemoteSession(site)
    try:
        yield order
    finally:
        order.cancel()
        if not order.kept:
            shutil.rmtree(order.folder, ignore_errors=True)


def run_remote_job(errand: RemoteJob, stopping: Callable[[], bool] = lambda: False) -> RemoteResult:
    """Trains and commits in a process of a cluster; `stopping` as for `Worker.perform`."""
    # Read by torch when it is imported, which is not before a worker is made.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.update(errand.environment)
    sys.path += [place for place in errand.modules if place not in sys.path]
    if (fault := _check_node(errand)) is not None:
        return fault
    wanted = _CancelWatcher(errand.session_dir / ACTIVE_MARKER)
    try:
        _wait_for_parents(errand)
        return get_worker(errand.site).run_chains(errand.lines, lambda: stopping() or not wanted())
    except TaskInterrupted:
        return None
    except UserError as error:
        return RemoteError(f"{error} (On node {platform.node()}.)", is_user_error=True)
    except SystemFailure as error:
        return RemoteError(f"{error} (On node {platform.node()}.)", is_user_error=False)


def _check_node(errand: RemoteJob) -> RemoteError | None:
    here = platform.node()
    if __version__ != errand.version:
        said = (
            f"node {here} has supermask {__version__}, and {errand.version} is needed: install the same on all nodes."
        )
        return RemoteError(said, is_user_error=True)
    if not (errand.session_dir / ACTIVE_MARKER).exists():
        said = (
            f"node {here} does not see the store {errand.site.store}: put it into a folder that all nodes share "
            "under the same path (--store)."
        )
        return RemoteError(said, is_user_error=True)
    return None


class _CancelWatcher:
    """Whether the file is there: looked at now and then, for it may be on another machine."""

    def __init__(self, path: Path) -> None:
        self._path, self._looked, self._there = path, time.monotonic(), True

    def __call__(self) -> bool:
        if self._there and time.monotonic() - self._looked >= POLL_SECONDS:
            self._looked = time.monotonic()
            try:
                self._path.stat()
            except FileNotFoundError:
                self._there = False
            except OSError:
                pass  # A file system that has a bad moment is no reason to stop.
        return self._there


def _wait_for_parents(errand: RemoteJob) -> None:
    """A network file system may show a run later than the node that committed it: what is never seen is told later."""
    store, patience = Store(errand.site.store), time.monotonic() + PARENT_SECONDS
    for line in errand.lines:
        parent = line[0].run.parent
        while parent is not None and not store.has(parent) and time.monotonic() < patience:
            time.sleep(POLL_SECONDS)
