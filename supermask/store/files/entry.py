"""Encoding of one entry of the store: sealed facts (`run.json`) and groups of tensors (safetensors).

Pure functions, bytes in and bytes out. Every hash is checked before content is parsed, including the header of a
tensor file: a damaged header could otherwise request any amount of memory.
"""

from __future__ import annotations

import hashlib
import json
import re
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

MAX_JSON_BYTES = 16 * 2**20
"""Bytes of `run.json`. The largest real one, a learned mask with 4,400 evaluations, has 0.4 MB."""
MAX_TENSOR_BYTES = 16 * 2**30
"""Bytes of a tensor file. A checkpoint of ResNet-50 under Adam has 0.4 GB."""

Kind = Literal["run", "point", "checkpoint"]
Group = Literal["tensors", "weights"]
Tensors = dict[str, "NDArray[Any]"]
RunFacts = dict[str, Any]


class CorruptEntry(SystemFailure):
    """A missing entry, or one that differs from what was committed. `what` is the reason."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(key, what)
        self.key = key
        """Id of the entry."""
        self.what = what
        """Reason, such as the file that differs."""

    def __str__(self) -> str:
        return (
            f"{self.key} in the store is damaged: {self.what}. "
            "`supermask verify --repair` sets it aside; run its study again to recompute it."
        )


class NewerFormat(UserError):
    """An entry in a store format that this version does not read. It is intact and must not be set aside."""

    def __init__(self, key: str, format: object) -> None:
        super().__init__(key, format)
        self.key = key
        self.format = format

    def __str__(self) -> str:
        return (
            f"{self.key} was written in store format {self.format}; this supermask reads format {FORMAT}. "
            "Use the supermask that wrote it, or choose another folder with --store."
        )


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

    @property
    def content(self) -> dict[str, str]:
        """Group -> hash of its tensors: equal for bit-identical entries."""
        return {group: info.content for group, info in self.files.items()}


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


def content_hashes(groups: Mapping[Group, Tensors]) -> dict[str, str]:
    """Return group -> `content_hash`, as an entry of these groups records it: empty groups have no file."""
    return {group: content_hash(tensors) for group, tensors in groups.items() if tensors or group == "tensors"}


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
    # What cannot be read back must not be committed.
    if _has_lone_surrogate(document):
        raise ValueError(f"the facts of {key} hold text that is not Unicode (a lone surrogate)")
    if len(files[RUN_JSON]) > MAX_JSON_BYTES or any(len(data) > MAX_TENSOR_BYTES for data in files.values()):
        raise ValueError(f"{key} is larger than a store entry may be")
    return files


def read_verified_facts(kind: Kind, key: str, data: bytes) -> VerifiedFacts:
    """Check `run.json` against its seal, form, kind and key. Raises CorruptEntry, NewerFormat."""
    try:
        document = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_no_duplicates)
        seal = document.pop("seal", None) if isinstance(document, dict) else None
        # The seal covers the canonical JSON, so reformatting the file by hand does not break it.
        intact = seal == _sha256(_canonical(document))
    except (ValueError, RecursionError) as error:
        raise CorruptEntry(key, f"{RUN_JSON} is not JSON ({error})") from error
    if not intact:
        raise CorruptEntry(key, f"{RUN_JSON} does not match its seal")
    written_format = document.get("format")
    if type(written_format) is int and written_format > FORMAT:
        raise NewerFormat(key, written_format)
    # The seal is not a signature: a sealed document may still be any JSON, so its form is checked before it is used.
    if type(written_format) is not int or written_format != FORMAT:
        raise CorruptEntry(key, f"{RUN_JSON} has no valid format number")
    if not (isinstance(document.get("kind"), str) and isinstance(document.get("key"), str)):
        raise CorruptEntry(key, f"{RUN_JSON} lacks its kind or key")
    if (document["kind"], document["key"]) != (kind, key):
        raise CorruptEntry(key, f"{RUN_JSON} belongs to {document['kind'][:20]} {document['key'][:80]}")
    if not isinstance(document.get("facts"), dict):
        raise CorruptEntry(key, f"{RUN_JSON} has no facts")
    # A lone surrogate can only come from an escape, which is rare: most documents need no second look.
    if b"\\ud" in data.lower() and _has_lone_surrogate(document):
        raise CorruptEntry(key, f"{RUN_JSON} holds text that is not Unicode (a lone surrogate)")
    return VerifiedFacts(document["facts"], _read_file_infos(key, document.get("files")))


def _read_file_infos(key: str, recorded: object) -> dict[str, TensorFileInfo]:
    """Return group -> size and hashes, after checking their form. Raises CorruptEntry."""
    if not isinstance(recorded, dict) or "tensors" not in recorded or recorded.keys() - {"tensors", "weights"}:
        raise CorruptEntry(key, f"{RUN_JSON} does not list its tensor files")
    infos = {}
    for group, info in recorded.items():
        size, *hashes = [info.get(name) for name in _FILE_INFO_KEYS] if isinstance(info, dict) else [None]
        is_valid = type(size) is int and 0 < size <= MAX_TENSOR_BYTES and len(info) == len(_FILE_INFO_KEYS)
        if not (is_valid and all(isinstance(value, str) and _SHA256.fullmatch(value) for value in hashes)):
            raise CorruptEntry(key, f"{RUN_JSON} records no valid size and hashes of {file_name(group)}")
        infos[group] = TensorFileInfo(**info)
    return infos


_FILE_INFO_KEYS = ("bytes", "sha256", "content")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _has_lone_surrogate(value: object) -> bool:
    """Return whether some text in plain data cannot be encoded, so that no file or terminal could take it."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_file(key: str, name: str, recorded: TensorFileInfo, data: bytes) -> None:
    """Check the bytes of a tensor file against their recorded size and hash. Raises CorruptEntry."""
    if len(data) != recorded.bytes:
        raise CorruptEntry(key, f"{name} has {len(data)} bytes, not {recorded.bytes}")
    if _sha256(data) != recorded.sha256:
        raise CorruptEntry(key, f"{name} does not match its SHA-256")


def decode_tensors(key: str, group: str, recorded: TensorFileInfo, data: bytes) -> Tensors:
    """Return the tensors of a file after checking its bytes, then its content. Raises CorruptEntry."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    name = file_name(group)
    check_file(key, name, recorded, data)
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
