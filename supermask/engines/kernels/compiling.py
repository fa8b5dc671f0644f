"""How kernels are compiled: once a machine, kept on disk, compiled again when any of their sources changes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
"""Nothing in them reorders floating-point operations. Kernels make no arrays, so none is reference-counted."""

part = njit(**OPTIONS)
"""Decorates a function that kernels call."""


SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
"""Of all kernels: which machine code is theirs."""


def kernel(function: Callable[..., Any]) -> Any:
    """Decorates a function that is called from Python: its machine code is kept on disk.

    numba looks at the file of the function alone when it decides whether that code is still right; here it is right
    as long as neither that file nor a kernel's source has changed. Where it cannot be kept (no folder that can be
    written, a full disk), it is compiled in every process.
    """
    try:
        compiled = njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return njit(**OPTIONS)(function)
    cache = compiled._cache
    cache._cache_file._source_stamp = (SOURCES, cache._cache_file._source_stamp)
    keep = cache.save_overload

    def keep_if_possible(*overload: Any) -> None:
        with contextlib.suppress(OSError):
            keep(*overload)

    cache.save_overload = keep_if_possible
    return compiled
