"""One task, from start to commit: what a worker process does, whichever executor started it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from supermask.certificate import certify
from supermask.datasets import Images, load, split
from supermask.engines.job import Array, Data, Job
from supermask.entry import content_hash
from supermask.environment import environment
from supermask.errors import MachineError, UserError
from supermask.lineage import Lineage, layers_of, step_of
from supermask.networks import maskables
from supermask.records import kept_values, pack_outcome, pack_point, point_name
from supermask.run import Run
from supermask.store import Damaged, Store
from supermask.types import Outcome, Point, Start

Status = Literal["finished", "diverged", "certificate_failed", "parent_damaged"]


@dataclass(frozen=True)
class Site:
    """Where and with what runs are trained; nothing of it is in a run's id."""

    store: Path
    data_dir: Path | None = None
    engine: str = "reference"
    device: str = "cpu"
    threads: int = 1
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Task:
    """A run to train; or, with `retrace`, a stored one to train again for points of its trajectory that it lacks."""

    run: Run
    points: frozenset[Point] = frozenset()
    retrace: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a task."""

    run_id: str
    status: Status
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    message: str = ""


class StoredCheckpoints:
    """A run's checkpoints in the store; those of another environment are not gone on from."""

    def __init__(self, store: Store, run_id: str, every: float, fingerprint: str, stopping: Callable[[], bool]) -> None:
        self._store, self._run_id, self._every, self._fingerprint = store, run_id, every, fingerprint
        self._stopping, self._last = stopping, time.monotonic()
        self._saved = False

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        entry = self._store.load_checkpoint(self._run_id)
        if entry is None or entry.facts["fingerprint"] != self._fingerprint:
            return None
        self._saved = True
        return entry.facts["engine"], entry.tensors

    def due(self) -> bool:
        return self._stopping() or time.monotonic() - self._last >= self._every

    def save(self, facts: dict[str, Any], tensors: dict[str, Array]) -> None:
        self._store.save_checkpoint(self._run_id, {"fingerprint": self._fingerprint, "engine": facts}, tensors)
        self._saved, self._last = True, time.monotonic()
        if self._stopping():
            raise SystemExit(f"stopped; run {self._run_id} goes on from its checkpoint")

    def remove(self) -> None:
        """The run is committed."""
        if self._saved:
            self._store.remove_checkpoint(self._run_id)


@lru_cache(maxsize=1)
def worker_at(site: Site) -> Worker:
    """This process's worker: its data set and its last few starts stay in memory from task to task."""
    return Worker(site)


class Worker:
    """Trains runs and commits them."""

    def __init__(self, site: Site, stopping: Callable[[], bool] = lambda: False) -> None:
        import torch

        torch.set_num_threads(site.threads)
        self.site, self.stopping = site, stopping
        self.store = Store(site.store)
        self.lineage = Lineage(self.store)
        self.environment = environment(site.engine, site.device, site.threads)
        self._images: Images | None = None
        self._data: tuple[int, Data] | None = None

    def perform(self, task: Task) -> Result:
        """Trains, certifies and commits. Raises UserError and MachineError; a damaged ancestor is set aside."""
        began = time.perf_counter()
        try:
            return self._perform(task, began)
        except Damaged as damage:
            self.store.quarantine(damage.key, damage.what)
            return Result(task.run.id, "parent_damaged", message=str(damage))

    def _perform(self, task: Task, began: float) -> Result:
        run = task.run
        start = self._start(task)
        images, data = self._data_of(run)
        checkpoints = StoredCheckpoints(
            self.store, run.id, self.site.checkpoint_seconds, self.environment["fingerprint"], self.stopping
        )
        job = Job(layers_of(run), start, run.recipe, run.seed, task.points - {"end"}, checkpoints)
        outcome = self._train(job, data)
        if task.retrace:
            self._commit_points(task, start, outcome)
            return Result(run.id, "finished", time.perf_counter() - began, outcome.metrics, "points traced again")
        parent = None if run.parent is None else self.lineage.parent(run.parent)
        step = None if run.step is None else step_of(run.step)
        certificate = certify(maskables(job.layers), start, outcome, parent, step)
        seconds = time.perf_counter() - began
        about = {
            "seconds": round(seconds, 3),
            "engine": self.site.engine,
            "environment": self.environment,
            "data": {"fingerprint": images.fingerprint, "note": images.note},
        }
        facts, tensors, weights = pack_outcome(run, start, outcome, certificate, about)
        if facts["status"] == "finished":
            self._store_points(run, start, outcome)
        self.store.commit(run.id, facts, tensors, weights)
        checkpoints.remove()
        self.lineage.remember(run, start)
        broken = {name: layers for name, layers in certificate.checks.items() if layers}
        message = "" if certificate.held else f"certificate refused: {broken}"
        return Result(run.id, facts["status"], seconds, outcome.metrics, message)

    def _start(self, task: Task) -> Start:
        if task.retrace:
            return self.lineage.parent(task.run.id).start
        try:
            return self.lineage.start_of(task.run)
        except ValueError as error:
            raise UserError(f"run {task.run.id} (level {task.run.level}, seed {task.run.seed}): {error}") from error

    def _train(self, job: Job, data: Data) -> Outcome:
        from supermask.engines import reference

        return reference.train([job], [data], self.site.device)[0]

    def _store_points(self, run: Run, start: Start, outcome: Outcome) -> None:
        """Before the run itself: a committed run then has them."""
        for point, state in outcome.points.items():
            self.store.commit_point(run.id, point_name(point), {"run": run.id}, pack_point(state, start.masks))

    def _commit_points(self, task: Task, start: Start, outcome: Outcome) -> None:
        weights = kept_values(outcome.end, start.masks)
        if self.store.contents(task.run.id).get("weights") != content_hash(weights):
            raise MachineError(
                f"run {task.run.id} was trained again for weights that were not kept, and gave other bits than it has "
                "in the store: another machine or release trained it. Use another folder (--store) for this study."
            )
        self._store_points(task.run, start, outcome)
        if "end" in task.points:
            self.store.restore_weights(task.run.id, weights)

    def _data_of(self, run: Run) -> tuple[Images, Data]:
        if self._images is None or self._images.facts.name != run.dataset:
            self._images, self._data = load(run.dataset, self.site.data_dir), None
        images = self._images
        if run.parent is not None:
            trained_on = self.store.facts(run.parent)["data"]["fingerprint"]
            if trained_on != images.fingerprint:
                raise UserError(
                    f"the runs of {run.dataset} in {self.site.store} were trained on other data ({trained_on[:12]}) than "
                    f"is there now ({images.fingerprint[:12]}): use another --store, or the former data (SUPERMASK_DATA)."
                )
        if self._data is None or self._data[0] != run.seed:
            self._data = (run.seed, seed_data(images, run.seed))
        return images, self._data[1]


def seed_data(images: Images, seed: int) -> Data:
    """A seed's split of a data set, for an engine."""
    training, validation = split(images, seed)
    return Data(
        train_images=images.train_images,
        train_labels=images.train_labels,
        train_indices=training,
        validation_images=np.ascontiguousarray(images.train_images[validation]),
        validation_labels=images.train_labels[validation],
        test_images=images.test_images,
        test_labels=images.test_labels,
        pixel_maximum=images.facts.pixel_maximum,
    )
