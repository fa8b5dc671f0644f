"""SIGKILL in the middle of a study of a user's own network and data: the resumed study has the bits of a whole one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.own_data import write_npz
from helpers.small_studies import contents, leftovers

from supermask.store import Store

pytestmark = pytest.mark.slow

NETWORK = """
import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, image_shape, classes, width):
        super().__init__()
        self.stem = nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False)
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(width, classes)

    def forward(self, images):
        x = self.stem(images)
        return self.head(self.drop(torch.relu(x + self.norm(self.conv(x))).mean((2, 3))))
"""
STUDY: dict[str, Any] = {
    "network": {"make": "mynets:Residual", "width": 4},
    "dataset": "npz:own.npz",
    "seeds": 1,
    "train": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "batch_size": 10, "epochs": 20, "evaluate_every": 10},
    "learn": {"lr": 5.0, "batch_size": 10, "epochs": 10, "evaluate_every": 10, "samples": 2},
    "prune": {"levels": 1, "rates": {"conv": 0.4, "output": 0.2}},
    "treatments": [{"name": "late", "rewind_to": 10}, {"name": "supermask", "supermask": {"others_lr": 0.05}}],
}
PROGRAM = """
import json, sys
from pathlib import Path
from helpers.small_studies import train_plan
from supermask.execution.run import _examine_networks
from supermask.store import Store
from supermask.store.planning import plan_study
from supermask.study import load_study

folder = Path(sys.argv[1])
plan = _examine_networks(plan_study(load_study("study.yaml"), Store(folder)))
train_plan(plan, folder, checkpoint_seconds=0.0)
"""


def start(store: Path) -> subprocess.Popen[bytes]:
    """Start a process that trains what is missing, with a checkpoint at every evaluation."""
    path = os.pathsep.join([str(store.parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "SUPERMASK_CACHE": str(store.parent / "cache")}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(store)], cwd=store.parent, env=environment)


def with_checkpoint(store: Path) -> set[str]:
    return {path.parent.name for path in (store / "checkpoints").glob("*/0*")}


def test_a_killed_study_of_own_network_and_data_resumes_bit_identically(tmp_path: Path) -> None:
    (tmp_path / "mynets.py").write_text(NETWORK)
    (tmp_path / "study.yaml").write_text(json.dumps(STUDY))
    write_npz(tmp_path / "own.npz")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted, victim = start(whole), start(cut)
    # Killed in the training of the second or third run: the first one is finished, and another has checkpoints.
    while not ((finished := Store(cut).run_ids()) and with_checkpoint(cut) - finished):
        assert victim.poll() is None
        time.sleep(0.002)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    assert 1 <= len(Store(cut).run_ids()) < 3 and with_checkpoint(cut)
    assert start(cut).wait() == uninterrupted.wait() == 0
    assert leftovers(cut) == []
    assert contents(cut) == contents(whole) and len(contents(cut)) == 3
