"""A fully connected network in training, as flat arrays: what the kernels of `fc` work on.

Units' values lie in `Lanes`: `net.x[block][unit]` are the values of one unit in 64 images. A layer's products walk over
its surviving weights (WEIGHTS), over the lit pixels of the images (PIXELS, the first layer only), or over everything
(ALL); docs/performance.md says which costs what.

A mini-batch of images as the first layer wants it: one pixel in 64 images is one `Lanes`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from supermask.engines.sparse.kernels.jit import jit_inline
from supermask.engines.sparse.kernels.simd import (
    ALIGNMENT,
    VECTOR_WIDTH,
    extract_byte,
    fma,
    load,
    load_u64,
    multiply,
    nonzero_mask,
    prefetch,
    splat,
    store,
)

# mypy: disable-error-code="no-untyped-def"


WEIGHTS, PIXELS, ALL = 0, 1, 2

LAYER_DTYPE = np.dtype([(name, np.int64) for name in (
    "walk", "inputs", "outputs", "last",
    "x", "y",                               # where in a block of net.x its inputs and outputs are
    "w", "size", "width",                   # where in net.w its weights are, how many numbers, how long a row is
    "listed",                               # whether there are lists of its surviving weights, as under WEIGHTS
    "compact", "used", "shares",            # where in net.w these are, how many, in how many shares
    "first", "offset", "first_in", "column_order", # where their lists are
    "dense_index",
    "words", "bias",
)])  # fmt: skip


class MLPBuffers(NamedTuple):
    """All arrays of a network in training; everything about one layer is at the places that its row of `table` names.

    WEIGHTS: `w` holds the surviving weights alone, share by share, row by row; `offset` says where in `x` their inputs
    are. By column, `place` says where in `w` they are, `offset_in` where in `d` their outputs are.
    Such lists, with weights of their own, may be there under PIXELS and ALL too: then gradients walk over them, and
    `home` says where in `w` the weight is that follows each.
    PIXELS: `w[block of outputs][input][64]`. ALL: `w[output][input]`, rows padded. `words` has a bit a weight: whether
    it survives.
    """

    table: Any
    w: Any
    m: Any
    v: Any
    g: Any
    bias: Any
    bias_m: Any
    bias_v: Any
    bias_g: Any
    words: Any
    first: Any
    offset: Any
    first_in: Any
    offset_in: Any
    column_order: Any
    dense_index: Any
    x: Any
    """`(blocks, units, LANES)`, flat: what goes into each layer, and the logits."""
    d: Any
    """The same for the gradient of the loss at them."""
    units: int
    scratch: Any
    nonzero_bits: Any
    """`(blocks, pixels)`: a bit an image, whether the pixel is lit in it."""
    ever_nonzero: Any
    """`(pixels,)`: not 0 where one was lit in any batch so far."""
    rows: Any
    """By image. PIXELS: 64 of a layer's outputs, or their gradients. ALL: its inputs."""
    maximum: np.float32
    """What a byte of an image is divided by."""
    pixel_bytes_read: Any
    """Whether any weight reads any of pixels 8 i to 8 i + 7."""
    eights: Any
    """Room for eight pixels of each image of a block."""
    batch_scratch: Any
    """Room for an index of each image of a block."""


@jit_inline
def vector_slice(net, start, unit, units):
    """Where in `net.x` and `net.d` the `Lanes` of units are, `units` of them from `unit` on, for 64 images."""
    at = (start // VECTOR_WIDTH * net.units + unit) * VECTOR_WIDTH
    return slice(at, at + units * VECTOR_WIDTH)


# mypy: disable-error-code="no-untyped-def"


@jit_inline
def load_images(images, pixels, chosen, maximum, needed, words, x):
    """x[p, b] = pixel p of image chosen[b] / maximum, and 0 where there is no image b. At most `LANES` images.

    Eight pixels at a time; those that no weight reads (`needed` is 0) are left as they are. `words` is room for eight
    bytes of each image.
    """
    inverse, zero = np.float32(1) / maximum, splat(np.float32(0))
    words[:] = 0
    for p in range(0, pixels, 8):
        if needed[p // 8] == 0:
            continue
        some = np.uint64(0)
        for b in range(len(chosen)):
            words[b] = load_up_to_8_bytes(images, chosen[b] * pixels + p, min(8, pixels - p))
            some |= words[b]
        for q in range(min(8, pixels - p)):
            if some == 0:
                store(x, (p + q) * VECTOR_WIDTH, zero)
            else:
                store(x, (p + q) * VECTOR_WIDTH, exact_divide(extract_byte(words, q), maximum, inverse))


@jit_inline
def prefetch_images(images, pixels, chosen):
    """Has the images of a batch brought near while something else is computed."""
    for b in range(len(chosen)):
        for p in range(0, pixels, ALIGNMENT):
            prefetch(images, chosen[b] * pixels + p)


@jit_inline
def nonzero_pixel_bits(x, pixels, bits, seen):
    """Bit b of bits[p] says whether x[p, b] > 0; seen[p] is not 0 once that was so in any batch."""
    for p in range(pixels):
        bits[p] = nonzero_mask(load(x, p * VECTOR_WIDTH))
        seen[p] |= bits[p]


@jit_inline
def load_up_to_8_bytes(images, at, count):
    """Up to eight bytes from `at` on, as one number; no byte behind them is looked at."""
    if count == 8:
        return load_u64(images, at)
    found = np.uint64(0)
    for q in range(count):
        found |= np.uint64(images[at + q]) << np.uint64(8 * q)
    return found


@jit_inline
def exact_divide(a, b, inverse):
    """a / b, rounded as a division is, for whole numbers to 255: a product with 1 / b, and what it is off by."""
    close = multiply(splat(inverse), a)
    return fma(inverse, fma(-b, close, a), close)
