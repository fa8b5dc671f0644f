"""Run a command line in a test: in this process or in a new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from supermask import cli
from supermask.cli.app import run_command


class Ended(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def call(*arguments: object) -> Ended:
    """Run a command line in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run_command(cli.app, [str(argument) for argument in arguments])
    return Ended(status, out.getvalue(), err.getvalue())


def supermask(*arguments: object, **environment: str) -> Ended:
    """Run a command line in a new process."""
    command = [sys.executable, "-m", "supermask", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def supermask_each(*commands: Sequence[object], **environment: str) -> list[Ended]:
    """Run command lines one after the other in one new process, which imports everything once."""
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[2]); from helpers.command_line import call; "
        "print(json.dumps([call(*words) for words in json.loads(sys.argv[1])]))"
    )
    words = json.dumps([[str(word) for word in command] for command in commands])
    command = [sys.executable, "-c", program, words, str(Path(__file__).parents[1])]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=True)
    return [Ended(*values) for values in json.loads(ended.stdout)]


def refused(ended: Ended, status: int = 2) -> str:
    """Assert that a command was refused with one message on standard error; return the message."""
    assert (ended.status, ended.out) == (status, ""), ended
    assert ended.err.startswith("supermask: ")
    assert ended.err.count("supermask: ") == 1
    assert "Traceback" not in ended.err
    return ended.err
