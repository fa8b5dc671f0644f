"""Command-line interface: parse the arguments, call `supermask.api`, print. Heavy modules are imported by the commands.

`app` holds the typer application and the error handling; every other module adds commands to it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Importing a module registers its commands; the order here is the order of the help page.
from supermask.cli import train  # isort: skip
from supermask.cli import results  # isort: skip
from supermask.cli import conclusions  # isort: skip
from supermask.cli import data  # isort: skip
from supermask.cli import tickets  # isort: skip
from supermask.cli import trackers  # isort: skip
from supermask.cli import stores  # isort: skip
from supermask.cli.app import app

__all__ = ["app", "conclusions", "data", "main", "results", "stores", "tickets", "trackers", "train"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status. `arguments` defaults to `sys.argv[1:]`."""
    from supermask.cli.app import run_command

    # torch reads this when it is imported. Each run uses one thread: for small tensors more threads are slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(run_command(app, sys.argv[1:] if arguments is None else arguments))
