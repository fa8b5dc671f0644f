"""Memory layout of a fully connected network in training, and of its mini-batch of images.

Shape letters used in the kernels of fully connected networks:

    B   VECTOR_WIDTH = 64 images, side by side in the lanes of one vec64
    NB  blocks of B images in a mini-batch, the last one padded with zeros
    I   inputs of a layer; the pixels P for the first
    O   outputs of a layer
    U   units of all layers, inputs included, padded per layer to a multiple of ROWS
    K   surviving weights of a layer

Positions `at`, `w_at`, `x_at`, ... count floats from the beginning of a flat array.

A layer's products traverse its surviving weights (`WEIGHTS`), the nonzero pixels of the images (`PIXELS`, the first
layer only), or all weights (`ALL`); docs/performance.md compares the costs.
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
"""Values of `traversal` in a layer's row of `MLPBuffers.table`."""

LAYER_DTYPE = np.dtype([(name, np.int64) for name in (
    "traversal", "inputs", "outputs", "last",
    "x", "y",                      # first unit of its inputs and of its outputs in a block of net.x
    "w", "size", "width",          # its weights in net.w: first element, number of elements, length of a padded row
    "listed",                      # 1 if there are lists of its surviving weights: always for WEIGHTS
    "compact", "used", "blocks",   # the listed weights in net.w: first element, number K; blocks of columns
    "first", "offset", "first_in", "column_order",  # first element of its part of each list
    "dense_index",
    "bits", "bias",
)])  # fmt: skip
"""Row of the layer table. All fields are int64; positions count elements of the flat array they refer to."""


class MLPBuffers(NamedTuple):
    """All arrays of one network in training, flat. A layer's parts are at the positions in its row of `table`.

    Layout of a layer's weights in `w` (and of their moments in `m` and `v`):

    * WEIGHTS: the K surviving weights alone, by block of columns, then by row.
    * PIXELS: `(ceil(O / B), P, B)`, so that the weights of one pixel to 64 outputs are one vec64.
    * ALL: `(O, I)`, rows padded to a multiple of B, the number of rows to a multiple of ROWS.

    With PIXELS and ALL a layer may have a compact copy of its surviving weights and their lists too (`listed`): the
    forward pass then reads the dense weights, and the gradients and the optimizer traverse the compact ones.
    """

    table: Any
    """`LAYER_DTYPE` `(layers,)`."""
    w: Any
    m: Any
    """First moments (Adam), momentum buffers (SGD)."""
    v: Any
    """Second moments (Adam)."""
    g: Any
    """Gradients of one layer's listed weights, twice: the second half is for images behind the first block."""
    bias: Any
    bias_m: Any
    bias_v: Any
    bias_g: Any
    trained_bits: Any
    """uint64, one bit per weight of `w` for PIXELS and ALL: 1 if it survives and is trained."""
    first: Any
    """`(blocks, O + 1)`: the weights k of row j in block q are `first[q, j]` to `first[q, j + 1] - 1`."""
    offset: Any
    """`(K,)`: position in `x` of the input of weight k, in floats."""
    first_in: Any
    """`(I + 1,)`: the weights of column i are `first_in[i]` to `first_in[i + 1] - 1` of the two lists below."""
    offset_in: Any
    """`(K,)`, by column: position in `d` of the weight's output, in floats."""
    column_order: Any
    """`(K,)`, by column: position of the weight in the compact list."""
    dense_index: Any
    """`(K,)`: position in `w` of the dense copy of weight k."""
    x: Any
    """`(NB, U, B)`: inputs of each layer, and the logits."""
    d: Any
    """`(NB, U, B)`: gradient of the loss at each element of `x`."""
    units: int
    """U."""
    scratch: Any
    """`(ROWS, B)`: sums of a dense tile."""
    nonzero_bits: Any
    """uint64 `(NB, P)`: bit b is 1 if the pixel of image b is nonzero."""
    ever_nonzero: Any
    """uint64 `(P,)`: not 0 if the pixel was nonzero in any batch so far."""
    rows: Any
    """Scratch, by image. PIXELS: `(NB * B, B)`, 64 outputs or their gradients. ALL: `(NB * B, width)`, inputs."""
    max_pixel: np.float32
    """Divisor of the images' bytes."""
    pixel_bytes_read: Any
    """uint8 `(ceil(P / 8),)`: 1 if any weight reads any of pixels 8 i to 8 i + 7."""
    image_words: Any
    """uint64 `(B,)`: eight pixels of each image of a block."""
    batch_scratch: Any
    """int64 `(B,)`: an index, or a label, of each image of a block."""


@jit_inline
def vector_slice(net, start, unit, units):
    """Return the slice of `net.x` and `net.d` that holds `units` units from `unit` on, of images `start` and after.

    `start`: a multiple of B.
    """
    at = (start // VECTOR_WIDTH * net.units + unit) * VECTOR_WIDTH
    return slice(at, at + units * VECTOR_WIDTH)


@jit_inline
def load_images(images, pixels, chosen, max_pixel, bytes_read, words, x):
    """Write x[p, b] = pixel p of image chosen[b] / max_pixel, and 0 where there is no image b.

    `images`: uint8, flat `(images, P)`. `chosen`: at most B indices. `x`: float32 `(P, B)`. `words`: scratch, uint64
    `(B,)`. Pixels that no weight reads (`bytes_read` is 0) are not written: their values in `x` do not matter.
    """
    inverse, zero = np.float32(1) / max_pixel, splat(np.float32(0))
    words[:] = 0
    for p in range(0, pixels, 8):
        # Eight pixels of an image are one load, and their transposition is a shift per pixel.
        if bytes_read[p // 8] == 0:
            continue
        union = np.uint64(0)
        for b in range(len(chosen)):
            words[b] = load_up_to_8_bytes(images, chosen[b] * pixels + p, min(8, pixels - p))
            union |= words[b]
        for q in range(min(8, pixels - p)):
            if union == 0:
                store(x, (p + q) * VECTOR_WIDTH, zero)
            else:
                store(x, (p + q) * VECTOR_WIDTH, exact_divide(extract_byte(words, q), max_pixel, inverse))


@jit_inline
def prefetch_images(images, pixels, chosen):
    """Prefetch the images of a batch while another one is computed: their order is random to the processor."""
    for b in range(len(chosen)):
        for p in range(0, pixels, ALIGNMENT):
            prefetch(images, chosen[b] * pixels + p)


@jit_inline
def nonzero_pixel_bits(x, pixels, bits, ever_nonzero):
    """Set bit b of bits[p] to x[p, b] > 0, and bits of ever_nonzero[p] that are set in any batch.

    `x`: float32 `(P, B)`. `bits`, `ever_nonzero`: uint64 `(P,)`.
    """
    for p in range(pixels):
        bits[p] = nonzero_mask(load(x, p * VECTOR_WIDTH))
        ever_nonzero[p] |= bits[p]


@jit_inline
def load_up_to_8_bytes(images, at, count):
    """Return `count` bytes (at most eight) from `at` on as one uint64. Reads no byte behind them."""
    if count == 8:
        return load_u64(images, at)
    word = np.uint64(0)
    for q in range(count):
        word |= np.uint64(images[at + q]) << np.uint64(8 * q)
    return word


@jit_inline
def exact_divide(a, b, inverse):
    """Return a / b, rounded as a division rounds, for whole numbers up to 255; `inverse` is 1 / b.

    A product with 1 / b, corrected by its remainder a - b * quotient: two multiply-adds are faster than a division, and
    the remainder is exact in an FMA. The reference engine divides, and its pixels are the same to the bit.
    """
    quotient = multiply(splat(inverse), a)
    return fma(inverse, fma(-b, quotient, a), quotient)
