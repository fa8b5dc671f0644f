"""The binary version of CIFAR-10: records of one label byte and 3,072 pixel bytes (red, green, blue planes)."""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

from supermask.datasets.facts import DatasetFacts
from supermask.datasets.images import Decoded, Labelled
from supermask.datasets.source import check_labels, damaged, reading

NAMES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_TRAINING_FILES = 5
_MOST_MEMBERS = 100
_CHUNK = 1 << 20
_LARGEST_TAIL = 1 << 24


def decode_files(facts: DatasetFacts, files: tuple[Path, ...], get_it: str) -> Decoded:
    """The arrays of the six files, in the order of `NAMES`. Raises UserError for a wrong size or label."""
    contents = {}
    for name, path in zip(NAMES, files, strict=True):
        with reading(path), path.open("rb") as file:
            size = path.stat().st_size
            _check_size(facts, path, name, size, get_it)
            contents[name] = file.read(size)
    return _decoded(facts, contents, dict(zip(NAMES, files, strict=True)), get_it)


def decode_archive(facts: DatasetFacts, archive: Path, get_it: str) -> Decoded:
    """The same from the .tar.gz, read member by member; nothing is extracted, and no name in it becomes a path."""
    with reading(archive), archive.open("rb") as file, gzip.GzipFile(fileobj=file) as gzipped:
        unpacked = cast(IO[bytes], gzipped)
        try:
            contents = _members(facts, archive, unpacked, get_it)
            _read_to_end(archive, unpacked, get_it)
        except EOFError as error:
            raise damaged(archive, "truncated: the gzip stream ends too early", get_it) from error
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error) as error:
            raise damaged(archive, f"corrupt archive ({error})", get_it) from error
    if lacking := [name for name in NAMES if name not in contents]:
        raise damaged(archive, f"not the binary version of CIFAR-10: it lacks {', '.join(lacking)}", get_it)
    return _decoded(facts, contents, {name: archive / name for name in NAMES}, get_it)


def _members(facts: DatasetFacts, archive: Path, unpacked: IO[bytes], get_it: str) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    largest = _size(facts, NAMES[0]) + _size(facts, NAMES[-1])
    with tarfile.open(fileobj=unpacked, mode="r|") as tar:
        for number, member in enumerate(tar):
            if number >= _MOST_MEMBERS or member.size > largest:
                raise damaged(archive, "not the binary version of CIFAR-10: too many or too large files in it", get_it)
            name = member.name.rsplit("/", 1)[-1]
            if name not in NAMES or not member.isreg():
                continue
            if name in contents:
                raise damaged(archive, f"{name} is in it twice", get_it)
            _check_size(facts, archive / name, name, member.size, get_it)
            reader = tar.extractfile(member)
            assert reader is not None, "a regular member always has a reader"
            contents[name] = reader.read()
    return contents


def _read_to_end(archive: Path, unpacked: IO[bytes], get_it: str) -> None:
    """The checksum of gzip is at its end, behind the padding at which tarfile stops."""
    tail = 0
    while chunk := unpacked.read(_CHUNK):
        tail += len(chunk)
        if tail > _LARGEST_TAIL:
            raise damaged(archive, "more data behind the end of the archive", get_it)


def _decoded(facts: DatasetFacts, contents: dict[str, bytes], paths: dict[str, Path], get_it: str) -> Decoded:
    parts = []
    for name in NAMES:
        records = np.frombuffer(contents[name], np.uint8).reshape(_count(facts, name), -1)
        labels = records[:, 0].astype(np.int64)
        check_labels(paths[name], labels, facts.classes, get_it)
        parts.append(Labelled(records[:, 1:].reshape(-1, *facts.image_shape), labels))
    train = Labelled(
        np.concatenate([part.images for part in parts[:_TRAINING_FILES]]),
        np.concatenate([part.labels for part in parts[:_TRAINING_FILES]]),
    )
    return Decoded(train, parts[-1])


def _count(facts: DatasetFacts, name: str) -> int:
    return facts.test_images if name == NAMES[-1] else facts.training_images // _TRAINING_FILES


def _size(facts: DatasetFacts, name: str) -> int:
    return _count(facts, name) * (1 + math.prod(facts.image_shape))


def _check_size(facts: DatasetFacts, path: Path, name: str, found: int, get_it: str) -> None:
    expected = _size(facts, name)
    if found != expected:
        what = "truncated" if found < expected else "too long"
        raise damaged(path, f"{what}: {expected:,} bytes expected, {found:,} found", get_it)
