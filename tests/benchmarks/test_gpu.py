"""The measurements for a GPU, rehearsed on a CPU with tiny sizes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def rehearse(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_step_runs_and_records_what_it_measured(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, "--minutes", "9")
    assert ended.returncode == 0, ended.stdout + (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    summary = [line for line in lines if "status" in line and "seconds" in line]
    assert len(summary) == 13 and all(line["status"] == 0 for line in summary)
    measured = [line for line in lines if line not in summary]
    assert not [line for line in measured if "failed" in line or "skipped" in line]
    commands = {"tests", "digits", "study"}
    assert {line["step"] for line in measured} == {line["step"] for line in summary} - commands
    agreement = [line for line in measured if line["step"] == "agreement"]
    assert all(line["right"] for line in measured if "right" in line)
    assert all(line["largest_difference"] < 1e-3 for line in agreement if "largest_difference" in line)
    assert all(line["pruned_weights_held"] for line in agreement if "pruned_weights_held" in line)
    assert (tmp_path / "store-digits" / "runs").is_dir() and (tmp_path / "store-paper" / "runs").is_dir()


def test_a_step_is_ended_at_its_limit(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    sleeps = ("-c", "import time; time.sleep(600)")
    args = argparse.Namespace(out=tmp_path, device="cpu", tiny=False)
    line = module.run_step(module.Step("slow", 600, sleeps), args, 0.5)
    assert line["status"] == "ended at its limit" and line["seconds"] < 60


def test_a_step_is_not_started_without_time(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, "--minutes", "0.05", "--only", "study,vmapped")
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["status"] for line in lines] == ["no time left"] * 2


def test_an_unknown_step_is_named(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, "--only", "facts,speed")
    assert ended.returncode == 2 and "--only: speed is not a step; allowed: facts," in ended.stderr
