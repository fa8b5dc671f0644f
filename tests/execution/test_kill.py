"""Hundreds of SIGKILLs at random moments of studies: no run is lost, no bit changes, nothing is left over."""

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
    """The moments are random fractions of a second and depend on the machine."""
    with quick_folder() as folder:
        command = [sys.executable, "-m", "helpers.kill_harness", str(folder), str(kills), "1", engine]
        harness = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert harness.returncode == 0, harness.stderr
    report = json.loads(harness.stdout)
    print(report)
    assert (report["lost"], report["changed"], report["left_over"], report["quarantined"]) == (0, 0, 0, 0)
    assert report["kills"] >= kills
    # Eight chains of three levels and two dense runs; kills of every kind, and many of them during training.
    assert report["runs"] == 26 and report["studies"] >= 3
    assert min(report["group_kills"], report["main_kills"], report["worker_kills"]) >= kills // 10
    assert report["checkpoints"] >= kills // 10
