"""The two ways a command can fail, told apart by whose turn it is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something given cannot be used. The text says what was given, what is allowed, what to do. Exit status 2."""

    exit_status = 2


class SystemFailure(Exception):
    """The machine refused: disk full, read-only, worker killed. The text says what and what to do. Exit status 1."""

    exit_status = 1


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest allowed name, or an empty string when none is near."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def quote(value: object) -> str:
    """A value as a message shows it: on one line, without control characters, at most 80 characters."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 300 else "a number of many digits"
    return text if len(text) <= 80 else text[:76] + " ..."


def sanitize(name: str) -> str:
    """A file's name or stem, fit to be shown: characters that are not printable become `?`."""
    return "".join(c if c.isprintable() else "?" for c in name)[:100]


def check_one_of(what: str, given: str, allowed: Sequence[str]) -> None:
    """Raises UserError for a word that is not allowed."""
    if given not in allowed:
        near = did_you_mean(given, allowed) or "."
        raise UserError(f"{quote(given)} is not {what}{near} Allowed: {', '.join(allowed)}.")
