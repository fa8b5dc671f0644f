"""Training in a process of a cluster: the job that is sent, the node's checks, and the answer."""

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
from supermask.execution.tasks import Chain, TaskResult, WorkerConfig, WorkerError
from supermask.execution.worker import get_worker
from supermask.store import Store
from supermask.store.files.disk import translate_os_errors

SESSIONS_DIR = "clusters"
"""Folder of the store that holds one folder per command that trains on a cluster."""

ACTIVE_MARKER = "wanted"
"""File in a command's folder that exists as long as the command wants its runs. It proves that a node sees the store,
and its removal tells every node to stop."""

POLL_SECONDS = 0.3
"""Time between two checks of that file."""

PARENT_SECONDS = 20.0
"""Time that a node waits for its file system to show a run that another node committed."""

FORWARDED_VARIABLES = ("SUPERMASK_CACHE", "SUPERMASK_MEASURE_COSTS")
"""Environment variables that are set on nodes as well. Data and store are sent as absolute paths."""


@dataclass(frozen=True)
class RemoteJob:
    """Chains to train, with everything that a process on another machine needs to know."""

    config: WorkerConfig
    chains: Sequence[Chain]
    session_dir: Path
    """The command's folder in the store."""
    version: str
    """Version of supermask that the node must have."""
    module_folders: tuple[str, ...]
    """Folders that are searched for a user's own modules."""
    environment_variables: tuple[tuple[str, str], ...]


RemoteResult = Sequence[TaskResult] | WorkerError | None
"""None: the job was stopped. Finished runs and checkpoints are in the store."""


class RemoteSession:
    """A command's folder in the store during its training on a cluster, with the marker that its runs are wanted."""

    def __init__(self, config: WorkerConfig) -> None:
        self.keep_folder = False
        """True if the folder stays at the end, because it holds logs."""
        self.folder = config.store / SESSIONS_DIR / secrets.token_hex(16)
        # A node's current folder is another one: the default data folder must be absolute too.
        self._config = replace(config, data_dir=config.data_dir or Path("data").absolute())
        with translate_os_errors(self.folder):
            self.folder.mkdir(parents=True)
            (self.folder / ACTIVE_MARKER).touch()

    def job(self, chains: Sequence[Chain]) -> RemoteJob:
        """Return the job that trains these chains in one process."""
        module_folders = tuple(str(Path(entry or ".").absolute()) for entry in sys.path)
        environment_variables = tuple((name, os.environ[name]) for name in FORWARDED_VARIABLES if name in os.environ)
        return RemoteJob(self._config, chains, self.folder, __version__, module_folders, environment_variables)

    def cancel(self) -> None:
        """Make every process of this session save a checkpoint and end."""
        (self.folder / ACTIVE_MARKER).unlink(missing_ok=True)


@contextmanager
def remote_session(config: WorkerConfig) -> Iterator[RemoteSession]:
    """Yield a session; cancel it and remove its folder at the end."""
    session = RemoteSession(config)
    try:
        yield session
    finally:
        session.cancel()
        if not session.keep_folder:
            shutil.rmtree(session.folder, ignore_errors=True)


def run_remote_job(job: RemoteJob, should_stop: Callable[[], bool] = lambda: False) -> RemoteResult:
    """Train and commit a job's chains in a process of a cluster; `should_stop` as for `Worker.run_chains`."""
    # torch reads this when it is imported, which happens when the worker is created below.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.update(job.environment_variables)
    sys.path += [folder for folder in job.module_folders if folder not in sys.path]
    if (error := _check_node(job)) is not None:
        return error
    is_cancelled = _CancelWatcher(job.session_dir / ACTIVE_MARKER)
    # Errors are returned as plain data: the process that coordinates must not depend on how a cluster pickles them.
    try:
        _wait_for_parents(job)
        return get_worker(job.config).run_chains(job.chains, lambda: should_stop() or is_cancelled())
    except TaskInterrupted:
        return None
    except UserError as error:
        return WorkerError(f"{error} (On node {platform.node()}.)", is_user_error=True)
    except SystemFailure as error:
        return WorkerError(f"{error} (On node {platform.node()}.)", is_user_error=False)


def _check_node(job: RemoteJob) -> WorkerError | None:
    node = platform.node()
    if __version__ != job.version:
        message = (
            f"node {node} has supermask {__version__}, and {job.version} is needed: install the same on all nodes."
        )
        return WorkerError(message, is_user_error=True)
    if not (job.session_dir / ACTIVE_MARKER).exists():
        message = (
            f"node {node} does not see the store {job.config.store}: put it into a folder that all nodes share "
            "under the same path (--store)."
        )
        return WorkerError(message, is_user_error=True)
    return None


class _CancelWatcher:
    """Predicate: True once the marker file is gone. Limits how often a shared file system is asked."""

    def __init__(self, path: Path) -> None:
        self._path, self._last_check, self._cancelled = path, time.monotonic(), False

    def __call__(self) -> bool:
        if not self._cancelled and time.monotonic() - self._last_check >= POLL_SECONDS:
            self._last_check = time.monotonic()
            try:
                self._path.stat()
            except FileNotFoundError:
                self._cancelled = True
            except OSError:
                pass  # Any other error is a passing fault of the file system, not a request to stop.
        return self._cancelled


def _wait_for_parents(job: RemoteJob) -> None:
    """Wait until the parents of all chains are visible; a network file system may show them late.

    A parent that never appears is reported later, when its chain starts.
    """
    store, deadline = Store(job.config.store), time.monotonic() + PARENT_SECONDS
    for chain in job.chains:
        parent = chain[0].run.parent
        while parent is not None and not store.has(parent) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
