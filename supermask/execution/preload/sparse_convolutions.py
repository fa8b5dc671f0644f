"""Preloads the sparse engine for convolutional networks: compiles and measures its kernels once."""

import contextlib

from supermask.engines import sparse
from supermask.execution.compilation import mark_compiled

__all__ = ["sparse"]

# An error here occurs again in a worker, which can report it.
with contextlib.suppress(Exception):
    sparse.compile_and_measure(convolutions=True)
    mark_compiled("sparse_convolutions")
