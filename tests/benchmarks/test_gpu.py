"""The measurements for a GPU, rehearsed on a CPU with tiny sizes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.harness import IS_FULL

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


PROCESSES = ("facts", "tests", "digits", "study") if IS_FULL else ("facts", "study")
"""Steps that are rehearsed as a process each: a function and a command. `digits` is as `study`; `tests` runs pytest."""


def rehearse(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_steps_are_processes_that_record_their_status(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, "--minutes", "9", "--only", ",".join(PROCESSES))
    assert ended.returncode == 0, ended.stdout + (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    summary = [line for line in lines if "status" in line and "seconds" in line]
    assert [(line["step"], line["status"]) for line in summary] == [(name, 0) for name in PROCESSES]
    measured = [line for line in lines if line not in summary]
    assert {line["step"] for line in measured} == {"facts"}
    assert not [line for line in measured if "failed" in line or "skipped" in line]
    assert (tmp_path / "store-paper" / "runs").is_dir()
    assert (tmp_path / "store-digits" / "runs").is_dir() == IS_FULL


@pytest.mark.slow
def test_every_step_records_what_it_measured(tmp_path: Path, script: Any) -> None:
    """In this process: an import of torch takes longer than most steps of a rehearsal."""
    steps = [step.name for step in script.STEPS if not step.command]
    assert len(steps) == 10 and len(script.STEPS) == 13
    for name in steps:
        script.FUNCTIONS[name](script.Probe(name, "cpu", True, tmp_path, 600.0))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "failed" in line or "skipped" in line]
    assert {line["step"] for line in lines} == {*steps}
    agreement = [line for line in lines if line["step"] == "agreement"]
    assert all(line["right"] for line in lines if "right" in line)
    assert all(line["largest_difference"] < 1e-3 for line in agreement if "largest_difference" in line)
    assert all(line["pruned_weights_held"] for line in agreement if "pruned_weights_held" in line)


def test_a_step_is_ended_at_its_limit(tmp_path: Path, script: Any) -> None:
    sleeps = ("-c", "import time; time.sleep(600)")
    args = argparse.Namespace(out=tmp_path, device="cpu", tiny=False)
    line = script.run_step(script.Step("slow", 600, sleeps), args, 0.5)
    assert line["status"] == "ended at its limit" and line["seconds"] < 60


def test_a_step_is_not_started_without_time(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, "--minutes", "0.05", "--only", "study,vmapped")
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["status"] for line in lines] == ["no time left"] * 2


def test_an_unknown_step_is_named(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, "--only", "facts,speed")
    assert ended.returncode == 2 and "--only: speed is not a step; allowed: facts," in ended.stderr
