"""Locators: a user's own data named in a study by kind and place, such as `npz:FILE` or `images:FOLDER#side=32`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supermask.core.environment import expand_path
from supermask.core.errors import UserError, did_you_mean, quote
from supermask.datasets.images import DataFolder

PATH_KINDS = {
    "npz": "npz:FILE",
    "idx": "idx:FOLDER",
    "parquet": "parquet:FOLDER or parquet:FOLDER#IMAGE_COLUMN,LABEL_COLUMN",
    "images": "images:FOLDER or images:FOLDER#side=PIXELS",
}
"""Kind of a locator with a path -> its form, for messages."""
LOCATOR_FORMS = "npz:FILE, idx:FOLDER, parquet:FOLDER, images:FOLDER or module:function"
"""All forms of a locator, for messages."""

MAX_LENGTH = 500
"""Characters of a locator. It is stored with every run."""
MAX_SIDE_OPTION = 1024
"""Pixels that `#side=` may ask for."""

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Locator:
    """Kind, path and option of a locator."""

    text: str
    """As written in the study."""
    kind: str
    """A key of `PATH_KINDS`, or `module`."""
    path: str
    """Path as written; the import path of a function for the kind `module`."""
    columns: tuple[str, str] | None = None
    """Image and label column, for `parquet`."""
    side: int | None = None
    """Height and width in pixels to which images are resized, for `images`."""


def is_locator(name: str) -> bool:
    """Return whether the text has the form of a locator: `KIND:PLACE`."""
    return ":" in name


def is_module_locator(name: str) -> bool:
    """Return whether the text names a function of the user, `module:function`."""
    return name.partition(":")[0] not in PATH_KINDS and _IMPORT_PATH.fullmatch(name) is not None


def suggest_locator(name: str) -> str:
    """Return `; did you mean 'images:photos'?` for the path of data without its kind, else an empty string."""
    path = expand_path(name)
    try:
        if path.suffix == ".npz":
            kind = "npz"
        elif (path / "train").is_dir():
            kind = "images"
        elif any(path.glob("*.parquet")):
            kind = "parquet"
        elif any(path.glob("*-idx3-ubyte*")):
            kind = "idx"
        else:
            return ""
    except (OSError, ValueError):
        return ""
    return f"; did you mean {quote(f'{kind}:{name}')}?"


def parse_locator(text: str) -> Locator:
    """Return the parts of a locator. Raises UserError for another form."""
    if len(text) > MAX_LENGTH or not text.isprintable():
        raise UserError(f"{quote(text)} is not a dataset: a locator is one line of at most {MAX_LENGTH} characters.")
    kind, _, place = text.partition(":")
    if kind not in PATH_KINDS:
        if is_module_locator(text):
            return Locator(text, "module", text)
        near = did_you_mean(kind, PATH_KINDS) or "."
        raise UserError(
            f"{quote(text)} is not a dataset: {quote(kind)} is not a kind of data{near} Allowed: {LOCATOR_FORMS}."
        )
    path, mark, option = place.partition("#")
    no_mark = " A path with # cannot be named: rename it, or make a link without # to it." if mark else ""
    if not path or (mark and kind not in ("parquet", "images")):
        raise UserError(f"{quote(text)} is not a dataset: the form is {PATH_KINDS[kind]}.{no_mark}")
    if not mark:
        return Locator(text, kind, path)
    if kind == "parquet":
        columns = tuple(option.split(","))
        if len(columns) != 2 or not all(columns):
            raise UserError(f"{quote(text)} is not a dataset: the form is {PATH_KINDS[kind]}.{no_mark}")
        return Locator(text, kind, path, columns=(columns[0], columns[1]))
    if not re.fullmatch(r"side=[0-9]{1,4}", option, re.ASCII) or not 1 <= int(option[5:]) <= MAX_SIDE_OPTION:
        pixels = f"1 to {MAX_SIDE_OPTION} pixels"
        raise UserError(f"{quote(text)} is not a dataset: the form is {PATH_KINDS[kind]}, with {pixels}.{no_mark}")
    return Locator(text, kind, path, side=int(option[5:]))


def find_path(locator: Locator, folder: DataFolder) -> Path:
    """Return the absolute path of a locator: a relative one is searched in the data folder, then the current folder.

    Raises UserError if there is no such file or folder.
    """
    path = expand_path(locator.path)
    places: Sequence[Path] = [path] if path.is_absolute() else [folder.path / path, path]
    for place in places:
        try:
            if place.exists():
                return place.absolute()
        except (OSError, ValueError) as error:
            raise UserError(f"dataset {quote(locator.text)}: {error}.") from error
    what = "file" if locator.kind == "npz" else "folder"
    searched = " and ".join(str(place.absolute()) for place in places)
    raise UserError(
        f"dataset {quote(locator.text)}: there is no such {what}; looked for {searched} ({folder.origin}). Give an "
        f"absolute path, or one below the data folder or the current folder."
    )
