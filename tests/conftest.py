"""For every test: one thread, no cache of the user, and no clock."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator

import pytest
from helpers.harness import IS_FULL
from hypothesis import settings

# Read by torch when it is first imported, here and in every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that starts the tests in the background ignores Ctrl-C for them, and for every command that they start; nohup
# does so with SIGHUP.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("supermask", deadline=None, max_examples=100 if IS_FULL else 60)
settings.load_profile("supermask")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt modules and tests from garbage collection: it took a third of the collection and a tenth of the tests."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the clusters: they wait for processes, so at the end they would leave the other workers idle."""
    items.sort(key=lambda item: item.get_closest_marker("cluster") is None)


def pytest_sessionfinish() -> None:
    """Release them: libraries report objects that are left at the end as leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data sets and compiled kernels go to a folder that is thrown away, one for all workers of xdist."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMASK_CACHE", str(folder / "cache"))
        yield
