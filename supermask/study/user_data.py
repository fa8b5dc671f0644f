"""Data of a study: from files by name or locator, or from a function of the user, which only training calls.

A function's data are read once and kept in the cache by their fingerprint, so that workers need not call it again. What
a plan needs of them (fingerprint, shapes, counts) is kept under the hash of the function's source.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from supermask.core.environment import cache_folder
from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.files import write_atomic
from supermask.datasets import loading
from supermask.datasets.arrays import locator_error
from supermask.datasets.cache import read_cache, write_cache
from supermask.datasets.conversion import one_line
from supermask.datasets.from_objects import dataset_from_objects
from supermask.datasets.images import ImageDataset, fingerprint
from supermask.datasets.loading import DataIdentity, make_user_dataset
from supermask.datasets.locators import LOCATOR_FORMS, PATH_KINDS, is_module_locator
from supermask.datasets.specs import DatasetSpec
from supermask.study.source_files import UserModuleNotFound
from supermask.study.user_code import code_sha256, import_function, refuse_unhashed_modules

_READING_RULES = 2
"""Increased when a function's return value is read as other pixels: it is called again before the next plan."""


def load_data(name: str, data_dir: Path | None = None, expected: str | None = None) -> ImageDataset:
    """Return the dataset of a name or locator, as `datasets.load` does; a user's function is imported and called.

    `expected`: fingerprint of the data that are wanted. If a function's data with it are in the cache, they are
    returned without a call.
    """
    if not is_module_locator(name):
        return loading.load(name, data_dir)
    path = None if expected is None else _cache_path(expected)
    if path is not None and (cached := read_cache(path)) is not None:
        return make_user_dataset(name, *cached)
    return read_user_data(name)


def read_user_data(name: str) -> ImageDataset:
    """Call the user's function and return what it returns as a dataset; keep it and its description in the cache.

    Raises UserError if it cannot be imported, if it fails, or for anything that is not images with labels.
    """
    function = import_function(name, ())
    try:
        with refuse_unhashed_modules(name, function.sources):
            value = function.function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise locator_error(name, f"the function failed: {one_line(error)}") from error
    data = dataset_from_objects(value, lambda reason: locator_error(name, reason))
    data_fingerprint = fingerprint(data.train, data.test)
    images = make_user_dataset(name, data, data_fingerprint)
    path = _cache_path(data_fingerprint)
    if path is not None and write_cache(path, data, data_fingerprint) and (cached := read_cache(path)) is not None:
        images = make_user_dataset(name, *cached)
    if (description := _description_path(name, function.module_sha256 or "")) is not None:
        facts = {"run_fingerprint": data_fingerprint, "spec": images.facts.to_data()}
        with contextlib.suppress(OSError):
            description.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(description, json.dumps(facts).encode())
    return images


def identify_user_data(name: str, source: str) -> DataIdentity | None:
    """Return what is known of the data of a function with this source hash; None if nobody has called it here yet."""
    path = _description_path(name, source)
    if path is None:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        facts: Any = json.loads(path.read_bytes())
        return DataIdentity(str(facts["run_fingerprint"]), DatasetSpec.from_data(name, facts["spec"]))
    return None


def data_source(name: str) -> str | None:
    """Return the source hash of the user's function that a locator names, without importing it; None for other data.

    Raises UserModuleNotFound, and UserError as `user_code.code_sha256` does.
    """
    if not is_module_locator(name):
        return None
    try:
        return code_sha256(name)
    except UserModuleNotFound as error:
        near = did_you_mean(name.partition(":")[0], PATH_KINDS)
        files = f" For files{near} The forms are {LOCATOR_FORMS}." if near else ""
        raise UserModuleNotFound(f"dataset {quote(name)}: {error}{files.replace('files;', 'files,')}") from None


def check_source(name: str, expected: str | None) -> None:
    """Raise UserError if a function's source is not the one that a run was planned with. Nothing is imported."""
    if (source := data_source(name)) != expected:
        raise UserError(
            f"dataset {quote(name)}: its file was changed since the run was planned ({str(expected)[:12]}, now "
            f"{str(source)[:12]}): run the same command again."
        )


def _cache_path(data_fingerprint: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "datasets" / f"own-module-{data_fingerprint}"


def _description_path(name: str, source: str) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    return folder / "datasets" / f"own-module-{_READING_RULES}-{name.replace(':', '.')}-{source}.json"
