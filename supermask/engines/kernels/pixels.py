"""A mini-batch of images as the first layer wants it: one pixel in 64 images is one `Lanes`."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.kernels.bits import byte_of_words, eight_bytes, lit, prefetch
from supermask.engines.kernels.compiling import part
from supermask.engines.kernels.lanes import ALIGNMENT, LANES, fma, load, multiply, splat, store


@part
def read_images(images, pixels, chosen, maximum, needed, words, x):
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
            words[b] = some_bytes(images, chosen[b] * pixels + p, min(8, pixels - p))
            some |= words[b]
        for q in range(min(8, pixels - p)):
            if some == 0:
                store(x, (p + q) * LANES, zero)
            else:
                store(x, (p + q) * LANES, quotient(byte_of_words(words, q), maximum, inverse))


@part
def ask_for(images, pixels, chosen):
    """Has the images of a batch brought near while something else is computed."""
    for b in range(len(chosen)):
        for p in range(0, pixels, ALIGNMENT):
            prefetch(images, chosen[b] * pixels + p)


@part
def find_lit(x, pixels, bits, seen):
    """Bit b of bits[p] says whether x[p, b] > 0; seen[p] is not 0 once that was so in any batch."""
    for p in range(pixels):
        bits[p] = lit(load(x, p * LANES))
        seen[p] |= bits[p]


@part
def some_bytes(images, at, count):
    """Up to eight bytes from `at` on, as one number; no byte behind them is looked at."""
    if count == 8:
        return eight_bytes(images, at)
    found = np.uint64(0)
    for q in range(count):
        found |= np.uint64(images[at + q]) << np.uint64(8 * q)
    return found


@part
def quotient(a, b, inverse):
    """a / b, rounded as a division is, for whole numbers to 255: a product with 1 / b, and what it is off by."""
    close = multiply(splat(inverse), a)
    return fma(inverse, fma(-b, close, a), close)
