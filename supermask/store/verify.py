"""Verification of stored runs: hashes, replayed start and mask, and the certificate recomputed from the tensors.

No data set is read and no user code is imported. docs/store.md lists what is detected and what cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from supermask.core.criteria import ALL_CRITERIA
from supermask.core.errors import SystemFailure, UserError
from supermask.core.layer_facts import LayerFacts, count_ties_drawn, count_weight_changes
from supermask.core.learned_masks import MaskLearning, expected_kept_shares, threshold_masks
from supermask.core.masks import count_kept
from supermask.core.pruning import ParentRun, compute_masks, compute_scores
from supermask.core.types import InitialState, NetworkState, Snapshot, TrainingResult
from supermask.store import CorruptEntry, NewerFormat, Store
from supermask.store.consistency import (
    certificate_faults,
    curve_faults,
    evaluation_faults,
    provenance_faults,
    status_faults,
)
from supermask.store.files.entry import Entry, RunFacts, content_hash
from supermask.store.parent_graph import ParentGraph
from supermask.store.records import (
    decode_curve,
    decode_logits,
    decode_masks,
    decode_state,
    encode_snapshot,
    supermask_metrics,
)
from supermask.store.replay import (
    SnapshotMissing,
    StateReplayer,
    UserCodeNotLoaded,
    certify_run,
    step_streams,
)
from supermask.study.networks import run_network
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
    culprits: tuple[str, ...] = field(default=(), compare=False)
    """Keys of the entries that `repair_store` sets aside. Empty for a run that is only affected by another's damage."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Notes of the recorded certificate: observations that a fault may cause, but rounding or chance too."""


def verify_store(store: Store) -> Iterator[VerificationResult]:
    """Verify every run, snapshot and second result of the store.

    Entries of a newer store format are left to the end: then NewerFormat is raised for the first of them.
    """
    replayer = StateReplayer(store, REPLAY_CACHE, import_user_code=False)
    graph = ParentGraph(store)
    verdicts: dict[str, str] = {}
    snapshots: dict[str, list[str]] = {}
    for key in sorted(store.snapshot_keys()):
        snapshots.setdefault(key.partition("-")[0], []).append(key)
    newer: NewerFormat | None = None
    for run_id in graph.parents_first():
        try:
            result = _blame_child(graph, verdicts, verify_run(store, replayer, run_id, run_id in graph.parents), store)
        except NewerFormat as error:
            newer = newer or error
            continue
        verdicts[run_id] = result.verdict
        yield result
        # Here, because the run's initial state is still in the cache.
        for key in snapshots.pop(run_id, []):
            yield _verify_snapshot(store, replayer, key)
    for key in (key for keys in snapshots.values() for key in keys):
        try:
            yield _verify_snapshot(store, replayer, key)
        except NewerFormat as error:
            newer = newer or error
    for run_id, folder in store.conflicts():
        try:
            yield _verify_conflict(store, graph, run_id, folder)
        except NewerFormat as error:
            newer = newer or error
    if newer is not None:
        raise newer


def repair_store(store: Store) -> Iterator[tuple[VerificationResult, list[Path]]]:
    """Verify a store and set aside every entry at fault. Yields each result with the quarantine folders it led to.

    If the operating system refuses to move an entry, its reason says so, and the others are moved.
    Runs that are only affected by another's damage stay: they hold again once that run is recomputed to the same bits.
    A run whose certificate failed when it ended is a true result, with its own status, and stays too.
    """
    # Complete before the first move: a descendant is judged against ancestors that are still there.
    results = list(verify_store(store))
    folders: dict[str, list[Path]] = {}
    # Snapshots first, with reasons of their own: a run takes along those that are left.
    refusals: dict[str, str] = {}
    for result in sorted(results, key=lambda result: "-" not in result.key):
        try:
            moved = [store.quarantine(key, f"{result.verdict}: {result.reason}") for key in result.culprits]
        except SystemFailure as error:
            # The verdicts matter more: those of a store on a read-only disk are reported too.
            moved, refusals[result.key] = [], f". It could not be set aside: {error}"
        folders[result.key] = [folder for folder in moved if folder is not None]
    for result in results:
        yield replace(result, reason=result.reason + refusals.get(result.key, "")), folders[result.key]


def verify_run(store: Store, replayer: StateReplayer, run_id: str, has_children: bool = False) -> VerificationResult:
    """Verify one run from its tensors. `has_children`: runs in the store were pruned from it.

    The optimizer's state is not stored; it was checked when the run ended. Test metrics cannot be checked without the
    data (see `remeasure`). Raises NewerFormat if a newer supermask wrote the entry or an
    ancestor.
    """
    try:
        entry = store.read(run_id)
    except CorruptEntry as damage:
        return VerificationResult(run_id, "damaged", damage.what, (run_id,))
    except SystemFailure as error:
        # Too large for this machine's memory, or unreadable here: other runs can still be verified.
        return VerificationResult(run_id, "failed", f"it cannot be read on this machine: {error}")
    try:
        result = _verify_entry(store, replayer, entry, run_id, has_children)
        return replace(result, notes=certificate_notes(entry.facts))
    except (SnapshotMissing, UserCodeNotLoaded) as missing:
        return VerificationResult(run_id, "partly", f"its initial state cannot be replayed: {missing}")
    except CorruptEntry as damage:
        if damage.key != run_id:
            return VerificationResult(run_id, "damaged", f"{damage.key}: {damage.what}")
        return VerificationResult(run_id, "damaged", damage.what, _culprits(store, entry.facts))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError, UserError) as error:
        if isinstance(error, NewerFormat):
            raise  # It concerns an ancestor: this run is not judged.
        # The seal is right and the content is not a run: a forgery, or a fault of the program that wrote it.
        reason = f"it cannot be read as a run ({type(error).__name__}: {error})"
        return VerificationResult(run_id, "damaged", reason, (run_id,))
    except MemoryError:
        return VerificationResult(run_id, "failed", "this machine has not enough memory to replay it")


def certificate_notes(facts: RunFacts) -> tuple[str, ...]:
    """Return the notes of a recorded certificate, each as `check: note`."""
    notes: dict[str, list[str]] = facts["certificate"].get("notes", {})
    return tuple(f"{check}: {note}" for check, items in notes.items() for note in items)


def _verify_snapshot(store: Store, replayer: StateReplayer, key: str) -> VerificationResult:
    """Verify a snapshot: hashes, and that its tensors fit the run's masks."""
    run_id, _, name = key.partition("-")
    try:
        store.read_snapshot(run_id, name)
        if not store.has(run_id):
            return VerificationResult(key, "partly", "its run is not in the store")
        point: Snapshot = int(name.removeprefix("iteration_")) if name.startswith("iteration_") else name  # type: ignore[assignment]
        state = replayer.parent_run(run_id).snapshots[point]
        if not _agrees_with_end(store.facts(run_id), point, state, replayer.parent_run(run_id)):
            reason = "it is not the end of its run, although it is of the same iteration"
            return VerificationResult(key, "damaged", reason, (key,))
        return VerificationResult(key, "held")
    except (SnapshotMissing, UserCodeNotLoaded) as missing:
        return VerificationResult(key, "partly", f"the initial state of its run cannot be replayed: {missing}")
    except CorruptEntry as damage:
        if damage.key != key:
            return VerificationResult(key, "partly", f"its run cannot be replayed: {damage.key}: {damage.what}")
        return VerificationResult(key, "damaged", damage.what, (key,))
    except (LookupError, TypeError, ValueError, RuntimeError, AssertionError, UserError) as error:
        if isinstance(error, NewerFormat):
            raise
        reason = f"it cannot be read as a snapshot ({type(error).__name__}: {error})"
        return VerificationResult(key, "damaged", reason, (key,))


def _agrees_with_end(facts: RunFacts, point: Snapshot, state: NetworkState, run: ParentRun) -> bool:
    """Return False for a snapshot of a run's last iteration that is not its end. `run`: the run, replayed."""
    iteration = facts["metrics"].get("early_stop_iteration") if point == "lowest_validation_loss" else point
    if iteration != facts["recipe"]["iterations"] or "end" not in run.snapshots:
        return True
    end, masks = run.snapshots["end"], run.start.masks
    return content_hash(encode_snapshot(end, masks)) == content_hash(encode_snapshot(state, masks))


def _verify_conflict(store: Store, graph: ParentGraph, run_id: str, folder: Path) -> VerificationResult:
    """Report a second result of a run. Which of two is right cannot be decided here."""
    key = f"conflicts/{folder.name}"
    try:
        facts = store.read_conflict(run_id, folder).facts
        environment = f"environment {facts['environment']['fingerprint']}"
        comparison = store.compare_conflict(run_id, folder)
        origin = _describe_origin(store, graph, facts)
    except (CorruptEntry, LookupError, TypeError) as error:
        return VerificationResult(key, "damaged", str(getattr(error, "what", error)))
    if not store.has(run_id):
        # Advice to remove it would lose the only result.
        reason = f"a result of run {run_id} ({environment}), of which none is in use{origin}. "
        return VerificationResult(
            key, "failed", f"{reason}Keep that folder until its study has computed the run again."
        )
    second = f"a second result of run {run_id} ({environment})"
    try:
        stored = store.read(run_id).facts["environment"]["fingerprint"]
    except CorruptEntry as damage:
        reason = f"{second}; the one in use is damaged ({damage.what}): `supermask verify --repair` sets it aside."
        return VerificationResult(key, "failed", f"{reason} Keep that folder until the run is right.")
    except (NewerFormat, SystemFailure) as error:
        return VerificationResult(key, "failed", f"{second}. Keep that folder: the one in use cannot be read ({error})")
    if comparison == "equal":
        reason = f"{second}, which equals the one in use. Remove that folder: it is not needed."
        return VerificationResult(key, "failed", reason)
    reason = f"a second, different result of run {run_id} ({environment}; the one in use: {stored}). "
    return VerificationResult(key, "failed", f"{reason}Remove that folder to accept the one in use.")


def _describe_origin(store: Store, graph: ParentGraph, facts: RunFacts) -> str:
    """Return what is known of the parent of a run in `conflicts/`, to be appended; empty for a dense run."""
    parent, recorded = facts["parent"], facts.get("parent_content")
    if parent is None:
        return ""
    unknown = "whether it follows from the runs here is unknown"
    if not graph.is_readable(parent):
        return f"; its parent {parent} is not here or cannot be read, so {unknown}"
    if recorded is None:
        return f"; it does not record which result of {parent} it was pruned from, so {unknown}"
    if recorded == store.tensor_hashes(parent):
        return f"; it was pruned from the run {parent} in use"
    return f"; it does not follow from the runs here: it was pruned from another result of {parent}"


def _culprits(store: Store, facts: RunFacts) -> tuple[str, ...]:
    """Return the entries to set aside if a run does not follow from its parent: the run, its parent, or both.

    The run records the content of the parent that it was pruned from, which decides. Runs of earlier versions do not.
    A parent that others agree with is cleared later, in `_blame_child`.
    """
    run_id, parent = facts["id"], facts["parent"]
    if parent is None:
        return (run_id,)
    recorded = facts.get("parent_content")
    if recorded is None:
        return (parent, run_id)
    return (run_id,) if recorded == store.tensor_hashes(parent) else (parent,)


def _blame_child(
    graph: ParentGraph, verdicts: Mapping[str, str], result: VerificationResult, store: Store
) -> VerificationResult:
    """Return the result with the run itself at fault instead of its parent, if the parent is right.

    The parent is right if it holds by itself and something else in the store agrees with it. Such a run was pruned
    from another machine's result: setting its parent aside would only bring the same parent back.
    `verdicts`: of the runs verified so far, the parent among them.
    """
    if len(result.culprits) != 1 or result.culprits[0] == result.key:
        return result
    (parent,) = result.culprits
    is_right = verdicts.get(parent) in ("held", "partly")
    if is_right and graph.is_confirmed(parent, store.facts(result.key)["parent_content"]):
        return replace(result, culprits=(result.key,))
    return result


def _verify_entry(
    store: Store, replayer: StateReplayer, entry: Entry, run_id: str, has_children: bool
) -> VerificationResult:
    facts = entry.facts
    # The store has checked that the id is the hash of these facts: a changed seed or recipe gives another id.
    run = Run.from_data(facts)
    curve = decode_curve(entry.tensors)
    # First what needs no ancestor: a forged status must not hide behind a start that cannot be replayed.
    own_faults = certificate_faults(run, facts) | status_faults(run, entry, curve, has_children)
    own_faults |= curve_faults(run, facts, curve)
    parent_facts = None if run.parent is None else store.facts(run.parent)
    own_faults |= provenance_faults(facts, parent_facts, None)
    if reason := _format_failures(own_faults):
        return VerificationResult(run_id, "failed", reason, (run_id,))
    parent_content = None if run.parent is None else store.tensor_hashes(run.parent)
    if reason := _format_failures(provenance_faults(facts, None, parent_content)):
        return VerificationResult(run_id, "failed", reason, _culprits(store, facts))
    start = replayer.parent_run(run_id).start
    parent = None if run.parent is None else replayer.parent_run(run.parent)
    # Recorded failures stay failures: the optimizer's state they may rest on is not stored.
    broken = {f"{name}, when it ended": layers for name, layers in facts["certificate"]["checks"].items()}
    if reason := _format_failures(broken):
        return VerificationResult(run_id, "failed", reason)
    if reason := _format_failures(_fact_mismatches(entry, start)):
        return VerificationResult(run_id, "failed", reason, (run_id,))
    if reason := _format_failures(_mask_mismatches(run, start, parent)):
        return VerificationResult(run_id, "failed", reason, _culprits(store, facts))
    if facts["status"] == "diverged":
        return VerificationResult(run_id, "held", f"diverged at iteration {facts['metrics']['diverged_at']}")
    if run.learning is not None:
        return _verify_learned_mask(run, run.learning, start, entry)
    end = None
    if entry.weights is not None and run.is_trained:
        # Frozen weights are not stored: `decode_state` takes them from the start, so "frozen" holds by construction.
        end = decode_state(entry.tensors | entry.weights, start)
    if reason := _format_failures(_layer_mismatches(run, start, end, parent, facts)):
        return VerificationResult(run_id, "failed", reason, (run_id,))
    if end is None and run.is_trained:
        return VerificationResult(run_id, "partly", "its weights were dropped; its initial state and masks are right")
    if (
        parent is not None
        and run.step is not None
        and not _has_snapshots(parent, {run.step.w_final, *run.step.initial_state_snapshots})
    ):
        return VerificationResult(
            run_id, "partly", "its initial state and masks are right; its parent's weights were dropped"
        )
    outcome = TrainingResult("finished", end or start.state, {}, decode_curve(entry.tensors), {})
    certificate = certify_run(run, start, outcome, parent)
    if certificate.passed:
        return VerificationResult(run_id, "held")
    return VerificationResult(run_id, "failed", _format_failures(certificate.checks), _culprits(store, facts))


def _verify_learned_mask(run: Run, learning: MaskLearning, start: InitialState, entry: Entry) -> VerificationResult:
    """Check what was stored of a learned mask against its logits. Test accuracies are not checked here."""
    if entry.weights is None:
        return VerificationResult(run.id, "partly", "its logits were dropped; its initial state is right")
    logits = decode_logits(entry.weights, start).logits
    decode_logits(entry.weights, start, "final_logit")
    masks, stored = (
        threshold_masks(learning, logits, start.masks),
        decode_masks(entry.tensors, run_network(run).tensors),
    )
    ones, ones_in_all = expected_kept_shares(learning, logits, start.masks)
    evaluation, metrics = entry.facts["supermask"], entry.facts["metrics"]
    # With a tolerance: the last bit of a sigmoid depends on the processor.
    differ = [n for n in ones if not math.isclose(ones[n], evaluation["ones"][n], rel_tol=1e-6)]
    differ += [] if math.isclose(ones_in_all, evaluation["ones_in_all"], rel_tol=1e-6) else ["ones_in_all"]
    differ += ["kept"] if count_kept(masks) != entry.facts["kept"] else []
    differ += [name for name, value in supermask_metrics(evaluation).items() if metrics[name] != value]
    differ += evaluation_faults(learning, evaluation)
    reason = _format_failures(
        {
            "not the mask of its logits": [n for n in masks if not masks[n].equal(stored[n])],
            "facts do not match the tensors": differ,
        }
    )
    return VerificationResult(run.id, "failed" if reason else "held", reason, (run.id,) if reason else ())


def _has_snapshots(parent: ParentRun, snapshots: Iterable[Snapshot]) -> bool:
    return all(point == "start" or point in parent.snapshots for point in snapshots)


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


def _layer_mismatches(
    run: Run, start: InitialState, end: NetworkState | None, parent: ParentRun | None, facts: RunFacts
) -> dict[str, list[str]]:
    """Return the layers whose recorded facts differ from the tensors; facts that cannot be recomputed are not judged.

    `end`: the trained network, None if its weights were dropped.
    """
    recorded: LayerFacts = facts.get("layers", {})
    expected: LayerFacts = {}
    step = run.step
    if (
        parent is not None
        and step is not None
        and step.criterion in ALL_CRITERIA
        and _has_snapshots(parent, step.required_snapshots)
    ):
        scores = compute_scores(parent, step, step_streams(run))
        ties = count_ties_drawn(scores, start.masks, parent, step)
        expected = {name: {"ties_drawn": count} for name, count in ties.items()}
    if end is not None and run.is_trained:
        for name, counts in count_weight_changes(start, end).items():
            expected.setdefault(name, {}).update(counts)
    differ = [
        name
        for name, counts in recorded.items()
        if any(name not in start.masks or expected.get(name, {}).get(key, n) != n for key, n in counts.items())
    ]
    return {"facts of layers do not match the tensors": differ}


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
    masks = compute_masks(parent, step, step_streams(run))
    return {"not the criterion's mask": [name for name in masks if not masks[name].equal(start.masks[name])]}


def _format_failures(checks: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(layers)}" for name, layers in checks.items() if layers)
