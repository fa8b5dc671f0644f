"""Signals to the processes of a command: the main process, the fork server, the resource tracker, the whole group."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from helpers import slow_loss
from helpers.command_line import call
from helpers.faulty_disk import quick_folder
from helpers.harness import IS_FULL
from helpers.processes import command_lines, start_process, wait_until, wait_until_gone
from helpers.small_studies import contents, leftovers, train_plan

from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import make_plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]

STUDY = f"""
network: fc-20
seeds: 2
train: {{epochs: 20, evaluate_every: 10, loss: {slow_loss.NAME}}}
prune: {{levels: 1}}
treatments: [{{criterion: large_final}}]
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the current directory and holds a study whose runs last for a second or two."""
    with quick_folder() as path, slow_loss.slow_folder(path, monkeypatch):
        (path / "study.yaml").write_text(STUDY)
        yield path


def start_command(*arguments: str, **environment: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start `supermask run study.yaml` in a process group of its own; kill the group at the end."""
    command = ("-m", "supermask", "run", "study.yaml", "--store", "store", "--workers", "2", *arguments)
    return start_process(*command, **environment)


def has_result(folder: Path) -> bool:
    return bool(Store(folder / "store").run_ids())


def find_process(group: int, text: str) -> int | None:
    """Return the id of a process of the group whose command line contains `text`."""
    return next((pid for pid, command in command_lines(group).items() if text in command), None)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The contents of a store of a worker in this process."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "study.yaml").write_text(STUDY)
    train_plan(make_plan(load_study(folder / "study.yaml")), folder / "store")
    return contents(folder / "store")


def assert_complete(folder: Path, expected: dict[str, dict[str, str]]) -> None:
    """Check that the store is bit-identical to one of a worker in this process, without leftovers."""
    assert contents(folder / "store") == expected
    assert not leftovers(folder / "store")


@pytest.mark.parametrize(
    ("number", "to_group"),
    [(signal.SIGTERM, False), (signal.SIGHUP, True)]
    + ([(signal.SIGTERM, True), (signal.SIGINT, True)] if IS_FULL else []),
)
def test_a_stop_signal_saves_checkpoints_and_ends_the_command(
    folder: Path, expected: dict[str, dict[str, str]], number: signal.Signals, to_group: bool
) -> None:
    """To the main process, as `kill` sends it, or to the whole group, as a terminal and most supervisors do.

    In a group the workers get the signal too, and must leave the end to the main process. SIGINT to the group is
    tested with the local executor.
    """
    with start_command("--engine", "reference") as process:
        wait_until(lambda: has_result(folder), process)
        time.sleep(0.2)
        (os.killpg if to_group else os.kill)(process.pid, number)
        assert process.wait(timeout=10) == 128 + number
        assert wait_until_gone(process.pid, 2.0), command_lines(process.pid)
        out, err = process.communicate()
    assert "left; the same command resumes" in err and "Traceback" not in out + err
    kept = Store(folder / "store").run_ids()
    assert 1 <= len(kept) < 4
    assert list((folder / "store" / "checkpoints").iterdir())
    (folder / "slow").unlink()
    train_plan(make_plan(load_study(folder / "study.yaml")), folder / "store")
    assert_complete(folder, expected)


@pytest.mark.parametrize("target", ["multiprocessing.forkserver", "multiprocessing.resource_tracker"])
def test_a_killed_helper_process_of_multiprocessing_is_replaced(
    folder: Path, expected: dict[str, dict[str, str]], target: str
) -> None:
    with start_command("--engine", "reference") as process:
        wait_until(lambda: has_result(folder), process)
        pid = find_process(process.pid, target)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        (folder / "slow").unlink()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        assert err == ""
        assert wait_until_gone(process.pid, 2.0), command_lines(process.pid)
    assert_complete(folder, expected)


def test_a_fork_server_that_is_always_killed_ends_the_command_with_one_message(
    folder: Path, expected: dict[str, dict[str, str]]
) -> None:
    """The same command resumes the study afterwards."""
    with start_command("--engine", "reference") as process:
        wait_until(lambda: find_process(process.pid, "multiprocessing.forkserver"), process)
        while process.poll() is None:
            if (pid := find_process(process.pid, "multiprocessing.forkserver")) is not None:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.03)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("\n") == 1 and "worker processes cannot be started" in err
    (folder / "slow").unlink()
    status, _, _ = call("run", "study.yaml", "--store", "store", "--workers", "2", "--engine", "reference")
    assert status == 0
    assert_complete(folder, expected)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "while workers train"),
        (signal.SIGKILL, "while the fork server imports"),
        (signal.SIGQUIT, "while the fork server imports"),
        *([(signal.SIGQUIT, "while workers train")] if IS_FULL else []),
    ],
)
def test_no_process_outlives_a_killed_command_for_two_seconds(
    folder: Path, number: signal.Signals, moment: str
) -> None:
    """The sparse engine compiles its kernels in the fork server, here with an empty cache."""
    is_import = moment == "while the fork server imports"
    cache = str(folder / "cache") if is_import else os.environ["SUPERMASK_CACHE"]
    options = ("train.loss=cross_entropy", "--engine", "sparse") if is_import else ("--engine", "reference")
    with start_command(*options, SUPERMASK_CACHE=cache) as process:
        wait_until(
            lambda: find_process(process.pid, "multiprocessing.forkserver") if is_import else has_result(folder),
            process,
        )
        time.sleep(0.5)
        os.kill(process.pid, number)
        process.wait()
        assert wait_until_gone(process.pid, 2.0), command_lines(process.pid)


def test_a_temporary_folder_with_a_long_name_is_not_used_for_sockets(folder: Path) -> None:
    long = folder / ("x" * 120)
    long.mkdir()
    with start_command("train.epochs=1", "--engine", "reference", TMPDIR=str(long)) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert not list(long.iterdir())


def test_without_a_short_temporary_folder_the_message_names_tmpdir(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from supermask.execution import local

    monkeypatch.setattr(local, "SHORT_TEMP_FOLDERS", ())
    failure = local._start_failure(OSError("AF_UNIX path too long"))
    assert "Set TMPDIR to a folder with a shorter name" in str(failure)


def test_a_limit_of_open_files_is_named() -> None:
    from supermask.execution import local

    failure = str(local._start_failure(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
    assert "too many files are open. Use fewer (--workers), or raise the limit (ulimit -n)" in failure
    assert "memory" not in failure
