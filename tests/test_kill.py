"""200 SIGKILLs at random moments of studies of three-level chains: no run lost, no bit changed, nothing left over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_disk import quick_folder

KILLS = 200


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc")
def test_two_hundred_kills_lose_nothing_and_change_nothing() -> None:
    """Source: issue "Store". How soon is left to the machine: a fraction of a second a kill."""
    harness = Path(__file__).with_name("kill_harness.py")
    with quick_folder() as folder:
        command = [sys.executable, str(harness), str(folder), str(KILLS), "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert (report["lost"], report["changed"], report["left_over"], report["quarantined"]) == (0, 0, 0, 0)
    assert report["kills"] >= KILLS
    # Eight chains of three levels and two dense runs; kills of every kind, and enough of them in the middle of runs.
    assert report["runs"] == 26 and report["studies"] >= 3
    assert min(report["group_kills"], report["main_kills"], report["worker_kills"]) >= 20
    assert report["checkpoints"] >= 20
