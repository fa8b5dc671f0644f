"""How kernels are compiled: once a machine, kept on disk, compiled again when any of their sources changes."""

from __future__ import annotations

import ast
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
"""Nothing in them reorders floating-point operations. Kernels make no arrays, so none is reference-counted."""

jit_inline = njit(**OPTIONS)
"""Decorates a function that kernels call."""


def hash_sources(folder: Path) -> str:
    """SHA-256 of the syntax trees of a folder's Python files, without docstrings.

    Comments, docstrings and layout compile to the same machine code, so they do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _is_text(node: ast.AST) -> bool:
    """A docstring, or the string below a constant that documents it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


SOURCE_HASH = hash_sources(Path(__file__).parent)
"""Identifies the machine code of all kernels: part of the environment's fingerprint and of numba's cache keys."""


def jit_entry(function: Callable[..., Any]) -> Any:
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
    cache._cache_file._source_stamp = (SOURCE_HASH, cache._cache_file._source_stamp)
    keep = cache.save_overload

    def keep_if_possible(*overload: Any) -> None:
        with contextlib.suppress(OSError):
            keep(*overload)

    cache.save_overload = keep_if_possible
    return compiled
