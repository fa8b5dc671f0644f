"""`cifar10`: the original binary version (unpacked, or its archive), or the Parquet files of Hugging Face.

Binary format: records of one label byte and 3,072 pixel bytes (the red, the green, the blue plane, 32x32 each).
The *python* version is refused: its files are pickles, and loading a pickle can run any code.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from contextlib import suppress
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

DOWNLOAD_HINT = (
    "the *binary* version from https://www.cs.toronto.edu/~kriz/cifar.html, "
    "or the Parquet files of the Hugging Face dataset uoft-cs/cifar10"
)
NEEDED = (
    "cifar-10-binary.tar.gz, or cifar-10-batches-bin/ with data_batch_1.bin to data_batch_5.bin and test_batch.bin, "
    "or train-*.parquet and test-*.parquet in one folder anywhere below 'cifar10'"
)
ARCHIVE = "cifar-10-binary.tar.gz"
FILE_NAMES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
PICKLED_FILES = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")
JPEG_NOTE = "CIFAR-10 decoded from JPEG (lossy): accuracies may differ slightly from those on the original images"
_TRAINING_FILES = 5
_MAX_MEMBERS = 100
"""Members read from an archive; the original one has 9."""
_MAX_FOLDER_DEPTH = 12
"""Depth to which Parquet files are searched; Hugging Face's cache has 6."""
_CHUNK = 1 << 20
_MAX_TAIL = 1 << 24
"""Uncompressed bytes read after the end of the tar archive to get to the checksum of gzip."""


def find(spec: DatasetSpec, folder: DataFolder) -> DatasetFiles:
    """Return the first complete form, lossless forms first. Raises UserError if there is none."""
    tops = [folder.path / "cifar10", folder.path]
    places = [top / inner for top in tops for inner in ("cifar-10-batches-bin", "")]
    for place in places:
        if not _missing_files(place):
            files = tuple(place / name for name in FILE_NAMES)
            return DatasetFiles(files, partial(decode_files, spec, files))
    for top in tops:
        if (archive := top / ARCHIVE).is_file():
            return DatasetFiles((archive,), partial(decode_archive, spec, archive))
    if shards := _find_shards(tops[0]):
        train, test = shards
        decode = partial(decode_parquet, spec, train, test)
        return DatasetFiles((*train, *test), decode, decoder=f"pillow {version('pillow')}", is_original=False)
    raise _not_found(spec, folder, tops, places)


def decode_files(spec: DatasetSpec, files: tuple[Path, ...]) -> RawDataset:
    """Return the arrays of the six files, in the order of `FILE_NAMES`. Raises UserError for a wrong size or label."""
    contents = {}
    for name, path in zip(FILE_NAMES, files, strict=True):
        with translate_os_errors(path), path.open("rb") as file:
            size = path.stat().st_size
            _check_size(spec, path, name, size)
            contents[name] = file.read(size)
    return _decode(spec, contents, dict(zip(FILE_NAMES, files, strict=True)))


def decode_archive(spec: DatasetSpec, archive: Path) -> RawDataset:
    """Return the arrays of the .tar.gz archive. Raises UserError for a corrupt or incomplete one.

    The archive is read member by member: nothing is extracted, and no name in it becomes a path.
    """
    with translate_os_errors(archive), archive.open("rb") as file, gzip.GzipFile(fileobj=file) as gzipped:
        unpacked = cast(IO[bytes], gzipped)
        try:
            contents = _read_members(spec, archive, unpacked)
            _read_to_end(archive, unpacked)
        except EOFError as error:
            raise corrupt_file_error(archive, "truncated: the gzip stream ends too early", DOWNLOAD_HINT) from error
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error) as error:
            raise corrupt_file_error(archive, f"corrupt archive ({error})", DOWNLOAD_HINT) from error
    if missing := [name for name in FILE_NAMES if name not in contents]:
        reason = f"not the binary version of CIFAR-10: it lacks {', '.join(missing)}"
        raise corrupt_file_error(archive, reason, DOWNLOAD_HINT)
    return _decode(spec, contents, {name: archive / name for name in FILE_NAMES})


def decode_parquet(spec: DatasetSpec, train: tuple[Path, ...], test: tuple[Path, ...]) -> RawDataset:
    """Return the images of the Parquet files; `note` is `JPEG_NOTE` if any of them is a JPEG."""
    train_set, train_lossy = parquet.read_images(train, spec, spec.training_images, DOWNLOAD_HINT)
    test_set, test_lossy = parquet.read_images(test, spec, spec.test_images, DOWNLOAD_HINT)
    return RawDataset(train_set, test_set, JPEG_NOTE if train_lossy or test_lossy else "")


def _read_members(spec: DatasetSpec, archive: Path, unpacked: IO[bytes]) -> dict[str, bytes]:
    """Return the contents of the six files by name, wherever in the archive they are."""
    contents: dict[str, bytes] = {}
    max_size = _file_size(spec, FILE_NAMES[0]) + _file_size(spec, FILE_NAMES[-1])
    with tarfile.open(fileobj=unpacked, mode="r|") as tar:
        for number, member in enumerate(tar):
            if number >= _MAX_MEMBERS or member.size > max_size:
                reason = "not the binary version of CIFAR-10: too many or too large files in it"
                raise corrupt_file_error(archive, reason, DOWNLOAD_HINT)
            name = member.name.rsplit("/", 1)[-1]
            if name not in FILE_NAMES or not member.isreg():
                continue
            if name in contents:
                raise corrupt_file_error(archive, f"{name} is in it twice", DOWNLOAD_HINT)
            _check_size(spec, archive / name, name, member.size)
            reader = tar.extractfile(member)
            assert reader is not None, "a regular member always has a reader"
            contents[name] = reader.read()
    return contents


def _read_to_end(archive: Path, unpacked: IO[bytes]) -> None:
    """Read the stream to its end: gzip's checksum is there, after the padding at which tarfile stops."""
    tail = 0
    while chunk := unpacked.read(_CHUNK):
        tail += len(chunk)
        if tail > _MAX_TAIL:
            raise corrupt_file_error(archive, "more data behind the end of the archive", DOWNLOAD_HINT)


def _decode(spec: DatasetSpec, contents: dict[str, bytes], paths: dict[str, Path]) -> RawDataset:
    parts = []
    for name in FILE_NAMES:
        records = np.frombuffer(contents[name], np.uint8).reshape(_image_count(spec, name), -1)
        labels = records[:, 0].astype(np.int64)
        check_labels(paths[name], labels, spec.classes, DOWNLOAD_HINT)
        parts.append(LabeledImages(records[:, 1:].reshape(-1, *spec.image_shape), labels))
    train = LabeledImages(
        np.concatenate([part.images for part in parts[:_TRAINING_FILES]]),
        np.concatenate([part.labels for part in parts[:_TRAINING_FILES]]),
    )
    return RawDataset(train, parts[-1])


def _image_count(spec: DatasetSpec, name: str) -> int:
    return spec.test_images if name == FILE_NAMES[-1] else spec.training_images // _TRAINING_FILES


def _file_size(spec: DatasetSpec, name: str) -> int:
    """Return the size of a binary file in bytes: one label byte and the pixels per image."""
    return _image_count(spec, name) * (1 + math.prod(spec.image_shape))


def _check_size(spec: DatasetSpec, path: Path, name: str, size: int) -> None:
    expected = _file_size(spec, name)
    if size != expected:
        kind = "truncated" if size < expected else "too long"
        raise corrupt_file_error(path, f"{kind}: {expected:,} bytes expected, {size:,} found", DOWNLOAD_HINT)


def _missing_files(place: Path) -> list[str]:
    return [name for name in FILE_NAMES if not (place / name).is_file()]


def _find_shards(top: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]] | None:
    """Return the (train, test) files of the folder nearest to `top` that has both, by name: the order of the shards."""
    level, visited = [top], set()
    for _ in range(_MAX_FOLDER_DEPTH):
        folders: list[Path] = []
        for folder in level:
            # Symbolic links are followed; a folder that was seen before would make an endless path of them.
            with suppress(OSError):
                if (resolved := folder.resolve()) not in visited and folder.is_dir():
                    visited.add(resolved)
                    entries = sorted(folder.iterdir())
                    folders += [path for path in entries if path.is_dir()]
                    shards = [path for path in entries if path.suffix == ".parquet" and path.is_file()]
                    train = tuple(path for path in shards if path.name.startswith("train-"))
                    test = tuple(path for path in shards if path.name.startswith("test-"))
                    if train and test:
                        return train, test
        level = sorted(folders)
    return None


def _not_found(spec: DatasetSpec, folder: DataFolder, tops: list[Path], places: list[Path]) -> UserError:
    for place in places:
        missing = _missing_files(place)
        if len(missing) < len(FILE_NAMES):
            return UserError(f"{place}: {', '.join(missing)} not there.\nGet all six files: {DOWNLOAD_HINT}.")
    for path in (top / name for top in tops for name in PICKLED_FILES):
        if path.exists():
            return UserError(
                f"{path}: this is the *python* version of CIFAR-10. Its files are pickles, and loading a pickle can "
                f"run any code, so it is not read.\nGet one of the other two: {DOWNLOAD_HINT}."
            )
    searched = [*places, *(top / ARCHIVE for top in tops), tops[0] / "**" / "{train,test}-*.parquet"]
    return not_found_error(spec.name, NEEDED, searched, folder, DOWNLOAD_HINT)
