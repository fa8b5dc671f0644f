"""Rows from the store: one plain dict per run, for tables, queries, statistics and figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import lru_cache
from statistics import linear_regression
from typing import Any

from supermask.core.errors import UserError, quote
from supermask.core.masks import ranked_groups
from supermask.core.recipe import ChannelStatistics, Recipe
from supermask.core.text import Row
from supermask.core.types import LearningCurve
from supermask.networks.network import Network
from supermask.store import CorruptEntry, NewerFormat, Store
from supermask.store.files.entry import RunFacts
from supermask.store.files.notes import StatusNotes
from supermask.store.noted_studies import plan_noted_study
from supermask.store.records import decode_curve
from supermask.store.tables import AUXILIARY, COLUMNS, DENSE, TREATMENT_SEPARATOR
from supermask.study.networks import default_initializer, run_network
from supermask.study.plan import Plan
from supermask.study.run import Run

STATUSES = (
    "finished",
    "diverged",
    "certificate_failed",
    "ancestor_diverged",
    "ancestor_certificate_failed",
    "to_do",
)
"""Status of a run in a plan. `to_do`: not in the store, or unreadable there."""

BLOCKED_STATUS = {
    "diverged": "ancestor_diverged",
    "ancestor_diverged": "ancestor_diverged",
    "certificate_failed": "ancestor_certificate_failed",
    "ancestor_certificate_failed": "ancestor_certificate_failed",
}
"""Status of a run -> status of its descendants, for the statuses that make these impossible."""


def plan_rows(plan: Plan, store: Store | None) -> tuple[list[Row], list[str]]:
    """Return a row per run of the plan, stored or not, and a message per run that is damaged or of a newer format.

    The status of these is `to_do`. Without a store, every run is to do.
    """
    stored_ids = set() if store is None else store.run_ids()
    labels: dict[str, dict[str, None]] = {}
    for member in plan.treatment_runs:
        labels.setdefault(member.run_id, {})[member.treatment] = None
    schedules = {treatment.label: treatment.schedule for treatment in plan.study.treatments}
    rows: list[Row] = []
    damaged: list[str] = []
    # Plans list parents before children, so one pass passes both properties down the chains.
    blocked: dict[str | None, str] = {}
    """Id of a run that did not finish -> status of its descendants."""
    learned: set[str | None] = set()
    for run in plan.runs.values():
        if run.learning is not None or run.parent in learned:
            learned.add(run.id)
        facts = None
        if store is not None and run.id in stored_ids:
            try:
                facts = store.facts(run.id)
            except (CorruptEntry, NewerFormat) as damage:
                # One bad entry concerns one run: the others of the study are reported.
                damaged.append(str(damage))
        row = _row(run, facts) | {"study": plan.study.name}
        if store is not None and facts is not None and run.learning is not None:
            row["validation_rise"] = _stored_rise(store, run.id, damaged)
        run_labels = labels.get(run.id, {})
        is_common_dense = run.level == 0 and plan.has_one_dense_network
        row["treatment"] = DENSE if is_common_dense else TREATMENT_SEPARATOR.join(run_labels) or AUXILIARY
        if run.level and run_labels:
            # Level 1 is the same run under both schedules; only the study says under which one it was requested.
            row["schedule"] = TREATMENT_SEPARATOR.join(dict.fromkeys(schedules[label] for label in run_labels))
        if facts is None:
            row |= _planned_columns(run, run_network(run), run.id in learned)
            row["status"] = blocked.get(run.parent, "to_do")
        if (status := str(row["status"])) in BLOCKED_STATUS:
            blocked[run.id] = BLOCKED_STATUS[status]
        rows.append(row)
    return rows, damaged


def store_rows(store: Store) -> tuple[list[Row], list[str]]:
    """Return a row per run in the store, of any study, and a message per run that is damaged or of a newer format."""
    rows: list[Row] = []
    damaged: list[str] = []
    studies = study_names(store)
    for run_id in sorted(store.run_ids()):
        try:
            facts = store.facts(run_id)
        except (CorruptEntry, NewerFormat) as damage:
            damaged.append(str(damage))
            continue
        row = run_row(facts) | {"study": studies.get(run_id)}
        rows.append(row | {"validation_rise": _stored_rise(store, run_id, damaged)} if row.get("supermask") else row)
    return rows, damaged


def study_names(store: Store) -> dict[str, str]:
    """Return run id -> names of the studies that were run in this store and contain the run, joined by ` | `.

    A run does not know its studies; the notes of `supermask run` do. A run without a note has no name here.
    """
    names: dict[str, dict[str, None]] = {}
    for note in list(StatusNotes(store.root).read("studies").values())[-MAX_STUDY_NOTES:]:
        # A note may be of another version, or name code, which is not imported.
        with suppress(UserError):
            for run_id in plan_noted_study(note).runs:
                names.setdefault(run_id, {})[str(note.get("name", "study"))] = None
    return {run_id: TREATMENT_SEPARATOR.join(studies) for run_id, studies in names.items()}


MAX_STUDY_NOTES = 100
"""Notes that are planned for the column `study`; of more, the latest."""


def run_row(facts: RunFacts) -> Row:
    """Return the row of a stored run, independent of the study that requested it."""
    run = Run.from_data(facts)
    step = run.step
    treatment = f"{step.criterion}, {step.mask1}, {step.mask0}" if step else DENSE
    if run.learning is not None:
        treatment = f"supermask, {run.learning.method}"
    return _row(run, facts) | {"treatment": treatment}


def learning_curve_rows(plan: Plan, store: Store | None, treatments: Collection[str] | None = None) -> list[Row]:
    """Return validation accuracies of the plan's runs that learned a mask: one row per run and evaluation.

    `treatments`: labels of the treatments whose runs are wanted, by default all. A run of several of them has the label
    of the first. None without a store, because tables have no curves.
    """
    if store is None:
        return []
    # Reversed, so that the first of several labels is the one that stays.
    labels = {
        member.run_id: member.treatment
        for member in reversed(plan.treatment_runs)
        if treatments is None or member.treatment in treatments
    }
    curve_rows: list[Row] = []
    for run_id in labels.keys() & store.run_ids():
        run = plan.runs[run_id]
        if run.learning is None:
            continue
        # A damaged run has no curve here; `plan_rows` reports it.
        with suppress(CorruptEntry, NewerFormat):
            curve = decode_curve(store.read(run_id).tensors)
            member: Row = {"treatment": labels[run_id], "seed": run.seed}
            for iteration, accuracy in zip(curve.iterations, curve.validation_accuracy, strict=True):
                curve_rows.append(member | {"iteration": iteration, "validation_accuracy": accuracy})
    order = {treatment.label: index for index, treatment in enumerate(plan.study.treatments)}
    return sorted(curve_rows, key=lambda row: (order[str(row["treatment"])], row["seed"], row["iteration"]))


def validation_rise(curve: LearningCurve) -> float | None:
    """Rise of the validation accuracy per doubling of iterations: least-squares slope over the last doubling.

    Accuracy in [0, 1] against log2(iteration), for iterations from half of the last one on. None with fewer than two.
    """
    if not curve.iterations:
        return None
    half = max(1.0, curve.iterations[-1] / 2)
    points = [
        (math.log2(iteration), accuracy)
        for iteration, accuracy in zip(curve.iterations, curve.validation_accuracy, strict=True)
        if iteration >= half and math.isfinite(accuracy)
    ]
    if len(points) < 2:
        return None
    return linear_regression(*zip(*points, strict=True)).slope


def _stored_rise(store: Store, run_id: str, damaged: list[str]) -> float | None:
    """`validation_rise` of a stored run; None if its tensors are damaged, and a message more in `damaged`."""
    try:
        return validation_rise(decode_curve(store.read(run_id).tensors))
    except (CorruptEntry, NewerFormat) as damage:
        damaged.append(str(damage))
        return None


def check_same_data(rows: Iterable[Row]) -> None:
    """Raise UserError if finished runs of one dataset name were trained on different data: no mean may mix them."""
    ids_by_data: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.get("status") == "finished" and row.get("data_fingerprint"):
            ids_by_fingerprint = ids_by_data.setdefault(str(row.get("dataset")), {})
            ids_by_fingerprint.setdefault(str(row["data_fingerprint"]), []).append(str(row.get("id"))[:12])
    for dataset, ids_by_fingerprint in ids_by_data.items():
        if len(ids_by_fingerprint) > 1:
            parts = [
                f"{len(ids):,} on data {fingerprint[:12]} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
                for fingerprint, ids in ids_by_fingerprint.items()
            ]
            raise UserError(
                f"these runs are on {len(parts)} different datasets called {quote(dataset)}, which no mean may mix: "
                f"{'; '.join(parts)}. `supermask table STUDY` lists them (column data_fingerprint). Move the folders "
                "runs/ID of all but one of them to another store, then use that with --store."
            )


def describe_mixed_environments(rows: Iterable[Row]) -> str:
    """Return a sentence if the rows' results come from several environments; empty if from one.

    Results of one environment are bit-identical when computed again; between environments they are not.
    """
    counts = Counter(str(row["environment"]) for row in rows if row.get("environment"))
    if len(counts) < 2:
        return ""
    parts = ", ".join(f"{number:,} of {fingerprint}" for fingerprint, number in counts.most_common(4))
    rest = "" if len(counts) <= 4 else f", and {len(counts) - 4} more"
    return (
        f"{counts.total():,} runs come from {len(counts)} environments ({parts}{rest}): their results are comparable, "
        "but not bit-identical to those of one machine."
    )


def resolve_run_id(store: Store, prefix: str) -> str:
    """Return the id that begins with `prefix`. Raises UserError if none or several do; 8 hex digits usually suffice."""
    matches = sorted(run_id for run_id in store.run_ids() if prefix and run_id.startswith(prefix.lower()))
    if len(matches) == 1:
        return matches[0]
    if matches:
        few = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
        raise UserError(f"{len(matches)} runs begin with {quote(prefix)}: {few}. Give more of the id.")
    raise UserError(
        f"no run in {store.root} has an id that begins with {quote(prefix)}; `supermask table STUDY` lists a study's."
    )


def _row(run: Run, facts: RunFacts | None) -> Row:
    recipe, step = run.recipe, run.step
    row: Row = {
        "id": run.id,
        "parent": run.parent,
        "study": None,
        "network": run.network,
        "initializer": run.initializer or default_initializer(run.network),
        "dataset": run.dataset,
        "seed": run.seed,
        "level": run.level,
        "iterations": recipe.iterations,
        "optimizer": recipe.optimizer,
        "lr": recipe.lr,
        "batch_size": recipe.batch_size,
        "evaluate_every": recipe.evaluate_every,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "lr_drops": " ".join(map(str, recipe.lr_milestones)) or None,
        "lr_drop_factor": recipe.drop_factor if recipe.lr_milestones else None,
        "warmup": recipe.warmup_iterations,
        "train_images": run.data_options.train_images,
        "label_noise": run.data_options.label_noise or None,
        "validation_images": run.data_options.validation,
        **_training_options(recipe),
        "trained": run.is_trained,
    }
    learning = run.learning
    if learning is not None:
        row |= {
            "supermask": learning.method,
            "base": learning.weights,
            "multiplier": learning.multiplier,
            "rescaled": learning.rescaled,
            "start_logit": learning.start_logit,
            "confidence": learning.confidence or None,
            "graded": learning.graded,
        }
        # A mask that is learned uses only the criterion of its step: for the initial logits.
        row |= {"criterion": step.criterion_name} if step else {}
        return row if facts is None else row | _result_columns(facts)
    if step is not None:
        row |= {
            "criterion": step.criterion_name,
            "mask1": step.mask1,
            "mask0": step.mask0,
            "rescaled": step.rescaled,
            "schedule": "iterative" if step.levels == 1 else "one_shot",
            "scope": step.scope,
            "w_init": str(step.w_init),
            "w_final": str(step.w_final),
            "rewind_to": str(step.rewind_to),
            **{f"prune_rate_{kind}": rate for kind, rate in step.rates.items() if f"prune_rate_{kind}" in COLUMNS},
        }
    return row if facts is None else row | _result_columns(facts)


def _training_options(recipe: Recipe) -> Row:
    """Return the columns of settings that most recipes have at their default."""
    is_adam = recipe.optimizer in ("adam", "adamw")
    augment, normalize = recipe.augment, recipe.normalize
    parts = [f"crop={augment.crop}"] if augment.crop else []
    parts += ["flip"] if augment.flip else []
    parts += [f"cutout={augment.cutout}"] if augment.cutout else []
    if isinstance(normalize, ChannelStatistics):
        mean, std = (",".join(f"{value:g}" for value in values) for values in (normalize.mean, normalize.std))
        normalize_text = f"mean={mean} std={std}"
    else:
        normalize_text = normalize
    return {
        "lr_schedule": recipe.schedule,
        "nesterov": recipe.nesterov,
        "betas": " ".join(f"{beta:g}" for beta in recipe.betas) if is_adam else None,
        "eps": recipe.eps if is_adam else None,
        "label_smoothing": recipe.label_smoothing,
        "loss": recipe.loss,
        "augment": " ".join(parts) or None,
        "normalize": normalize_text,
        "precision": recipe.precision,
    }


def _result_columns(facts: RunFacts) -> Row:
    kept = sum(facts["kept"].values())
    environment: dict[str, Any] = facts["environment"]
    return {
        "weights": facts["weights"],
        "kept": kept,
        "density": kept / facts["weights"],
        "status": facts["status"],
        "first_iteration": facts["first_iteration"],
        # Only known columns: a later version may have measured more.
        **{name: value for name, value in facts["metrics"].items() if name in COLUMNS},
        "hardened": _format_hardened(facts),
        **_layer_columns(facts, kept),
        "seconds": facts["seconds"],
        "engine": facts["engine"],
        "certificate": "held" if facts["certificate"]["held"] else "failed",
        "data_fingerprint": facts["data"]["fingerprint"],
        "data_note": facts["data"]["note"] or None,
        "torch": environment["torch"],
        "environment": environment["fingerprint"],
    }


def _layer_columns(facts: RunFacts, kept: int) -> Row:
    """Return the facts of the layers added up; null where they were not recorded, by this run or by its version."""
    layers = facts.get("layers", {}).values()

    def total(name: str) -> int | None:
        counts = [layer.get(name) for layer in layers]
        return None if not counts or None in counts else sum(counts)

    changed, shrunk = total("sign_changed"), total("shrunk")
    return {
        "ties_drawn": total("ties_drawn"),
        "sign_changed": None if changed is None or not kept else changed / kept,
        "shrunk": None if shrunk is None or not kept else shrunk / kept,
    }


def _format_hardened(facts: RunFacts) -> str | None:
    pairs = facts.get("supermask", {}).get("hardened", [])
    # Null: not finite, of a run whose certificate failed.
    return (
        " ".join(f"{density:g}:{accuracy:.6g}" for density, accuracy in pairs if None not in (density, accuracy))
        or None
    )


def _planned_columns(run: Run, network: Network, learned: bool) -> Row:
    """Return the columns known before training: the weights it will keep, unless an ancestor or itself learns a mask.

    A learned mask keeps as many weights as training decides, and so do the levels pruned from it.
    """
    if learned:
        return {"weights": network.size or None, "certificate": None}
    step = run.step
    rates = tuple(sorted(step.rates.items())) if step else ()
    scope, only, exclude = (step.scope, step.only, step.exclude) if step else ("layer", (), ())
    weights, kept = _planned_counts(network, scope, rates, only, exclude, run.level)
    if not weights:
        return {"certificate": None}  # A user's network that was not examined yet.
    return {"weights": weights, "kept": kept, "density": kept / weights, "certificate": None}


@lru_cache(maxsize=1024)
def _planned_counts(
    network: Network,
    scope: str,
    rates: tuple[tuple[str, float], ...],
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    level: int,
) -> tuple[int, int]:
    """Return (weights, weights kept at a level). Cached: a plan has few distinct arguments and thousands of runs."""
    tensors = network.tensors
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    weights = sum(sizes.values())
    if level == 0:
        return weights, weights
    # Each level rounds its own count, so `weights * (1 - rate) ** level` would be wrong by some weights.
    kinds = {name: tensor.kind for name, tensor in tensors.items()}
    groups = ranked_groups(sizes, kinds, scope, dict(rates), only, exclude)
    return weights, sum(group.remaining(level) for group in groups.values())
