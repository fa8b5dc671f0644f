"""A fully connected first layer seen from its images: how much of each pixel a mask keeps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pixel_map(mask: NDArray[np.bool_], image_shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Share of each pixel's weights that are kept, in [0, 1]; shape (height, width), channels taken together.

    `mask` is that of a first layer, (units, channels * height * width). Raises ValueError for any other shape (a
    convolution has no weights of a pixel's own). Source: paper.md section 8.
    """
    channels, height, width = image_shape
    if mask.ndim != 2 or mask.shape[1] != channels * height * width:
        raise ValueError(f"a mask of shape {mask.shape} has no weights of its own for each pixel of {image_shape}")
    share: NDArray[np.float64] = mask.reshape(-1, channels, height, width).mean(axis=(0, 1))
    return share
