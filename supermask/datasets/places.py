"""Search below the data folder for the folders that are named after a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from supermask.datasets.idx import normalize
from supermask.datasets.images import DataFolder

_DEPTH = 3
"""Levels of folders below the data folder that are searched for the name of a dataset."""
_MAX_FOLDERS = 2_000
"""Folders visited: the data folder may also hold other datasets with a folder per class."""


def dataset_folders(folder: DataFolder, names: Sequence[str]) -> list[Path]:
    """Return the folders called by one of these names, nearest first, the data folder itself included.

    Names are compared by their letters and digits: `FashionMNIST`, `fashion_mnist` and `fashion-mnist` are one. Of a
    folder of a download cache (`datasets--owner--name`) the last part counts.
    """
    matches: list[Path] = []
    level, visited = [folder.path], 0
    with suppress(OSError):
        if normalize(folder.path.absolute().name) in names:
            matches.append(folder.path)
    for _ in range(_DEPTH):
        below: list[Path] = []
        for place in level:
            visited += 1
            with suppress(OSError):
                if visited <= _MAX_FOLDERS:
                    below += sorted(entry for entry in place.iterdir() if entry.is_dir())
        matches += [path for path in below if normalize(path.name.split("--")[-1]) in names]
        level = [path for path in below if path not in matches]
    return matches
