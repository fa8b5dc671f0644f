"""From an outcome to the store: what a learned mask is worth, the certificate, the run and its points."""

from __future__ import annotations

from dataclasses import dataclass, replace

from supermask.core.certificate import Certificate, certify, certify_learned_mask
from supermask.core.errors import SystemFailure
from supermask.core.types import InitialState, SplitData, TrainingResult
from supermask.datasets import ImageDataset
from supermask.engines.job import TrainingJob
from supermask.execution.tasks import Task, TaskResult, result_from_facts
from supermask.networks.sequential import initial_state, prunable_tensors
from supermask.store import Store
from supermask.store.files.entry import RunFacts, content_hash
from supermask.store.records import decode_logits, encode_result, encode_snapshot, snapshot_name, weights_to_store
from supermask.store.replay import StateReplayer, build_step, run_architecture
from supermask.study.run import Run


@dataclass(frozen=True)
class RunCommitter:
    """Commits to one store."""

    store: Store
    lineage: StateReplayer

    def commit(
        self, run: Run, start: InitialState, outcome: TrainingResult, certificate: Certificate, provenance: RunFacts
    ) -> TaskResult:
        """A run that was trained; whoever was first is told of, where another process was. Raises MachineError."""
        facts, tensors, weights = encode_result(run, start, outcome, certificate, provenance)
        if facts["status"] == "finished":
            # Before the run itself: a committed run then has them.
            self._commit_points(run, start, outcome)
        if self.store.commit(run.id, facts, tensors, weights):
            self.lineage.cache(run, start)
        else:
            facts = self.store.facts(run.id)
        return result_from_facts(facts)

    def commit_replay(self, task: Task, start: InitialState, outcome: TrainingResult) -> None:
        """The points that a stored run lacked. Raises MachineError if it came to other bits than those stored."""
        weights = weights_to_store(task.run, start, outcome)
        same = self.store.tensor_hashes(task.run.id).get("weights") == content_hash(weights)
        if same and task.run.learning is None:
            self._commit_points(task.run, start, outcome)
        if not same or ("end" in task.snapshots and not self.store.restore_weights(task.run.id, weights)):
            raise SystemFailure(
                f"run {task.run.id} was trained again for weights that were not kept, and gave other bits than it has "
                f"in the store: {_mismatch_reason(self.store.facts(task.run.id))}. Use another folder (--store) for "
                "this "
                "study."
            )

    def certificate(self, run: Run, start: InitialState, outcome: TrainingResult, images: ImageDataset) -> Certificate:
        """What the run is checked for. Source: `certificate`, `mask_certificate`."""
        layers = run_architecture(run)
        found = prunable_tensors(layers)
        if run.learning is not None:
            dense, tests = initial_state(layers, run.seed), len(images.test_labels)
            return certify_learned_mask(found, dense, start, outcome, run.learning, tests)
        parent = None if run.parent is None else self.lineage.parent_run(run.parent)
        step = None if run.step is None else build_step(run.step)
        return certify(found, start, outcome, parent, step, run.recipe.weight_decay)

    def _commit_points(self, run: Run, start: InitialState, outcome: TrainingResult) -> None:
        if run.learning is not None:
            return  # its logits at the lowest validation loss are what the run itself holds
        for point, state in outcome.points.items():
            name, tensors = snapshot_name(point), encode_snapshot(state, start.masks)
            new = self.store.commit_snapshot(run.id, name, {"run": run.id}, tensors)
            if new or self.store.has(run.id):
                continue
            if content_hash(self.store.read_snapshot(run.id, name).tensors) != content_hash(tensors):
                # Left by a training in another environment that did not get to its end.
                self.store.drop_snapshot(run.id, name)
                self.store.commit_snapshot(run.id, name, {"run": run.id}, tensors)


def with_mask_evaluation(
    run: Run, job: TrainingJob, data: SplitData, outcome: TrainingResult, device: str
) -> TrainingResult:
    """With what the learned mask is worth, measured from what is going to be stored of it."""
    from supermask.engines.mask_evaluation import evaluate_supermask

    assert run.learning is not None
    if outcome.status == "diverged":
        return outcome
    stored = weights_to_store(run, job.start, outcome)
    selected, final = (decode_logits(stored, job.start, kind) for kind in ("logit", "final_logit"))
    return replace(outcome, supermask=evaluate_supermask(job, data, selected, final, device))


def _mismatch_reason(facts: RunFacts) -> str:
    """Why a run may not come to its bits again."""
    if facts["environment"].get("stack") == "shared":
        return "it was trained in a stack with others, and alone its sums are rounded otherwise"
    return "another machine or release trained it"
