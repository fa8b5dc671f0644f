"""The store: a folder an entry, written once, atomically, and checked before anything in it is believed.

It knows nothing of lottery tickets: an entry is a key, facts (a JSON object) and groups of numpy arrays.
docs/store.md says what is promised, operation by operation.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from supermask.store.files.disk import Disk, translate_os_errors
from supermask.store.files.entry import RUN_JSON, CorruptEntry, Entry, RunFacts, Tensors, decode_tensors, encode_entry
from supermask.store.files.folders import DROPPED, WEIGHTS, EntryFolders

__all__ = ["CorruptEntry", "Entry", "Store"]

RUN_ID = re.compile(r"[0-9a-f]{32}")
POINT = re.compile(r"[a-z0-9_]+")
POINT_KEY = re.compile(rf"{RUN_ID.pattern}-{POINT.pattern}")
SHARD = re.compile(r"[0-9a-f]{2}")
CHECKPOINT_NUMBER = re.compile(r"[0-9]{8}")


class Store:
    """The entries under `root`. Nothing is made before the first write; reading works on a read-only store.

    Any number of processes and threads may use one root at once, without locks: of several that commit one key, the
    first wins. Every method raises MachineError for what the operating system refuses (disk full, read-only ...),
    and UserError when `root` cannot be a store (it is a file). A key that is not one is our own mistake.
    """

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = root.absolute()
        self._disk = disk or Disk()
        self._folders = EntryFolders(self.root, self._disk)

    def run_ids(self) -> set[str]:
        """Every committed run, by the folders' names alone: nothing is opened."""
        return self._scan("runs", RUN_ID)

    def has(self, run_id: str) -> bool:
        """Whether the run was committed. Its content is not looked at."""
        return os.path.lexists(self._run(run_id))

    def commit(self, run_id: str, facts: RunFacts, tensors: Tensors, weights: Tensors) -> bool:
        """Store a run for good: whole, or not at all. False: somebody else committed it first, and theirs stays.

        Raises ValueError for facts that are not plain JSON (NaN, tuples, keys that are not strings).
        """
        target = self._run(run_id)
        files = encode_entry("run", run_id, facts, {"tensors": tensors, "weights": weights})
        with translate_os_errors(target):
            return self._folders.commit(target, files)

    def facts(self, run_id: str) -> RunFacts:
        """The facts alone, their own seal checked. Raises Damaged."""
        return self._folders.read_facts("run", run_id, self._run(run_id)).facts

    def committed_at(self, run_id: str) -> float:
        """When the run was written, by its file's date: seconds since 1970. A copy may have another. Raises Damaged."""
        path = self._run(run_id) / RUN_JSON
        with translate_os_errors(path):
            try:
                return path.stat().st_mtime
            except FileNotFoundError:
                raise CorruptEntry(run_id, f"{RUN_JSON} is not there") from None

    def tensor_hashes(self, run_id: str) -> dict[str, str]:
        """Group of tensors -> SHA-256 over its tensors, as sealed: equal for bit-identical runs. Raises Damaged."""
        sealed = self._folders.read_facts("run", run_id, self._run(run_id))
        return {group: promise.content for group, promise in sealed.files.items()}

    def read(self, run_id: str) -> Entry:
        """The whole run, every size and hash checked first. Raises Damaged."""
        return self._folders.read("run", run_id, self._run(run_id))

    def has_weights(self, run_id: str) -> bool:
        """Whether the run was committed with weights that were not dropped since."""
        folder = self._run(run_id)
        return os.path.lexists(folder / WEIGHTS) and not os.path.lexists(folder / DROPPED)

    def drop_weights(self, run_id: str) -> None:
        """Remove a run's weights and keep the rest: `read` then gives None for them. Nothing to drop is fine."""
        folder = self._run(run_id)
        if not os.path.lexists(folder / WEIGHTS):
            return
        with translate_os_errors(folder):
            with suppress(FileExistsError):
                self._disk.close(self._disk.create(folder / DROPPED))
            # The marker first, for good: weights that are gone without one are damage.
            self._disk.fsync_dir(folder)
            self._disk.remove_tree(folder / WEIGHTS)

    def restore_weights(self, run_id: str, weights: Tensors) -> bool:
        """Put dropped weights back. False, and nothing is done, when these are not bit for bit those committed.

        Raises Damaged when the run's own facts are.
        """
        folder = self._run(run_id)
        promise = self._folders.read_facts("run", run_id, folder).files.get("weights")
        data = encode_entry("run", run_id, {}, {"weights": weights}).get(WEIGHTS)
        if promise is None or data is None:
            return promise is None and data is None
        try:
            decode_tensors(run_id, "weights", promise, data)
        except CorruptEntry:
            return False
        with translate_os_errors(folder):
            staged = self._folders.stage(run_id, {WEIGHTS: data})
            try:
                self._disk.rename(staged / WEIGHTS, folder / WEIGHTS)
                self._disk.fsync_dir(folder)
                with suppress(FileNotFoundError):
                    self._disk.remove_file(folder / DROPPED)
                self._disk.fsync_dir(folder)
            finally:
                self._folders.remove_staged(staged)
        return True

    def snapshot_keys(self) -> set[str]:
        """Every committed point, as `<run id>-<point>`, by the folders' names alone."""
        return self._scan("points", POINT_KEY)

    def has_snapshot(self, run_id: str, point: str) -> bool:
        """Whether the point of the run's trajectory was committed."""
        return os.path.lexists(self._point(run_id, point))

    def commit_snapshot(self, run_id: str, point: str, facts: RunFacts, tensors: Tensors) -> bool:
        """Like `commit`, for a network at one point of a run's trajectory."""
        target = self._point(run_id, point)
        files = encode_entry("point", target.name, facts, {"tensors": tensors})
        with translate_os_errors(target):
            return self._folders.commit(target, files)

    def read_snapshot(self, run_id: str, point: str) -> Entry:
        """Like `read`. Raises Damaged."""
        folder = self._point(run_id, point)
        return self._folders.read("point", folder.name, folder)

    def drop_snapshot(self, run_id: str, point: str) -> None:
        """Remove a point; never half of one. Nothing to drop is fine."""
        folder = self._point(run_id, point)
        if not os.path.lexists(folder):
            return
        with translate_os_errors(folder):
            away = self._folders.staging_path(folder.name)
            with suppress(FileNotFoundError):
                self._disk.rename(folder, away)
            # Gone for good before the first of its files goes: otherwise half of it could come back.
            self._disk.fsync_dir(folder.parent)
            self._disk.remove_tree(away)

    def save_checkpoint(self, run_id: str, facts: RunFacts, tensors: Tensors) -> None:
        """Replace the run's checkpoint: at any moment the one before or this one is there, whole."""
        folder = self._checkpoints(run_id)
        files = encode_entry("checkpoint", run_id, facts, {"tensors": tensors})
        with translate_os_errors(folder):
            self._folders.prepare(folder)
            older = self._generations(folder)
            number = max(older, default=0) + 1
            staged = self._folders.stage(run_id, files)
            try:
                while not self._folders.publish(staged, folder / f"{number:08d}"):
                    number += 1
            finally:
                self._folders.remove_staged(staged)
            for old in older:
                self._disk.remove_tree(folder / f"{old:08d}")

    def load_checkpoint(self, run_id: str) -> Entry | None:
        """The latest whole checkpoint, or None; damaged ones are removed."""
        folder = self._checkpoints(run_id)
        with translate_os_errors(folder):
            for number in sorted(self._generations(folder), reverse=True):
                try:
                    return self._folders.read("checkpoint", run_id, folder / f"{number:08d}")
                except CorruptEntry:
                    self._disk.remove_tree(folder / f"{number:08d}")
        return None

    def remove_checkpoint(self, run_id: str) -> None:
        """Remove the run's checkpoints: it is committed. Nothing to remove is fine."""
        folder = self._checkpoints(run_id)
        with translate_os_errors(folder):
            self._disk.remove_tree(folder)

    def quarantine(self, key: str, why: str) -> Path | None:
        """Set a damaged run or point aside, so that it is computed again; gives its new folder, with a `why.txt`.

        None: somebody else has moved it already.
        """
        run_id, dash, point = key.partition("-")
        source = self._point(run_id, point) if dash else self._run(run_id)
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        folder = self.root / "quarantine" / f"{key}.{when}.{secrets.token_hex(4)}"
        with translate_os_errors(folder):
            self._folders.prepare(folder.parent)
            try:
                self._disk.make_dir(folder)
                self._disk.write_files(folder, {"why.txt": (why.rstrip() + "\n").encode()})
                self._disk.rename(source, folder / key)
            except OSError:
                self._folders.remove_staged(folder)
                if not os.path.lexists(source):
                    return None
                raise
            self._disk.fsync_dir(source.parent)
        return folder

    def remove_stale(self) -> int:
        """Remove what processes that are gone left behind, and checkpoints of committed runs; gives how many.

        Safe while others commit: what a living process has staged is left alone.
        """
        swept = 0
        with translate_os_errors(self.root):
            for name in self._folders.names(self.root / "staging"):
                path = self.root / "staging" / name
                with suppress(FileNotFoundError):
                    if self._disk.is_stale(path, name.partition(".")[2]):
                        self._disk.remove_tree(path)
                        swept += 1
            for name in self._folders.names(self.root / "checkpoints"):
                if RUN_ID.fullmatch(name) and self.has(name):
                    self.remove_checkpoint(name)
                    swept += 1
        return swept

    def _run(self, run_id: str) -> Path:
        assert RUN_ID.fullmatch(run_id), run_id
        return self.root / "runs" / run_id[:2] / run_id

    def _point(self, run_id: str, point: str) -> Path:
        assert RUN_ID.fullmatch(run_id), run_id
        assert POINT.fullmatch(point), point
        return self.root / "points" / run_id[:2] / f"{run_id}-{point}"

    def _checkpoints(self, run_id: str) -> Path:
        assert RUN_ID.fullmatch(run_id), run_id
        return self.root / "checkpoints" / run_id

    def _generations(self, folder: Path) -> list[int]:
        return [int(name) for name in self._folders.names(folder) if CHECKPOINT_NUMBER.fullmatch(name)]

    def _scan(self, kind: str, pattern: re.Pattern[str]) -> set[str]:
        found: set[str] = set()
        with translate_os_errors(self.root):
            for shard in self._folders.names(self.root / kind):
                if SHARD.fullmatch(shard):
                    names = self._folders.names(self.root / kind / shard)
                    found.update(name for name in names if pattern.fullmatch(name) and name[:2] == shard)
        return found
