"""SIGKILLs at random moments of studies: no run is lost, no bit changes, nothing is left over.

`make harness` runs all of it at full size (hundreds of kills), which takes about four minutes; the tests run a share.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.faulty_disk import quick_folder
from helpers.harness import IS_FULL

TESTS = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc"),
    pytest.mark.slow,
]


def run_harness(*arguments: object) -> dict[str, Any]:
    """Run the harness and return its report. The moments of the kills are random and depend on the machine."""
    with quick_folder() as folder:
        command = [sys.executable, "-m", "helpers.kill_harness", str(folder), *map(str, arguments)]
        harness = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert harness.returncode == 0, harness.stderr
    report: dict[str, Any] = json.loads(harness.stdout)
    print(report)
    for fault in ("lost", "changed", "left_over", "quarantined", "outlived", "trained_twice"):
        assert report[fault] == 0, fault
    return report


@pytest.mark.parametrize(("engine", "kills"), [("reference", 200 if IS_FULL else 7), ("sparse", 50 if IS_FULL else 6)])
def test_kills_lose_nothing_and_change_nothing(engine: str, kills: int) -> None:
    report = run_harness(kills, 1, engine)
    assert report["kills"] >= kills
    # Eight chains of three levels and two dense runs; kills of every kind, and many of them during training.
    assert report["runs"] == 26 and report["studies"] >= (3 if IS_FULL else 1)
    assert min(report[f"{target}_kills"] for target in ("group", "main", "worker", "stop")) >= max(1, kills // 16)
    assert report["quit_kills"] >= max(1, kills // 25)
    assert report["checkpoints"] >= kills // 10


def test_kills_of_fork_server_and_resource_tracker_lose_nothing() -> None:
    report = run_harness(16 if IS_FULL else 6, 2, "reference", "forkserver")
    assert report["server_kills"] and report["tracker_kills"] and report["stop_kills"]


def test_four_commands_on_one_store_share_its_runs() -> None:
    """Two equal studies and two that overlap with them, checkpoints every 0.05 s, with random kills of commands.

    Every command that is not killed ends with status 0 (the harness checks that), and no run is trained twice.
    """
    rounds = 50 if IS_FULL else 3
    report = run_harness(rounds, 3, "commands")
    assert report["studies"] == rounds and report["kills"] >= rounds // 3
