"""Ticket files as bytes: a safetensors file in one canonical form, with one text in its metadata.

The reader is not the safetensors library, because a file may come from anywhere. Before any content is used, the
reader knows that the file claims no more memory than it has bytes, and that its header is the only header with this
meaning. So no bit can change unnoticed. The safetensors library can read these files. Nothing in a file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np

from supermask.store.files.entry import Tensors

METADATA_KEY = "supermask.ticket"
"""The only key of the file's metadata. With two keys, libraries write different bytes in each process."""

MAX_HEADER = 4 * 2**20
"""Bytes. The header of FC has 5 kB, that of a network with 400 tensors about 60 kB."""

MAX_LENGTH = 2**40
"""Largest length of one dimension of a tensor, and largest product of those that are not 0."""

MAX_DIMENSIONS = 8

DTYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F32": np.dtype("<f4"), "U8": np.dtype("|u1")}
DTYPE_CODES = {dtype.newbyteorder("="): code for code, dtype in DTYPES.items()}

_TORCH_SAVE = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a zip archive and of a pickle, per protocol. A ticket whose header has 1,152 bytes begins with
`80 04` too."""


class InvalidTicket(ValueError):
    """A file that is not a complete ticket, or cannot be used. The text is a sentence to put after the file's name."""


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of one tensor, as the header gives them."""

    dtype: str
    """A key of `DTYPES`."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return prod(self.shape) * int(DTYPES[self.dtype].itemsize)


TensorSpecs = dict[str, TensorSpec]


def to_bytes(text: str, tensors: Tensors) -> bytes:
    """Encode a file: header length, header, tensors. Equal inputs give equal bytes in every process.

    Raises ValueError if the header would be larger than `MAX_HEADER`.
    """
    specs = {name: TensorSpec(DTYPE_CODES[array.dtype], array.shape) for name, array in tensors.items()}
    header = _encode_header(text, specs)
    if len(header) > MAX_HEADER:
        raise ValueError(f"names and facts need {len(header):,} bytes; a ticket holds {MAX_HEADER:,}")
    data = [tensors[name].astype(DTYPES[specs[name].dtype]).tobytes() for name in _storage_order(specs)]
    return b"".join([len(header).to_bytes(8, "little"), header, *data])


def read_header(file: IO[bytes], size: int) -> tuple[str, TensorSpecs]:
    """Read (text, tensor specs) from the beginning of a file of `size` bytes.

    Reads and allocates no more than the header. Raises InvalidTicket.
    """
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        if prefix.startswith(_TORCH_SAVE):
            raise InvalidTicket(
                "it is a pickle or a zip archive, as torch.save writes. Such files can execute code and are not opened."
            )
        raise InvalidTicket(f"it is not a safetensors file, or it is truncated: it has {size:,} bytes.")
    if length > MAX_HEADER:
        raise InvalidTicket(f"its header would have {length:,} bytes; that of a ticket has at most {MAX_HEADER:,}.")
    raw = file.read(length)
    text, specs = _parse_header(raw)
    if _encode_header(text, specs) != raw:
        raise InvalidTicket("its header is not in canonical form: it was changed, or another program wrote it.")
    expected_size = 8 + length + sum(spec.num_bytes for spec in specs.values())
    if expected_size != size:
        raise InvalidTicket(f"it has {size:,} bytes and should have {expected_size:,}.")
    return text, specs


def read_tensors(file: IO[bytes], specs: TensorSpecs) -> Tensors:
    """Read the tensors after the header, as read-only arrays. Raises InvalidTicket if the file ends too early."""
    tensors = {}
    for name in _storage_order(specs):
        spec = specs[name]
        data = file.read(spec.num_bytes)
        if len(data) != spec.num_bytes:
            raise InvalidTicket("it ends too early.")
        tensors[name] = np.frombuffer(data, DTYPES[spec.dtype]).reshape(spec.shape)
    return tensors


def canonical_json(value: object) -> str:
    """Format JSON in its canonical form: sorted keys, no spaces, ASCII.

    Raises ValueError for numbers that are not finite, TypeError for values without a JSON type.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_canonical_json(text: str) -> Any:
    """Parse JSON. Raises InvalidTicket unless the text is the canonical form of its value.

    Duplicate keys, NaN and other spellings of a number are refused, because they do not survive a round trip.
    """
    try:
        value = json.loads(text)
        canonical_text = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise InvalidTicket(f"its JSON cannot be read ({type(error).__name__}).") from error
    if canonical_text != text:
        raise InvalidTicket("its JSON is not in canonical form.")
    return value


def is_shape(value: object) -> bool:
    """Return whether the value is a list of at most `MAX_DIMENSIONS` lengths from 0 to `MAX_LENGTH`."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(length) is int and 0 <= length <= MAX_LENGTH for length in value)
    )


def _storage_order(specs: TensorSpecs) -> list[str]:
    # Widest type first, so that each tensor begins at a multiple of its own width; then by name.
    return sorted(specs, key=lambda name: (-DTYPES[specs[name].dtype].itemsize, name))


def _encode_header(text: str, specs: TensorSpecs) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: text}}
    end = 0
    for name in _storage_order(specs):
        spec = specs[name]
        begin, end = end, end + spec.num_bytes
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
    header = canonical_json(entries).encode("ascii")
    return header + b" " * (-len(header) % 8)


def _parse_header(raw: bytes) -> tuple[str, TensorSpecs]:
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidTicket(
            f"it is not a safetensors file: its header cannot be read ({type(error).__name__})."
        ) from error
    if not isinstance(entries, dict):
        raise InvalidTicket("it is not a safetensors file: its header is not an object.")
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get(METADATA_KEY), str):
        raise InvalidTicket(f"it may be a safetensors file, but not a ticket: its metadata has no {METADATA_KEY!r}.")
    return metadata[METADATA_KEY], {name: _parse_spec(entry) for name, entry in entries.items()}


def _parse_spec(entry: object) -> TensorSpec:
    if isinstance(entry, Mapping) and isinstance(entry.get("dtype"), str) and is_shape(entry.get("shape")):
        # NumPy bounds the product of a shape without its zeros: even of a tensor that has no bytes.
        if prod(length for length in entry["shape"] if length) > MAX_LENGTH:
            raise InvalidTicket("its header describes a tensor that is too large.")
        if entry["dtype"] in DTYPES:
            return TensorSpec(entry["dtype"], tuple(entry["shape"]))
        raise InvalidTicket(f"one of its tensors has a type that tickets do not have; they have {', '.join(DTYPES)}.")
    raise InvalidTicket("its header describes a tensor that is not possible.")
