"""One task, from start to commit: what a worker process does, whichever executor started it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from supermask.certificate import Certificate, certify
from supermask.datasets import Images, load, split
from supermask.engines.choice import Choice, Precision, choose
from supermask.engines.job import Checkpoints, Data, Job
from supermask.environment import environment
from supermask.errors import MachineError, UserError
from supermask.execute.checkpoints import StoredCheckpoints
from supermask.lineage import Lineage, NotKept, layers_of, step_of
from supermask.mask_certificate import certify_learning
from supermask.networks import initial_start, maskables
from supermask.records import pack_outcome, pack_point, point_name, stored_weights, unpack_logits
from supermask.runs import Run
from supermask.store import Damaged, Store
from supermask.store.entry import Facts, content_hash
from supermask.types import Outcome, Point, Start

Done = TypeVar("Done")

SEEDS_HELD = 32
"""Seeds whose split of the data set a worker keeps in memory."""

Status = Literal["finished", "diverged", "certificate_failed", "not_started"]


@dataclass(frozen=True)
class Site:
    """Where and with what runs are trained; nothing of it is in a run's id."""

    store: Path
    data_dir: Path | None = None
    engine: str = "reference"
    device: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"
    stack: int = 1
    """Runs that a worker is given at once at most."""
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
    """`not_started`: what it starts from is damaged or not there; the schedule has to be made again."""
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    lacking: str = ""
    """With `not_started`: the store's key of what is damaged or not there."""


@lru_cache(maxsize=1)
def worker_at(site: Site) -> Worker:
    """This process's worker: its data set and its last few starts stay in memory from task to task."""
    return Worker(site)


class Worker:
    """Trains runs and commits them."""

    def __init__(self, site: Site) -> None:
        import torch

        torch.set_num_threads(site.threads)
        self.site = site
        self.store = Store(site.store)
        self.lineage = Lineage(self.store)
        self._environments: dict[str, dict[str, Any]] = {}
        self._images: Images | None = None
        self._data: dict[int, Data] = {}

    def perform(self, task: Task, stopping: Callable[[], bool] = lambda: False) -> Result:
        """Trains, certifies and commits. What is found damaged on the way is set aside.

        `stopping` is asked at every evaluation: if true, a checkpoint is saved and Interrupted raised.
        Raises UserError and MachineError.
        """
        return self._attempt(task, lambda: self._found(task) or self._trained(task, stopping))

    def perform_stack(self, tasks: Sequence[Task], stopping: Callable[[], bool] = lambda: False) -> list[Result]:
        """The same for tasks of one network and recipe, trained together by the stacked engine where it was chosen."""
        results: dict[str, Result] = {}
        begun: list[_Begun] = []
        for task in tasks:
            layers, learning = layers_of(task.run), task.run.learning
            engine = choose(self.site.engine, layers, self.site.device, learning).engine
            if task.retrace or engine != "stacked":
                results[task.run.id] = self.perform(task, stopping)
            else:
                found = self._attempt(task, partial(self._found_or_begun, task, stopping))
                if isinstance(found, Result):
                    results[task.run.id] = found
                else:
                    begun.append(found)
        if begun:
            began = time.perf_counter()
            outcomes = self._train_together(begun)
            share = (time.perf_counter() - began) / len(begun)
            for each, outcome in zip(begun, outcomes, strict=True):
                since = time.perf_counter() - share
                results[each.task.run.id] = self._attempt(each.task, partial(self._finished, each, outcome, since))
        return [results[task.run.id] for task in tasks]

    def _attempt(self, task: Task, do: Callable[[], Done]) -> Done | Result:
        try:
            return do()
        except NotKept as gone:
            said = f"{gone.key} is not in the store any more: it is trained again."
            return Result(task.run.id, "not_started", message=said, lacking=gone.key)
        except Damaged as damage:
            self.store.quarantine(damage.key, damage.what)
            said = f"{damage.key} in the store is damaged: {damage.what}. It was set aside and is computed again."
            return Result(task.run.id, "not_started", message=said, lacking=damage.key)

    def _found(self, task: Task) -> Result | None:
        """What another process on the same store has done since the schedule was made."""
        run = task.run
        if task.retrace or not self.store.has(run.id):
            return None
        facts = self.store.facts(run.id)
        there = all(self.store.has_point(run.id, point_name(point)) for point in task.points - {"end"})
        if facts["status"] == "finished" and not there:
            return None
        return result_of(facts)

    def _trained(self, task: Task, stopping: Callable[[], bool]) -> Result:
        began = time.perf_counter()
        begun = self._begun(task, stopping)
        (outcome,) = self._train_together([begun])
        return self._finished(begun, outcome, began)

    def _found_or_begun(self, task: Task, stopping: Callable[[], bool]) -> Result | _Begun:
        return self._found(task) or self._begun(task, stopping)

    def _begun(self, task: Task, stopping: Callable[[], bool]) -> _Begun:
        start = self._start(task)
        images, data = self._data_of(task)
        choice, around = self._engine(task)
        fingerprint, every = around["fingerprint"], self.site.checkpoint_seconds
        checkpoints = StoredCheckpoints(
            self.store, task.run.id, start, fingerprint, every, stopping, task.run.recipe.iterations
        )
        return _Begun(task, start, images, data, choice, around, checkpoints, _job(task, start, checkpoints))

    def _finished(self, begun: _Begun, outcome: Outcome, began: float) -> Result:
        task, start, choice = begun.task, begun.start, begun.choice
        if task.retrace:
            self._commit_retraced(task, start, outcome)
            seconds = time.perf_counter() - began
            result = Result(task.run.id, "finished", seconds, outcome.metrics, "points traced again")
        else:
            about = {"engine": choice.engine, "engine_reason": choice.why, "environment": begun.around}
            if task.run.learning is not None:
                outcome = self._judged(task.run, begun.job, begun.data, outcome)
            result = self._commit(task.run, start, outcome, begun.images, began, about)
        begun.checkpoints.remove()
        return result

    def _start(self, task: Task) -> Start:
        if task.retrace:
            return self.lineage.parent(task.run.id).start
        try:
            return self.lineage.start_of(task.run)
        except (ValueError, UserError) as error:
            raise UserError(f"run {task.run.id} (level {task.run.level}, seed {task.run.seed}): {error}") from error

    def _engine(self, task: Task) -> tuple[Choice, dict[str, Any]]:
        """Who trains it, and in what environment: a run that is trained again, as it was the first time."""
        layers, learning = layers_of(task.run), task.run.learning
        if task.retrace:
            before = self.store.facts(task.run.id)
            device = "cpu" if before["engine"] == "sparse" else self.site.device
            choice = choose(before["engine"], layers, device, learning)
            if choice.engine == "stacked":
                known = {key: before["environment"].get(key) for key in ("precision", "convolutions", "stack")}
                return choice, environment("stacked", device, self.site.threads, known)
            return choice, self._environment(choice.engine, device, before["environment"].get("costs"))
        choice = choose(self.site.engine, layers, self.site.device, learning)
        if choice.engine == "stacked":
            return choice, self._stacked_environment(task.run)
        if choice.engine not in self._environments:
            self._environments[choice.engine] = self._environment(choice.engine, self.site.device, None)
        return choice, self._environments[choice.engine]

    def _stacked_environment(self, run: Run) -> dict[str, Any]:
        from supermask.engines import stacked

        site = self.site
        ways = stacked.ways_here(layers_of(run), run.recipe.batch_size, site.stack, site.device, site.precision)
        facts = stacked.environment_facts(ways, site.precision, site.stack == 1)
        return environment("stacked", site.device, site.threads, facts)

    def _environment(self, engine: str, device: str, costs: dict[str, Any] | None) -> dict[str, Any]:
        if engine != "sparse":
            return environment(engine, device, self.site.threads)
        from supermask.engines import sparse

        try:
            known = sparse.costs_here() if costs is None else sparse.Costs.from_data(costs)
        except (KeyError, TypeError):
            raise MachineError(
                "a run whose weights are needed again was trained by another release of supermask, which chose its "
                "kernels by other costs: it cannot come to the same bits here. Use another folder (--store)."
            ) from None
        return environment(engine, device, 1, sparse.environment_facts(known))

    def _train_together(self, begun: Sequence[_Begun]) -> list[Outcome]:
        """All in one stack; an engine that trains one at a time is given one."""
        jobs, data = [each.job for each in begun], [each.data for each in begun]
        engine, around, device = begun[0].choice.engine, begun[0].around, self.site.device
        if engine == "stacked":
            from supermask.engines import stacked

            return stacked.train(jobs, data, device, around["precision"], around["convolutions"])
        if engine == "sparse":
            from supermask.engines import sparse

            return sparse.train(jobs, data, sparse.Costs.from_data(around["costs"]))
        if jobs[0].learning is not None:
            from supermask.engines import learning

            return learning.train(jobs, data, device)
        from supermask.engines import reference

        return reference.train(jobs, data, device)

    def _judged(self, run: Run, job: Job, data: Data, outcome: Outcome) -> Outcome:
        """With what the learned mask is worth, measured from what is going to be stored of it."""
        from supermask.engines.report import supermask_report

        assert run.learning is not None
        if outcome.status == "diverged":
            return outcome
        stored = stored_weights(run, job.start, outcome)
        selected, final = (unpack_logits(stored, job.start, kind) for kind in ("logit", "final_logit"))
        return replace(outcome, supermask=supermask_report(job, data, selected, final, self.site.device))

    def _certificate(self, run: Run, start: Start, outcome: Outcome, images: Images) -> Certificate:
        layers = layers_of(run)
        found = maskables(layers)
        if run.learning is not None:
            dense, tests = initial_start(layers, run.seed), len(images.test_labels)
            return certify_learning(found, dense, start, outcome, run.learning, tests)
        parent = None if run.parent is None else self.lineage.parent(run.parent)
        step = None if run.step is None else step_of(run.step)
        return certify(found, start, outcome, parent, step, run.recipe.weight_decay)

    def _commit(self, run: Run, start: Start, outcome: Outcome, images: Images, began: float, about: Facts) -> Result:
        certificate = self._certificate(run, start, outcome, images)
        seconds = round(time.perf_counter() - began, 3)
        about |= {"seconds": seconds, "data": {"fingerprint": images.fingerprint, "note": images.note}}
        facts, tensors, weights = pack_outcome(run, start, outcome, certificate, about)
        if facts["status"] == "finished":
            # Before the run itself: a committed run then has them.
            self._commit_points(run, start, outcome)
        if self.store.commit(run.id, facts, tensors, weights):
            self.lineage.remember(run, start)
        else:
            facts = self.store.facts(run.id)
        return result_of(facts)

    def _commit_points(self, run: Run, start: Start, outcome: Outcome) -> None:
        if run.learning is not None:
            return  # its logits at the lowest validation loss are what the run itself holds
        for point, state in outcome.points.items():
            name, tensors = point_name(point), pack_point(state, start.masks)
            new = self.store.commit_point(run.id, name, {"run": run.id}, tensors)
            if new or self.store.has(run.id):
                continue
            if content_hash(self.store.read_point(run.id, name).tensors) != content_hash(tensors):
                # Left by a training in another environment that did not get to its end.
                self.store.drop_point(run.id, name)
                self.store.commit_point(run.id, name, {"run": run.id}, tensors)

    def _commit_retraced(self, task: Task, start: Start, outcome: Outcome) -> None:
        weights = stored_weights(task.run, start, outcome)
        same = self.store.contents(task.run.id).get("weights") == content_hash(weights)
        if same and task.run.learning is None:
            self._commit_points(task.run, start, outcome)
        if not same or ("end" in task.points and not self.store.restore_weights(task.run.id, weights)):
            raise MachineError(
                f"run {task.run.id} was trained again for weights that were not kept, and gave other bits than it has "
                f"in the store: {_other_bits(self.store.facts(task.run.id))}. Use another folder (--store) for this "
                "study."
            )

    def _data_of(self, task: Task) -> tuple[Images, Data]:
        run = task.run
        if self._images is None or self._images.facts.name != run.dataset:
            self._images, self._data = load(run.dataset, self.site.data_dir), {}
        images = self._images
        before = run.id if task.retrace else run.parent
        if before is not None:
            check_same_data(self.store, before, images)
        if run.seed not in self._data:
            # The last few seeds': runs of one seed that are stacked share its data, and so their batches.
            kept = list(self._data.items())[1 - SEEDS_HELD :]
            self._data = {**dict(kept), run.seed: seed_data(images, run.seed)}
        return images, self._data[run.seed]


@dataclass(frozen=True)
class _Begun:
    """A task whose training can begin."""

    task: Task
    start: Start
    images: Images
    data: Data
    choice: Choice
    around: Facts
    checkpoints: StoredCheckpoints
    job: Job


def _job(task: Task, start: Start, checkpoints: Checkpoints) -> Job:
    run, points = task.run, task.points - {"end"} if task.run.trains else frozenset()
    if run.learning is not None:
        # What was learned up to there is the mask.
        points = frozenset({"lowest_validation_loss"})
    return Job(layers_of(run), start, run.recipe, run.seed, points, checkpoints, run.learning)


def _other_bits(facts: Facts) -> str:
    """Why a run may not come to its bits again."""
    if facts["environment"].get("stack") == "shared":
        return "it was trained in a stack with others, and alone its sums are rounded otherwise"
    return "another machine or release trained it"


def check_same_data(store: Store, run_id: str, images: Images) -> None:
    """Raises UserError if a stored run was trained on other data than these: its study cannot go on with them."""
    trained_on = store.facts(run_id)["data"]["fingerprint"]
    if trained_on != images.fingerprint:
        raise UserError(
            f"the runs of {images.facts.name} in {store.root} were trained on other data ({trained_on[:12]}) "
            f"than is there now ({images.fingerprint[:12]}): use another --store, or the former data (SUPERMASK_DATA)."
        )


def result_of(facts: Facts) -> Result:
    """What became of a stored run."""
    return Result(facts["id"], facts["status"], facts["seconds"], facts["metrics"], _refused(facts))


def _refused(facts: Facts) -> str:
    """What a failed certificate says, else nothing."""
    broken = {name: layers for name, layers in facts["certificate"]["checks"].items() if layers}
    return f"certificate refused: {broken}" if facts["status"] == "certificate_failed" else ""


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
