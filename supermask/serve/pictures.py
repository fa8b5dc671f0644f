"""Masks as pictures: PNG images of arrays, one pixel a value, as large as they are; the page scales them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from supermask.analysis import MaskArrays, pixel_map

KEPT, PRUNED = (11, 60, 122), (240, 242, 246)
"""Dark blue and nearly white: in dark surroundings as well, the picture has a ground of its own."""

WHITE, DEEP = np.array([255.0, 255.0, 255.0]), np.array([10.0, 47.0, 94.0])

MOST_PIXELS = 4_000_000


def mask_picture(mask: NDArray[np.bool_]) -> bytes:
    """A mask as PNG: a row a unit, a column an input. Of a convolution a pixel is the kept share of a window."""
    if mask.ndim == 4:
        return share_picture(mask.mean(axis=(2, 3)), 1.0)
    colours = np.array([PRUNED, KEPT], dtype=np.uint8)
    return _png(colours[mask.astype(np.uint8)])


def pixels_picture(mask: NDArray[np.bool_], image_shape: tuple[int, int, int]) -> bytes:
    """How much of each pixel a first layer keeps, as PNG; the darkest is the most. Raises ValueError: see `pixel_map`.

    Source: paper.md section 8.
    """
    share = pixel_map(mask, image_shape)
    return share_picture(share, float(share.max()) or 1.0)


def share_picture(share: NDArray[np.float64], top: float) -> bytes:
    """Values from 0 (white) to `top` (dark blue) as PNG."""
    amount = np.clip(share / top, 0.0, 1.0)[..., None]
    return _png((WHITE + amount * (DEEP - WHITE)).round().astype(np.uint8))


def has_pixels(masks: MaskArrays, image_shape: tuple[int, int, int]) -> bool:
    """Whether the first layer has weights of its own for each pixel."""
    first = next(iter(masks.values()))
    return first.ndim == 2 and first.shape[1] == int(np.prod(image_shape))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    height, width = pixels.shape[:2]
    every = max(1, int(np.ceil((height * width / MOST_PIXELS) ** 0.5)))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[::every, ::every])).save(file, "PNG", optimize=False)
    return file.getvalue()
