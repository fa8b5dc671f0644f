"""Encoding of one entry of the store: sealed facts (`run.json`) and groups of tensors (safetensors).

Pure functions, bytes in and bytes out. Every hash is checked before content is parsed, including the header of a
tensor file: a damaged header could otherwise request any amount of memory.
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
"""Version of the layout below. A reader refuses other versions."""
RUN_JSON = "run.json"
LINE_WIDTH = 110
"""Characters per line of `run.json`. Layout only: the seal does not depend on it."""

Kind = Literal["run", "point", "checkpoint"]
Group = Literal["tensors", "weights"]
Tensors = dict[str, "NDArray[Any]"]
RunFacts = dict[str, Any]


class CorruptEntry(SystemFailure):
    """A missing entry, or one that differs from what was committed. `what` is the reason."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(key, what)
        self.key = key
        self.what = what

    def __str__(self) -> str:
        return f"{self.key} in the store is damaged: {self.what}. Run its study again: it is set aside and recomputed."


@dataclass(frozen=True)
class Entry:
    """One committed folder. `weights`: None if they were dropped, {} if the entry never had any."""

    facts: RunFacts
    tensors: Tensors
    weights: Tensors | None


@dataclass(frozen=True)
class TensorFileInfo:
    """Size and hashes of one tensor file, as recorded in `run.json`."""

    bytes: int
    sha256: str
    content: str
    """SHA-256 of the tensors, independent of the file's layout: see `content_hash`."""


@dataclass(frozen=True)
class VerifiedFacts:
    """The content of a `run.json` whose seal was checked."""

    facts: RunFacts
    files: dict[str, TensorFileInfo]


def file_name(group: str) -> str:
    """Return the file name of a group of tensors."""
    return f"{group}.safetensors"


def content_hash(tensors: Tensors) -> str:
    """Return the SHA-256 over each tensor's name, dtype, shape and little-endian bytes, sorted by name.

    Equal for bit-identical tensors, whatever wrote the file: safetensors may order its metadata differently in each
    process. NaNs and signed zeros count by their bits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = _little_endian(tensors[name])
        header = json.dumps([name, array.dtype.str, list(array.shape)]).encode()
        # The length prefix keeps (header, bytes) pairs unambiguous when concatenated.
        digest.update(len(header).to_bytes(8, "little") + header)
        digest.update(array.tobytes())
    return digest.hexdigest()


def encode_entry(kind: Kind, key: str, facts: RunFacts, groups: Mapping[Group, Tensors]) -> dict[str, bytes]:
    """Return file name -> bytes of an entry. An empty group has no file, except for the group `tensors`.

    Raises ValueError for facts that JSON does not preserve (NaN, tuples, keys that are not strings).
    """
    from safetensors.numpy import save

    files: dict[str, bytes] = {}
    recorded: dict[str, dict[str, int | str]] = {}
    for group, tensors in groups.items():
        if tensors or group == "tensors":
            data = save({name: _little_endian(tensor) for name, tensor in tensors.items()})
            files[file_name(group)] = data
            recorded[group] = {"bytes": len(data), "sha256": _sha256(data), "content": content_hash(tensors)}
    document = {"format": FORMAT, "kind": kind, "key": key, "facts": facts, "files": recorded}
    canonical = _canonical(document)
    # Without this check a tuple would be sealed as a list and read back as a different value.
    if json.loads(canonical) != document:
        raise ValueError(f"the facts of {key} are not plain JSON (a tuple, or a key that is not a string?)")
    files[RUN_JSON] = (_pretty_json({**document, "seal": _sha256(canonical)}) + "\n").encode("ascii")
    return files


def read_verified_facts(kind: Kind, key: str, data: bytes) -> VerifiedFacts:
    """Check `run.json` against its seal, kind and key. Raises CorruptEntry; UserError for a newer store format."""
    try:
        document = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_no_duplicates)
        seal = document.pop("seal", None) if isinstance(document, dict) else None
        # The seal covers the canonical JSON, so reformatting the file by hand does not break it.
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
        document["facts"], {group: TensorFileInfo(**info) for group, info in document["files"].items()}
    )


def decode_tensors(key: str, group: str, recorded: TensorFileInfo, data: bytes) -> Tensors:
    """Return the tensors of a file after checking its bytes, then its content. Raises CorruptEntry."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    name = file_name(group)
    if len(data) != recorded.bytes:
        raise CorruptEntry(key, f"{name} has {len(data)} bytes, not {recorded.bytes}")
    if _sha256(data) != recorded.sha256:
        raise CorruptEntry(key, f"{name} does not match its SHA-256")
    try:
        tensors: Tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptEntry(key, f"{name} is not a safetensors file ({error})") from error
    if content_hash(tensors) != recorded.content:
        raise CorruptEntry(key, f"{name} holds tensors other than those committed")
    return tensors


def _little_endian(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return the values little-endian and contiguous: safetensors writes a strided array's memory unchanged."""
    array = np.asarray(tensor)
    return np.require(array, dtype=array.dtype.newbyteorder("<"), requirements="C")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _pretty_json(value: object, indent: str = "") -> str:
    """Return JSON for people: lists of numbers and short values on one line, everything else indented."""
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


def _refuse_constant(literal: str) -> NoReturn:
    # Python's json reads NaN and Infinity, which JSON does not have; a comparison with NaN would always fail.
    raise ValueError(f"{literal} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # With a duplicate key two parsers may read two different documents under one seal.
    if len(members := dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return members
