"""`supermask verify --repair` and `supermask merge`: output, exit status, and the state that they leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.command_line import call, refused
from helpers.golden_store import GOLDEN, copy_golden, golden_entries, write_entry

from supermask.store import Store
from supermask.store.files.entry import Entry


@pytest.mark.slow
def test_repair_sets_aside_and_says_where_and_what_to_do(tmp_path: Path) -> None:
    store = copy_golden(tmp_path)
    _, key, path, _ = golden_entries(store.root)["finished signed"]
    with (path / "weights.safetensors").open("r+b") as file:
        file.write(b"x")
    ended = call("verify", "--repair", "--store", store.root)
    assert ended.status == 1
    (line,) = [line for line in ended.out.splitlines() if line.startswith(key)]
    assert "damaged: weights.safetensors does not match" in line
    assert f"Set aside: {store.root / 'quarantine'}" in line and line.endswith("run its study again to recompute it")
    assert not store.has(key)
    assert f"{key} damaged" not in call("verify", "--store", store.root).out


ENTRIES = 30
"""Runs and snapshots of the golden store."""


def test_merge_copies_and_repeats_without_a_difference(tmp_path: Path) -> None:
    first = call("merge", GOLDEN, "--store", tmp_path / "new")
    assert (first.status, first.out, first.err) == (0, f"{ENTRIES} copied\n", "")
    again = call("merge", GOLDEN, "--store", tmp_path / "new")
    assert (again.status, again.out) == (0, f"0 copied, {ENTRIES} here already\n")
    assert Store(tmp_path / "new").run_ids() == Store(GOLDEN).run_ids()


@pytest.mark.slow
def test_merge_reports_what_differs_and_what_is_damaged(tmp_path: Path) -> None:
    source = copy_golden(tmp_path)
    entries = golden_entries(source.root)
    _, different, path, entry = entries["finished signed"]
    facts = {**entry.facts, "metrics": {**entry.facts["metrics"], "final_test_loss": 9.0}}
    write_entry("run", different, path, Entry(facts, entry.tensors, entry.weights))
    _, damaged, path, _ = entries["finished rounded"]
    os.truncate(path / "run.json", 3)
    target = copy_golden(tmp_path / "target")
    ended = call("merge", source.root, "--store", target.root)
    assert ended.status == 1
    assert f"{different} different: both results are of environment" in ended.out
    assert f"{damaged} damaged: run.json is not JSON" in ended.out
    assert ended.out.endswith(f"0 copied, {ENTRIES - 2} here already, 1 DIFFERENT, 1 DAMAGED and left out\n")
    assert f"a second, different result of run {different}" in call("verify", "--store", target.root).out


@pytest.mark.parametrize("source", ["missing", "."])
def test_merge_refuses_what_is_no_other_store(tmp_path: Path, source: str) -> None:
    store = copy_golden(tmp_path)
    assert "another one" in refused(call("merge", store.root / source, "--store", store.root)) or source == "missing"
