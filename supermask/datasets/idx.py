"""IDX files, gzip-compressed or not: the format of MNIST and the datasets made in its image.

IDX format: big-endian magic number (type 8 = uint8, number of dimensions), dimensions, then the bytes.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from supermask.datasets.arrays import locator_error
from supermask.datasets.images import (
    Allocate,
    ArrayShapes,
    DatasetFiles,
    RawDataset,
    corrupt_file_error,
    translate_os_errors,
)
from supermask.datasets.locators import Locator
from supermask.datasets.specs import MAX_IMAGES, MAX_SIDE

ROLES = ("train_images", "train_labels", "test_images", "test_labels")
"""The four files of a dataset, in the order of all functions here."""
MAX_FOLDER_DEPTH = 12
"""Depth to which files are searched below a dataset's folder."""
_MAX_FOLDERS = 10_000
_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<split>train|t10k|test)[-_.]?(?P<what>images|labels)([-_.]?idx[13])?([-_.]ubyte)?(\.gz)?",
    re.IGNORECASE,
)
_CHUNK = 1 << 20
_OTHER_TYPES = {0x09: "int8", 0x0B: "16-bit", 0x0C: "32-bit", 0x0D: "float32", 0x0E: "float64"}
"""Third byte of the magic number -> type of the values."""
_MAX_BYTES = 1 << 36


def find_in_folder(locator: Locator, path: Path) -> DatasetFiles:
    """Return the four files of `idx:FOLDER`. Raises UserError if there are not exactly four."""
    if not path.is_dir():
        raise locator_error(locator.text, f"{path} is not a folder; expected the folder of four IDX files")
    files = search_files(path)
    if files is None:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise locator_error(
            locator.text,
            f"four IDX files expected (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
            f"t10k-labels-idx1-ubyte, each plain or .gz; 'test' may stand for 't10k'), found {names} in {path}",
        )
    return DatasetFiles(files, partial(decode_any, locator, files))


def decode_any(locator: Locator, files: Sequence[Path], allocate: Allocate) -> RawDataset:
    """Return the arrays of four files of any size. Raises UserError for damaged files or parts that do not fit."""
    hint = "the four IDX files, uint8, images of shape (images, height, width)"
    shapes = [read_shape(path, 3 if "images" in role else 1, hint) for role, path in zip(ROLES, files, strict=True)]
    for images, labels, path in ((shapes[0], shapes[1], files[1]), (shapes[2], shapes[3], files[3])):
        if images[0] != labels[0]:
            raise locator_error(locator.text, f"{path} has {labels[0]:,} labels for {images[0]:,} images")
        if images[0] == 0:
            raise locator_error(locator.text, f"{path} is of 0 images")
    if shapes[0][1:] != shapes[2][1:]:
        sizes = " and ".join("x".join(map(str, shapes[part][1:])) for part in (0, 2))
        raise locator_error(locator.text, f"training and test images differ in size: {sizes}")
    arrays = allocate(ArrayShapes((1, shapes[0][1], shapes[0][2]), shapes[0][0], shapes[2][0]))
    for part, out in enumerate(arrays):
        out.images[:] = read_idx(files[2 * part], shapes[2 * part], hint)[:, None]
        out.labels[:] = read_idx(files[2 * part + 1], shapes[2 * part + 1], hint)
    return RawDataset(*arrays)


def search_files(
    top: Path, prefix: str = "", accepts: Callable[[Path], bool] = Path.is_file
) -> tuple[Path, ...] | None:
    """Return the four files of the folder nearest to `top` that has them all, or of folders below it; None without.

    Names may have '.' or '_' for '-' and end in .gz; `t10k` and `test` are the same. A folder may have the name of the
    file in it, as in some archives. `prefix`: letters and digits with which the names begin, such as `emnistletters`.
    """
    by_folder: dict[Path, dict[str, Path]] = {}
    for path in walk_files(top):
        match = _NAME.fullmatch(path.name)
        if match is None or (prefix and normalize(match["prefix"]) != prefix) or not accepts(path):
            continue
        role = f"{'train' if match['split'].lower() == 'train' else 'test'}_{match['what'].lower()}"
        # A file in a folder of its own name belongs to the folder above.
        folder = path.parent.parent if _NAME.fullmatch(path.parent.name) else path.parent
        # The plain file, which needs no unpacking, before the compressed one.
        known = by_folder.setdefault(folder, {})
        if role not in known or len(path.name) < len(known[role].name):
            known[role] = path
    complete = [files for files in by_folder.values() if len(files) == len(ROLES)]
    return tuple(complete[0][role] for role in ROLES) if complete else None


def normalize(name: str) -> str:
    """Return the letters and digits of a name in lower case, so that `Fashion_MNIST` and `fashion-mnist` are equal."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def walk_files(top: Path) -> Iterator[Path]:
    """Yield the files below a folder, level by level, by name. Links are followed; a folder is visited once."""
    level, visited = [top], set[Path]()
    for _ in range(MAX_FOLDER_DEPTH):
        folders: list[Path] = []
        for folder in level:
            with suppress(OSError):
                resolved = folder.resolve()
                if resolved in visited or not folder.is_dir() or len(visited) > _MAX_FOLDERS:
                    continue
                visited.add(resolved)
                entries = sorted(folder.iterdir())
                folders += [path for path in entries if path.is_dir()]
                yield from (path for path in entries if path.is_file())
        level = sorted(folders)


def read_shape(path: Path, dimensions: int, download_hint: str) -> tuple[int, ...]:
    """Return the shape in the header of a uint8 IDX file. Raises UserError for another file."""
    header_size = 4 + 4 * dimensions
    content, _ = _read_at_most(path, header_size, download_hint)
    _check_magic(path, bytes(content[:4]), dimensions, download_hint)
    if len(content) < header_size:
        raise corrupt_file_error(path, f"truncated: it ends after {len(content)} bytes, in its header", download_hint)
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=dimensions, offset=4))
    if shape[0] > MAX_IMAGES or any(not 1 <= side <= MAX_SIDE for side in shape[1:]) or math.prod(shape) > _MAX_BYTES:
        raise corrupt_file_error(path, f"its header says {_format_shape(shape)}, which is too large", download_hint)
    return shape


def read_idx(path: Path, shape: tuple[int, ...], download_hint: str) -> NDArray[np.uint8]:
    """Return the uint8 array of exactly this `shape`; gzip is recognized by the first two bytes, not by the name.

    Raises UserError for another magic number, other dimensions, missing or surplus bytes, and broken gzip.
    """
    header_size = 4 + 4 * len(shape)
    expected_size = header_size + math.prod(shape)
    content, compressed = _read_at_most(path, expected_size + 1, download_hint)
    _check_magic(path, bytes(content[:4]), len(shape), download_hint)
    if len(content) >= header_size:
        stored_shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=len(shape), offset=4))
        if stored_shape != shape:
            reason = f"its header says {_format_shape(stored_shape)}; {_format_shape(shape)} expected"
            raise corrupt_file_error(path, reason, download_hint)
    if len(content) < expected_size:
        reason = f"truncated: {expected_size:,} bytes expected, {len(content):,} found"
        raise corrupt_file_error(path, reason, download_hint)
    if len(content) > expected_size:
        size = "more" if compressed else f"{path.stat().st_size:,}"
        reason = f"bytes after its end: {expected_size:,} bytes expected, {size} found"
        raise corrupt_file_error(path, reason, download_hint)
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _check_magic(path: Path, actual: bytes, dimensions: int, download_hint: str) -> None:
    magic = bytes((0, 0, 8, dimensions))
    if actual != magic:
        kind = _OTHER_TYPES.get(actual[2]) if len(actual) == 4 and actual[:2] == magic[:2] else None
        reason = f"not the IDX file that its name says: it begins with {actual.hex()}, not {magic.hex()}"
        reason += f" ({kind} values; uint8 expected)" if kind else ""
        raise corrupt_file_error(path, reason, download_hint)


def _read_at_most(path: Path, limit: int, download_hint: str) -> tuple[bytearray, bool]:
    """Return at most `limit` uncompressed bytes, and whether the file is gzip.

    The limit bounds the memory: a small gzip file may unpack to any size.
    """
    content = bytearray()
    with translate_os_errors(path), path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
        try:
            while chunk := stream.read(min(_CHUNK, limit - len(content))):
                content += chunk
        except EOFError as error:
            expected = limit - 1
            reason = f"truncated gzip: {expected:,} bytes expected when unpacked, it ends after {len(content):,}"
            raise corrupt_file_error(path, reason, download_hint) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise corrupt_file_error(path, f"corrupt gzip ({error})", download_hint) from error
    return content, compressed


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length:,}" for length in shape)
