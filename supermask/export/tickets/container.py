"""A safetensors file as bytes, in one canonical form, with one text in its metadata. Nothing in it is executed.

Written and read here, not by the safetensors library (which reads what is written here), because of a file from
anywhere two things have to be known before a byte of it is believed: that it claims no more memory than it has bytes,
and that its header is the only one that says what it says, so that no bit of it can be changed unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np

from supermask.store.files.entry import Tensors

KEY = "supermask.ticket"
"""The one key of the file's metadata: with two, libraries write other bytes in each process."""

MAX_HEADER = 4 * 2**20
"""Bytes. FC's is 5 kB, and that of a network with 400 tensors about 60 kB."""

LARGEST_LENGTH = 2**40
MAX_DIMENSIONS = 8

DTYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F32": np.dtype("<f4"), "U8": np.dtype("|u1")}
CODES = {dtype.newbyteorder("="): code for code, dtype in DTYPES.items()}

_TORCH_SAVE = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a zip archive, and a pickle of each protocol in use, begin. So may a ticket: its header may have 1,152 bytes."""


class InvalidTicket(ValueError):
    """A file that is not a whole ticket, or is of no use here. The text says why, to go on after the file's name."""


@dataclass(frozen=True)
class TensorSpec:
    """What the header says of one tensor."""

    dtype: str
    """A key of `DTYPES`."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * int(DTYPES[self.dtype].itemsize)


TensorSpecs = dict[str, TensorSpec]


def to_bytes(text: str, tensors: Tensors) -> bytes:
    """The file: header length, header, tensors. The same bytes for the same text and tensors, in every process.

    Raises ValueError if the header would be larger than what `open_header` takes.
    """
    slots = {name: TensorSpec(CODES[array.dtype], array.shape) for name, array in tensors.items()}
    header = _header(text, slots)
    if len(header) > MAX_HEADER:
        raise ValueError(f"names and facts come to {len(header):,} bytes; a ticket holds {MAX_HEADER:,}")
    data = [tensors[name].astype(DTYPES[slots[name].dtype]).tobytes() for name in _in_order(slots)]
    return b"".join([len(header).to_bytes(8, "little"), header, *data])


def read_header(file: IO[bytes], size: int) -> tuple[str, TensorSpecs]:
    """The text and what tensors follow, read from the beginning of a file of `size` bytes.

    Nothing larger than the header is read or made. Raises Refused.
    """
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        if first.startswith(_TORCH_SAVE):
            raise InvalidTicket(
                "it is a pickle or a zip archive, as torch.save writes: nothing of the kind is ever opened."
            )
        raise InvalidTicket(f"it is no safetensors file, or cut short: it has {size:,} bytes.")
    if length > MAX_HEADER:
        raise InvalidTicket(f"its header would be {length:,} bytes; a ticket's are {MAX_HEADER:,} at the most.")
    raw = file.read(length)
    text, slots = _parsed(raw)
    if _header(text, slots) != raw:
        raise InvalidTicket("its header is not written as a ticket's is: it was changed, or another program wrote it.")
    promised = 8 + length + sum(slot.bytes for slot in slots.values())
    if promised != size:
        raise InvalidTicket(f"it has {size:,} bytes and should have {promised:,}.")
    return text, slots


def read_tensors(file: IO[bytes], slots: TensorSpecs) -> Tensors:
    """What follows the header. The arrays cannot be written to. Raises Refused if the file has ended before."""
    tensors = {}
    for name in _in_order(slots):
        slot = slots[name]
        data = file.read(slot.bytes)
        if len(data) != slot.bytes:
            raise InvalidTicket("it ends too early.")
        tensors[name] = np.frombuffer(data, DTYPES[slot.dtype]).reshape(slot.shape)
    return tensors


def canonical_json(value: object) -> str:
    """JSON in the one way that tickets have it: sorted keys, no spaces, ASCII.

    Raises ValueError for numbers that are not finite, TypeError for what JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_canonical_json(text: str) -> Any:
    """The value of which `text` is the canonical JSON. Raises Refused for any other text.

    A key that is there twice, NaN, another spelling of a number: written again, none of them is the same text.
    """
    try:
        value = json.loads(text)
        again = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise InvalidTicket(f"its JSON cannot be read ({type(error).__name__}).") from error
    if again != text:
        raise InvalidTicket("its JSON is not written as a ticket's is.")
    return value


def _in_order(slots: TensorSpecs) -> list[str]:
    """The widest numbers first, so that each tensor begins at a multiple of its own width; then by name."""
    return sorted(slots, key=lambda name: (-DTYPES[slots[name].dtype].itemsize, name))


def _header(text: str, slots: TensorSpecs) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {KEY: text}}
    end = 0
    for name in _in_order(slots):
        slot = slots[name]
        begin, end = end, end + slot.bytes
        entries[name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [begin, end]}
    header = canonical_json(entries).encode("ascii")
    return header + b" " * (-len(header) % 8)


def _parsed(raw: bytes) -> tuple[str, TensorSpecs]:
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidTicket(
            f"it is no safetensors file: its header cannot be read ({type(error).__name__})."
        ) from error
    if not isinstance(entries, dict):
        raise InvalidTicket("it is no safetensors file: its header is not an object.")
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get(KEY), str):
        raise InvalidTicket(f"it may be a safetensors file, but it is no ticket: its metadata has no {KEY!r}.")
    return metadata[KEY], {name: _slot(entry) for name, entry in entries.items()}


def _slot(entry: object) -> TensorSpec:
    if isinstance(entry, Mapping) and isinstance(entry.get("dtype"), str) and is_shape(entry.get("shape")):
        if entry["dtype"] in DTYPES:
            return TensorSpec(entry["dtype"], tuple(entry["shape"]))
        raise InvalidTicket(f"one of its tensors is not of a type that tickets have ({', '.join(DTYPES)}).")
    raise InvalidTicket("its header describes a tensor that cannot be.")


def is_shape(value: object) -> bool:
    """Whether it is a list of a few lengths that a tensor can have."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(length) is int and 0 <= length <= LARGEST_LENGTH for length in value)
    )
