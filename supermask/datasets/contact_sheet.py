"""Contact sheet of a dataset: the first training images of each class, one row per class, as a PNG."""

from __future__ import annotations

import io

import numpy as np

from supermask.datasets.images import ImageDataset, Pixels

COLUMNS = 12
"""Images per class."""
MAX_ROWS = 50
"""Classes shown; of more, the first."""
_MIN_SIDE = 32
"""Pixels to which smaller images are enlarged, by whole factors."""
_GAP = 2
_BACKGROUND = 255


def contact_sheet(images: ImageDataset) -> bytes:
    """Return a PNG of the first training images of each class; row i is class i, in the order of the labels."""
    from PIL import Image

    spec = images.facts
    _, height, width = spec.image_shape
    factor = max(1, -(-_MIN_SIDE // min(height, width)))
    rows = min(spec.classes, MAX_ROWS)
    cell = (height * factor + _GAP, width * factor + _GAP)
    sheet = np.full((3, rows * cell[0] + _GAP, COLUMNS * cell[1] + _GAP), _BACKGROUND, np.uint8)
    for row in range(rows):
        for column, index in enumerate(np.flatnonzero(images.train_labels == row)[:COLUMNS]):
            top, left = row * cell[0] + _GAP, column * cell[1] + _GAP
            picture = _enlarge(_to_color(images.train_images[index], spec.max_pixel), factor)
            sheet[:, top : top + height * factor, left : left + width * factor] = picture
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet.transpose(1, 2, 0))).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _to_color(image: Pixels, max_pixel: int) -> Pixels:
    """Return (3, height, width) with values up to 255; of other numbers of channels than 3, the first is shown."""
    scaled = (image.astype(np.uint16) * 255 // max_pixel).astype(np.uint8)
    return scaled if len(scaled) == 3 else np.repeat(scaled[:1], 3, axis=0)


def _enlarge(image: Pixels, factor: int) -> Pixels:
    return image.repeat(factor, axis=1).repeat(factor, axis=2)
