"""A user's loss that waits in every step while the current folder has a file `slow`.

Runs with it last for seconds, so that they can be interrupted, and use next to no processor; without the file they
train at full speed to the same bits. Other processes find this module by `PYTHONPATH`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

NAME = f"{__name__}:cross_entropy"
STEP_SECONDS = 0.003


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return PyTorch's cross-entropy."""
    if Path("slow").exists():
        time.sleep(STEP_SECONDS)
    return torch.nn.functional.cross_entropy(logits, labels)


@contextmanager
def slow_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Enter a folder in which training is slow: until its file `slow` is deleted, at the latest here."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        (folder / "slow").touch()
        yield folder
    (folder / "slow").unlink(missing_ok=True)
