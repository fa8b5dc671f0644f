"""Exceptions with an exit status, and text for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """An input cannot be used. The message says what was given, what is allowed and what to do. Exit status 2."""

    exit_status = 2
    """Exit status of the command line."""


class SystemFailure(Exception):
    """The system failed: disk full, read-only, worker killed. The message says what to do. Exit status 1."""

    exit_status = 1
    """Exit status of the command line."""


class RunsRefused(SystemFailure):
    """Runs were trained, but their certificates failed: they are not results. Exit status 3."""

    exit_status = 3


ALIASES = {"gpu": "cuda", "magnitude": "large_final", "l1": "large_final"}
"""Usual names elsewhere -> names here; suggested if they are allowed."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest allowed name, or an empty string if none is near."""
    names = list(allowed)
    alias = ALIASES.get(given.lower())
    near = [alias] if alias in names else [name for name in names if name.lower() == given.lower()][:1]
    near = near or difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return f"; did you mean {quote(near[0])}?" if near else ""


def quote(value: object) -> str:
    """Format a value for a message: one line, without control characters, at most 80 characters."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 300 else "a number of many digits"
    return text if len(text) <= 80 else text[:76] + " ..."


def sanitize(name: str) -> str:
    """Replace unprintable characters of a name by `?` and cut it to 100 characters."""
    return "".join(c if c.isprintable() else "?" for c in name)[:100]


def check_one_of(what: str, given: str, allowed: Sequence[str]) -> None:
    """Raise UserError if `given` is not one of `allowed`. `what` names the kind, such as `a tracker`."""
    if given not in allowed:
        near = did_you_mean(given, allowed) or "."
        raise UserError(f"{quote(given)} is not {what}{near} Allowed: {', '.join(allowed)}.")
