"""`images:FOLDER`: one folder per class with PNG or JPEG images, below `train` and below `test`, `val` or `valid`.

Classes are the folders' names in the order of Python's `sorted`: label 0 is the first. Files have the same order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from supermask.core.errors import UserError
from supermask.datasets.arrays import locator_error
from supermask.datasets.decoding import (
    ImageFacts,
    ImageRefused,
    decode_image,
    decoder_key,
    image_facts,
    map_parallel,
    read_encoded,
)
from supermask.datasets.images import Allocate, ArrayShapes, DatasetFiles, Pixels, RawDataset, translate_os_errors
from supermask.datasets.locators import PATH_KINDS, Locator
from supermask.datasets.specs import MAX_SIDE

SUFFIXES = (".png", ".jpg", ".jpeg")
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
"""Folders of the test images; the first that exists is used."""
MAX_FILES = 20_000_000


@dataclass(frozen=True)
class _Part:
    """The files of the training or the test set, with their labels."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


def find(locator: Locator, path: Path) -> DatasetFiles:
    """Return the images of the folder. Raises UserError if a part or its classes are missing."""
    train_folder = _find_folder(path, TRAIN_FOLDERS)
    test_folder = _find_folder(path, TEST_FOLDERS)
    if train_folder is None or test_folder is None:
        content = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) if path.is_dir() else "a file"
        missing = "no folder 'train'" if train_folder is None else "no test split (a folder 'test' or 'val')"
        raise _error(
            locator, f"{missing} in {path}: found {content or 'nothing'}; expected train/CLASS/* and test/CLASS/*"
        )
    classes = sorted(entry.name for entry in train_folder.iterdir() if entry.is_dir() and not _is_hidden(entry))
    if not classes:
        raise _error(locator, f"{train_folder} has no folders; expected one per class, with its images")
    train = _list_part(locator, train_folder, classes)
    test = _list_part(locator, test_folder, classes)
    facts = (
        f"{len(train.files)} {locator.side} {hashlib.sha256(repr((train.labels, test.labels)).encode()).hexdigest()}"
    )
    return DatasetFiles(
        (*train.files, *test.files),
        partial(decode, locator, train, test),
        decoder=f"{decoder_key()} {facts}",
        is_many=True,
    )


def decode(locator: Locator, train: _Part, test: _Part, allocate: Allocate) -> RawDataset:
    """Return the decoded images. Raises UserError that names a damaged file, or says which sizes there are."""
    channels, height, width = _image_shape(locator, [*train.files, *test.files])
    arrays = allocate(ArrayShapes((channels, height, width), len(train.files), len(test.files)))
    for part, images, what in ((train, arrays[0], "training images"), (test, arrays[1], "test images")):
        images.labels[:] = part.labels
        load = partial(_load_image, locator, channels)
        for index, pixels in enumerate(map_parallel(load, part.files, len(part.files), f"decoding {what}")):
            images.images[index] = pixels
    return RawDataset(*arrays)


def _image_shape(locator: Locator, files: Sequence[Path]) -> tuple[int, int, int]:
    """Return (channels, height, width) from the headers of all files: color if any image is."""
    facts = list(map_parallel(partial(_read_facts, locator), files, len(files), "reading headers"))
    channels = max(image.channels for image in facts)
    if locator.side is not None:
        return channels, locator.side, locator.side
    sizes = Counter((image.width, image.height) for image in facts)
    if len(sizes) > 1:
        listed = ", ".join(f"{w}x{h} ({count:,} images)" for (w, h), count in sizes.most_common(3))
        usual = sizes.most_common(1)[0][0]
        odd = next(f for f, image in zip(files, facts, strict=True) if (image.width, image.height) != usual)
        more = ", ..." if len(sizes) > 3 else ""
        raise _error(
            locator,
            f"its images have {len(sizes):,} sizes: {listed}{more}; {odd} is one of the smaller group. Scale them all "
            f"with {locator.kind}:{locator.path}#side={min(usual)}",
        )
    ((width, height),) = sizes
    if max(width, height) > MAX_SIDE:
        raise _error(locator, f"its images have {width}x{height} pixels; scale them with #side=PIXELS")
    return channels, height, width


def _read_facts(locator: Locator, path: Path) -> ImageFacts:
    try:
        with translate_os_errors(path):
            return image_facts(path)
    except ImageRefused as refused:
        raise _error(locator, f"{path} {refused}") from refused


def _load_image(locator: Locator, channels: int, path: Path) -> Pixels:
    try:
        with translate_os_errors(path):
            return decode_image(read_encoded(path), channels, locator.side)
    except ImageRefused as refused:
        raise _error(locator, f"{path} {refused}") from refused


def _list_part(locator: Locator, folder: Path, classes: Sequence[str]) -> _Part:
    """Return the images below `folder`, class by class. Raises UserError for unknown or empty classes."""
    with translate_os_errors(folder):
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry))
        if unknown := [name for name in names if name not in classes]:
            raise _error(locator, f"{folder / unknown[0]}: the class {unknown[0]!r} has no training images")
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            images = _list_images(locator, folder / name) if name in names else []
            if not images and folder.name in TRAIN_FOLDERS:
                raise _error(locator, f"{folder / name} has 0 images (PNG or JPEG)")
            files += images
            labels += [label] * len(images)
            if len(files) > MAX_FILES:
                raise _error(locator, f"{folder} has more than {MAX_FILES:,} images")
    if not files:
        raise _error(locator, f"{folder} has 0 images: expected CLASS/*.png or CLASS/*.jpg below it")
    return _Part(tuple(files), tuple(labels))


def _list_images(locator: Locator, folder: Path) -> list[Path]:
    """Return the image files below a class's folder, by path. Hidden files are left out; other files are refused."""
    images = []
    for path in sorted(_walk_class(folder)):
        if path.suffix.lower() not in SUFFIXES:
            if path.suffix.lower() in (".txt", ".csv", ".json", ".xml", ".md", ".ini", ".db"):
                continue  # Annotations, such as the boxes of Tiny ImageNet.
            raise _error(locator, f"{path} is not a PNG or JPEG; convert or remove it")
        images.append(path)
    return images


def _walk_class(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without hidden ones and without those in hidden folders.

    Links to folders are followed, except to a folder above, which is a loop and would bring in other classes. Each
    folder is visited once, under its own path if that is below `folder`, so that no image counts twice.
    """
    folders, links, visited = [folder], list[Path](), set[Path]()
    above = {parent.resolve() for parent in folder.absolute().parents}
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        if (resolved := current.resolve()) in visited:
            continue
        visited.add(resolved)
        for path in sorted(current.iterdir()):
            if _is_hidden(path):
                continue
            if not path.is_dir():
                yield path
            elif not path.is_symlink():
                folders.append(path)
            elif path.resolve() not in above.union(resolved.parents):
                links.append(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "__MACOSX"))


def _find_folder(path: Path, names: Sequence[str]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _error(locator: Locator, reason: str) -> UserError:
    return locator_error(locator.text, f"{reason} (the form is {PATH_KINDS['images']})")
