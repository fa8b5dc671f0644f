"""Compilation of kernels: code on disk is used again, unless a source has changed or it cannot be kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supermask.engines.sparse.kernels import jit


def test_kernels_work_if_their_code_cannot_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **_: bool) -> Callable[[Any], Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(jit, "njit", njit)
    assert jit.jit_entry(abs) is abs


@pytest.mark.slow
def test_kernels_are_recompiled_when_any_source_changes(tmp_path: Path) -> None:
    """In a copy of the kernels, a function is changed that is called from another file."""
    package = Path(jit.__file__).parent
    program = """
import numpy as np
from kernels.matmul import gemm_tile_store
from kernels.jit import jit_entry
from kernels.simd import VECTOR_WIDTH
@jit_entry
def four(a, b, out):
    gemm_tile_store(out, False, a, 0, 1, 1, b, 0, VECTOR_WIDTH, 1)
out = np.zeros(4 * VECTOR_WIDTH, np.float32)
four(np.full(4, 2, np.float32), np.full(VECTOR_WIDTH, 3, np.float32), out)
print(out[0], sum(four.stats.cache_hits.values()))
"""
    copy = tmp_path / "kernels"
    copy.mkdir()
    for path in package.glob("*.py"):
        (copy / path.name).write_text(path.read_text().replace("supermask.engines.sparse.kernels", "kernels"))
    (tmp_path / "program.py").write_text(program)

    def answer() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, str(tmp_path / "program.py")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert [answer(), answer()] == ["6.0 0", "6.0 1"]
    matmul = copy / "matmul.py"
    source = matmul.read_text()
    changed = source.replace(
        "total0, total1 = fma(load_scalar(a, at), row, total0)", "total0, total1 = fma(load_scalar(a, at), row, row)"
    )
    assert changed != source
    matmul.write_text(changed)
    assert answer() == "9.0 0"
