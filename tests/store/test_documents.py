"""Sealed but malformed documents, bit flips and oversized files: one bad entry never stops the others."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.make_store import TREATMENTS, golden_study
from helpers.entries import same
from helpers.faulty_disk import quick_folder
from helpers.golden_store import GOLDEN, copy_golden, golden_entries, write_entry
from helpers.harness import IS_FULL
from helpers.small_studies import train_plan

from supermask.core.types import InitialState
from supermask.execution.scheduler import Scheduler
from supermask.store import CorruptEntry, Store
from supermask.store.checkpoint_tensors import check_checkpoint
from supermask.store.files.entry import MAX_JSON_BYTES, Entry, RunFacts
from supermask.store.replay import StateReplayer
from supermask.store.rows import plan_rows, run_row, store_rows
from supermask.store.tables import Row, query, to_csv, to_json
from supermask.store.verify import verify_run, verify_store
from supermask.study.plan import make_plan

KINDS = sorted(golden_entries(GOLDEN))
MAX_CHANGES = 400 if IS_FULL else 60
"""Changes tried per kind of document, of up to 1,500."""
WRONG_VALUES: list[Any] = [None, True, -1, 1e300, 10**40, "great", "\x1b[31m", [], {}, [[]], {"x": None}]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def changed_documents(facts: RunFacts, kind: str, count: int) -> Iterator[tuple[str, RunFacts]]:
    """Yield `count` documents, each with one value at any depth removed or replaced; the same ones on every call."""

    def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield (*path, key)
            yield from paths(inner, (*path, key))

    def parent_of(facts: RunFacts, path: tuple[Any, ...]) -> Any:
        return functools.reduce(lambda value, key: value[key], path[:-1], facts)

    changes = [
        (path, wrong)
        for path in paths(facts)
        for wrong in [KeyError, *WRONG_VALUES]
        if wrong is KeyError or parent_of(facts, path)[path[-1]] != wrong
    ]
    for path, wrong in random.Random(kind).sample(changes, min(len(changes), count)):  # noqa: S311 (a sample for a test)
        changed = copy.deepcopy(facts)
        parent = parent_of(changed, path)
        if wrong is KeyError:
            del parent[path[-1]]
        else:
            parent[path[-1]] = wrong
        yield f"{path}: {wrong!r}", changed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resealed_document_with_any_wrong_value_is_refused_or_harmless(folder: Path, kind: str) -> None:
    """Every reader either raises CorruptEntry or works; nothing else comes out of a sealed document."""
    store = copy_golden(folder)
    entry_kind, key, path, entry = golden_entries(store.root)[kind]
    refused = tried = 0
    accepted: dict[str, Row] = {}
    for change, facts in changed_documents(entry.facts, kind, MAX_CHANGES):
        try:
            write_entry(entry_kind, key, path, Entry(facts, entry.tensors, entry.weights))
        except ValueError:
            # Not JSON: nobody can seal it.
            continue
        tried += 1
        try:
            if entry_kind == "run":
                store.facts(key)
            elif entry_kind == "point":
                store.read_snapshot(*key.split("-"))
            else:
                assert store.load_checkpoint(key) is None or facts == facts, change
                path.mkdir(parents=True, exist_ok=True)
                continue
        except CorruptEntry:
            refused += 1
            continue
        if entry_kind == "run":
            # Accepted: then every reader of rows must take it.
            accepted[change] = run_row(facts)
    rows = list(accepted.values())
    assert not rows or len(query(rows, "SELECT * FROM runs").rows) == len(rows), list(accepted)
    assert to_csv(rows).count("\n") == len(rows) + 1
    assert len(json.loads(to_json(rows))) == len(rows)
    assert tried > 10
    assert entry_kind == "checkpoint" or refused > tried / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "checkpoint" and not kind.startswith("snapshot")])
def test_a_malformed_run_is_named_by_verify_and_spares_the_others(folder: Path, kind: str) -> None:
    store = copy_golden(folder)
    _, key, path, entry = golden_entries(store.root)[kind]
    replayer = StateReplayer(store, 64, import_user_code=False)
    for change, facts in changed_documents(entry.facts, kind, MAX_CHANGES // 3):
        write_entry("run", key, path, Entry(facts, entry.tensors, entry.weights))
        verdict = verify_run(store, replayer, key)
        assert verdict.key == key, change
    whole = {run_id for run_id in store.run_ids() if run_id != key}
    write_entry("run", key, path, Entry({"nothing": "of a run"}, entry.tensors, entry.weights))
    rows, damaged = store_rows(store)
    assert {row["id"] for row in rows} == whole
    assert len(damaged) == 1 and key in damaged[0] and "supermask verify --repair" in damaged[0]
    found = {verdict.key: verdict for verdict in verify_store(store)}
    assert found[key].verdict == "damaged" and found.keys() >= whole


def test_a_malformed_run_of_a_plan_is_set_aside_and_trained_again(folder: Path) -> None:
    store = copy_golden(folder)
    plan = make_plan(golden_study(treatments=TREATMENTS[:1]))
    _, first, _ = plan.runs
    entry = store.read(first)
    path = store.root / "runs" / first[:2] / first
    write_entry("run", first, path, Entry({**entry.facts, "status": "great"}, entry.tensors, entry.weights))
    rows, damaged = plan_rows(plan, store)
    assert [row["status"] for row in rows] == ["finished", "to_do", "finished"] and "status" in damaged[0]
    schedule = Scheduler(plan, store)
    assert schedule.tasks_left == 1 and first in schedule.damaged[0]
    plan_run = train_plan(plan, store.root, engine="reference")
    assert plan_run.trained == [first] and store.facts(first)["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    "document",
    [
        lambda d: d.pop("kind"),
        lambda d: d.pop("key"),
        lambda d: d.pop("facts"),
        lambda d: d.pop("files"),
        lambda d: d.pop("format"),
        lambda d: d.update(format="1"),
        lambda d: d.update(format=True),
        lambda d: d.update(format=0),
        lambda d: d.update(kind=["run"]),
        lambda d: d.update(key=None),
        lambda d: d.update(facts=[]),
        lambda d: d.update(files={}),
        lambda d: d.update(files=[]),
        lambda d: d["files"].update(tensors=None),
        lambda d: d["files"].update(other=d["files"]["tensors"]),
        lambda d: d["files"]["tensors"].update(bytes=-1),
        lambda d: d["files"]["tensors"].update(bytes=10**15),
        lambda d: d["files"]["tensors"].update(bytes=True),
        lambda d: d["files"]["tensors"].update(sha256="../../x"),
        lambda d: d["files"]["tensors"].update(more=1),
        lambda d: d["facts"].update(note="\ud800"),
    ],
)
def test_a_resealed_envelope_of_another_form_is_damage(folder: Path, document: Callable[[dict[str, Any]], Any]) -> None:
    store = copy_golden(folder)
    run_id = min(store.run_ids())
    path = store.root / "runs" / run_id[:2] / run_id / "run.json"
    data = json.loads(path.read_text())
    del data["seal"]
    document(data)
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({**data, "seal": hashlib.sha256(canonical).hexdigest()}))
    for read in (store.facts, store.read, store.tensor_hashes):
        with pytest.raises(CorruptEntry):
            read(run_id)
    assert len(store_rows(store)[1]) == 1


# --- sizes ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", "tensors.safetensors", "weights.safetensors"])
def test_a_file_of_300_gigabytes_is_damage_and_claims_no_memory(folder: Path, name: str) -> None:
    store = copy_golden(folder)
    _, key, path, _ = golden_entries(store.root)["finished dense"]
    os.truncate(path / name, 300 * 10**9)
    with pytest.raises(CorruptEntry, match=name):
        store.read(key)
    found = {verdict.key: verdict for verdict in verify_store(store)}
    assert found[key].verdict == "damaged" and name in found[key].reason
    _, damaged = store.check_runs([key])
    assert [damage.key for damage in damaged if damage.key == key] == [key]


@pytest.mark.slow
def test_what_could_not_be_read_back_is_not_committed(folder: Path) -> None:
    store = copy_golden(folder)
    _, key, _, entry = golden_entries(store.root)["finished dense"]
    store.quarantine(key, "a test")
    for facts in (
        {**entry.facts, "status": "great"},
        {**entry.facts, "seed": 5},
        {**entry.facts, "more": "x" * MAX_JSON_BYTES},
        {**entry.facts, "more": "\ud800"},
    ):
        with pytest.raises(ValueError, match=key):
            store.commit(key, facts, entry.tensors, entry.weights or {})
    assert not store.has(key)


# --- bit flips ---

FLIPS = 10_000 if IS_FULL else 1_500


@pytest.mark.slow
def test_bit_flips_over_all_file_types_are_detected_or_harmless(folder: Path) -> None:
    """Each flip is read by the reader of its file; the entry is refused, or equal to what it was."""
    store = copy_golden(folder)
    generator = random.Random(17)  # noqa: S311 (positions for a test)
    files = []
    for kind, key, path, entry in golden_entries(store.root).values():
        files += [(kind, key, path / name, entry) for name in os.listdir(path)]  # noqa: PTH208
    assert {path.suffix for _, _, path, _ in files} == {".json", ".safetensors"}
    detected = 0
    for number in range(FLIPS):
        kind, key, path, entry = files[number % len(files)]
        data = bytearray(path.read_bytes())
        place = generator.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        whole = path.read_bytes()
        path.write_bytes(data)
        try:
            if kind == "run":
                found = store.read(key)
            elif kind == "point":
                found = store.read_snapshot(*key.split("-"))
            else:
                # Not `load_checkpoint`, which removes a damaged one.
                found = store.folders.read(kind, key, path.parent)
        except CorruptEntry:
            detected += 1
        else:
            assert same(found, entry), f"{key}: bit {place} of {path.name}"
        path.write_bytes(whole)
    # Flips that change nothing: white space, and letters of escapes.
    assert detected > 0.9 * FLIPS


# --- checkpoints ---


def checkpoint_of(store: Store) -> tuple[dict[str, Any], dict[str, Any], InitialState, Any]:
    plan = make_plan(golden_study(treatments=TREATMENTS[:1], seeds=[1]))
    run = next(iter(plan.runs.values()))
    entry = store.load_checkpoint(run.id)
    assert entry is not None
    return entry.facts["engine"], entry.tensors, StateReplayer(store).initial_state(run), run


def test_the_tensors_of_a_checkpoint_must_fit_its_training(folder: Path) -> None:
    facts, tensors, start, run = checkpoint_of(copy_golden(folder))
    check_checkpoint(facts, tensors, start, run.recipe)
    for name, array in tensors.items():
        wrong = [array[:0], np.zeros((*array.shape, 1), array.dtype)]
        if name.startswith(("state/", "point/")) or name == "curve/iterations":
            wrong.append(array.astype(np.float16))
        missing = {other: tensor for other, tensor in tensors.items() if other != name}
        for changed in [*({**tensors, name: value} for value in wrong), missing]:
            with pytest.raises(ValueError, match=r"^its |^it "):
                check_checkpoint(facts, changed, start, run.recipe)
    for change in ({"iteration": 10**6}, {"best": 99}, {"best": None}, {"iteration": 5}):
        with pytest.raises(ValueError, match=r"^its |^it "):
            check_checkpoint(facts | change, tensors, start, run.recipe)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["no of", "other shapes", "no engine", "other tensors"])
def test_a_resealed_checkpoint_is_not_resumed_and_its_run_is_trained(folder: Path, change: str) -> None:
    store = copy_golden(folder)
    kind, key, path, entry = golden_entries(store.root)["checkpoint"]
    facts, tensors = copy.deepcopy(entry.facts), dict(entry.tensors)
    if change == "no of":
        del facts["of"]
    elif change == "no engine":
        facts["engine"] = {}
    elif change == "other shapes":
        tensors = {name: np.zeros((*array.shape, 2), array.dtype) for name, array in tensors.items()}
    else:
        tensors = {"state/x": np.zeros(3, np.float32)}
    write_entry(kind, key, path, Entry(facts, tensors, {}))
    plan = make_plan(golden_study(treatments=TREATMENTS[:1], seeds=[1]))
    plan_run = train_plan(plan, store.root)
    assert {*plan_run.schedule.status.values()} == {"finished"}
    assert not list((store.root / "checkpoints").iterdir())
