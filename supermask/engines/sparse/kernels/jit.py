"""Compilation of kernels: once per machine, kept on disk, repeated when any of their sources changes."""

from __future__ import annotations

import ast
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
"""Compiler options of every kernel. None of them lets LLVM reorder floating-point operations (no `fastmath`).

`_nrt`: kernels allocate no arrays, so numba's reference counting is off. `nogil`: trainings can run in threads."""

jit_inline = njit(**OPTIONS)
"""Decorator of functions that kernels call."""


def hash_sources(folder: Path) -> str:
    """Return the SHA-256 of the syntax trees of a folder's Python files, without docstrings.

    Comments, docstrings and layout compile to the same machine code, so they do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [statement for statement in body if not _is_text(statement)]  # type: ignore[attr-defined]
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _is_text(node: ast.AST) -> bool:
    """Return True for a docstring, and for the string below a constant that documents it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


SOURCE_HASH = hash_sources(Path(__file__).parent)
"""Identifier of the machine code of all kernels: part of the environment's fingerprint and of numba's cache keys."""


def jit_entry(function: Callable[..., Any]) -> Any:
    """Decorate a kernel that is called from Python; its machine code is kept on disk.

    Without a folder that can be written, or on a full disk, it is compiled in every process instead.
    """
    try:
        compiled = njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return njit(**OPTIONS)(function)
    cache = compiled._cache
    # numba compares only the function's own file with the cached code. A kernel contains the code of the functions it
    # calls in other files, so the hash of all kernel sources joins the stamp.
    cache._cache_file._source_stamp = (SOURCE_HASH, cache._cache_file._source_stamp)
    save_overload = cache.save_overload

    def save_if_possible(*overload: Any) -> None:
        with contextlib.suppress(OSError):
            save_overload(*overload)

    cache.save_overload = save_if_possible
    return compiled
