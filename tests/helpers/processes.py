"""Processes of a process group: started here, found in /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05
"""Reading /proc takes milliseconds of CPU."""


@contextmanager
def start_process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start Python in a process group of its own; kill the whole group at the end."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        if group_members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_members(group: int) -> dict[int, str]:
    """Return id -> name of the living processes of a process group."""
    members = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state not in "ZX":
            members[int(path.parent.name)] = name
    return members


def command_lines(group: int) -> dict[int, str]:
    """Return id -> command line of the living processes of a process group."""
    commands = {}
    for pid in group_members(group):
        try:
            commands[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return commands


def wait_until_gone(group: int, seconds: float) -> bool:
    """Wait until no process of the group is left; return False after `seconds`."""
    end = time.monotonic() + seconds
    while group_members(group) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return not group_members(group)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    """Wait for a condition while a process lives: imports take long on a busy machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(POLL_SECONDS)
