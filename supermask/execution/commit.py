"""Commits of trained runs: mask evaluation, certificate, run and snapshots."""

from __future__ import annotations

from dataclasses import dataclass, replace

from supermask.core.certificate import Certificate
from supermask.core.errors import SystemFailure
from supermask.core.mask_certificate import certify_learned_mask
from supermask.core.types import InitialState, SplitData, TrainingResult
from supermask.datasets import ImageDataset
from supermask.engines.job import TrainingJob
from supermask.execution.tasks import Task, TaskResult, result_from_facts
from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import RunFacts, content_hash, content_hashes
from supermask.store.files.store import RUN_CONTENT
from supermask.store.layer_facts import collect_layer_facts
from supermask.store.records import decode_logits, encode_result, encode_snapshot, snapshot_name, weights_to_store
from supermask.store.replay import StateReplayer, certify_run
from supermask.study.networks import run_network
from supermask.study.run import Run


@dataclass(frozen=True)
class RunCommitter:
    """Certifies outcomes and commits them to one store."""

    store: Store
    replayer: StateReplayer

    def commit(
        self, run: Run, start: InitialState, outcome: TrainingResult, certificate: Certificate, provenance: RunFacts
    ) -> TaskResult:
        """Commit a run and return its result; if another process committed it first, return that one's result.

        Raises SystemFailure.
        """
        if run.parent is not None:
            # Links the chain: a parent whose weights were changed later is not the one that this run was pruned from.
            provenance = {**provenance, "parent_content": self.store.tensor_hashes(run.parent)}
        if layers := collect_layer_facts(run, start, outcome, self.replayer):
            provenance = {**provenance, "layers": layers}
        network = run_network(run)
        dense = network.initial_state(run.seed) if network.is_user_code and run.parent is None else None
        facts, tensors, weights = encode_result(run, start, outcome, certificate, provenance, dense)
        content = content_hashes({"tensors": tensors, "weights": weights})
        if not self.store.has(run.id):
            self._drop_stale_snapshots(run, content)
        # Another process may have committed another result, to which these snapshots do not belong.
        if facts["status"] == "finished" and self._is_result(run, content):
            # Before the run: so a committed run always has its snapshots, even after a kill between the two.
            self._commit_snapshots(run, start, outcome, content)
        if self.store.commit(run.id, facts, tensors, weights):
            self.replayer.cache(run, start)
        else:
            facts = self.store.facts(run.id)
        return result_from_facts(facts)

    def commit_replay(self, task: Task, start: InitialState, outcome: TrainingResult) -> None:
        """Commit the missing snapshots of a stored run.

        Raises SystemFailure if the replay is not bit-identical to the stored run.
        """
        weights = weights_to_store(task.run, start, outcome)
        # The hash of dropped weights stays in the store, so a replay can be checked even if they are gone.
        is_identical = self.store.tensor_hashes(task.run.id).get("weights") == content_hash(weights)
        if is_identical and task.run.learning is None:
            self._commit_snapshots(task.run, start, outcome, self.store.tensor_hashes(task.run.id))
        if not is_identical or ("end" in task.snapshots and not self.store.restore_weights(task.run.id, weights)):
            raise SystemFailure(
                f"run {task.run.id} was trained again for weights that were not kept, and gave other bits than it has "
                f"in the store: {_mismatch_reason(self.store.facts(task.run.id))}. Use another folder (--store) for "
                "this study."
            )

    def certificate(self, run: Run, start: InitialState, outcome: TrainingResult, images: ImageDataset) -> Certificate:
        """Return the certificate of an outcome, by `certify_run` or `certify_learned_mask`."""
        network = run_network(run)
        prunable = network.tensors
        if run.learning is not None:
            dense, tests = network.initial_state(run.seed), len(images.test_labels)
            free = network.buffers | (network.trained_names if run.learning.others_lr else frozenset())
            return certify_learned_mask(prunable, dense, start, outcome, run.learning, tests, free)
        parent = None if run.parent is None else self.replayer.parent_run(run.parent)
        return certify_run(run, start, outcome, parent)

    def _is_result(self, run: Run, content: dict[str, str]) -> bool:
        """Return whether tensors with these hashes are the stored result of a run, or will be."""
        return not self.store.has(run.id) or self.store.tensor_hashes(run.id) == content

    def _drop_stale_snapshots(self, run: Run, content: dict[str, str]) -> None:
        """Drop the snapshots of a run that is not in the store yet, unless they record the result `content`.

        They are of a training in another environment that was interrupted before its run was committed.
        """
        for key in self.store.run_snapshot_keys(run.id):
            point = key.partition("-")[2]
            try:
                is_stale = self.store.read_snapshot(run.id, point).facts.get(RUN_CONTENT) != content
            except CorruptEntry:
                is_stale = True
            if is_stale:
                self.store.drop_snapshot(run.id, point)

    def _commit_snapshots(
        self, run: Run, start: InitialState, outcome: TrainingResult, content: dict[str, str]
    ) -> None:
        """Commit the snapshots of a training. `content`: tensor hashes of its result, which they record."""
        if run.learning is not None:
            return  # The run's own tensors are its logits at the lowest validation loss.
        facts = {"run": run.id, RUN_CONTENT: content}
        for point, state in outcome.snapshots.items():
            name, tensors = snapshot_name(point), encode_snapshot(state, start.masks)
            is_new = self.store.commit_snapshot(run.id, name, facts, tensors)
            # A snapshot of a committed run is final: it belongs to the trajectory that is in the store.
            if is_new or self.store.has(run.id):
                continue
            if content_hash(self.store.read_snapshot(run.id, name).tensors) != content_hash(tensors):
                # Left by an interrupted training that ended alike.
                self.store.drop_snapshot(run.id, name)
                self.store.commit_snapshot(run.id, name, facts, tensors)


def add_mask_evaluation(
    run: Run, job: TrainingJob, data: SplitData, outcome: TrainingResult, device: str
) -> TrainingResult:
    """Return the outcome with the learned mask's evaluation, measured on the logits as they will be stored."""
    from supermask.engines.mask_evaluation import evaluate_supermask

    assert run.learning is not None
    if outcome.status == "diverged":
        return outcome
    stored = weights_to_store(run, job.start, outcome)
    selected, final = (decode_logits(stored, job.start, kind) for kind in ("logit", "final_logit"))
    return replace(outcome, supermask=evaluate_supermask(job, data, selected, final, device))


def _mismatch_reason(facts: RunFacts) -> str:
    """Return the likely reason why a replay is not bit-identical."""
    if facts["environment"].get("stack") == "shared":
        return "it was trained in a stack with others, and alone its sums are rounded otherwise"
    return "another machine or release trained it"
