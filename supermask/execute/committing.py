"""From an outcome to the store: what a learned mask is worth, the certificate, the run and its points."""

from __future__ import annotations

from dataclasses import dataclass, replace

from supermask.certificate import Certificate, certify
from supermask.datasets import Images
from supermask.engines.job import Data, Job
from supermask.errors import MachineError
from supermask.execute.stored import result_of
from supermask.execute.tasks import Result, Task
from supermask.lineage import Lineage, layers_of, step_of
from supermask.mask_certificate import certify_learning
from supermask.networks import initial_start, maskables
from supermask.records import pack_outcome, pack_point, point_name, stored_weights, unpack_logits
from supermask.runs import Run
from supermask.store import Store
from supermask.store.entry import Facts, content_hash
from supermask.types import Outcome, Start


@dataclass(frozen=True)
class Committing:
    """Commits to one store."""

    store: Store
    lineage: Lineage

    def commit(self, run: Run, start: Start, outcome: Outcome, certificate: Certificate, about: Facts) -> Result:
        """A run that was trained; whoever was first is told of, where another process was. Raises MachineError."""
        facts, tensors, weights = pack_outcome(run, start, outcome, certificate, about)
        if facts["status"] == "finished":
            # Before the run itself: a committed run then has them.
            self._commit_points(run, start, outcome)
        if self.store.commit(run.id, facts, tensors, weights):
            self.lineage.remember(run, start)
        else:
            facts = self.store.facts(run.id)
        return result_of(facts)

    def commit_again(self, task: Task, start: Start, outcome: Outcome) -> None:
        """The points that a stored run lacked. Raises MachineError if it came to other bits than those stored."""
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

    def certificate(self, run: Run, start: Start, outcome: Outcome, images: Images) -> Certificate:
        """What the run is checked for. Source: `certificate`, `mask_certificate`."""
        layers = layers_of(run)
        found = maskables(layers)
        if run.learning is not None:
            dense, tests = initial_start(layers, run.seed), len(images.test_labels)
            return certify_learning(found, dense, start, outcome, run.learning, tests)
        parent = None if run.parent is None else self.lineage.parent(run.parent)
        step = None if run.step is None else step_of(run.step)
        return certify(found, start, outcome, parent, step, run.recipe.weight_decay)

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


def judged(run: Run, job: Job, data: Data, outcome: Outcome, device: str) -> Outcome:
    """With what the learned mask is worth, measured from what is going to be stored of it."""
    from supermask.engines.report import supermask_report

    assert run.learning is not None
    if outcome.status == "diverged":
        return outcome
    stored = stored_weights(run, job.start, outcome)
    selected, final = (unpack_logits(stored, job.start, kind) for kind in ("logit", "final_logit"))
    return replace(outcome, supermask=supermask_report(job, data, selected, final, device))


def _other_bits(facts: Facts) -> str:
    """Why a run may not come to its bits again."""
    if facts["environment"].get("stack") == "shared":
        return "it was trained in a stack with others, and alone its sums are rounded otherwise"
    return "another machine or release trained it"
