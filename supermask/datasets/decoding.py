"""Decoding of PNG and JPEG images in threads: Pillow releases the interpreter while it decodes."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from supermask.datasets.images import Pixels
from supermask.datasets.progress import report_progress

FORMATS = ("PNG", "JPEG")
MAX_ENCODED_BYTES = 1 << 26
"""Bytes of one encoded image."""
_BATCH = 256
"""Images that are decoded between two reports of progress; their encoded bytes are held in memory."""
_CHUNK = 32
"""Images that a thread decodes at once: handing over single small images takes longer than decoding them."""
_EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "YCbCr")
_GREY_MODES = ("1", "L", "LA")

Task = TypeVar("Task")
Result = TypeVar("Result")


class ImageRefused(Exception):
    """An image that cannot be used. The message is a predicate (`is empty`); the caller names the file before it."""


@dataclass(frozen=True)
class ImageFacts:
    """Size and colors of an encoded image, from its header."""

    width: int
    height: int
    channels: int
    """1 for grey images, 3 for colors."""


def map_parallel(function: Callable[[Task], Result], tasks: Iterable[Task], total: int, what: str) -> Iterator[Result]:
    """Yield the results in order, computed by one thread per core, a few hundred tasks at a time."""
    iterator, done = iter(tasks), 0
    with ThreadPoolExecutor(max_workers=_num_cores()) as pool:
        while batch := list(islice(iterator, _BATCH)):
            with _refuse_bombs():
                chunks = [batch[start : start + _CHUNK] for start in range(0, len(batch), _CHUNK)]
                results = list(pool.map(partial(_map_chunk, function), chunks))
            for chunk in results:
                yield from chunk
            done += len(batch)
            report_progress(what, done, total)


def _map_chunk(function: Callable[[Task], Result], tasks: list[Task]) -> list[Result]:
    return [function(task) for task in tasks]


def _num_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def read_encoded(path: Path) -> bytes:
    """Return the bytes of an image file. Raises ImageRefused for an empty or too large one, OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_ENCODED_BYTES + 1)
    if len(content) > MAX_ENCODED_BYTES:
        raise ImageRefused(f"has more than {MAX_ENCODED_BYTES:,} bytes")
    if not content:
        raise ImageRefused("is empty")
    return content


def image_facts(source: Path | bytes) -> ImageFacts:
    """Return size and channels of an image from its header, without decoding it. Raises ImageRefused."""
    with _open(source) as image:
        _check_mode(image.mode)
        return ImageFacts(image.size[0], image.size[1], 1 if image.mode in _GREY_MODES else 3)


def decode_image(content: bytes, channels: int, side: int | None = None) -> Pixels:
    """Return an image as (channels, height, width) uint8. Raises ImageRefused for a damaged one.

    Transparency is dropped. `side`: cut the largest square from the center, then scale it to this height and width
    (bilinear, antialiased).
    """
    with _open(content) as image:
        image.verify()  # Checks the checksums of a PNG, which decoding alone ignores; it uses up the image.
    with _open(content) as image:
        _check_mode(image.mode)
        converted = image.convert("L" if channels == 1 else "RGB")
        if side is not None and image.size != (side, side):
            converted = _resize(converted, side)
        pixels = np.asarray(converted, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)


def decode_published_image(content: bytes, shape: tuple[int, int, int]) -> tuple[Pixels, bool]:
    """Return an image of exactly this shape, grey or color, and whether it is a JPEG. Raises ImageRefused.

    Size and mode are checked before decoding, so that a small file cannot unpack to a huge image.
    """
    channels, height, width = shape
    mode = {1: "L", 3: "RGB"}[channels]
    with _open(content) as image:
        image.verify()
    with _open(content) as image:
        if (image.mode, image.size) != (mode, (width, height)):
            properties = f"{image.size[0]}x{image.size[1]} pixels in mode {image.mode}"
            raise ImageRefused(f"has {properties}; {width}x{height} in mode {mode} expected")
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels.reshape(height, width, channels).transpose(2, 0, 1), image.format == "JPEG"


def _resize(image: Any, side: int) -> Any:
    from PIL import Image

    width, height = image.size
    square = min(width, height)
    left, top = (width - square) // 2, (height - square) // 2
    cropped = image.crop((left, top, left + square, top + square))
    return cropped.resize((side, side), Image.Resampling.BILINEAR)


def _check_mode(mode: str) -> None:
    if mode.startswith("I"):
        raise ImageRefused(f"is a 16-bit or 32-bit image (mode {mode}); convert it to 8 bits")
    if mode not in _EIGHT_BIT_MODES:
        raise ImageRefused(f"is in mode {mode}; 8-bit grey or color expected")


@contextmanager
def _open(source: Path | bytes) -> Iterator[Any]:
    """Open an image with Pillow. Raises ImageRefused if it is not a PNG or JPEG, or if reading it fails."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            yield image
    except ImageRefused:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged images.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageRefused(f"is not a readable PNG or JPEG ({error})") from error


@contextmanager
def _refuse_bombs() -> Iterator[None]:
    """Make Pillow refuse images whose header claims a huge size. Filters of warnings are shared by all threads."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
