"""`svhn`: the cropped digits in MATLAB files (`train_32x32.mat`, `test_32x32.mat`), or Parquet files.

Only numeric arrays are read from a MATLAB file (format 5): SciPy builds them from their bytes; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from supermask.core.errors import UserError
from supermask.datasets.idx import walk_files
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

DOWNLOAD_HINT = (
    "train_32x32.mat and test_32x32.mat from http://ufldl.stanford.edu/housenumbers/ (`supermask data get svhn`), or "
    "the Parquet files of the Hugging Face dataset ufldl-stanford/svhn (cropped_digits)"
)
FILE_NAMES = ("train_32x32.mat", "test_32x32.mat")
FOLDER_NAMES = ("svhn", "svhncropped", "housenumbers", "streetviewhousenumbers", "streetviewhousenumberssvhn")


def find(spec: DatasetSpec, folder: DataFolder) -> DatasetFiles:
    """Return the two MATLAB files, wherever below the dataset's folder, else Parquet files."""
    tops = dataset_folders(folder, FOLDER_NAMES)
    for top in [*tops, folder.path]:
        by_name: dict[str, Path] = {}
        for path in walk_files(top) if top in tops else (folder.path / name for name in FILE_NAMES):
            if path.name in FILE_NAMES and path.is_file():
                by_name.setdefault(path.name, path)
        if len(by_name) == len(FILE_NAMES):
            files = tuple(by_name[name] for name in FILE_NAMES)
            return DatasetFiles(files, partial(decode, spec, files))
    for top in tops:
        if shards := find_shards(top):
            return published_shards(spec, shards, DOWNLOAD_HINT, "SVHN decoded from JPEG (lossy)")
    needed = f"{' and '.join(FILE_NAMES)}, or train-*.parquet and test-*.parquet, below a folder 'svhn'"
    places = [folder.path / "svhn", folder.path]
    raise not_found_error(spec.name, needed, places, folder, DOWNLOAD_HINT)


def decode(spec: DatasetSpec, files: Sequence[Path], _: Allocate = allocate_in_memory) -> RawDataset:
    """Return the arrays of the two files. Raises UserError for a damaged file."""
    counts = (spec.training_images, spec.test_images)
    train, test = (_read_file(spec, path, count) for path, count in zip(files, counts, strict=True))
    return RawDataset(train, test)


def _read_file(spec: DatasetSpec, path: Path, count: int) -> LabeledImages:
    """Return the images of `X` (height, width, channels, images) and the labels of `y`, in which 10 is the digit 0."""
    channels, height, width = spec.image_shape
    expected = {"X": ((height, width, channels, count), "uint8"), "y": ((count, 1), "uint8")}
    variables = _load_variables(path, expected)
    labels = variables["y"].astype(np.int64).reshape(-1)
    check_labels(path, labels, spec.classes, DOWNLOAD_HINT, first_label=1)
    images = np.ascontiguousarray(variables["X"].transpose(3, 2, 0, 1))
    return LabeledImages(images, labels % 10)


def _load_variables(path: Path, expected: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    """Return the arrays of these names. Shapes and types are checked in the file's headers before anything is read."""
    from scipy.io import loadmat, whosmat

    with translate_os_errors(path), path.open("rb") as file:
        _check_format(path, file.read(128))
        file.seek(0)
        try:
            headers = {name: (tuple(shape), kind) for name, shape, kind in whosmat(file)}
        except Exception as error:  # SciPy's reader raises many unrelated types for damaged files.
            raise _damaged_file_error(path, error) from error
        for name, wanted in expected.items():
            if headers.get(name) != wanted:
                actual = f"is {headers[name][1]} of shape {headers[name][0]}" if name in headers else "is missing"
                reason = f"the variable {name} {actual}; {wanted[1]} of shape {wanted[0]} expected"
                raise corrupt_file_error(path, reason, DOWNLOAD_HINT)
        file.seek(0)
        try:
            variables: dict[str, Any] = loadmat(
                file, variable_names=list(expected), verify_compressed_data_integrity=True
            )
        except Exception as error:
            raise _damaged_file_error(path, error) from error
    for name, (shape, kind) in expected.items():
        value = variables.get(name)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.name != kind:
            raise corrupt_file_error(path, f"the variable {name} is not what its header says", DOWNLOAD_HINT)
    return variables


def _check_format(path: Path, header: bytes) -> None:
    if header[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in header:
        raise corrupt_file_error(path, "a MATLAB 7.3 file (HDF5); the published files are of format 5", DOWNLOAD_HINT)
    if not header.startswith(b"MATLAB 5.0 MAT-file"):
        raise corrupt_file_error(path, "not a MATLAB file of format 5, as its name says", DOWNLOAD_HINT)


def _damaged_file_error(path: Path, error: Exception) -> UserError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return corrupt_file_error(path, f"a damaged or truncated MATLAB file ({first_line})", DOWNLOAD_HINT)
