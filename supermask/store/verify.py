"""Verification of stored runs: hashes, replayed start and mask, and the certificate recomputed from the tensors.

No data set is read and no user code is imported. docs/store.md lists what is detected and what cannot be.
"""

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
"""Initial states kept in memory while runs are verified; each takes a few times the size of its network."""


@dataclass(frozen=True)
class VerificationResult:
    """Verdict on one run or snapshot.

    `held`: every check passed. `failed`: the entry is intact, but is not a valid result. `damaged`: not what was
    committed. `partly`: the remaining tensors are right, but weights were dropped on purpose, or the initial logits
    come from a user's criterion, which is not imported.
    """

    key: str
    """The run's id; `<id>-<point>` for a snapshot."""
    verdict: Literal["held", "partly", "failed", "damaged"]
    reason: str = ""


def verify_store(store: Store) -> Iterator[VerificationResult]:
    """Verify every run and snapshot of the store. Raises UserError if a newer supermask wrote it."""
    replayer = StateReplayer(store, REPLAY_CACHE, import_user_code=False)
    for run_id in _parents_first(store):
        yield verify_run(store, replayer, run_id)
    # Snapshots have no facts that tables read: hashes suffice, and `verify_run` reads those a child was made from.
    for key in sorted(store.snapshot_keys()):
        run_id, _, point = key.partition("-")
        try:
            store.read_snapshot(run_id, point)
            yield VerificationResult(key, "held")
        except CorruptEntry as damage:
            yield VerificationResult(key, "damaged", damage.what)


def verify_run(store: Store, replayer: StateReplayer, run_id: str) -> VerificationResult:
    """Verify one run from its tensors.

    The optimizer's state is not stored; it was checked when the run ended. Test metrics cannot be checked without the
    data (see `remeasure`). Raises UserError if a newer supermask wrote the entry.
    """
    try:
        entry = store.read(run_id)
    except CorruptEntry as damage:
        return VerificationResult(run_id, "damaged", damage.what)
    try:
        return _verify_entry(replayer, entry, run_id)
    except (SnapshotMissing, UserCriterionNotLoaded) as missing:
        return VerificationResult(run_id, "partly", f"its initial state cannot be replayed: {missing}")
    except CorruptEntry as damage:
        return VerificationResult(
            run_id, "damaged", damage.what if damage.key == run_id else f"{damage.key}: {damage.what}"
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as error:
        # The seal is right and the content is not a run: a forgery, or a fault of the program that wrote it.
        return VerificationResult(run_id, "damaged", f"it cannot be read as a run ({type(error).__name__}: {error})")


def _verify_entry(replayer: StateReplayer, entry: Entry, run_id: str) -> VerificationResult:
    facts = entry.facts
    run = Run.from_data(facts)
    # The id is a hash of the facts that determine the outcome: a changed seed or recipe gives another id.
    if run.id != run_id or facts["id"] != run_id:
        return VerificationResult(run_id, "damaged", f"its facts are those of run {run.id}")
    start = replayer.parent_run(run_id).start
    parent = None if run.parent is None else replayer.parent_run(run.parent)
    # Recorded failures stay failures: the optimizer's state they may rest on is not stored.
    broken = {f"{name}, when it ended": layers for name, layers in facts["certificate"]["checks"].items()}
    broken |= _fact_mismatches(entry, start) | _mask_mismatches(run, start, parent)
    if reason := _format_failures(broken):
        return VerificationResult(run_id, "failed", reason)
    if facts["status"] == "diverged":
        return VerificationResult(run_id, "held", f"diverged at iteration {facts['metrics']['diverged_at']}")
    if run.learning is not None:
        return _verify_learned_mask(run, run.learning, start, entry)
    if entry.weights is None and run.is_trained:
        return VerificationResult(run_id, "partly", "its weights were dropped; its initial state and masks are right")
    if (
        parent is not None
        and run.step is not None
        and not _has_snapshots(parent, {run.step.w_final, *run.step.initial_state_snapshots})
    ):
        return VerificationResult(
            run_id, "partly", "its initial state and masks are right; its parent's weights were dropped"
        )
    step = None if run.step is None else build_step(run.step)
    # Frozen weights are not stored: `decode_state` takes them from the start, so "frozen" holds by construction here.
    end = (
        decode_state(entry.tensors | entry.weights, start)
        if entry.weights is not None and run.is_trained
        else start.state
    )
    outcome = TrainingResult("finished", end, {}, LearningCurve(), {})
    prunable = prunable_tensors(run_architecture(run))
    certificate = certify(prunable, start, outcome, parent, step, weight_decay=run.recipe.weight_decay)
    return VerificationResult(run_id, "held" if certificate.passed else "failed", _format_failures(certificate.checks))


def _verify_learned_mask(run: Run, learning: MaskLearning, start: InitialState, entry: Entry) -> VerificationResult:
    """Check what was stored of a learned mask against its logits. Test accuracies are not checked here."""
    if entry.weights is None:
        return VerificationResult(run.id, "partly", "its logits were dropped; its initial state is right")
    logits = decode_logits(entry.weights, start).logits
    decode_logits(entry.weights, start, "final_logit")
    masks, stored = (
        threshold_masks(learning, logits),
        decode_masks(entry.tensors, prunable_tensors(run_architecture(run))),
    )
    ones = {n: float(probabilities(learning, m).double().mean()) for n, m in logits.items()}
    evaluation, metrics = entry.facts["supermask"], entry.facts["metrics"]
    ones_in_all = sum(ones[n] * m.numel() for n, m in logits.items()) / sum(m.numel() for m in logits.values())
    # With a tolerance: the last bit of a sigmoid depends on the processor.
    differ = [n for n in ones if not math.isclose(ones[n], evaluation["ones"][n], rel_tol=1e-6)]
    differ += [] if math.isclose(ones_in_all, evaluation["ones_in_all"], rel_tol=1e-6) else ["ones_in_all"]
    differ += ["kept"] if count_kept(masks) != entry.facts["kept"] else []
    differ += [name for name, value in supermask_metrics(evaluation).items() if metrics[name] != value]
    reason = _format_failures(
        {
            "not the mask of its logits": [n for n in masks if not masks[n].equal(stored[n])],
            "facts do not match the tensors": differ,
        }
    )
    return VerificationResult(run.id, "failed" if reason else "held", reason)


def _has_snapshots(parent: ParentRun, points: Iterable[Snapshot]) -> bool:
    return all(point == "start" or point in parent.points for point in points)


def _fact_mismatches(entry: Entry, start: InitialState) -> dict[str, list[str]]:
    """Compare the facts that tables and figures read with the tensors they were computed from."""
    facts, curve = entry.facts, decode_curve(entry.tensors)
    recorded = {"weights": facts["weights"], "first_iteration": facts["first_iteration"]}
    weights = sum(mask.numel() for mask in start.masks.values())
    expected: dict[str, object] = {"weights": weights, "first_iteration": start.first_iteration}
    if "learning" not in facts:
        recorded["kept"], expected["kept"] = facts["kept"], count_kept(start.masks)
    # The curve of a diverged run ends with NaN, and its metrics are null.
    if facts["status"] != "diverged":
        best = curve.validation_loss.index(min(curve.validation_loss))
        for name, index in (("early_stop", best), ("final", -1)):
            for column in ("validation_loss", "validation_accuracy"):
                recorded[f"{name}_{column}"] = facts["metrics"][f"{name}_{column}"]
                expected[f"{name}_{column}"] = getattr(curve, column)[index]
        recorded["early_stop_iteration"] = facts["metrics"]["early_stop_iteration"]
        expected["early_stop_iteration"] = curve.iterations[best]
    differ = [name for name, value in expected.items() if value != recorded[name]]
    return {"facts do not match the tensors": differ}


def _mask_mismatches(run: Run, start: InitialState, parent: ParentRun | None) -> dict[str, list[str]]:
    """Return the layers whose mask differs from the criterion's; none if the scores cannot be recomputed."""
    step = run.step
    if (
        step is None
        or parent is None
        or run.learning
        or step.criterion not in ALL_CRITERIA
        or not _has_snapshots(parent, step.required_snapshots)
    ):
        return {}
    # Exact: scores come from stored bits, and ties are broken by the run's own random stream.
    masks = compute_masks(parent, build_step(step), step_streams(run))
    return {"not the criterion's mask": [name for name in masks if not masks[name].equal(start.masks[name])]}


def _format_failures(checks: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(layers)}" for name, layers in checks.items() if layers)


def _parents_first(store: Store) -> Iterator[str]:
    """Yield every run id, parents before children: depth first, so that a parent's start is still cached."""
    children: dict[str | None, list[str]] = {}
    stored_ids = store.run_ids()
    for run_id in sorted(stored_ids):
        try:
            parent = store.facts(run_id).get("parent")
        except CorruptEntry:
            parent = None
        children.setdefault(parent if parent in stored_ids else None, []).append(run_id)
    stack = list(reversed(children.pop(None, [])))
    while stack:
        run_id = stack.pop()
        yield run_id
        stack += reversed(children.pop(run_id, []))
    # What is left has itself as an ancestor: impossible with true ids (hashes), possible in a forged file.
    for cycle in children.values():
        yield from cycle
