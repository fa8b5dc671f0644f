"""The IDX format: big-endian magic number (type 8 = uint8, number of dimensions), dimensions, then the bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from supermask.datasets.source import damaged, reading

_CHUNK = 1 << 20


def read_idx(path: Path, shape: tuple[int, ...], get_it: str) -> NDArray[np.uint8]:
    """The array of exactly this `shape` in an IDX file of uint8, gzip-compressed or not (told by its first bytes).

    Raises UserError for another magic number, other dimensions, missing or surplus bytes, and broken gzip.
    """
    header = 4 + 4 * len(shape)
    wanted = header + math.prod(shape)
    content, compressed = _content(path, wanted, get_it)
    magic = bytes((0, 0, 8, len(shape)))
    if content[:4] != magic:
        what = f"not the IDX file that its name says: it begins with {content[:4].hex()}, not {magic.hex()}"
        raise damaged(path, what, get_it)
    if len(content) >= header:
        found = tuple(int(n) for n in np.frombuffer(content, ">u4", count=len(shape), offset=4))
        if found != shape:
            raise damaged(path, f"its header says {_times(found)}; {_times(shape)} expected", get_it)
    if len(content) < wanted:
        raise damaged(path, f"truncated: {wanted:,} bytes expected, {len(content):,} found", get_it)
    if len(content) > wanted:
        size = "more" if compressed else f"{path.stat().st_size:,}"
        raise damaged(path, f"bytes after its end: {wanted:,} bytes expected, {size} found", get_it)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path: Path, wanted: int, get_it: str) -> tuple[bytearray, bool]:
    """At most one byte more than `wanted`, unpacked, so that no file can fill the memory; and: was it gzip?"""
    content = bytearray()
    with reading(path), path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
        try:
            while chunk := stream.read(min(_CHUNK, wanted + 1 - len(content))):
                content += chunk
        except EOFError as error:
            what = f"truncated gzip: {wanted:,} bytes expected when unpacked, it ends after {len(content):,}"
            raise damaged(path, what, get_it) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise damaged(path, f"corrupt gzip ({error})", get_it) from error
    return content, compressed


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length:,}" for length in shape)
