"""`cifar10`, `cifar100`: the original binary version (unpacked, or its archive), or Parquet files.

Binary format: records of one label byte (CIFAR-100: two, the coarse and the fine label) and 3,072 pixel bytes (the
red, the green, the blue plane, 32x32 each).
The *python* version is refused: its files are pickles, and loading a pickle can run any code.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

import numpy as np

from supermask.core.errors import UserError
from supermask.datasets.images import (
    Allocate,
    DataFolder,
    DatasetFiles,
    LabeledImages,
    RawDataset,
    allocate_in_memory,
    check_labels,
    corrupt_file_error,
    not_found_error,
    translate_os_errors,
)
from supermask.datasets.parquet import find_shards, published_shards
from supermask.datasets.places import dataset_folders
from supermask.datasets.specs import DatasetSpec

JPEG_NOTE = "{} decoded from JPEG (lossy): accuracies may differ slightly from those on the original images"


@dataclass(frozen=True)
class CifarForm:
    """Files of one of the two datasets."""

    title: str
    hint: str
    """Sources of the files."""
    archive: str
    folder: str
    """Folder of the unpacked archive."""
    training_files: tuple[str, ...]
    """Each with an equal share of the training images."""
    test_file: str
    label_bytes: int
    """Label bytes of a record, of which the last one counts."""
    pickled_files: tuple[str, ...]
    """Files and folders of the python version, which is refused."""
    folder_names: tuple[str, ...]
    """Names of folders with the dataset, as `places.dataset_folders` compares them."""

    @property
    def file_names(self) -> tuple[str, ...]:
        """The binary files, the test file last."""
        return (*self.training_files, self.test_file)

    @property
    def needed(self) -> str:
        """Files that are searched, for messages."""
        name = self.folder_names[0]
        training = self.training_files
        files = f"{training[0]} to {training[-1]}" if len(training) > 1 else training[0]
        return (
            f"{self.archive}, or {self.folder}/ with {files} and {self.test_file}, "
            f"or train-*.parquet and test-*.parquet in one folder anywhere below '{name}'"
        )


CIFAR10 = CifarForm(
    title="CIFAR-10",
    hint=(
        "the *binary* version from https://www.cs.toronto.edu/~kriz/cifar.html (`supermask data get cifar10`), "
        "or the Parquet files of the Hugging Face dataset uoft-cs/cifar10"
    ),
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    training_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_file="test_batch.bin",
    label_bytes=1,
    pickled_files=("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1"),
    folder_names=("cifar10", "cifar10binary", "cifar10batchesbin"),
)
CIFAR100 = CifarForm(
    title="CIFAR-100",
    hint=(
        "the *binary* version from https://www.cs.toronto.edu/~kriz/cifar.html (`supermask data get cifar100`), "
        "or the Parquet files of the Hugging Face dataset uoft-cs/cifar100"
    ),
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    training_files=("train.bin",),
    test_file="test.bin",
    label_bytes=2,
    pickled_files=("cifar-100-python", "cifar-100-python.tar.gz"),
    folder_names=("cifar100", "cifar100binary"),
)
FORMS: dict[str, CifarForm] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_MAX_MEMBERS = 100
"""Members read from an archive; the original one has 9."""
_CHUNK = 1 << 20
_MAX_TAIL = 1 << 24
"""Uncompressed bytes read after the end of the tar archive to get to the checksum of gzip."""


def find(spec: DatasetSpec, folder: DataFolder) -> DatasetFiles:
    """Return the first complete form, lossless forms first. Raises UserError if there is none."""
    form = FORMS[spec.name]
    tops = list(dict.fromkeys([folder.path / spec.name, folder.path, *dataset_folders(folder, form.folder_names)]))
    places = [top / inner for top in tops for inner in (form.folder, "")]
    for place in places:
        if not _missing_files(form, place):
            files = tuple(place / name for name in form.file_names)
            return DatasetFiles(files, partial(decode_files, spec, files))
    for top in tops:
        if (archive := top / form.archive).is_file():
            return DatasetFiles((archive,), partial(decode_archive, spec, archive))
    for top in [top for top in tops if top != folder.path] or tops[:1]:
        if shards := find_shards(top):
            return published_shards(spec, shards, form.hint, JPEG_NOTE.format(form.title))
    raise _not_found(spec, folder, tops, places)


def decode_files(spec: DatasetSpec, files: tuple[Path, ...], _: Allocate = allocate_in_memory) -> RawDataset:
    """Return the arrays of the binary files, the test file last. Raises UserError for a wrong size or label."""
    form, contents = FORMS[spec.name], {}
    for name, path in zip(form.file_names, files, strict=True):
        with translate_os_errors(path), path.open("rb") as file:
            size = path.stat().st_size
            _check_size(spec, path, name, size)
            contents[name] = file.read(size)
    return _decode(spec, contents, dict(zip(form.file_names, files, strict=True)))


def decode_archive(spec: DatasetSpec, archive: Path, _: Allocate = allocate_in_memory) -> RawDataset:
    """Return the arrays of the .tar.gz archive. Raises UserError for a corrupt or incomplete one.

    The archive is read member by member: nothing is extracted, and no name in it becomes a path.
    """
    form = FORMS[spec.name]
    with translate_os_errors(archive), archive.open("rb") as file, gzip.GzipFile(fileobj=file) as gzipped:
        unpacked = cast(IO[bytes], gzipped)
        try:
            contents = _read_members(spec, archive, unpacked)
            _read_to_end(archive, unpacked, form.hint)
        except EOFError as error:
            raise corrupt_file_error(archive, "truncated: the gzip stream ends too early", form.hint) from error
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error) as error:
            raise corrupt_file_error(archive, f"corrupt archive ({error})", form.hint) from error
    if missing := [name for name in form.file_names if name not in contents]:
        reason = f"not the binary version of {form.title}: it lacks {', '.join(missing)}"
        raise corrupt_file_error(archive, reason, form.hint)
    return _decode(spec, contents, {name: archive / name for name in form.file_names})


def _read_members(spec: DatasetSpec, archive: Path, unpacked: IO[bytes]) -> dict[str, bytes]:
    """Return the contents of the binary files by name, wherever in the archive they are."""
    form, contents = FORMS[spec.name], dict[str, bytes]()
    max_size = _file_size(spec, form.file_names[0]) + _file_size(spec, form.file_names[-1])
    with tarfile.open(fileobj=unpacked, mode="r|") as tar:
        for number, member in enumerate(tar):
            if number >= _MAX_MEMBERS or member.size > max_size:
                reason = f"not the binary version of {form.title}: too many or too large files in it"
                raise corrupt_file_error(archive, reason, form.hint)
            name = member.name.rsplit("/", 1)[-1]
            if name not in form.file_names or not member.isreg():
                continue
            if name in contents:
                raise corrupt_file_error(archive, f"{name} is in it twice", form.hint)
            _check_size(spec, archive / name, name, member.size)
            reader = tar.extractfile(member)
            assert reader is not None, "a regular member always has a reader"
            contents[name] = reader.read()
    return contents


def _read_to_end(archive: Path, unpacked: IO[bytes], hint: str) -> None:
    """Read the stream to its end: gzip's checksum is there, after the padding at which tarfile stops."""
    tail = 0
    while chunk := unpacked.read(_CHUNK):
        tail += len(chunk)
        if tail > _MAX_TAIL:
            raise corrupt_file_error(archive, "more data behind the end of the archive", hint)


def _decode(spec: DatasetSpec, contents: dict[str, bytes], paths: dict[str, Path]) -> RawDataset:
    form, parts = FORMS[spec.name], list[LabeledImages]()
    for name in form.file_names:
        records = np.frombuffer(contents[name], np.uint8).reshape(_image_count(spec, name), -1)
        labels = records[:, form.label_bytes - 1].astype(np.int64)
        check_labels(paths[name], labels, spec.classes, form.hint)
        parts.append(LabeledImages(records[:, form.label_bytes :].reshape(-1, *spec.image_shape), labels))
    train = LabeledImages(
        np.concatenate([part.images for part in parts[:-1]]),
        np.concatenate([part.labels for part in parts[:-1]]),
    )
    return RawDataset(train, parts[-1])


def _image_count(spec: DatasetSpec, name: str) -> int:
    form = FORMS[spec.name]
    return spec.test_images if name == form.test_file else spec.training_images // len(form.training_files)


def _file_size(spec: DatasetSpec, name: str) -> int:
    """Return the size of a binary file in bytes: label bytes and pixels per image."""
    return _image_count(spec, name) * (FORMS[spec.name].label_bytes + math.prod(spec.image_shape))


def _check_size(spec: DatasetSpec, path: Path, name: str, size: int) -> None:
    expected = _file_size(spec, name)
    if size != expected:
        kind = "truncated" if size < expected else "too long"
        raise corrupt_file_error(path, f"{kind}: {expected:,} bytes expected, {size:,} found", FORMS[spec.name].hint)


def _missing_files(form: CifarForm, place: Path) -> list[str]:
    return [name for name in form.file_names if not (place / name).is_file()]


def _not_found(spec: DatasetSpec, folder: DataFolder, tops: list[Path], places: list[Path]) -> UserError:
    form = FORMS[spec.name]
    for place in places:
        missing = _missing_files(form, place)
        if len(missing) < len(form.file_names):
            count = {6: "all six", 2: "both"}[len(form.file_names)]
            return UserError(f"{place}: {', '.join(missing)} not there.\nGet {count} files: {form.hint}.")
    for path in (top / name for top in tops for name in form.pickled_files):
        if path.exists():
            return UserError(
                f"{path}: this is the *python* version of {form.title}. Its files are pickles, and loading a pickle "
                f"can run any code, so it is not read.\nGet one of the other two: {form.hint}."
            )
    searched = [*places, *(top / form.archive for top in tops), tops[0] / "**" / "{train,test}-*.parquet"]
    return not_found_error(spec.name, form.needed, searched, folder, form.hint)
