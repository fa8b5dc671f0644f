"""`supermask verify --repair` and `supermask merge`: output, exit status, and the state that they leave."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import call, refused
from helpers.golden_store import GOLDEN, copy_golden, golden_entries, write_entry

from supermask.store import Store
from supermask.store.files.disk import Disk
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


def test_repair_of_a_read_only_store_reports_every_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = copy_golden(tmp_path)
    entries = golden_entries(store.root)
    keys = [entries[name][1] for name in ("finished signed", "finished rounded")]
    for name in ("finished signed", "finished rounded"):
        os.truncate(entries[name][2] / "weights.safetensors", 9)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for operation in ("make_dir", "write_files", "move_dir"):
        monkeypatch.setattr(Disk, operation, refuse)
    ended = call("verify", "--repair", "--store", store.root)
    assert ended.status == 1
    for key in keys:
        (line,) = [line for line in ended.out.splitlines() if line.startswith(key)]
        assert "damaged: weights.safetensors has 9 bytes" in line and "read-only" in line
        assert "It could not be set aside" in line and store.has(key)
    assert " held" in ended.out.splitlines()[-2] + ended.out.splitlines()[-1]


ENTRIES = 30
"""Runs and snapshots of the golden store."""


def test_merge_copies_and_repeats_without_a_difference(tmp_path: Path) -> None:
    first = call("merge", GOLDEN, "--store", tmp_path / "new")
    assert (first.status, first.out, first.err) == (0, f"{ENTRIES} copied\n", "")
    again = call("merge", GOLDEN, "--store", tmp_path / "new")
    assert (again.status, again.out) == (0, f"0 copied, {ENTRIES} here already\n")
    assert Store(tmp_path / "new").run_ids() == Store(GOLDEN).run_ids()


@pytest.mark.slow
def test_merge_and_repair_finish_when_nobody_reads_their_output(tmp_path: Path) -> None:
    """`supermask merge OTHER | head -1`: each line is printed between two entries that are written."""
    source = copy_golden(tmp_path)
    target = copy_golden(tmp_path / "target")
    keys = []
    for name in ("finished signed", "finished rounded"):
        _, key, path, entry = golden_entries(source.root)[name]
        facts = {**entry.facts, "metrics": {**entry.facts["metrics"], "final_test_loss": 9.0}}
        write_entry("run", key, path, Entry(facts, entry.tensors, entry.weights))
        keys.append(key)
    assert call_unread("merge", source.root, "--store", target.root) == 1
    assert {key for key, _ in target.conflicts()} >= set(keys)
    entries = golden_entries(target.root)
    for name in ("finished signed", "finished rounded"):
        os.truncate(entries[name][2] / "weights.safetensors", 3)
    assert call_unread("verify", "--repair", "--store", target.root) == 1
    assert not any(target.has(key) for key in keys)


def call_unread(*arguments: object) -> int:
    """Run a command in a new process whose standard output is a closed pipe; return its exit status."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "supermask", *map(str, arguments)]
    ended = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert b"Traceback" not in ended.stderr
    return ended.returncode


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = copy_golden(tmp_path).root
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    for command in (["merge", tmp_path / "other"], ["verify", "--store", tmp_path / "other"]):
        assert "is not a store: give the folder of a store, which holds `runs/`." in refused(call(*command))
    for command in (["merge", store / "runs"], ["verify", "--store", store / "runs"]):
        assert f"is a part of a store: give '{store}'." in refused(call(*command))
    (tmp_path / "empty").mkdir()
    assert call("verify", "--store", tmp_path / "empty").out == "0 held\n"
    # An unset variable of the shell is not the current folder.
    monkeypatch.chdir(tmp_path / "empty")
    for words in (["--store", ""], ["--store="]):
        assert "--store is empty: give it a path." in refused(call("run", "mask-criteria", "scale=digits", *words))
    assert "--out is empty: give it a path." in refused(call("figure", "mask-criteria", "--out", ""))
    assert list((tmp_path / "empty").iterdir()) == []


def test_nothing_is_written_among_the_entries_of_a_store(tmp_path: Path) -> None:
    store = copy_golden(tmp_path).root
    _, key, path, _ = golden_entries(store)["finished signed"]
    content = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    (tmp_path / "link").symlink_to(path)
    outputs: list[list[object]] = [
        ["export", key, path],
        ["export", key, tmp_path / "link"],
        ["export", key, store / "runs"],
        ["pack", key, path / "ticket.safetensors"],
        ["pack", key, "--to-folder", store / "points" / "new"],
        ["tickets", "build", "--out", store / "runs" / "new"],
        ["masks", key, "--out", path],
        ["export-tracker", "tensorboard", "--out", store / "notes"],
        ["data", "inspect", "digits", "--out", path / "sheet.png"],
    ]
    for words in outputs:
        command = words if words[0] == "data" else [*words, "--store", store]
        assert "among its own files: give another place." in refused(call(*command)), words
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == content
    assert call("export", key, store / "exports", "--store", store).status == 0, "beside them is a user's choice"


def test_a_project_with_numbered_runs_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = copy_golden(tmp_path).root
    _, key, _, _ = golden_entries(store)["finished signed"]
    for folder in ("runs/01", "runs/02", "notes"):
        (tmp_path / "project" / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    (tmp_path / "project" / "loop").symlink_to("loop")
    for out in ("runs/01", "runs/03/export", "notes/export"):
        assert call("export", key, out, "--store", store).status == 0, out
    assert "symbolic links" in refused(call("export", key, "loop/export", "--store", store), status=1)


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
