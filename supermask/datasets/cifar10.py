"""`cifar10`: finds the original binary version (unpacked, or its archive) or Hugging Face's Parquet files.

The *python* version is refused: its files are pickles, and loading a pickle can run any code.

The binary version of CIFAR-10: records of one label byte and 3,072 pixel bytes (red, green, blue planes).
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, cast

import numpy as np

from supermask.core.errors import UserError
from supermask.datasets import parquet
from supermask.datasets.images import (
    DataFolder,
    DatasetFiles,
    LabeledImages,
    RawDataset,
    check_labels,
    corrupt_file_error,
    not_found_error,
    translate_os_errors,
)
from supermask.datasets.specs import DatasetSpec

NAMES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_TRAINING_FILES = 5
_MAX_MEMBERS = 100
_CHUNK = 1 << 20
_LARGEST_TAIL = 1 << 24


def decode_files(facts: DatasetSpec, files: tuple[Path, ...], get_it: str) -> RawDataset:
    """The arrays of the six files, in the order of `NAMES`. Raises UserError for a wrong size or label."""
    contents = {}
    for name, path in zip(NAMES, files, strict=True):
        with translate_os_errors(path), path.open("rb") as file:
            size = path.stat().st_size
            _check_size(facts, path, name, size, get_it)
            contents[name] = file.read(size)
    return _decode(facts, contents, dict(zip(NAMES, files, strict=True)), get_it)


def decode_archive(facts: DatasetSpec, archive: Path, get_it: str) -> RawDataset:
    """The same from the .tar.gz, read member by member; nothing is extracted, and no name in it becomes a path."""
    with translate_os_errors(archive), archive.open("rb") as file, gzip.GzipFile(fileobj=file) as gzipped:
        unpacked = cast(IO[bytes], gzipped)
        try:
            contents = _members(facts, archive, unpacked, get_it)
            _read_to_end(archive, unpacked, get_it)
        except EOFError as error:
            raise corrupt_file_error(archive, "truncated: the gzip stream ends too early", get_it) from error
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error) as error:
            raise corrupt_file_error(archive, f"corrupt archive ({error})", get_it) from error
    if lacking := [name for name in NAMES if name not in contents]:
        raise corrupt_file_error(archive, f"not the binary version of CIFAR-10: it lacks {', '.join(lacking)}", get_it)
    return _decode(facts, contents, {name: archive / name for name in NAMES}, get_it)


def _members(facts: DatasetSpec, archive: Path, unpacked: IO[bytes], get_it: str) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    largest = _size(facts, NAMES[0]) + _size(facts, NAMES[-1])
    with tarfile.open(fileobj=unpacked, mode="r|") as tar:
        for number, member in enumerate(tar):
            if number >= _MAX_MEMBERS or member.size > largest:
                raise corrupt_file_error(
                    archive, "not the binary version of CIFAR-10: too many or too large files in it", get_it
                )
            name = member.name.rsplit("/", 1)[-1]
            if name not in NAMES or not member.isreg():
                continue
            if name in contents:
                raise corrupt_file_error(archive, f"{name} is in it twice", get_it)
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
            raise corrupt_file_error(archive, "more data behind the end of the archive", get_it)


def _decode(facts: DatasetSpec, contents: dict[str, bytes], paths: dict[str, Path], get_it: str) -> RawDataset:
    parts = []
    for name in NAMES:
        records = np.frombuffer(contents[name], np.uint8).reshape(_count(facts, name), -1)
        labels = records[:, 0].astype(np.int64)
        check_labels(paths[name], labels, facts.classes, get_it)
        parts.append(LabeledImages(records[:, 1:].reshape(-1, *facts.image_shape), labels))
    train = LabeledImages(
        np.concatenate([part.images for part in parts[:_TRAINING_FILES]]),
        np.concatenate([part.labels for part in parts[:_TRAINING_FILES]]),
    )
    return RawDataset(train, parts[-1])


def _count(facts: DatasetSpec, name: str) -> int:
    return facts.test_images if name == NAMES[-1] else facts.training_images // _TRAINING_FILES


def _size(facts: DatasetSpec, name: str) -> int:
    return _count(facts, name) * (1 + math.prod(facts.image_shape))


def _check_size(facts: DatasetSpec, path: Path, name: str, found: int, get_it: str) -> None:
    expected = _size(facts, name)
    if found != expected:
        what = "truncated" if found < expected else "too long"
        raise corrupt_file_error(path, f"{what}: {expected:,} bytes expected, {found:,} found", get_it)


DOWNLOAD_HINT = (
    "the *binary* version from https://www.cs.toronto.edu/~kriz/cifar.html, "
    "or the Parquet files of the Hugging Face dataset uoft-cs/cifar10"
)
NEEDED = (
    "cifar-10-binary.tar.gz, or cifar-10-batches-bin/ with data_batch_1.bin to data_batch_5.bin and test_batch.bin, "
    "or train-*.parquet and test-*.parquet in one folder anywhere below 'cifar10'"
)
ARCHIVE = "cifar-10-binary.tar.gz"
PICKLED_FILES = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")
JPEG_NOTE = "CIFAR-10 decoded from JPEG (lossy): accuracies may differ slightly from those on the original images"


def find(facts: DatasetSpec, folder: DataFolder) -> DatasetFiles:
    """The first complete form found, the exact ones first. Raises UserError where there is none."""
    tops = [folder.path / "cifar10", folder.path]
    places = [top / inner for top in tops for inner in ("cifar-10-batches-bin", "")]
    for place in places:
        if not _missing_files(place):
            files = tuple(place / name for name in NAMES)
            return DatasetFiles(files, partial(decode_files, facts, files, DOWNLOAD_HINT))
    for top in tops:
        if (archive := top / ARCHIVE).is_file():
            return DatasetFiles((archive,), partial(decode_archive, facts, archive, DOWNLOAD_HINT))
    if shards := _shards(tops[0]):
        train, test = shards
        decode = partial(decode_parquet, facts, train, test)
        return DatasetFiles((*train, *test), decode, decoder=f"pillow {version('pillow')}")
    raise _not_found(facts, folder, tops, places)


def decode_parquet(facts: DatasetSpec, train: tuple[Path, ...], test: tuple[Path, ...]) -> RawDataset:
    """The images of the Parquet files; `note` says so if any of them is a JPEG."""
    train_set, train_lossy = parquet.read_images(train, facts, facts.training_images, DOWNLOAD_HINT)
    test_set, test_lossy = parquet.read_images(test, facts, facts.test_images, DOWNLOAD_HINT)
    return RawDataset(train_set, test_set, JPEG_NOTE if train_lossy or test_lossy else "")


def _missing_files(place: Path) -> list[str]:
    return [name for name in NAMES if not (place / name).is_file()]


def _shards(top: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]] | None:
    """(train, test) files of the folder nearest to `top` that has both; by name, which is the order of the shards."""
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(top.rglob("*.parquet")):
        by_folder.setdefault(path.parent, []).append(path)
    for place in sorted(by_folder, key=lambda path: (len(path.parts), path)):
        train, test = (
            tuple(path for path in by_folder[place] if path.name.startswith(start)) for start in ("train-", "test-")
        )
        if train and test:
            return train, test
    return None


def _not_found(facts: DatasetSpec, folder: DataFolder, tops: list[Path], places: list[Path]) -> UserError:
    for place in places:
        lacking = _missing_files(place)
        if len(lacking) < len(NAMES):
            return UserError(f"{place}: {', '.join(lacking)} not there.\nGet all six files: {DOWNLOAD_HINT}.")
    for path in (top / name for top in tops for name in PICKLED_FILES):
        if path.exists():
            return UserError(
                f"{path}: this is the *python* version of CIFAR-10. Its files are pickles, and loading a pickle can "
                f"run any code, so it is not read.\nGet one of the other two: {DOWNLOAD_HINT}."
            )
    looked_in = [*places, *(top / ARCHIVE for top in tops), tops[0] / "**" / "{train,test}-*.parquet"]
    return not_found_error(facts.name, NEEDED, looked_in, folder, DOWNLOAD_HINT)
