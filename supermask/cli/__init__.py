"""The command line: parse, call the library, print. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Each adds its commands to `app`, in the order of the help page.
from supermask.cli import train  # isort: skip
from supermask.cli import results  # isort: skip
from supermask.cli import tickets  # isort: skip
from supermask.cli import trackers  # isort: skip
from supermask.cli.app import app

__all__ = ["app", "main", "results", "tickets", "trackers", "train"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: one command, then the exit status."""
    from supermask.cli.app import run_command

    # Read by torch when it is imported: runs are one thread each, and for small tensors more threads are slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(run_command(app, sys.argv[1:] if arguments is None else arguments))
