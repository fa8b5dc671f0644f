"""As `preload`, where the sparse engine may train: its kernels are compiled and measured once, before workers start."""

from supermask.engines import sparse

__all__ = ["sparse"]

sparse.prepare()
