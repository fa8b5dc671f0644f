"""Decoding of PNG and JPEG images in threads: Pillow releases the interpreter while it decodes.

Pillow opens images of 16 bits per color channel in the mode `RGB` and drops their low bytes without a word, so the bits
are read from the file's header.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

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
_RULES = 2
"""Increased when other images are accepted or an image gets other pixels: arrays in the cache are made again."""
_HEADER_BYTES = {"PNG": 25, "PPM": 1 << 10, "JPEG2000": 1 << 16, "SGI": 4}
"""Bytes at the start of a file that tell the bits per channel, by format; the other formats have 8, or are TIFF."""
_TIFF_BITS_PER_SAMPLE = 258
_PPM_HEADER = re.compile(rb"P[2356]\s+\d+\s+\d+\s+(\d+)\s")
_JPEG_2000_START = b"\xff\x4f\xff\x51"
"""Markers SOC and SIZ, with which a codestream starts."""

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


def decoder_key() -> str:
    """Return what decoded pixels depend on beside the files, for keys of the cache."""
    return f"pillow {version('pillow')} rules {_RULES}"


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
        _check_depth(image)
        return ImageFacts(image.size[0], image.size[1], 1 if image.mode in _GREY_MODES else 3)


def decode_image(content: bytes, channels: int, side: int | None = None) -> Pixels:
    """Return an image as (channels, height, width) uint8. Raises ImageRefused for a damaged one.

    Transparency is dropped. `side`: cut the largest square from the center, then scale it to this height and width
    (bilinear, antialiased).
    """
    with _open(content) as image:
        image.verify()  # Checks the checksums of a PNG, which decoding alone ignores; it uses up the image.
    with _open(content) as image:
        _check_depth(image)
        converted = image.convert("L" if channels == 1 else "RGB")
        if side is not None and image.size != (side, side):
            converted = _resize(converted, side)
        pixels = np.asarray(converted, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)


def convert_image(image: Any) -> NDArray[np.uint8]:
    """Return an image of Pillow as uint8: (height, width) if it is grey, else (height, width, 3).

    The rules are those of `decode_image`: colors of palettes are looked up, transparency is dropped.
    Raises ImageRefused for more than 8 bits per channel, where the image still knows its file, and for other modes.
    """
    _check_depth(image)
    return np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"), dtype=np.uint8)


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
        _check_depth(image)
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels.reshape(height, width, channels).transpose(2, 0, 1), image.format == "JPEG"


def _resize(image: Any, side: int) -> Any:
    from PIL import Image

    width, height = image.size
    square = min(width, height)
    left, top = (width - square) // 2, (height - square) // 2
    cropped = image.crop((left, top, left + square, top + square))
    return cropped.resize((side, side), Image.Resampling.BILINEAR)


def _check_depth(image: Any) -> None:
    """Raise ImageRefused unless an opened image has at most 8 bits per channel, and is grey or color."""
    if image.mode.startswith("I"):
        raise ImageRefused(f"is a 16-bit or 32-bit image (mode {image.mode}); convert it to 8 bits")
    if image.mode not in _EIGHT_BIT_MODES:
        raise ImageRefused(f"is in mode {image.mode}; 8-bit grey or color expected")
    if (bits := _stored_bits(image)) > 8:
        raise ImageRefused(f"has {bits} bits per channel; convert it to 8 bits")


def _stored_bits(image: Any) -> int:
    """Return the bits per channel in the file of an opened image; 8 if the image does not know its file any more."""
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (8,))))
    if image.format not in _HEADER_BYTES:
        bits = image.info.get("bit_depth", 8)  # Of plugins, such as pillow-heif.
        return bits if isinstance(bits, int) else 8
    header = _read_header(image, _HEADER_BYTES[image.format])
    if image.format == "PNG" and len(header) > 24:
        return header[24]
    if image.format == "PPM" and (match := _PPM_HEADER.match(re.sub(rb"#[^\n]*", b"", header))):
        return int(match[1]).bit_length()
    if image.format == "SGI" and len(header) > 3:
        return 8 * header[3]
    if image.format == "JPEG2000" and (start := header.find(_JPEG_2000_START)) >= 0 and len(header) > start + 42:
        return (header[start + 42] & 0x7F) + 1  # Depth - 1 of the first component; the first bit is its sign.
    return 8


def _read_header(image: Any, size: int) -> bytes:
    """Return the first bytes of the file of an opened image; none if the image has let go of it."""
    file = getattr(image, "fp", None)
    if file is not None and not file.closed:
        position = file.tell()
        file.seek(0)
        header = bytes(file.read(size))
        file.seek(position)
        return header
    if not (name := getattr(image, "filename", "")):
        return b""
    try:
        with Path(os.fsdecode(name)).open("rb") as reopened:
            return reopened.read(size)
    except OSError:
        return b""


@contextmanager
def _open(source: Path | bytes) -> Iterator[Any]:
    """Open an image with Pillow. Raises ImageRefused if it is not a PNG or JPEG, or if reading it fails."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            yield image
    except ImageRefused:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged images.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Pillow's text for an unknown format is the address of the file in memory.
        reason = "its format is another or it is damaged" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageRefused(f"is not a readable PNG or JPEG ({reason if source else 'it is empty'})") from error


@contextmanager
def _refuse_bombs() -> Iterator[None]:
    """Make Pillow refuse images whose header claims a huge size. Filters of warnings are shared by all threads."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
