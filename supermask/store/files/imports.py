"""Copying of runs and snapshots from one store into another, bit for bit.

Entries of the source are checked before they are copied: every function raises CorruptEntry if one is damaged there,
and NewerFormat if it is of a newer format. No entry of the target is overwritten.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from supermask.store.files.disk import translate_os_errors
from supermask.store.files.entry import RUN_JSON, CorruptEntry, NewerFormat, content_hash
from supermask.store.files.store import ENTRY_FILES, RUN_CONTENT, Comparison, EntryStore


def compare_run(target: EntryStore, run_id: str, source: EntryStore) -> Comparison:
    """Compare the target's result of a run with the source's, by their sealed facts."""
    files = source.folders.read_files(source.run_folder(run_id), [RUN_JSON])
    with translate_os_errors(target.run_folder(run_id)):
        return target.compare_result(run_id, files[RUN_JSON])


def import_run(target: EntryStore, run_id: str, source: EntryStore) -> Literal["copied"] | Comparison:
    """Copy a run. A different result than the one in the target goes to `conflicts/`.

    Returns "copied", or how the target's result compares with the source's. Nothing is copied if that of the target
    is damaged or of a newer format. Weights that were dropped in the source are dropped in the target.
    """
    source.read(run_id)
    files = source.folders.read_files(source.run_folder(run_id), ENTRY_FILES)
    with translate_os_errors(target.run_folder(run_id)):
        if target.folders.commit(target.run_folder(run_id), files):
            return "copied"
        return target.keep_conflict(run_id, files)


def import_conflict(target: EntryStore, run_id: str, source: EntryStore) -> None:
    """Copy a run into `conflicts/`, because it cannot be used in the target."""
    source.read(run_id)
    files = source.folders.read_files(source.run_folder(run_id), ENTRY_FILES)
    with translate_os_errors(target.root):
        target.folders.commit(target.conflict_folder(run_id, files), files)


def import_conflicts(target: EntryStore, source: EntryStore) -> None:
    """Copy the second results that the source has kept, unless they equal the target's run.

    Those that are damaged or of a newer format are left out.
    """
    for run_id, folder in source.conflicts():
        files = source.folders.read_files(folder, ENTRY_FILES)
        with suppress(CorruptEntry, NewerFormat, KeyError), translate_os_errors(target.root):
            source.read_conflict(run_id, folder)
            if target.keep_conflict(run_id, files) == "damaged":
                # The target has no run to compare it with.
                target.folders.commit(target.conflict_folder(run_id, files), files)


def import_snapshot(target: EntryStore, key: str, source: EntryStore) -> Literal["copied"] | Comparison:
    """Copy a snapshot whose run is the same result in both stores, or compare it with the target's snapshot.

    Of two different snapshots, the one that records its run is right. It replaces the other one if that is the
    target's; a damaged one of the target is replaced too. Replaced snapshots are set aside. "different": neither
    records its run. "damaged": the source's is wrong, and is left out.
    """
    run_id, _, point = key.partition("-")
    other = source.read_snapshot(run_id, point)
    if target.has_snapshot(run_id, point):
        try:
            stored = target.read_snapshot(run_id, point)
        except NewerFormat:
            return "newer"
        except CorruptEntry as damage:
            target.quarantine(key, damage.what)
        else:
            if content_hash(stored.tensors) == content_hash(other.tensors):
                return "equal"
            if RUN_CONTENT in stored.facts:
                return "damaged"
            if RUN_CONTENT not in other.facts:
                return "different"
            target.quarantine(key, "It is of another result of its run.")
    files = source.folders.read_files(source.snapshot_folder(run_id, point), ENTRY_FILES)
    folder = target.snapshot_folder(run_id, point)
    with translate_os_errors(folder):
        return "copied" if target.folders.commit(folder, files) else "equal"


def set_aside_foreign_snapshots(target: EntryStore, run_id: str, source: EntryStore) -> list[Path]:
    """Set aside the target's snapshots of a run that is not there, unless they belong to the source's result.

    They are left of a result that was removed, or of a training that was interrupted. Returns where they are now.
    """
    moved = []
    for key in target.run_snapshot_keys(run_id):
        point = key.partition("-")[2]
        try:
            stored = target.read_snapshot(run_id, point)
            if RUN_CONTENT in stored.facts:
                belongs = stored.facts[RUN_CONTENT] == source.tensor_hashes(run_id)
            else:
                other = source.read_snapshot(run_id, point) if source.has_snapshot(run_id, point) else None
                belongs = other is not None and content_hash(stored.tensors) == content_hash(other.tensors)
        except NewerFormat:
            continue
        except CorruptEntry:
            belongs = False
        if not belongs:
            moved.append(target.quarantine(key, "It is of another result of its run than the one that was merged."))
    return [folder for folder in moved if folder is not None]
