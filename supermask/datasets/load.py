"""From a dataset's name to its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from supermask.datasets import cache, cifar10, digits, mnist
from supermask.datasets.facts import DATASETS, DatasetFacts
from supermask.datasets.images import Images, fingerprint
from supermask.datasets.source import DataFolder, Source, data_folder
from supermask.errors import UserError, did_you_mean

FINDERS: dict[str, Callable[[DatasetFacts, DataFolder], Source]] = {"mnist": mnist.find, "cifar10": cifar10.find}
"""The datasets that come from files."""


def load(name: str, data_dir: Path | None = None) -> Images:
    """The dataset of this name, looked for in `data_dir` (default: SUPERMASK_DATA, else ./data).

    Raises UserError for an unknown name and for missing or damaged files, MachineError where the disk fails.
    """
    if name not in DATASETS:
        raise UserError(f"dataset '{name}' is not known (allowed: {', '.join(DATASETS)}){did_you_mean(name, DATASETS)}")
    return load_as(DATASETS[name], data_dir)


def load_as(facts: DatasetFacts, data_dir: Path | None = None) -> Images:
    """The same for any counts: the files of `facts.name`, which must hold what `facts` says."""
    if facts.name in FINDERS:
        data, mark = cache.decoded(facts, FINDERS[facts.name](facts, data_folder(data_dir)))
    else:
        data = digits.decode(facts)
        mark = fingerprint(data.train, data.test)
    note = data.note
    if not note and facts.known_fingerprint not in (None, mark):
        note = f"not the usual {facts.name}: the images or labels differ from it"
    return Images(facts, data.train.images, data.train.labels, data.test.images, data.test.labels, mark, note)
