"""Functions of the command `data`: list, get, inspect. They return data and print nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from supermask.core.errors import SystemFailure, UserError, quote
from supermask.core.files import write_atomic
from supermask.datasets.contact_sheet import contact_sheet
from supermask.datasets.downloads import download
from supermask.datasets.images import data_folder
from supermask.datasets.loading import DATASET_FILE_FINDERS, describe_source
from supermask.datasets.progress import progress_listener
from supermask.datasets.specs import DATASETS, DatasetSpec
from supermask.store.location import output_path
from supermask.study.user_data import load_data

__all__ = ["DataInspection", "KnownDataset", "get_dataset", "inspect_dataset", "list_datasets", "progress_listener"]


@dataclass(frozen=True)
class KnownDataset:
    """A dataset that has a name, and the place of its files."""

    spec: DatasetSpec
    files: tuple[Path, ...]
    """Files that were found; empty if there are none, or if it needs none."""
    needs_files: bool

    @property
    def is_available(self) -> bool:
        """True if it can be used now."""
        return bool(self.files) or not self.needs_files


@dataclass(frozen=True)
class DataInspection:
    """Content of a dataset."""

    spec: DatasetSpec
    fingerprint: str
    is_published: bool
    note: str
    training_counts: tuple[int, ...]
    """Training images per class, validation images included."""
    test_counts: tuple[int, ...]
    """Test images per class."""
    sheet: Path | None
    """Contact sheet that was written."""
    source: str = ""
    """Columns that were taken for images and labels; empty where there is no choice."""


def list_datasets() -> list[KnownDataset]:
    """Return every dataset that has a name, and where its files were found. No file is read."""
    folder, known = data_folder(), []
    for name, spec in DATASETS.items():
        files: tuple[Path, ...] = ()
        if name in DATASET_FILE_FINDERS:
            try:
                files = DATASET_FILE_FINDERS[name](spec, folder).files
            except UserError:
                files = ()
        known.append(KnownDataset(spec, files, name in DATASET_FILE_FINDERS))
    return known


def get_dataset(name: str, mirror: str | None = None, out: str | Path | None = None) -> list[Path]:
    """Download a dataset into the data folder (or `out`) and return its files; files that are there are kept.

    Raises UserError, SystemFailure.
    """
    return download(name, data_folder().path if out is None else output_path(out), mirror)


def inspect_dataset(name: str, sheet: str | Path | None = None) -> DataInspection:
    """Read a dataset, by name or locator, and describe it; write a contact sheet (PNG) to `sheet` if it is given.

    A user's function is imported and called. Raises UserError, SystemFailure.
    """
    if not isinstance(name, str):
        raise UserError(f"{quote(name)} is not a dataset: give a name or a locator, such as npz:own.npz.")
    images = load_data(name)
    path = None if sheet is None else output_path(sheet)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, contact_sheet(images))
        except OSError as error:
            raise SystemFailure(f"the contact sheet cannot be written to {path}: {error.strerror or error}.") from error
    counts = (
        np.bincount(labels, minlength=images.facts.classes) for labels in (images.train_labels, images.test_labels)
    )
    training, test = (tuple(int(n) for n in count) for count in counts)
    return DataInspection(
        images.facts,
        images.fingerprint,
        images.is_published,
        images.note,
        training,
        test,
        path,
        describe_source(name),
    )
