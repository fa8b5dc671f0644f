"""The store: one folder per entry, written once, atomically, and checked on every read.

Independent of lottery tickets: an entry is a key, facts (a JSON object) and groups of numpy arrays. The promises, and
the operations that give them, are listed in docs/store.md.
"""

from __future__ import annotations

import errno
import hashlib
import operator
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from supermask.store.files.checks import FileChecks
from supermask.store.files.disk import Disk, translate_os_errors
from supermask.store.files.entry import (
    RUN_JSON,
    CorruptEntry,
    Entry,
    Group,
    Kind,
    NewerFormat,
    RunFacts,
    Tensors,
    VerifiedFacts,
    decode_tensors,
    encode_entry,
    file_name,
    read_verified_facts,
)
from supermask.store.files.folders import DROPPED, WEIGHTS, EntryFolders

__all__ = ["CorruptEntry", "Entry", "EntryStore"]

RUN_ID = re.compile(r"[0-9a-f]{32}")
POINT = re.compile(r"[a-z0-9_]+")
POINT_KEY = re.compile(rf"{RUN_ID.pattern}-{POINT.pattern}")
SHARD = re.compile(r"[0-9a-f]{2}")
STAGED_COPY = re.compile(rf"{RUN_ID.pattern}[^.]*\..+")
CHECKPOINT_NUMBER = re.compile(r"[0-9]{8}")

ENTRY_FILES = (file_name("tensors"), WEIGHTS, DROPPED, RUN_JSON)
"""Files of an entry, in the order in which they are written: `run.json` last."""

RUN_CONTENT = "run_content"
"""Fact of a snapshot: the tensor hashes of the result that it belongs to. Snapshots of the first versions have none."""

Comparison = Literal["equal", "different", "damaged", "newer"]
"""A stored result compared with another one of its run. `damaged`, `newer`: the stored one cannot be compared, because
it is missing or damaged, or of a newer format."""


class EntryStore:
    """Store of entries under the folder `root`, which is created at the first write.

    Any number of processes and threads may use one root at once, without locks: the first of several that commit one
    key wins. Reading works on a read-only disk. Every method raises SystemFailure if the operating system refuses
    (disk full, read-only, ...) and UserError if `root` is a file. A malformed key is a programming error (assert).
    """

    def __init__(self, root: Path | str, disk: Disk | None = None) -> None:
        # Absolute: a later chdir, of a notebook for example, must not move the store.
        self.root = Path(root).expanduser().absolute()
        self._disk = disk or Disk()
        self.folders = EntryFolders(self.root, self._disk)
        """Entry folders, unchecked: for this package alone (`imports.py` copies entries between two stores)."""

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of a run, committed or not."""
        assert RUN_ID.fullmatch(run_id), run_id
        return self.root / "runs" / run_id[:2] / run_id

    def snapshot_folder(self, run_id: str, point: str) -> Path:
        """Return the folder of a snapshot, committed or not."""
        assert RUN_ID.fullmatch(run_id), run_id
        assert POINT.fullmatch(point), point
        return self.root / "points" / run_id[:2] / f"{run_id}-{point}"

    def run_ids(self) -> set[str]:
        """Return the ids of all committed runs from the folders' names; no file is opened."""
        return self._scan("runs", RUN_ID)

    def has(self, run_id: str) -> bool:
        """Return whether the run was committed. Its content is not checked."""
        return os.path.lexists(self.run_folder(run_id))

    def commit(self, run_id: str, facts: RunFacts, tensors: Tensors, weights: Tensors) -> bool:
        """Store a run, whole and durable, or not at all. False: another process committed it first; its entry stays.

        A different result than the one committed first is not dropped: it is kept in `conflicts/`.
        Raises ValueError for facts that could not be read back: not plain JSON (NaN, tuples), or not of the right form.
        """
        target = self.run_folder(run_id)
        files = self._encode("run", run_id, facts, {"tensors": tensors, "weights": weights})
        with translate_os_errors(target):
            if self.folders.commit(target, files):
                return True
            self.keep_conflict(run_id, files)
            return False

    def keep_conflict(self, run_id: str, files: Mapping[str, bytes]) -> Comparison:
        """Compare a second result of a run with the stored one, and keep it in `conflicts/` if it is different.

        Facts decide, as sealed: tensor files of the stored one are not read. Raises OSError.
        """
        comparison = self.compare_result(run_id, files[RUN_JSON])
        if comparison == "different":
            self.folders.commit(self.conflict_folder(run_id, files), files)
        return comparison

    def compare_result(self, run_id: str, other_run_json: bytes) -> Comparison:
        """Compare the stored result of a run with another one's `run.json`. Raises CorruptEntry if that is damaged."""
        other = read_verified_facts("run", run_id, other_run_json)
        try:
            stored = self.folders.read_facts("run", run_id, self.run_folder(run_id))
        except CorruptEntry:
            return "damaged"
        except NewerFormat:
            return "newer"
        return "different" if self._is_other_result(stored, other) else "equal"

    def conflict_folder(self, run_id: str, files: Mapping[str, bytes]) -> Path:
        """Return the folder of a second result. Named by content: the same one, of a second merge, is kept once."""
        content = hashlib.sha256(files[RUN_JSON]).hexdigest()[:16]
        return self.root / "conflicts" / f"{run_id}-{content}"

    def _is_other_result(self, stored: VerifiedFacts, other: VerifiedFacts) -> bool:
        """Return whether two entries of one key hold different results. Tensors decide, by their content."""
        return stored.files.keys() != other.files.keys() or any(
            info.content != other.files[group].content for group, info in stored.files.items()
        )

    def conflicts(self) -> list[tuple[str, Path]]:
        """Return (run id, folder) of every second, different result that was kept."""
        second_results = []
        with translate_os_errors(self.root):
            for name in sorted(self.folders.names(self.root / "conflicts")):
                run_id, _, content = name.partition("-")
                if RUN_ID.fullmatch(run_id) and "." not in content:
                    second_results.append((run_id, self.root / "conflicts" / name))
        return second_results

    def read_conflict(self, run_id: str, folder: Path) -> Entry:
        """Read a second result of a run, every size and hash checked. Raises CorruptEntry."""
        return self.folders.read("run", run_id, folder)

    def conflict_facts(self, run_id: str, folder: Path) -> tuple[RunFacts, dict[str, str]]:
        """Return facts and tensor hashes of a second result, as sealed; tensor files are not read.

        Raises CorruptEntry.
        """
        sealed = self.folders.read_facts("run", run_id, folder)
        return sealed.facts, sealed.content

    def compare_conflict(self, run_id: str, folder: Path) -> Comparison:
        """Compare the stored result of a run with a second one, by their sealed facts.

        Raises CorruptEntry if the second one is damaged.
        """
        with translate_os_errors(folder):
            files = self.folders.read_files(folder, [RUN_JSON])
            if RUN_JSON not in files:
                raise CorruptEntry(run_id, f"{RUN_JSON} is missing")
            return self.compare_result(run_id, files[RUN_JSON])

    def quarantine_names(self) -> set[str]:
        """Return the names of the folders in `quarantine/`: key of the entry, dot, unique text."""
        with translate_os_errors(self.root):
            return set(self.folders.names(self.root / "quarantine"))

    def quarantined_hashes(self, run_id: str) -> list[dict[str, str]]:
        """Return the tensor hashes of each result of a run that was set aside, if its facts can be read."""
        hashes = []
        names = [name for name in self.quarantine_names() if name.startswith(f"{run_id}.")]
        for name in sorted(names):
            with suppress(CorruptEntry, NewerFormat):
                folder = self.root / "quarantine" / name / run_id
                hashes.append(self.folders.read_facts("run", run_id, folder).content)
        return hashes

    def facts(self, run_id: str) -> RunFacts:
        """Return the facts, their seal and form checked; tensor files are not read. Raises CorruptEntry."""
        facts = self.folders.read_facts("run", run_id, self.run_folder(run_id)).facts
        self._check_facts("run", run_id, facts)
        return facts

    def check_runs(self, run_ids: Iterable[str]) -> tuple[dict[str, RunFacts], list[CorruptEntry]]:
        """Return the facts of undamaged runs, and the damage of the others and of their snapshots.

        Every file's size is compared with the recorded one. A file that was modified after its entry was committed
        is hashed: files that were copied are therefore hashed once, and remembered. A disk that loses bits without
        changing a file's times is not noticed here; `verify` hashes everything.
        """
        facts: dict[str, RunFacts] = {}
        damaged: list[CorruptEntry] = []
        checked = FileChecks(self.root)
        snapshots: dict[str, list[str]] = {}
        for key in self.snapshot_keys():
            snapshots.setdefault(key.partition("-")[0], []).append(key)
        for run_id in run_ids:
            try:
                run = self.folders.read_facts("run", run_id, self.run_folder(run_id))
                self._check_facts("run", run_id, run.facts)
                self._check_files(run_id, self.run_folder(run_id), run, checked)
                facts[run_id] = run.facts
            except CorruptEntry as damage:
                # Missing: another command has set it aside since it was listed.
                if os.path.lexists(self.run_folder(run_id)):
                    damaged.append(damage)
            for key in sorted(snapshots.get(run_id, ())):
                folder = self.snapshot_folder(*key.split("-"))
                try:
                    sealed = self.folders.read_facts("point", key, folder)
                    self._check_facts("point", key, sealed.facts)
                    self._check_files(key, folder, sealed, checked)
                    if run_id in facts:
                        _check_run_content(key, sealed.facts, run.content)
                except CorruptEntry as damage:
                    # Missing: another command has dropped it.
                    if os.path.lexists(folder):
                        damaged.append(damage)
        checked.save()
        return facts, damaged

    def _check_files(self, key: str, folder: Path, sealed: VerifiedFacts, checked: FileChecks) -> None:
        """Check sizes, and the hash of files that may have been modified. Raises CorruptEntry."""
        with translate_os_errors(folder):
            seal_time = checked.times(folder / RUN_JSON)
            for group, recorded in sealed.files.items():
                path = folder / file_name(group)
                if group == "weights" and os.path.lexists(folder / DROPPED):
                    continue
                try:
                    times = checked.times(path)
                except FileNotFoundError:
                    if group == "weights" and os.path.lexists(folder / DROPPED):
                        continue
                    raise CorruptEntry(key, f"{path.name} is missing") from None
                # `run.json` is written last, so an unmodified file is not newer in any of its times.
                is_old = all(map(operator.le, times, seal_time))
                if (is_old and self._disk.size(path) == recorded.bytes) or checked.has(path, times, recorded.sha256):
                    continue
                self.folders.check_hash(key, path, recorded)
                checked.add(path, times, recorded.sha256)

    def _check_facts(self, kind: Kind, key: str, facts: RunFacts) -> None:
        """Check the form of an entry's facts. Raises CorruptEntry. Here any JSON object is allowed."""

    def _check_tensors(self, kind: Kind, key: str, entry: Entry) -> None:
        """Check the form of an entry's tensors. Raises CorruptEntry. Here any tensors are allowed."""

    def _encode(self, kind: Kind, key: str, facts: RunFacts, groups: Mapping[Group, Tensors]) -> dict[str, bytes]:
        # An entry that no reader accepts would be set aside and computed again for ever.
        try:
            self._check_facts(kind, key, facts)
        except CorruptEntry as error:
            raise ValueError(f"{key} cannot be committed: {error.what}") from error
        return encode_entry(kind, key, facts, groups)

    def _read_checked(self, kind: Kind, key: str, folder: Path) -> Entry:
        entry = self.folders.read(kind, key, folder)
        self._check_facts(kind, key, entry.facts)
        self._check_tensors(kind, key, entry)
        return entry

    def commit_time(self, run_id: str) -> float:
        """Return the modification time of `run.json`, seconds since 1970; a copy may differ. Raises CorruptEntry."""
        path = self.run_folder(run_id) / RUN_JSON
        with translate_os_errors(path):
            try:
                return path.stat().st_mtime
            except FileNotFoundError:
                raise CorruptEntry(run_id, f"{RUN_JSON} is missing") from None

    def tensor_hashes(self, run_id: str) -> dict[str, str]:
        """Return group -> SHA-256 of its tensors, as sealed: equal for bit-identical runs. Raises CorruptEntry."""
        return self.folders.read_facts("run", run_id, self.run_folder(run_id)).content

    def read(self, run_id: str) -> Entry:
        """Read a whole run after checking every size and hash. Raises CorruptEntry."""
        return self._read_checked("run", run_id, self.run_folder(run_id))

    def has_weights(self, run_id: str) -> bool:
        """Return whether the run has weights: committed, and not dropped since."""
        folder = self.run_folder(run_id)
        return os.path.lexists(folder / WEIGHTS) and not os.path.lexists(folder / DROPPED)

    def drop_weights(self, run_id: str) -> None:
        """Remove a run's weights and keep the rest; `read` then returns None for them. Does nothing without weights."""
        folder = self.run_folder(run_id)
        if not os.path.lexists(folder / WEIGHTS):
            return
        with translate_os_errors(folder):
            with suppress(FileExistsError):
                self._disk.close(self._disk.create(folder / DROPPED))
            # The marker must be durable first: missing weights without a marker count as damage.
            self._disk.fsync_dir(folder)
            self._disk.remove_tree(folder / WEIGHTS)

    def restore_weights(self, run_id: str, weights: Tensors) -> bool:
        """Put dropped weights back. Returns False, changing nothing, unless they are bit-identical to those committed.

        Raises CorruptEntry if the run's facts are damaged.
        """
        folder = self.run_folder(run_id)
        recorded = self.folders.read_facts("run", run_id, folder).files.get("weights")
        # Only the bytes of the weights file are wanted; the facts of this encoding are discarded.
        data = encode_entry("run", run_id, {}, {"weights": weights}).get(WEIGHTS)
        if recorded is None or data is None:
            return recorded is None and data is None
        try:
            decode_tensors(run_id, "weights", recorded, data)
        except CorruptEntry:
            return False
        with translate_os_errors(folder):
            staged = self.folders.stage(run_id, {WEIGHTS: data})
            try:
                self.folders.move_into(staged, WEIGHTS, folder)
                # The weights must be durable before the marker goes, in the order opposite to `drop_weights`.
                self._disk.fsync_dir(folder)
                with suppress(FileNotFoundError):
                    self._disk.remove_file(folder / DROPPED)
                self._disk.fsync_dir(folder)
            finally:
                self.folders.remove_staged(staged)
        return True

    def snapshot_keys(self) -> set[str]:
        """Return the keys `<run id>-<point>` of all committed snapshots from the folders' names."""
        return self._scan("points", POINT_KEY)

    def run_snapshot_keys(self, run_id: str) -> list[str]:
        """Return the sorted keys of one run's snapshots."""
        with translate_os_errors(self.root):
            names = self.folders.names(self.root / "points" / run_id[:2])
        return sorted(name for name in names if name.startswith(f"{run_id}-") and POINT_KEY.fullmatch(name))

    def snapshot_run_contents(self, run_id: str) -> list[dict[str, str]]:
        """Return the tensor hashes of their run that the snapshots record; they may not be those of the stored run.

        Snapshots that are damaged, of a newer format, or record nothing are left out.
        """
        contents = []
        for key in self.run_snapshot_keys(run_id):
            with suppress(CorruptEntry, NewerFormat):
                facts = self.folders.read_facts("point", key, self.snapshot_folder(*key.split("-"))).facts
                self._check_facts("point", key, facts)
                if RUN_CONTENT in facts:
                    contents.append(facts[RUN_CONTENT])
        return contents

    def has_snapshot(self, run_id: str, point: str) -> bool:
        """Return whether the run's snapshot at `point` was committed."""
        return os.path.lexists(self.snapshot_folder(run_id, point))

    def commit_snapshot(self, run_id: str, point: str, facts: RunFacts, tensors: Tensors) -> bool:
        """Store a snapshot: a network at one point of a run's trajectory. Otherwise as `commit`."""
        target = self.snapshot_folder(run_id, point)
        files = self._encode("point", target.name, facts, {"tensors": tensors})
        with translate_os_errors(target):
            return self.folders.commit(target, files)

    def read_snapshot(self, run_id: str, point: str) -> Entry:
        """Read a whole snapshot after checking every size and hash. Raises CorruptEntry.

        Also if it records another result of its run than the one that is in the store.
        """
        folder = self.snapshot_folder(run_id, point)
        entry = self._read_checked("point", folder.name, folder)
        if RUN_CONTENT in entry.facts and self.has(run_id):
            _check_run_content(folder.name, entry.facts, self.tensor_hashes(run_id))
        return entry

    def drop_snapshot(self, run_id: str, point: str) -> None:
        """Remove a snapshot atomically. Does nothing if there is none."""
        folder = self.snapshot_folder(run_id, point)
        if not os.path.lexists(folder):
            return
        with translate_os_errors(folder):
            removed = self.folders.staging_path(folder.name)
            with suppress(FileNotFoundError):
                self._disk.move_dir(folder, removed)
            # The rename must be durable before files are removed: a power loss could otherwise restore half of it.
            self._disk.fsync_dir(folder.parent)
            self._disk.remove_tree(removed)

    def save_checkpoint(self, run_id: str, facts: RunFacts, tensors: Tensors) -> None:
        """Replace the run's checkpoint. After a crash at any moment, the old or the new one is there, whole."""
        folder = self._checkpoints(run_id)
        files = self._encode("checkpoint", run_id, facts, {"tensors": tensors})
        with translate_os_errors(folder):
            self.folders.prepare(folder)
            previous = self._checkpoint_numbers(folder)
            number = max(previous, default=0) + 1
            staged = self.folders.stage(run_id, files)
            try:
                # The number may be taken: another process may be training the same run.
                while not self.folders.publish(staged, folder / f"{number:08d}"):
                    number += 1
            except FileNotFoundError:
                # Another process has committed the run and removed its checkpoints, this one included.
                if os.path.lexists(folder):
                    raise
            finally:
                self.folders.remove_staged(staged)
            for number in previous:
                self._disk.remove_tree(folder / f"{number:08d}")

    def load_checkpoint(self, run_id: str) -> Entry | None:
        """Return the latest undamaged checkpoint, or None. Damaged ones are removed."""
        folder = self._checkpoints(run_id)
        with translate_os_errors(folder):
            for number in sorted(self._checkpoint_numbers(folder), reverse=True):
                try:
                    return self._read_checked("checkpoint", run_id, folder / f"{number:08d}")
                except CorruptEntry:
                    self._disk.remove_tree(folder / f"{number:08d}")
        return None

    def remove_checkpoint(self, run_id: str) -> None:
        """Remove the run's checkpoints, once it is committed. Does nothing if there are none."""
        folder = self._checkpoints(run_id)
        with translate_os_errors(folder):
            try:
                self._disk.remove_tree(folder)
            except OSError as error:
                # Another process that trains the same run has just saved one. It removes the folder at its own end.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def quarantine(self, key: str, why: str, with_snapshots: bool = True) -> Path | None:
        """Move a damaged run or snapshot to `quarantine/`, so that it is computed again. Returns its new folder.

        The reason `why` is in `why.txt` beside it. None: another process has moved it already. A run's snapshots are
        moved too, to folders of their own: the run may be computed to another result, on whose trajectory they are not.
        `with_snapshots=False` leaves them, for a run that is replaced by the same result.
        """
        run_id, dash, point = key.partition("-")
        source = self.snapshot_folder(run_id, point) if dash else self.run_folder(run_id)
        # Snapshots first: after a crash in between, the run is still there to be set aside. Without the run they may
        # belong to another process, which commits a run's snapshots before the run.
        if with_snapshots and not dash and os.path.lexists(source):
            for snapshot_key in self.run_snapshot_keys(run_id):
                self.quarantine(snapshot_key, f"its run was set aside: {why}")
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        folder = self.root / "quarantine" / f"{key}.{when}.{secrets.token_hex(4)}"
        with translate_os_errors(folder):
            self.folders.prepare(folder.parent)
            try:
                self._disk.make_dir(folder)
                # The reason first: an entry in quarantine always has one.
                self._disk.write_files(folder, {"why.txt": (why.rstrip() + "\n").encode()})
                self._disk.move_dir(source, folder / key)
            except OSError:
                self.folders.remove_staged(folder)
                if not os.path.lexists(source):
                    return None
                raise
            self._disk.fsync_dir(source.parent)
        return folder

    def remove_stale(self) -> int:
        """Remove staged folders of ended processes and checkpoints of committed runs. Returns their number.

        Safe while others commit: staged folders of living processes stay.
        """
        removed = 0
        with translate_os_errors(self.root):
            for path in self._staged_folders():
                with suppress(FileNotFoundError):
                    if self._disk.is_stale(path, path.name.partition(".")[2]):
                        self._disk.remove_tree(path)
                        removed += 1
            for name in self.folders.names(self.root / "checkpoints"):
                # A process that was killed between committing a run and removing its checkpoints leaves them.
                if RUN_ID.fullmatch(name) and self.has(name):
                    self.remove_checkpoint(name)
                    removed += 1
        return removed

    def _staged_folders(self) -> Iterator[Path]:
        """Yield everything in `staging/`, and staged copies beside entries (`EntryFolders.copy_beside`)."""
        shards = [
            self.root / kind / shard
            for kind in ("runs", "points")
            for shard in self.folders.names(self.root / kind)
            if SHARD.fullmatch(shard)
        ]
        for folder in (self.root / "staging", self.root / "conflicts", *shards):
            for name in self.folders.names(folder):
                if folder.name == "staging" or STAGED_COPY.fullmatch(name):
                    yield folder / name

    def _checkpoints(self, run_id: str) -> Path:
        assert RUN_ID.fullmatch(run_id), run_id
        return self.root / "checkpoints" / run_id

    def _checkpoint_numbers(self, folder: Path) -> list[int]:
        return [int(name) for name in self.folders.names(folder) if CHECKPOINT_NUMBER.fullmatch(name)]

    def _scan(self, kind: str, pattern: re.Pattern[str]) -> set[str]:
        keys: set[str] = set()
        with translate_os_errors(self.root):
            for shard in self.folders.names(self.root / kind):
                if SHARD.fullmatch(shard):
                    names = self.folders.names(self.root / kind / shard)
                    # A folder in the wrong shard is ignored: `run_folder` would never find it.
                    keys.update(name for name in names if pattern.fullmatch(name) and name[:2] == shard)
        return keys


def _check_run_content(key: str, facts: RunFacts, content: Mapping[str, str]) -> None:
    """Check that a snapshot records the result of its run. Raises CorruptEntry. Snapshots without a record pass."""
    recorded = facts.get(RUN_CONTENT)
    if recorded is not None and recorded != content:
        raise CorruptEntry(key, "it is a snapshot of another result of its run")
