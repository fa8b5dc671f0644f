"""Copies of the golden store: one small run of every kind, as release 0.1 wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from supermask.store import Store
from supermask.store.files.entry import Entry, Kind, encode_entry
from supermask.store.files.store import EntryStore

GOLDEN = Path(__file__).parent.parent / "golden" / "store-0.1"
EXPECTED: dict[str, Any] = json.loads(GOLDEN.with_name("store-0.1.json").read_text())


def copy_golden(folder: Path) -> Store:
    """Return a copy that a test may change."""
    shutil.copytree(GOLDEN, folder / "store", copy_function=shutil.copyfile)
    return Store(folder / "store")


def golden_entries(root: Path) -> dict[str, tuple[Kind, str, Path, Entry]]:
    """Return name -> (kind, key, folder, entry) of one entry of every kind, read without checks of its form."""
    store = EntryStore(root)
    found: dict[str, tuple[Kind, str, Path, Entry]] = {}
    for run_id in sorted(store.run_ids()):
        entry = store.read(run_id)
        facts = entry.facts
        learned = facts["learning"]["method"] if facts.get("learning") else ""
        is_user = facts["step"] is not None and ":" in str(facts["step"]["criterion"])
        trained = "pruned" if facts["step"] else "dense"
        kind = "user" if is_user else learned or (trained if facts["recipe"]["iterations"] else "untrained")
        folder = root / "runs" / run_id[:2] / run_id
        found.setdefault(f"{facts['status']} {kind}", ("run", run_id, folder, entry))
    for key in sorted(store.snapshot_keys()):
        run_id, _, point = key.partition("-")
        folder = root / "points" / key[:2] / key
        found.setdefault(f"snapshot {point}", ("point", key, folder, store.read_snapshot(run_id, point)))
    for path in sorted((root / "checkpoints").iterdir()):
        loaded = store.load_checkpoint(path.name)
        assert loaded is not None
        found["checkpoint"] = ("checkpoint", path.name, next(path.iterdir()), loaded)
    return found


def write_entry(kind: Kind, key: str, folder: Path, entry: Entry) -> None:
    """Replace an entry's files by those of `entry`, with correct hashes and seal."""
    groups = {"tensors": entry.tensors} | ({"weights": entry.weights} if entry.weights else {})
    for name, data in encode_entry(kind, key, entry.facts, groups).items():  # type: ignore[arg-type]
        (folder / name).write_bytes(data)
