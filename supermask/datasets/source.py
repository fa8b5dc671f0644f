"""Files that a dataset comes from: where they are looked for, how they are read, and what is said when they fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from supermask.datasets.images import Decoded, Labels
from supermask.errors import MachineError, UserError

DATA_VARIABLE = "SUPERMASK_DATA"


@dataclass(frozen=True)
class DataFolder:
    """The folder that holds the datasets, and how it came to be chosen (for error messages)."""

    path: Path
    chosen_by: str


@dataclass(frozen=True)
class Source:
    """A dataset's files, found but not yet read."""

    files: tuple[Path, ...]
    decode: Callable[[], Decoded]
    decoder: str = ""
    """Name and version of a library whose release may change the decoded pixels; empty where there is none."""


def data_folder(given: Path | None = None) -> DataFolder:
    """The folder given, else the environment's SUPERMASK_DATA, else `data` in the current folder."""
    if given is not None:
        return DataFolder(given, f"the data folder given: '{given}'")
    if named := os.environ.get(DATA_VARIABLE):
        return DataFolder(Path(named).expanduser(), f"the data folder is {DATA_VARIABLE}: '{named}'")
    return DataFolder(Path("data"), f"the data folder is './data', as {DATA_VARIABLE} is not set")


def missing(name: str, needed: str, looked_in: Iterable[Path], folder: DataFolder, get_it: str) -> UserError:
    """The error for a dataset that was not found: what, all places, where to get it, what to set."""
    there = "" if folder.path.is_dir() else "; there is no such folder"
    places = "\n".join(f"  {place}" for place in looked_in)
    return UserError(
        f"dataset '{name}' was not found ({folder.chosen_by}{there}).\n"
        f"Needed: {needed}.\nLooked in:\n{places}\nGet it: {get_it}.\n"
        f"Then set {DATA_VARIABLE} to the folder that holds '{name}', e.g. `export {DATA_VARIABLE}=$HOME/data`. "
        f"The dataset 'digits' needs no files."
    )


def damaged(path: Path, what: str, get_it: str) -> UserError:
    """The error for a file that is there but cannot be used."""
    return UserError(f"{path}: {what}.\nGet it again: {get_it}.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of the operating system while `path` is read, as UserError (ours to mend) or MachineError (the disk's)."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it must be a file that you may read.") from error
    except OSError as error:
        raise MachineError(
            f"{path}: reading failed ({error.strerror or error}); check the disk, then run again."
        ) from error


def check_labels(path: Path, labels: Labels, classes: int, get_it: str) -> None:
    """Raises UserError unless every label is 0 to `classes` - 1."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()[0]
    if len(wrong):
        first = int(wrong[0])
        raise damaged(path, f"label {int(labels[first])} at image {first}; labels are 0 to {classes - 1}", get_it)
