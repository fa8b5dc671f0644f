"""Carrying out a command line in a test: in this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

from supermask import cli
from supermask.cli.app import run_command


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def call(*arguments: object) -> Ended:
    """Carries out a command line in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run_command(cli.app, [str(argument) for argument in arguments])
    return Ended(status, out.getvalue(), err.getvalue())


def supermask(*arguments: object, **environment: str) -> Ended:
    """Carries out a command line in a process of its own."""
    command = [sys.executable, "-m", "supermask", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def refused(ended: Ended, status: int = 2) -> str:
    """The one message of a command that was refused."""
    assert (ended.status, ended.out) == (status, ""), ended
    assert ended.err.startswith("supermask: ")
    assert ended.err.count("supermask: ") == 1
    assert "Traceback" not in ended.err
    return ended.err
