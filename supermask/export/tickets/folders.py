"""Tickets as folders in the Hub's conventions: `ticket.safetensors`, `config.json` and the model card `README.md`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from supermask.core.environment import expand_path
from supermask.core.errors import SystemFailure, UserError, quote, sanitize
from supermask.core.files import write_atomic
from supermask.export.tickets.checks import check_ticket
from supermask.export.tickets.files import encode_ticket
from supermask.export.tickets.model import Ticket
from supermask.export.tickets.model_card import model_card, ticket_config
from supermask.export.tickets.sources import TICKET_FILE

FOLDER_FILES = (TICKET_FILE, "config.json", "README.md")
"""Files of a ticket's folder, in the order in which they are written. `push_ticket` sends these and no others."""


def save_ticket_folder(ticket: Ticket, folder: str | os.PathLike[str], force: bool = False) -> Path:
    """Write a ticket, its configuration and its model card into a folder, which is created.

    Existing files of these names are replaced only with `force`; other files are left alone.
    Raises UserError for a folder that cannot be written to, SystemFailure if the system fails.
    """
    target, data = expand_path(os.fspath(folder)), encode_ticket(ticket)
    check_output_folder(target, force)
    config = ticket_config(ticket, hashlib.sha256(data).hexdigest())
    contents = {
        TICKET_FILE: data,
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "README.md": model_card(ticket, check_ticket(ticket), config).encode("utf-8", errors="replace"),
    }
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in FOLDER_FILES:
            write_atomic(target / name, contents[name], durable=True)
    except OSError as error:
        raise SystemFailure(f"{sanitize(str(target))} cannot be written: {error.strerror or error}.") from error
    return target


def check_output_folder(target: Path, force: bool) -> None:
    """Raise UserError for a folder that `save_ticket_folder` would not write to."""
    for parent in [target, *target.parents]:
        if os.path.lexists(parent) and not parent.is_dir():
            raise UserError(f"{quote(str(parent))} is not a folder: give a folder, or a new name.")
    taken = [name for name in FOLDER_FILES if os.path.lexists(target / name)]
    if any(not (target / name).is_file() for name in taken):
        raise UserError(f"{quote(str(target))} has folders with the names of a ticket's files: give another folder.")
    if taken and not force:
        raise UserError(
            f"{quote(str(target))} has {taken[0]} already: give another folder, or --force (force=True) to replace "
            f"{', '.join(FOLDER_FILES)} there."
        )
