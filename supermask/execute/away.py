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
from supermask.errors import MachineError, UserError
from supermask.execute.checkpoints import Interrupted
from supermask.execute.tasks import Line, Result, Site
from supermask.execute.worker import worker_at
from supermask.store import Store
from supermask.store.disk import machine_errors

ORDERS = "clusters"
"""The folder of a store with one for each command that is carried out on a cluster."""

WANTED = "wanted"
"""The file in it that is there as long as the command wants its runs: every node has to see it, and sees it go."""

LOOK_SECONDS = 0.3
"""Between two looks at that file."""

PARENT_SECONDS = 20.0
"""How long a node waits for its file system to show what another node has committed."""

SENT = ("SUPERMASK_CACHE",)
"""Variables of the environment that go along; data and store go as absolute paths."""


@dataclass(frozen=True)
class Errand:
    """Lines of runs to train, and all that a process on another machine has to know for it."""

    site: Site
    lines: Sequence[Line]
    order: Path
    """The command's folder in the store."""
    release: str
    """Of supermask, which has to be the same there."""
    modules: tuple[str, ...]
    """Where a user's own modules are looked for."""
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fault:
    """What a UserError (`users`) or a MachineError said there."""

    text: str
    users: bool

    def error(self) -> UserError | MachineError:
        """To be raised here."""
        return (UserError if self.users else MachineError)(self.text)


Answer = Sequence[Result] | Fault | None
"""None: it was stopped; checkpoints are in the store, as is what had ended before."""


class Order:
    """A command's folder in the store while its runs are trained on a cluster, and in it whether it wants them."""

    def __init__(self, site: Site) -> None:
        self.kept = False
        """Whether the folder stays at the end: there are logs in it."""
        self.folder = site.store / ORDERS / secrets.token_hex(16)
        # What is looked for in the current folder here, is there too.
        self._site = replace(site, data_dir=site.data_dir or Path("data").absolute())
        with machine_errors(self.folder):
            self.folder.mkdir(parents=True)
            (self.folder / WANTED).touch()

    def errand(self, lines: Sequence[Line]) -> Errand:
        """For one process."""
        here = tuple(str(Path(place or ".").absolute()) for place in sys.path)
        sent = tuple((name, os.environ[name]) for name in SENT if name in os.environ)
        return Errand(self._site, lines, self.folder, __version__, here, sent)

    def withdraw(self) -> None:
        """Whoever trains for it saves a checkpoint and ends."""
        (self.folder / WANTED).unlink(missing_ok=True)


@contextmanager
def ordered(site: Site) -> Iterator[Order]:
    """An order, which is gone at the end."""
    order = Order(site)
    try:
        yield order
    finally:
        order.withdraw()
        if not order.kept:
            shutil.rmtree(order.folder, ignore_errors=True)


def carry(errand: Errand, stopping: Callable[[], bool] = lambda: False) -> Answer:
    """Trains and commits in a process of a cluster; `stopping` as for `Worker.perform`."""
    # Read by torch when it is imported, which is not before a worker is made.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.update(errand.environment)
    sys.path += [place for place in errand.modules if place not in sys.path]
    if (fault := _cannot_be_done_here(errand)) is not None:
        return fault
    wanted = _Wanted(errand.order / WANTED)
    try:
        _await_parents(errand)
        return worker_at(errand.site).perform_lines(errand.lines, lambda: stopping() or not wanted())
    except Interrupted:
        return None
    except UserError as error:
        return Fault(f"{error} (On node {platform.node()}.)", users=True)
    except MachineError as error:
        return Fault(f"{error} (On node {platform.node()}.)", users=False)


def _cannot_be_done_here(errand: Errand) -> Fault | None:
    here = platform.node()
    if __version__ != errand.release:
        said = (
            f"node {here} has supermask {__version__}, and {errand.release} is needed: install the same on all nodes."
        )
        return Fault(said, users=True)
    if not (errand.order / WANTED).exists():
        said = (
            f"node {here} does not see the store {errand.site.store}: put it into a folder that all nodes share "
            "under the same path (--store)."
        )
        return Fault(said, users=True)
    return None


class _Wanted:
    """Whether the file is there: looked at now and then, for it may be on another machine."""

    def __init__(self, path: Path) -> None:
        self._path, self._looked, self._there = path, time.monotonic(), True

    def __call__(self) -> bool:
        if self._there and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            try:
                self._path.stat()
            except FileNotFoundError:
                self._there = False
            except OSError:
                pass  # A file system that has a bad moment is no reason to stop.
        return self._there


def _await_parents(errand: Errand) -> None:
    """A network file system may show a run later than the node that committed it: what is never seen is told later."""
    store, patience = Store(errand.site.store), time.monotonic() + PARENT_SECONDS
    for line in errand.lines:
        parent = line[0].run.parent
        while parent is not None and not store.has(parent) and time.monotonic() < patience:
            time.sleep(LOOK_SECONDS)
