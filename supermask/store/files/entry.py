"""What one folder of the store holds, as bytes: sealed facts (`run.json`) and groups of tensors (safetensors).

Pure: bytes in, bytes out. Nothing is believed before its hash was checked, the tensor files' headers included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from supermask.core.errors import SystemFailure, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
RUN_JSON = "run.json"
LINE_WIDTH = 110

Kind = Literal["run", "point", "checkpoint"]
Group = Literal["tensors", "weights"]
Tensors = dict[str, "NDArray[Any]"]
RunFacts = dict[str, Any]


class CorruptEntry(SystemFailure):
    """An entry that is there but is not what was committed (or is not there at all). `what` says in which way."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(key, what)
        self.key = key
        self.what = what

    def __str__(self) -> str:
        return f"{self.key} in the store is damaged: {self.what}. Run its study again: it is set aside and recomputed."


@dataclass(frozen=True)
class Entry:
    """One committed folder. `weights` is None when they were dropped, and {} when the entry never had any."""

    facts: RunFacts
    tensors: Tensors
    weights: Tensors | None


@dataclass(frozen=True)
class TensorFileInfo:
    """What `run.json` promises about one tensor file."""

    bytes: int
    sha256: str
    content: str
    """SHA-256 over the tensors themselves: see `content_hash`."""


@dataclass(frozen=True)
class VerifiedFacts:
    """A `run.json` whose seal was checked."""

    facts: RunFacts
    files: dict[str, TensorFileInfo]


def file_name(group: str) -> str:
    """The file of a group of tensors."""
    return f"{group}.safetensors"


def content_hash(tensors: Tensors) -> str:
    """SHA-256 over each tensor's name, dtype, shape and little-endian bytes, in the order of the names.

    Equal for equal tensors, whatever wrote the file; NaNs and signed zeros count by their bits.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        plain = _little_endian(tensors[name])
        head = json.dumps([name, plain.dtype.str, list(plain.shape)]).encode()
        total.update(len(head).to_bytes(8, "little") + head)
        total.update(plain.tobytes())
    return total.hexdigest()


def encode_entry(kind: Kind, key: str, facts: RunFacts, groups: Mapping[Group, Tensors]) -> dict[str, bytes]:
    """File name -> bytes of an entry; an empty group of tensors has no file, except for the first group, `tensors`.

    Raises ValueError for facts that JSON cannot give back as they are (NaN, tuples, keys that are not strings).
    """
    from safetensors.numpy import save

    files: dict[str, bytes] = {}
    promised: dict[str, dict[str, int | str]] = {}
    for group, tensors in groups.items():
        if tensors or group == "tensors":
            data = save({name: _little_endian(tensor) for name, tensor in tensors.items()})
            files[file_name(group)] = data
            promised[group] = {"bytes": len(data), "sha256": _sha256(data), "content": content_hash(tensors)}
    document = {"format": FORMAT, "kind": kind, "key": key, "facts": facts, "files": promised}
    canonical = _canonical(document)
    if json.loads(canonical) != document:
        raise ValueError(f"the facts of {key} are not plain JSON (a tuple, or a key that is not a string?)")
    files[RUN_JSON] = (_pretty_json({**document, "seal": _sha256(canonical)}) + "\n").encode("ascii")
    return files


def read_verified_facts(kind: Kind, key: str, data: bytes) -> VerifiedFacts:
    """Check `run.json` against its own seal and its place. Raises Damaged; UserError when a newer version wrote it."""
    try:
        document = json.loads(data.decode(), parse_constant=_refuse, object_pairs_hook=_no_duplicates)
        seal = document.pop("seal", None) if isinstance(document, dict) else None
        intact = seal == _sha256(_canonical(document))
    except (ValueError, RecursionError) as error:
        raise CorruptEntry(key, f"{RUN_JSON} is not JSON ({error})") from error
    if not intact:
        raise CorruptEntry(key, f"{RUN_JSON} does not match its seal")
    if document.get("format") != FORMAT:
        raise UserError(
            f"{key} was written in store format {document.get('format')!r}; this supermask reads format {FORMAT}. "
            "Use the supermask that wrote it, or choose another folder with --store."
        )
    if (document["kind"], document["key"]) != (kind, key):
        raise CorruptEntry(key, f"{RUN_JSON} belongs to {document['kind']} {document['key']}")
    return VerifiedFacts(
        document["facts"], {group: TensorFileInfo(**promise) for group, promise in document["files"].items()}
    )


def decode_tensors(key: str, group: str, promise: TensorFileInfo, data: bytes) -> Tensors:
    """The tensors of a file whose bytes, and then whose content, are as promised. Raises Damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    name = file_name(group)
    if len(data) != promise.bytes:
        raise CorruptEntry(key, f"{name} has {len(data)} bytes, not {promise.bytes}")
    if _sha256(data) != promise.sha256:
        raise CorruptEntry(key, f"{name} does not match its SHA-256")
    try:
        tensors: Tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptEntry(key, f"{name} is not a safetensors file ({error})") from error
    if content_hash(tensors) != promise.content:
        raise CorruptEntry(key, f"{name} holds other tensors than were committed")
    return tensors


def _little_endian(tensor: NDArray[Any]) -> NDArray[Any]:
    """The same values, little-endian and contiguous (safetensors writes a strided array's memory as it lies)."""
    array = np.asarray(tensor)
    return np.require(array, dtype=array.dtype.newbyteorder("<"), requirements="C")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _pretty_json(value: object, indent: str = "") -> str:
    """JSON for a person: lists of numbers, and whatever else is short, on one line; the rest indented."""
    inner = indent + "  "
    if isinstance(value, dict):
        rows = [f"{json.dumps(name)}: {_pretty_json(v, inner)}" for name, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        rows = [_pretty_json(v, inner) for v in value]
    else:
        return json.dumps(value)
    left, right = "{}" if isinstance(value, dict) else "[]"
    line = left + ", ".join(rows) + right
    if indent and "\n" not in line and len(indent) + len(line) <= LINE_WIDTH:
        return line
    return f"{left}\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}{right}"


def _refuse(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(members := dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return members
