"""`npz:FILE`: the arrays of a NumPy archive. Object arrays, which are pickles, are refused; nothing is unpickled."""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from supermask.core.errors import UserError
from supermask.datasets.arrays import MakeError, find_arrays, image_layout, locator_error, to_labels, to_pixels
from supermask.datasets.images import Allocate, ArrayShapes, DatasetFiles, RawDataset, translate_os_errors
from supermask.datasets.locators import Locator
from supermask.datasets.progress import report_progress

_CHUNK_BYTES = 1 << 24
"""Bytes of pixels that are read at once."""
_MAX_LABEL_BYTES = 1 << 31


@dataclass(frozen=True)
class _Member:
    """An array of the archive, described by its header."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool


def find(locator: Locator, path: Path) -> DatasetFiles:
    """Return the file of a locator. Raises UserError if it is not a file."""
    if not path.is_file():
        raise locator_error(locator.text, f"{path} is not a file; expected a .npz archive, as numpy.savez writes it")
    return DatasetFiles((path,), partial(decode, locator, path))


def decode(locator: Locator, path: Path, allocate: Allocate) -> RawDataset:
    """Return the arrays of the archive, read in slices. Raises UserError for anything that is not such a dataset."""

    def make_error(reason: str) -> UserError:
        return locator_error(locator.text, f"{path.name}: {reason}")

    with _open_archive(path, make_error) as archive:
        members = _members(archive, make_error)
        roles = find_arrays(list(members), make_error)
        layouts = {}
        for part in ("train", "test"):
            images = members[roles[f"{part}_images"]]
            layouts[part] = image_layout(images.shape, images.dtype, images.name, make_error)
        if layouts["train"][:3] != layouts["test"][:3]:
            shapes = " and ".join("x".join(map(str, layouts[part][:3])) for part in ("train", "test"))
            raise make_error(f"training and test images differ in channels x height x width: {shapes}")
        counts = {part: members[roles[f"{part}_images"]].shape[0] for part in ("train", "test")}
        labels = {}
        for part, count in counts.items():
            member = members[roles[f"{part}_labels"]]
            values = _read_labels(archive, member, make_error)
            labels[part] = to_labels(values, count, member.name, make_error)
        train, test = allocate(ArrayShapes(layouts["train"][:3], counts["train"], counts["test"]))
        for part, arrays in (("train", train), ("test", test)):
            arrays.labels[:] = labels[part]
            member = members[roles[f"{part}_images"]]
            _read_pixels(archive, member, layouts[part][3], arrays.images, make_error)
    return RawDataset(train, test)


def _members(archive: zipfile.ZipFile, make_error: MakeError) -> dict[str, _Member]:
    """Return name -> header of each array. The declared size is compared with the archive's before it is believed."""
    members = {}
    for info in archive.infolist()[:100]:
        if not info.filename.endswith(".npy"):
            continue
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise make_error(f"{name} is in the archive twice; remove one")
        with archive.open(info) as file:
            try:
                shape, is_fortran, dtype = _read_header(file)
            except (ValueError, EOFError) as error:
                raise make_error(f"{name} is not a readable NumPy array ({str(error).splitlines()[0]})") from error
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if not dtype.hasobject and info.file_size != file.tell() + size:
                raise make_error(f"{name} is truncated: {size:,} bytes of values expected")
        members[name] = _Member(name, shape, dtype, is_fortran)
    return members


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(file)
    read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"format {version} is not known")
    shape, is_fortran, dtype = read(file)
    return tuple(shape), bool(is_fortran), dtype


def _read_labels(archive: zipfile.ZipFile, member: _Member, make_error: MakeError) -> NDArray[Any]:
    if member.dtype.hasobject:
        return np.empty(0, member.dtype)  # Refused by its type; its pickle is not read.
    size = int(np.prod(member.shape, dtype=object)) * member.dtype.itemsize
    if size > _MAX_LABEL_BYTES:
        raise make_error(f"{member.name} has {size:,} bytes, too many for labels")
    with archive.open(f"{member.name}.npy") as file:
        _read_header(file)
        values = np.frombuffer(file.read(size), member.dtype)
    return values.reshape(member.shape, order="F" if member.is_fortran else "C")


def _read_pixels(
    archive: zipfile.ZipFile, member: _Member, channels_last: bool, out: NDArray[np.uint8], make_error: MakeError
) -> None:
    """Read images into `out`, (images, channels, height, width)."""
    count, *image_shape = member.shape
    with archive.open(f"{member.name}.npy") as file:
        _read_header(file)
        if member.is_fortran:  # Its images are interleaved: it is read as a whole.
            values = np.frombuffer(file.read(), np.uint8).reshape(member.shape, order="F")
            out[:] = to_pixels(values, channels_last)
            return
        image_bytes = int(np.prod(image_shape))
        step = max(1, _CHUNK_BYTES // image_bytes)
        for first in range(0, count, step):
            images = min(step, count - first)
            content = file.read(images * image_bytes)
            if len(content) < images * image_bytes:
                raise make_error(f"{member.name} is truncated after {first:,} images")
            values = np.frombuffer(content, np.uint8).reshape(images, *image_shape)
            out[first : first + images] = to_pixels(values, channels_last)
            report_progress(member.name, first + images, count)
        file.read(1)  # The end of the member, where its checksum is compared.


@contextmanager
def _open_archive(path: Path, make_error: MakeError) -> Iterator[zipfile.ZipFile]:
    with translate_os_errors(path), path.open("rb") as file:
        magic = file.read(6)
        if magic == b"\x93NUMPY":
            raise make_error("one array (.npy), not an archive of them; numpy.savez writes one")
        if magic[:2] != b"PK":
            raise make_error(
                f"not a .npz archive: it begins with {magic.hex() or 'nothing'}, not with 504b (a zip file)"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
            # RuntimeError, of which NotImplementedError is one: encrypted, or packed in an unknown way.
            raise make_error(f"a damaged or truncated archive ({error})") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise make_error("a damaged or truncated archive (it points to a place outside itself)") from error
