"""A fully connected network in training, as flat arrays: what the kernels of `fc` work on.

Units' values lie in `Lanes`: `net.x[block][unit]` are the values of one unit in 64 images. A layer's products walk over
its surviving weights (WEIGHTS), over the lit pixels of the images (PIXELS, the first layer only), or over everything
(ALL); docs/performance.md says which costs what.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from supermask.engines.kernels.compiling import part
from supermask.engines.kernels.lanes import LANES

WEIGHTS, PIXELS, ALL = 0, 1, 2

TABLE = np.dtype([(name, np.int64) for name in (
    "walk", "inputs", "outputs", "last",
    "x", "y",                               # where in a block of net.x its inputs and outputs are
    "w", "size", "width",                   # where in net.w its weights are, how many numbers, how long a row is
    "listed",                               # whether there are lists of its surviving weights, as under WEIGHTS
    "compact", "used", "shares",            # where in net.w these are, how many, in how many shares
    "first", "offset", "first_in", "place", # where their lists are
    "home",
    "words", "bias",
)])  # fmt: skip


class Network(NamedTuple):
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
    place: Any
    home: Any
    x: Any
    """`(blocks, units, LANES)`, flat: what goes into each layer, and the logits."""
    d: Any
    """The same for the gradient of the loss at them."""
    units: int
    scratch: Any
    lit: Any
    """`(blocks, pixels)`: a bit an image, whether the pixel is lit in it."""
    seen: Any
    """`(pixels,)`: not 0 where one was lit in any batch so far."""
    rows: Any
    """By image. PIXELS: 64 of a layer's outputs, or their gradients. ALL: its inputs."""
    maximum: np.float32
    """What a byte of an image is divided by."""
    needed: Any
    """Whether any weight reads any of pixels 8 i to 8 i + 7."""
    eights: Any
    """Room for eight pixels of each image of a block."""
    chosen: Any
    """Room for an index of each image of a block."""


@part
def lanes_of(net, start, unit, units):
    """Where in `net.x` and `net.d` the `Lanes` of units are, `units` of them from `unit` on, for 64 images."""
    at = (start // LANES * net.units + unit) * LANES
    return slice(at, at + units * LANES)
