"""As `preload_sparse`, where masks of fully connected networks are learned too."""

import contextlib

from supermask.engines import mask_evaluation, sparse

__all__ = ["mask_evaluation", "sparse"]

with contextlib.suppress(Exception):
    sparse.compile_and_measure(convolutions=False, masks=True)
