"""Reading and writing of ticket files. Nothing in a file is executed. Format: docs/tickets.md."""

from __future__ import annotations

import os
import stat
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from supermask.core.environment import check_path
from supermask.core.errors import SystemFailure, UserError, sanitize
from supermask.core.files import write_atomic
from supermask.core.types import Masks, Weights
from supermask.export.tickets import format
from supermask.export.tickets.container import InvalidTicket, read_header, read_tensors, to_bytes
from supermask.export.tickets.format import LayerEntry, TicketHeader, parse_header, unmasked_names
from supermask.export.tickets.model import Ticket
from supermask.export.tickets.sources import locate_ticket
from supermask.store.files.entry import Tensors, content_hash

if TYPE_CHECKING:
    from torch import Tensor


def save_ticket(ticket: Ticket, path: str | os.PathLike[str], force: bool = False) -> Path:
    """Write a ticket to one file, atomically. An existing file is replaced only with `force`.

    Raises UserError for a path that cannot be written to, SystemFailure if the system fails.
    """
    target, data = check_path(os.fspath(path)), encode_ticket(ticket)
    check_output_path(target, force)
    try:
        write_atomic(target, data, durable=True)
    except OSError as error:
        raise SystemFailure(f"{_display_name(target)} cannot be written: {error.strerror or error}.") from error
    return target


def check_output_path(target: Path, force: bool) -> None:
    """Raise UserError for a path that `save_ticket` would not write to."""
    if target.exists() and not target.is_file():
        raise UserError(f"{_display_name(target)} is a folder or a device: give the name of a file.")
    if os.path.lexists(target) and not force:
        raise UserError(
            f"{_display_name(target)} exists already: give another name, or --force (force=True) to replace it."
        )
    if not target.absolute().parent.is_dir():
        raise UserError(f"{_display_name(target)} cannot be written: its folder does not exist. Create it first.")


def load_ticket(source: str | os.PathLike[str]) -> Ticket:
    """Read a ticket from a file, from a folder of `supermask pack --to-folder`, or from a repository of the Hub.

    A string `owner/name` or `owner/name@revision` that names no path is a repository; it needs the extra `hub`.
    Until every hash is verified, memory use is bounded by the size of the file.
    Raises UserError for anything but a complete, unchanged ticket of a known format; SystemFailure if the system or the
    network fails.
    """
    return read_ticket_file(locate_ticket(source))


def read_ticket_file(source: Path) -> Ticket:
    """Read a ticket from a file. Raises as `load_ticket` does."""
    try:
        if not stat.S_ISREG(source.stat().st_mode):
            raise UserError(f"{_display_name(source)} is not a file: give a ticket file, as `supermask pack` writes.")
        with source.open("rb") as file:
            return read_ticket(file, os.fstat(file.fileno()).st_size)
    except InvalidTicket as error:
        raise UserError(f"{_display_name(source)} is not a ticket that can be used: {error}") from error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{_display_name(source)} cannot be read: {error.strerror}. Give a ticket file.") from error
    except OSError as error:
        raise SystemFailure(f"{_display_name(source)} cannot be read: {error.strerror or error}.") from error


def read_ticket(file: IO[bytes], size: int) -> Ticket:
    """Read a ticket from the beginning of a file of `size` bytes. Raises InvalidTicket."""
    text, specs = read_header(file, size)
    header = parse_header(text)
    stored_unmasked = unmasked_names(header, specs)
    tensors = read_tensors(file, specs)
    if content_hash(tensors) != header.content:
        raise InvalidTicket("its tensors do not match their checksum: it is damaged. Get the file again.")
    masks: Masks = {}
    weights: Weights = {}
    frozen: dict[str, Tensor | None] = {}
    for layer in header.layers:
        masks[layer.name] = mask = format.decode_mask(layer.name, tuple(layer.shape), layer.kept, tensors)
        if layer.weights != "from_seed":
            weights[layer.name] = format.decode_weights(layer.name, mask, tensors)
        if layer.frozen != "zero":
            is_stored = layer.frozen == "values"
            frozen[layer.name] = format.decode_frozen(layer.name, mask, tensors) if is_stored else None
    try:
        return Ticket(
            masks,
            weights,
            frozen=frozen,
            others=_decode_unmasked(stored_unmasked, tensors) if header.others_given else None,
            network=header.network,
            dataset=header.dataset,
            seed=header.seed,
            initial_content=header.initial_content,
            facts=header.facts,
        )
    except UserError as error:
        raise InvalidTicket(str(error)) from error


def encode_ticket(ticket: Ticket) -> bytes:
    """Encode a ticket as the bytes of its file; equal tickets give equal bytes.

    Raises UserError for another object than a ticket, and for facts that are not plain JSON.
    """
    if not isinstance(ticket, Ticket):
        raise UserError(f"{type(ticket).__name__} is not a ticket: give supermask.Ticket(masks, weights, others).")
    tensors: Tensors = {}
    layers = []
    for name, mask in ticket.masks.items():
        tensors |= format.encode_layer(name, mask, ticket.weights, ticket.frozen)
        encodings = (
            format.choose_weight_encoding(name, mask, ticket.weights),
            format.choose_frozen_encoding(name, mask, ticket.frozen),
        )
        layers.append(LayerEntry(name, list(mask.shape), int(mask.sum()), *encodings))
    tensors |= {f"other/{name}": tensor.numpy() for name, tensor in (ticket.others or {}).items()}
    header = TicketHeader(
        network=ticket.network,
        dataset=ticket.dataset,
        seed=ticket.seed,
        initial_content=ticket.initial_content,
        layers=layers,
        others_given=ticket.others is not None,
        facts=ticket.facts,
        content=content_hash(tensors),
    )
    try:
        return to_bytes(header.text(), tensors)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the ticket cannot be written: {error}.") from error


def size_by_part(ticket: Ticket) -> dict[str, int]:
    """Return the number of bytes of each part of the ticket's file: `masks`, `weights`, `others`, `header`."""
    sizes = dict.fromkeys(("masks", "weights", "others"), 0)
    data = encode_ticket(ticket)
    _, specs = read_header(BytesIO(data), len(data))
    for name, spec in specs.items():
        sizes[{"mask": "masks", "other": "others"}.get(name.partition("/")[0], "weights")] += spec.num_bytes
    return sizes | {"header": len(data) - sum(sizes.values())}


def _decode_unmasked(names: list[str], tensors: Tensors) -> Weights:
    import torch

    # Copies: arrays read from a file are read-only, and torch has no read-only tensors.
    return {name.removeprefix("other/"): torch.from_numpy(tensors[name].copy()) for name in names}


def _display_name(path: Path) -> str:
    return sanitize(str(path))
