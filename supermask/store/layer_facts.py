"""Facts of the layers of stored runs: recorded with a run, or recomputed from the tensors of earlier versions' runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from supermask.core.errors import UserError
from supermask.core.layer_facts import LayerFacts, count_ties_drawn, count_weight_changes
from supermask.core.pruning import compute_scores
from supermask.core.text import Row
from supermask.core.types import InitialState, LearningCurve, TrainingResult
from supermask.store import CorruptEntry, NewerFormat, Store
from supermask.store.records import decode_state
from supermask.store.replay import StateReplayer, load_step, step_streams
from supermask.study.networks import run_network
from supermask.study.run import Run


def collect_layer_facts(run: Run, start: InitialState, outcome: TrainingResult, replayer: StateReplayer) -> LayerFacts:
    """Return the facts of each layer of a run that has just ended; empty for a run that learned a mask.

    Ties need the parent's snapshots that the criterion read. Changes of weights are counted for finished trainings.
    Raises as `StateReplayer.parent_run` does.
    """
    if run.learning is not None:
        return {}
    facts: LayerFacts = {name: {} for name in start.masks}
    if run.parent is not None and run.step is not None:
        ties = replayer.ties_drawn.pop(run.id, None)
        if ties is None:  # a run that was not pruned here
            parent, step = replayer.parent_run(run.parent), load_step(run.step)
            ties = count_ties_drawn(compute_scores(parent, step, step_streams(run)), start.masks, parent, step)
        for name, count in ties.items():
            facts[name]["ties_drawn"] = count
    if run.is_trained and outcome.status == "finished":
        for name, counts in count_weight_changes(start, outcome.end).items():
            facts[name] |= counts
    return facts if any(facts.values()) else {}


def recompute_layer_facts(store: Store, replayer: StateReplayer, run_id: str) -> LayerFacts:
    """Return the facts of each layer of a stored run, recomputed from its tensors and its parent's.

    Raises CorruptEntry for damage, SnapshotMissing if weights were dropped, UserError if a user's criterion is needed
    that cannot be imported.
    """
    entry = store.read(run_id)
    run = Run.from_data(entry.facts)
    if run.learning is not None:
        return {}
    start = replayer.parent_run(run_id).start
    end = start.state
    status = entry.facts["status"]
    if run.is_trained and status == "finished":
        if entry.weights is None:
            raise CorruptEntry(run_id, "its weights were dropped")
        end = decode_state(entry.tensors | entry.weights, start)
    return collect_layer_facts(run, start, TrainingResult(status, end, {}, LearningCurve(), {}), replayer)


def layer_rows(store: Store, rows: list[Row]) -> Iterator[Row]:
    """Yield one row per layer of each stored run among `rows`, with the columns of `LAYER_COLUMNS`.

    Facts that a run of an earlier version did not record are recomputed where its weights and its parent's are stored,
    and are null where not.
    """
    replayer = StateReplayer(store)
    stored = store.run_ids()
    names = ("id", "study", "network", "dataset", "seed", "level", "treatment", "status", "early_stop_iteration")
    for row in rows:
        run_id = str(row["id"])
        if run_id not in stored:
            continue
        with suppress(CorruptEntry, NewerFormat):  # `plan_rows` reports it.
            facts = store.facts(run_id)
            layers: LayerFacts = facts.get("layers", {})
            if not layers and facts["status"] == "finished":
                with suppress(CorruptEntry, UserError, ValueError):
                    layers = recompute_layer_facts(store, replayer, run_id)
            sizes = {n: t.size for n, t in run_network(Run.from_data(facts)).tensors.items()}
            for layer, kept in facts["kept"].items():
                counts = layers.get(layer, {})
                yield {
                    **{name: row.get(name) for name in names},
                    "layer": layer,
                    "weights": sizes[layer],
                    "kept": kept,
                    "density": kept / sizes[layer],
                    "ties_drawn": counts.get("ties_drawn"),
                    **{name: counts[name] / kept if kept and name in counts else None for name in _CHANGES},
                }


_CHANGES = ("sign_changed", "shrunk")
