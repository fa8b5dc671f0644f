"""Hundreds of SIGKILLs at random moments of studies of three levels: no run lost, no bit changed, nothing left over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faulty_disk import quick_folder

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc")
@pytest.mark.parametrize(("engine", "kills"), [("reference", 200), ("sparse", 50)])
def test_kills_lose_nothing_and_change_nothing(engine: str, kills: int) -> None:
    """Source: issue "Store". How soon is left to the machine: a fraction of a second a kill."""
    with quick_folder() as folder:
        command = [sys.executable, "-m", "helpers.kill_harness", str(folder), str(kills), "1", engine]
        done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert (report["lost"], report["changed"], report["left_over"], report["quarantined"]) == (0, 0, 0, 0)
    assert report["kills"] >= kills
    # Eight chains of three levels and two dense runs; kills of every kind, and enough of them in the middle of runs.
    assert report["runs"] == 26 and report["studies"] >= 3
    assert min(report["group_kills"], report["main_kills"], report["worker_kills"]) >= kills // 10
    assert report["checkpoints"] >= kills // 10
