"""A ticket as one file, and back. Whatever is in a file, reading it executes nothing. The format: docs/tickets.md."""

from __future__ import annotations

import os
import stat
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from supermask.core.errors import SystemFailure, UserError, sanitize
from supermask.core.files import write_atomic
from supermask.core.types import Masks, Weights
from supermask.export.tickets import format
from supermask.export.tickets.container import InvalidTicket, read_header, read_tensors, to_bytes
from supermask.export.tickets.format import LayerEntry, TicketHeader, parse_header, unmasked_names
from supermask.export.tickets.model import Ticket
from supermask.store.files.entry import Tensors, content_hash

if TYPE_CHECKING:
    from torch import Tensor


def save_ticket(ticket: Ticket, path: str | os.PathLike[str], force: bool = False) -> Path:
    """Writes one file, whole or not at all; a file that is there is replaced only with `force`.

    Raises UserError for a place where no file can be, MachineError where the machine refuses.
    """
    target, data = Path(path), encode_ticket(ticket)
    check_output_path(target, force)
    try:
        write_atomic(target, data, durable=True)
    except OSError as error:
        raise SystemFailure(f"{_name(target)} cannot be written: {error.strerror or error}.") from error
    return target


def check_output_path(target: Path, force: bool) -> None:
    """Raises UserError for a place where `save_ticket` would not write."""
    if target.exists() and not target.is_file():
        raise UserError(f"{_name(target)} is a folder or a device: give the name of a file.")
    if os.path.lexists(target) and not force:
        raise UserError(f"{_name(target)} is there already: give another name, or --force (force=True) to replace it.")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{_name(target)} cannot be written: its folder is not there. Make it first.")


def load_ticket(path: str | os.PathLike[str]) -> Ticket:
    """The ticket in a file. Raises UserError for anything that is not a whole, unchanged ticket of a known format.

    What it may claim of memory is bounded by its own size until every bit of it is known to be what was written.
    """
    source = Path(path)
    try:
        if not stat.S_ISREG(source.stat().st_mode):
            raise UserError(f"{_name(source)} is not a file: give a ticket file, as `supermask pack` writes.")
        with source.open("rb") as file:
            return read_ticket(file, os.fstat(file.fileno()).st_size)
    except InvalidTicket as error:
        raise UserError(f"{_name(source)} is not a ticket that can be used: {error}") from error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{_name(source)} cannot be read: {error.strerror}. Give a ticket file.") from error
    except OSError as error:
        raise SystemFailure(f"{_name(source)} cannot be read: {error.strerror or error}.") from error


def read_ticket(file: IO[bytes], size: int) -> Ticket:
    """The ticket in a file of `size` bytes, from its beginning. Raises Refused."""
    text, slots = read_header(file, size)
    document = parse_header(text)
    others = unmasked_names(document, slots)
    tensors = read_tensors(file, slots)
    if content_hash(tensors) != document.content:
        raise InvalidTicket("its tensors are not those that were written: it is damaged. Get it again.")
    masks: Masks = {}
    weights: Weights = {}
    frozen: dict[str, Tensor | None] = {}
    for layer in document.layers:
        masks[layer.name] = mask = format.decode_mask(layer.name, tuple(layer.shape), layer.kept, tensors)
        if layer.weights != "from_seed":
            weights[layer.name] = format.decode_weights(layer.name, mask, tensors)
        if layer.frozen != "zero":
            given = layer.frozen == "values"
            frozen[layer.name] = format.decode_frozen(layer.name, mask, tensors) if given else None
    try:
        return Ticket(
            masks,
            weights,
            frozen=frozen,
            others=_as_tensors(others, tensors) if document.others_given else None,
            network=document.network,
            dataset=document.dataset,
            seed=document.seed,
            initial_content=document.initial_content,
            facts=document.facts,
        )
    except UserError as error:
        raise InvalidTicket(str(error)) from error


def encode_ticket(ticket: Ticket) -> bytes:
    """The file of a ticket: the same bytes for the same ticket. Raises UserError for facts that are not plain JSON."""
    tensors: Tensors = {}
    layers = []
    for name, mask in ticket.masks.items():
        tensors |= format.encode_layer(name, mask, ticket.weights, ticket.frozen)
        how = (
            format.choose_weight_encoding(name, mask, ticket.weights),
            format.choose_frozen_encoding(name, mask, ticket.frozen),
        )
        layers.append(LayerEntry(name, list(mask.shape), int(mask.sum()), *how))
    tensors |= {f"other/{name}": tensor.numpy() for name, tensor in (ticket.others or {}).items()}
    document = TicketHeader(
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
        return to_bytes(document.text(), tensors)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the ticket cannot be written: {error}.") from error


def size_by_part(ticket: Ticket) -> dict[str, int]:
    """Bytes that each part takes in the ticket's file: `masks`, `weights`, `others`, `header`."""
    sizes = dict.fromkeys(("masks", "weights", "others"), 0)
    data = encode_ticket(ticket)
    _, slots = read_header(BytesIO(data), len(data))
    for name, slot in slots.items():
        sizes[{"mask": "masks", "other": "others"}.get(name.partition("/")[0], "weights")] += slot.bytes
    return sizes | {"header": len(data) - sum(sizes.values())}


def _as_tensors(names: list[str], tensors: Tensors) -> Weights:
    import torch

    return {name.removeprefix("other/"): torch.from_numpy(tensors[name].copy()) for name in names}


def _name(path: Path) -> str:
    return sanitize(str(path))
