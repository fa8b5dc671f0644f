"""Two results of one run are never confused: kept aside, reported by `verify` and by merging; mixed environments."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.faulty_disk import quick_folder
from helpers.forgery import make_newer
from helpers.golden_store import GOLDEN, copy_golden, golden_entries, write_entry
from helpers.small_studies import contents

from supermask.store import Store
from supermask.store.files.entry import Entry
from supermask.store.files.notes import StatusNotes
from supermask.store.merge import merge_stores
from supermask.store.rows import describe_mixed_environments, store_rows
from supermask.store.verify import verify_store


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def other_result(entry: Entry, environment: str = "another") -> Entry:
    """Return the entry as another machine could have computed it."""
    facts = {**entry.facts, "environment": {**entry.facts["environment"], "fingerprint": environment}}
    weights = {name: np.nextafter(array, np.float32(9)) for name, array in (entry.weights or {}).items()}
    return Entry(facts, entry.tensors, weights)


def test_an_equal_second_result_is_no_conflict(folder: Path) -> None:
    store = copy_golden(folder)
    before = store.conflicts()
    _, key, _, entry = golden_entries(store.root)["finished dense"]
    facts = {**entry.facts, "seconds": 99.0, "engine_reason": "it was asked for"}
    assert not store.commit(key, facts, entry.tensors, entry.weights or {})
    assert store.conflicts() == before


def test_a_different_second_result_is_kept_and_reported(folder: Path) -> None:
    store = copy_golden(folder)
    before = store.conflicts()
    _, key, _, entry = golden_entries(store.root)["finished dense"]
    other = other_result(entry)
    assert not store.commit(key, other.facts, other.tensors, other.weights or {})
    ((run_id, path),) = [conflict for conflict in store.conflicts() if conflict not in before]
    assert run_id == key
    verdicts = {verdict.key: verdict for verdict in verify_store(store)}
    verdict = verdicts[f"conflicts/{path.name}"]
    assert verdict.verdict == "failed" and verdicts[key].verdict == "held"
    assert key in verdict.reason and "environment another" in verdict.reason and "Remove that folder" in verdict.reason
    shutil.rmtree(path)
    assert store.conflicts() == before


def test_merging_copies_reports_and_loses_nothing(folder: Path) -> None:
    source = copy_golden(folder)
    target = Store(folder / "target")
    outcomes = {result.key: result.outcome for result in merge_stores(source, target)}
    assert {*outcomes.values()} == {"copied"} and outcomes.keys() == source.run_ids() | source.snapshot_keys()
    assert contents(target) == contents(source)
    assert store_rows(target) == store_rows(source)
    assert len(target.conflicts()) == len(source.conflicts())
    assert {result.outcome for result in merge_stores(source, target)} == {"equal"}


def test_merging_keeps_a_different_result_aside_and_names_a_damaged_one(folder: Path) -> None:
    source, target = copy_golden(folder / "one"), copy_golden(folder / "two")
    entries = golden_entries(source.root)
    _, different, path, entry = entries["finished dense"]
    write_entry("run", different, path, other_result(entry))
    _, damaged, path, _ = entries["finished bernoulli"]
    (path / "run.json").write_text("garbage")
    before = contents(target)
    results = {result.key: result for result in merge_stores(source, target)}
    assert results[different].outcome == "different" and "environment another" in results[different].reason
    assert results[damaged].outcome == "damaged" and "run.json" in results[damaged].reason
    assert contents(target) == before
    assert different in [run_id for run_id, _ in target.conflicts()]
    assert {result.outcome for key, result in results.items() if key not in (different, damaged)} == {"equal"}
    # A snapshot of the other result lies on its trajectory, not on that of the run here.
    assert not [key for key in results if key.startswith(f"{different}-")]


def test_a_study_of_several_environments_is_described() -> None:
    rows, _ = store_rows(Store(GOLDEN))
    (first,) = [row for row in rows if row["status"] == "diverged"]
    assert describe_mixed_environments([first, first]) == ""
    assert describe_mixed_environments([]) == ""
    other = first | {"environment": "another"}
    assert describe_mixed_environments([first, first, other]) == (
        f"3 runs come from 2 environments (2 of {first['environment']}, 1 of another): their results are comparable, "
        "but not bit-identical to those of one machine."
    )


def test_a_second_result_of_a_newer_version_does_not_end_merging(folder: Path) -> None:
    source, target = copy_golden(folder), Store(folder / "target")
    run_id, path = source.conflicts()[0]
    make_newer(source.root, run_id, path)
    note = StatusNotes(source.root)
    note.write("studies", "0" * 32, {"name": "written after the second results"})
    assert {result.outcome for result in merge_stores(source, target)} == {"copied"}
    assert len(target.conflicts()) == len(source.conflicts()) - 1
    assert "0" * 32 in StatusNotes(target.root).read("studies")
