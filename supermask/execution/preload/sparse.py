"""As `preload`, where the sparse engine trains fully connected networks: kernels are compiled and measured once.

What goes wrong here goes wrong again in a worker, which can say so.
"""

import contextlib

from supermask.engines import sparse

__all__ = ["sparse"]

with contextlib.suppress(Exception):
    sparse.compile_and_measure(convolutions=False)
