"""The command line: parse, call the library, print. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Each adds its commands to `app`, in the order of the help page.
from supermask.cli import running as running  # isort: skip
from supermask.cli import studies as studies  # isort: skip
from supermask.cli import conclusions as conclusions  # isort: skip
from supermask.cli import tickets as tickets  # isort: skip
from supermask.cli import masks as masks  # isort: skip
from supermask.cli import serving as serving  # isort: skip
from supermask.cli import reports as reports  # isort: skip
from supermask.cli import trackers as trackers  # isort: skip
from supermask.cli.app import app

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: one command, then the exit status."""
    from supermask.exit_status import exit_status

    # Read by torch when it is imported: runs are one thread each, and for small tensors more threads are slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(exit_status(app, sys.argv[1:] if arguments is None else arguments))
