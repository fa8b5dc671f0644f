"""Places that a ticket is loaded from: a file, a folder with `ticket.safetensors`, or a repository of the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from supermask.core.environment import check_path, expand_path
from supermask.core.errors import UserError, quote

TICKET_FILE = "ticket.safetensors"
"""Name of the ticket in a folder or a repository."""

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][\w./-]{{0,99}}))?", re.ASCII)


class Repository(NamedTuple):
    """A repository of the Hub and one of its revisions."""

    id: str
    """`owner/name`."""
    revision: str | None = None
    """Branch, tag or commit. None means `main`."""


def parse_repository(text: str) -> Repository:
    """Parse `owner/name` or `owner/name@revision`. Raises UserError."""
    match = _REPOSITORY.fullmatch(text)
    if match is None or ".." in text or "--" in match["id"]:
        raise UserError(
            f"{quote(text)} is not a repository of the Hub: give owner/name, with letters, digits, '-', '_' and '.'."
        )
    return Repository(match["id"], match["revision"])


def is_repository(source: str | os.PathLike[str]) -> bool:
    """Return whether a source means a repository: text of the form `owner/name` that names no existing path.

    A `Path`, a name of a file's suffix, and a path in an existing folder are always paths.
    """
    if not isinstance(source, str) or source.endswith((".safetensors", ".st")):
        return False
    try:
        repository = parse_repository(source)
    except UserError:
        return False
    return not os.path.lexists(source) and not Path(repository.id.partition("/")[0]).is_dir()


def is_ticket_source(source: str | os.PathLike[str]) -> bool:
    """Return whether a source is an existing file, a folder with a ticket, or has the form of a repository."""
    path = expand_path(os.fspath(source))
    # Unlike Path.is_file, this is False for a name that is too long for the file system.
    return os.path.isfile(path) or os.path.isfile(path / TICKET_FILE) or is_repository(source)  # noqa: PTH113


def locate_ticket(source: str | os.PathLike[str]) -> Path:
    """Return the file of a source; a repository is downloaded into the Hub's cache.

    Raises UserError for another object than a path or name, if the repository cannot be used or the extra `hub` is
    missing; SystemFailure if the network fails.
    """
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"{quote(source)} is not a ticket's path: give a file, a folder or a repository owner/name.")
    if isinstance(source, str) and is_repository(source):
        from supermask.export.tickets.hub import download_ticket

        return download_ticket(parse_repository(source))
    path = check_path(os.fspath(source))
    return path / TICKET_FILE if os.path.isfile(path / TICKET_FILE) else path  # noqa: PTH113
