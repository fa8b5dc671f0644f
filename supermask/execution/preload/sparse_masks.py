"""Preloads the sparse engine for fully connected networks whose masks are learned."""

import contextlib

from supermask.engines import mask_evaluation, sparse
from supermask.execution.compilation import mark_compiled

__all__ = ["mask_evaluation", "sparse"]

# An error here occurs again in a worker, which can report it.
with contextlib.suppress(Exception):
    sparse.compile_and_measure(convolutions=False, masks=True)
    mark_compiled("sparse_masks")
