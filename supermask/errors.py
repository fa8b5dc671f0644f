"""The two ways a command can fail, told apart by whose turn it is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something given cannot be used. The text says what was given, what is allowed, what to do. Exit status 2."""

    exit_status = 2


class MachineError(Exception):
    """The machine refused: disk full, read-only, worker killed. The text says what and what to do. Exit status 1."""

    exit_status = 1


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest allowed name, or an empty string when none is near."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
