"""Every promise of a stored run, checked again: hashes, start and mask made again, certificate from the tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from supermask.core.certificate import certify
from supermask.core.criteria import ALL_CRITERIA
from supermask.core.errors import UserError
from supermask.core.learned_masks import MaskLearning, probabilities, threshold_masks
from supermask.core.masks import count_kept
from supermask.core.pruning import ParentRun, compute_masks
from supermask.core.types import InitialState, LearningCurve, Snapshot, TrainingResult
from supermask.networks.sequential import prunable_tensors
from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import Entry
from supermask.store.records import decode_curve, decode_logits, decode_masks, decode_state, supermask_metrics
from supermask.store.replay import (
    SnapshotMissing,
    StateReplayer,
    UserCriterionNotLoaded,
    build_step,
    run_architecture,
    step_streams,
)
from supermask.study.run import Run

REPLAY_CACHE = 64
"""Starts kept in memory while runs are verified, each a few times the size of its network."""


@dataclass(frozen=True)
class VerificationResult:
    """What became of one run, or of one point of a run's trajectory.

    `held`; `failed` (not a result); `damaged` (not what was committed); `partly` (weights were dropped on purpose, or a
    mask began from a criterion of somebody's own, so only what is left was checked).
    """

    key: str
    """The run's id; `<id>-<point>` for a point."""
    verdict: Literal["held", "partly", "failed", "damaged"]
    reason: str = ""


def verify_store(store: Store) -> Iterator[VerificationResult]:
    """Every run in the store, and every stored point. Raises UserError where a newer supermask wrote the store."""
    lineage = StateReplayer(store, REPLAY_CACHE, imports=False)
    for run_id in _parents_first(store):
        yield verify_run(store, lineage, run_id)
    for key in sorted(store.snapshot_keys()):
        run_id, _, point = key.partition("-")
        try:
            store.read_snapshot(run_id, point)
            yield VerificationResult(key, "held")
        except CorruptEntry as damage:
            yield VerificationResult(key, "damaged", damage.what)


def verify_run(store: Store, lineage: StateReplayer, run_id: str) -> VerificationResult:
    """One run, from its tensors. What the optimiser held is not stored: that was checked when the run ended.

    Metrics on the test set are believed: nothing here has the data. Raises UserError where a newer supermask wrote it.
    """
    try:
        entry = store.read(run_id)
    except CorruptEntry as damage:
        return VerificationResult(run_id, "damaged", damage.what)
    try:
        return _verified(lineage, entry, run_id)
    except (SnapshotMissing, UserCriterionNotLoaded) as missing:
        return VerificationResult(run_id, "partly", f"its start cannot be made again: {missing}")
    except CorruptEntry as damage:
        return VerificationResult(
            run_id, "damaged", damage.what if damage.key == run_id else f"{damage.key}: {damage.what}"
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as error:
        # Sealed, and yet no run: nothing that was committed looks like this.
        return VerificationResult(run_id, "damaged", f"it cannot be read as a run ({type(error).__name__}: {error})")


def _verified(lineage: StateReplayer, entry: Entry, run_id: str) -> VerificationResult:
    facts = entry.facts
    run = Run.from_data(facts)
    if run.id != run_id or facts["id"] != run_id:
        return VerificationResult(run_id, "damaged", f"its facts are those of run {run.id}")
    start = lineage.parent_run(run_id).start
    parent = None if run.parent is None else lineage.parent_run(run.parent)
    broken = {f"{name}, when it ended": layers for name, layers in facts["certificate"]["checks"].items()}
    broken |= _fact_mismatches(entry, start) | _mask_mismatches(run, start, parent)
    if told := _format_failures(broken):
        return VerificationResult(run_id, "failed", told)
    if facts["status"] == "diverged":
        return VerificationResult(run_id, "held", f"diverged at iteration {facts['metrics']['diverged_at']}")
    if run.learning is not None:
        return _verified_mask(run, run.learning, start, entry)
    if entry.weights is None and run.is_trained:
        return VerificationResult(run_id, "partly", "its weights were dropped; its start and masks are right")
    if (
        parent is not None
        and run.step is not None
        and not _has(parent, {run.step.w_final, *run.step.initial_state_snapshots})
    ):
        return VerificationResult(run_id, "partly", "its start and masks are right; weights of its parent were dropped")
    step = None if run.step is None else build_step(run.step)
    end = (
        decode_state(entry.tensors | entry.weights, start)
        if entry.weights is not None and run.is_trained
        else start.state
    )
    outcome = TrainingResult("finished", end, {}, LearningCurve(), {})
    found = prunable_tensors(run_architecture(run))
    certificate = certify(found, start, outcome, parent, step, weight_decay=run.recipe.weight_decay)
    return VerificationResult(run_id, "held" if certificate.passed else "failed", _format_failures(certificate.checks))


def _verified_mask(run: Run, learning: MaskLearning, start: InitialState, entry: Entry) -> VerificationResult:
    """A learned mask: what was stored of it against the logits. Its accuracies are believed, as all on the test set."""
    if entry.weights is None:
        return VerificationResult(run.id, "partly", "its logits were dropped; its start is right")
    logits = decode_logits(entry.weights, start).logits
    decode_logits(entry.weights, start, "final_logit")
    masks, stored = (
        threshold_masks(learning, logits),
        decode_masks(entry.tensors, prunable_tensors(run_architecture(run))),
    )
    ones = {n: float(probabilities(learning, m).double().mean()) for n, m in logits.items()}
    judged, metrics = entry.facts["supermask"], entry.facts["metrics"]
    in_all = sum(ones[n] * m.numel() for n, m in logits.items()) / sum(m.numel() for m in logits.values())
    # A sigmoid's last bit depends on the processor.
    differ = [n for n in ones if not math.isclose(ones[n], judged["ones"][n], rel_tol=1e-6)]
    differ += [] if math.isclose(in_all, judged["ones_in_all"], rel_tol=1e-6) else ["ones_in_all"]
    differ += ["kept"] if count_kept(masks) != entry.facts["kept"] else []
    differ += [name for name, value in supermask_metrics(judged).items() if metrics[name] != value]
    told = _format_failures(
        {
            "not the mask of its logits": [n for n in masks if not masks[n].equal(stored[n])],
            "facts do not match the tensors": differ,
        }
    )
    return VerificationResult(run.id, "failed" if told else "held", told)


def _has(parent: ParentRun, points: Iterable[Snapshot]) -> bool:
    return all(point == "start" or point in parent.points for point in points)


def _fact_mismatches(entry: Entry, start: InitialState) -> dict[str, list[str]]:
    """What tables and figures read, against the tensors it was made from."""
    facts, curve = entry.facts, decode_curve(entry.tensors)
    recorded = {"weights": facts["weights"], "first_iteration": facts["first_iteration"]}
    weights = sum(mask.numel() for mask in start.masks.values())
    found: dict[str, object] = {"weights": weights, "first_iteration": start.first_iteration}
    if "learning" not in facts:
        recorded["kept"], found["kept"] = facts["kept"], count_kept(start.masks)
    if facts["status"] != "diverged":
        best = curve.validation_loss.index(min(curve.validation_loss))
        for name, at in (("early_stop", best), ("final", -1)):
            for column in ("validation_loss", "validation_accuracy"):
                recorded[f"{name}_{column}"] = facts["metrics"][f"{name}_{column}"]
                found[f"{name}_{column}"] = getattr(curve, column)[at]
        recorded["early_stop_iteration"] = facts["metrics"]["early_stop_iteration"]
        found["early_stop_iteration"] = curve.iterations[best]
    differ = [name for name, value in found.items() if value != recorded[name]]
    return {"facts do not match the tensors": differ}


def _mask_mismatches(run: Run, start: InitialState, parent: ParentRun | None) -> dict[str, list[str]]:
    """Layers whose mask is not the one that the criterion gives; none where that cannot be said any more."""
    step = run.step
    if (
        step is None
        or parent is None
        or run.learning
        or step.criterion not in ALL_CRITERIA
        or not _has(parent, step.required_snapshots)
    ):
        return {}
    masks = compute_masks(parent, build_step(step), step_streams(run))
    return {"not the criterion's mask": [name for name in masks if not masks[name].equal(start.masks[name])]}


def _format_failures(checks: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(layers)}" for name, layers in checks.items() if layers)


def _parents_first(store: Store) -> Iterator[str]:
    """Every run id, each parent just before its children, so that its start is still in memory."""
    children: dict[str | None, list[str]] = {}
    there = store.run_ids()
    for run_id in sorted(there):
        try:
            parent = store.facts(run_id).get("parent")
        except CorruptEntry:
            parent = None
        children.setdefault(parent if parent in there else None, []).append(run_id)
    stack = list(reversed(children.pop(None, [])))
    while stack:
        run_id = stack.pop()
        yield run_id
        stack += reversed(children.pop(run_id, []))
    # Whatever names itself as an ancestor: hashes rule that out, a forged file does not.
    for looping in children.values():
        yield from looping
