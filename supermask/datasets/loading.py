"""Loading of datasets by name or locator, with their decoded arrays in a cache that all processes map."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from supermask.core.environment import cache_folder
from supermask.core.errors import UserError, did_you_mean
from supermask.core.files import write_atomic
from supermask.datasets import cifar, digits, idx, image_folder, mnist, npz, parquet, svhn
from supermask.datasets.arrays import describe_dataset, locator_error
from supermask.datasets.cache import StagedCache, read_cache, write_cache
from supermask.datasets.images import (
    DataFolder,
    DatasetFiles,
    ImageDataset,
    RawDataset,
    allocate_in_memory,
    data_folder,
    fingerprint,
    translate_os_errors,
)
from supermask.datasets.locators import (
    LOCATOR_FORMS,
    Locator,
    find_path,
    is_locator,
    is_module_locator,
    parse_locator,
    suggest_locator,
)
from supermask.datasets.specs import DATASETS, DatasetSpec

DATASET_FILE_FINDERS: dict[str, Callable[[DatasetSpec, DataFolder], DatasetFiles]] = {
    **dict.fromkeys(mnist.FORMS, mnist.find),
    **dict.fromkeys(cifar.FORMS, cifar.find),
    "svhn": svhn.find,
}
"""Functions that find the files of a dataset, for the datasets that come from files."""

LOCATOR_FILE_FINDERS: dict[str, Callable[[Locator, Path], DatasetFiles]] = {
    "npz": npz.find,
    "idx": idx.find_in_folder,
    "parquet": parquet.find_in_folder,
    "images": image_folder.find,
}
"""Functions that find the files of a user's own data, by the kind of the locator."""


@dataclass(frozen=True)
class DataIdentity:
    """Facts of a dataset that a plan needs: read from the data once, then kept beside them in the cache."""

    fingerprint: str | None
    """`ImageDataset.run_fingerprint`: None for published data."""
    spec: DatasetSpec | None
    """Specification of a user's own data; None for a dataset of `DATASETS`."""


def load(name: str, data_dir: Path | None = None) -> ImageDataset:
    """Return the dataset of this name or locator; `data_dir` replaces the folder in SUPERMASK_DATA (else ./data).

    Raises UserError for an unknown name and for missing, damaged or unsuitable files, SystemFailure if the disk fails.
    """
    if is_locator(name):
        return load_locator(parse_locator(name), data_dir)
    if name not in DATASETS:
        near = suggest_locator(name) or did_you_mean(name, DATASETS)
        raise UserError(f"dataset '{name}' is not known (allowed: {', '.join(DATASETS)}; or {LOCATOR_FORMS}){near}")
    return load_with_spec(DATASETS[name], data_dir)


def load_locator(locator: Locator, data_dir: Path | None = None) -> ImageDataset:
    """Return a user's own data from files. Raises UserError as `load` does."""
    assert not is_module_locator(locator.text), "functions are called by study.user_data"
    files = find_files(locator, data_dir)
    data, data_fingerprint = load_cached(
        f"own-{locator.kind}", files, check=partial(_describe, locator.text, describe=files.describe)
    )
    return make_user_dataset(locator.text, data, data_fingerprint)


def find_files(locator: Locator, data_dir: Path | None = None) -> DatasetFiles:
    """Return the files that a locator names. Raises UserError if they are not there."""
    path = find_path(locator, data_folder(data_dir))
    with translate_os_errors(path):
        return LOCATOR_FILE_FINDERS[locator.kind](locator, path)


def make_user_dataset(name: str, data: RawDataset, data_fingerprint: str) -> ImageDataset:
    """Return a user's own data as a dataset. Raises UserError for labels that cannot be learned."""
    spec, train, test = _describe(name, data), data.train, data.test
    return ImageDataset(
        spec, train.images, train.labels, test.images, test.labels, data_fingerprint, data.note, is_published=False
    )


def describe_source(name: str, data_dir: Path | None = None) -> str:
    """Return which parts of the files of a locator were taken for images and labels; empty if there is no choice.

    Raises UserError if the files are not there.
    """
    if not is_locator(name) or is_module_locator(name):
        return ""
    describe = find_files(parse_locator(name), data_dir).describe
    return "" if describe is None else describe()


def _describe(name: str, data: RawDataset, describe: Callable[[], str] | None = None) -> DatasetSpec:
    def make_error(reason: str) -> UserError:
        return locator_error(name, reason if describe is None else f"{reason} ({describe()})")

    return describe_dataset(name, data.train, data.test, make_error)


def load_with_spec(spec: DatasetSpec, data_dir: Path | None = None) -> ImageDataset:
    """Return the dataset `spec.name` from files that must match `spec`. Raises as `load` does."""
    if spec.name in DATASET_FILE_FINDERS:
        files = DATASET_FILE_FINDERS[spec.name](spec, data_folder(data_dir))
        data, data_fingerprint = load_cached(spec.name, files, spec)
        is_published = files.is_original
    else:
        data = digits.decode(spec)
        data_fingerprint = fingerprint(data.train, data.test)
        is_published = True
    if spec.published_fingerprint is not None:
        is_published = data_fingerprint == spec.published_fingerprint
    note = data.note
    if not note and spec.published_fingerprint not in (None, data_fingerprint):
        note = f"not the usual {spec.name}: the images or labels differ from it"
    train, test = data.train, data.test
    return ImageDataset(
        spec, train.images, train.labels, test.images, test.labels, data_fingerprint, note, is_published
    )


def run_fingerprint(name: str, data_dir: Path | None = None) -> str | None:
    """Return the `ImageDataset.run_fingerprint` of the dataset that `load` would return: None for the published one.

    Raises as `load` does.
    """
    return identify(name, data_dir).fingerprint


def identify(name: str, data_dir: Path | None = None) -> DataIdentity:
    """Return the fingerprint of the dataset that `load` would return, and its specification if it is a user's own.

    The files are decoded only if their paths, sizes and times have changed since the last call. Training does not rely
    on that: it compares with the decoded arrays. Raises as `load` does.
    """
    folder, locator = cache_folder(), parse_locator(name) if is_locator(name) else None
    if folder is None or (locator is None and name not in DATASET_FILE_FINDERS):
        return _identity(load(name, data_dir))
    if locator is None:
        spec = DATASETS[name]
        key = f"{name}-{_stat_key(repr(spec), DATASET_FILE_FINDERS[name](spec, data_folder(data_dir)))}"
    else:
        key = f"own-{locator.kind}-{_stat_key(name, find_files(locator, data_dir))}"
    path = folder / "datasets" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_bytes())
        stored_fingerprint = stored["run_fingerprint"]
        user_spec = None if locator is None else DatasetSpec.from_data(name, stored["spec"])
        if stored_fingerprint is None or isinstance(stored_fingerprint, str):
            return DataIdentity(stored_fingerprint, user_spec)
    identity = _identity(load(name, data_dir))
    facts = {"run_fingerprint": identity.fingerprint} | ({"spec": identity.spec.to_data()} if identity.spec else {})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(facts).encode())
    return identity


def _identity(images: ImageDataset) -> DataIdentity:
    return DataIdentity(images.run_fingerprint, None if images.facts.name in DATASETS else images.facts)


def load_cached(
    name: str, files: DatasetFiles, spec: DatasetSpec | None = None, check: Callable[[RawDataset], object] | None = None
) -> tuple[RawDataset, str]:
    """Return the arrays and their fingerprint, from the cache if an intact copy is there, else decoded and cached.

    `name` begins the file's name; `spec`: the specification that the arrays must match, if it is known before;
    `check`: raises UserError for decoded arrays that are not to be cached; None checks nothing.
    If the cache cannot be written (read-only, full disk), the arrays are returned from memory.
    """
    check = check or (lambda decoded: None)
    folder = cache_folder()
    if folder is None:
        decoded = files.decode(allocate_in_memory)
        check(decoded)
        return decoded, fingerprint(decoded.train, decoded.test)
    path = folder / "datasets" / f"{name}-{_cache_key(name, spec, files)}"
    if (cached := read_cache(path, spec)) is not None:
        return cached
    with StagedCache(path) as staged:
        decoded = files.decode(staged.allocate)
        check(decoded)
        data_fingerprint = fingerprint(decoded.train, decoded.test)
        is_cached = staged.commit(decoded, data_fingerprint) or write_cache(path, decoded, data_fingerprint)
    # Read back from the file just written: then all processes, this one included, share its pages.
    if is_cached and (cached := read_cache(path, spec)) is not None:
        return cached
    return decoded, data_fingerprint


def _cache_key(name: str, spec: DatasetSpec | None, files: DatasetFiles) -> str:
    """Return the hash of all inputs of decoding: contents of the files (not their paths) and the decoder's release."""
    if files.is_many:
        return _stat_key(name, files)
    expected = None if spec is None else (spec.image_shape, spec.classes, spec.training_images, spec.test_images)
    key = hashlib.sha256(f"supermask cache 3\n{(name, expected)}\n{files.decoder}\n".encode())
    for path in files.files:
        with translate_os_errors(path), path.open("rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    return key.hexdigest()


def _stat_key(description: str, files: DatasetFiles) -> str:
    """Return the hash of paths, sizes and times of the files, of `description` and of the decoder's release."""
    key = hashlib.sha256(f"supermask files 2\n{description}\n{files.decoder}\n".encode())
    for path in files.files:
        with translate_os_errors(path):
            stat = path.stat()
        # The time of the last status change cannot be set back, unlike that of the last modification.
        facts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        key.update(f"{path.absolute()!s} {facts}\n".encode(errors="surrogateescape"))
    return key.hexdigest()
