"""Which runs of a store belong together, whatever study asked for them: a line, one point a level, one run a seed.

Two runs are of one line if nothing but level and seed tells apart what was done: network, data, recipe, step, learned
mask, and of their ancestors the dense network's recipe and the mask that was learned.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supermask.core.text import Row, Value
from supermask.store.files.entry import RunFacts

KEY_LENGTH = 12

DISTINGUISHING_COLUMNS = (
    "schedule",
    "trained",
    "rescaled",
    "base",
    "multiplier",
    "start_logit",
    "confidence",
    "graded",
    "scope",
    "w_init",
    "w_final",
    "rewind_to",
    "first_iteration",
    "prune_rate_conv",
    "prune_rate_hidden",
    "prune_rate_output",
    "prune_rate_global",
)
"""Columns that may tell apart lines of one name, the most telling first."""

RECIPE = (
    *("optimizer", "lr", "iterations", "batch_size", "weight_decay", "momentum", "warmup", "lr_drops"),
    "evaluate_every",
)
"""And those of them that say nothing of an untrained network."""

DEFAULT_VALUES: Row = {
    "schedule": "iterative",
    "scope": "layer",
    "w_init": "start",
    "w_final": "end",
    "rewind_to": "start",
    "first_iteration": 0,
}
"""What goes without saying."""

MASK_COLUMNS = ("method", "weights", "rescaled", "start_logit", "confidence")
"""What tells learned masks apart, the most telling first."""

UNLABELED_COLUMNS = ("schedule", "base", "scope", "optimizer")
"""Columns whose value needs no name beside it."""


@dataclass(frozen=True)
class SeriesKey:
    """What a run's children take over from it, as text: the dense network's recipe, and the last learned mask."""

    key: str
    """Of its line."""
    dense: str
    learned: str


@dataclass(frozen=True)
class Series:
    """Runs that differ in level and seed alone."""

    key: str
    label: str
    """Unlike those of all other lines of its network and data."""
    run_ids: tuple[str, ...]


def series_keys(facts: Mapping[str, RunFacts]) -> dict[str, SeriesKey]:
    """Run id -> to which line it belongs, and what it hands down."""
    found: dict[str, SeriesKey] = {}
    for run_id in sorted(facts, key=lambda each: int(facts[each]["level"])):
        own = facts[run_id]
        before = found.get(own["parent"] or "") or SeriesKey("", "", "")
        recipe, learning = json.dumps(own["recipe"], sort_keys=True), own.get("learning")
        learned = json.dumps([recipe, learning], sort_keys=True) if learning else before.learned
        dense = recipe if own["level"] == 0 else before.dense
        content = [own["network"], own["dataset"], recipe, _step(own), learning, dense, before.learned]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]
        found[run_id] = SeriesKey(key, dense, learned)
    return found


def _step(facts: RunFacts) -> dict[str, Any] | None:
    """A run's step without what changes from level to level of one treatment."""
    step = facts["step"]
    if step is None:
        return None
    kept = {key: value for key, value in step.items() if key not in ("levels", "rescaled_before", "rewind_to")}
    # Rewound to iteration k, the levels after the first begin there: for them it is the start.
    rewound = "end" if step["rewind_to"] == "end" else facts["first_iteration"]
    return {**kept, "rewound": rewound, "iterative": step["levels"] == 1}


def group_series(rows: Mapping[str, Row], ancestry: Mapping[str, SeriesKey]) -> dict[str, Series]:
    """Key -> line, of runs of one network and one data set; the dense ones first, then by label."""
    members: dict[str, list[str]] = defaultdict(list)
    for run_id in rows:
        members[ancestry[run_id].key].append(run_id)
    first = {key: min((rows[run_id] for run_id in ids), key=_level) for key, ids in members.items()}
    labels = _labels({key: _series_settings(row, ancestry[str(row["id"])]) for key, row in first.items()})
    order = sorted(members, key=lambda key: (first[key]["level"] != 0, labels[key]))
    return {key: Series(key, labels[key], tuple(members[key])) for key in order}


def _level(row: Row) -> int:
    return int(row["level"] or 0)


def _series_settings(row: Row, ancestry: SeriesKey) -> Row:
    """What can be said of a line: its own columns, then its ancestors' settings."""
    columns = (*DISTINGUISHING_COLUMNS, *RECIPE) if row["trained"] else DISTINGUISHING_COLUMNS
    told: Row = {"treatment": row["treatment"]} | {column: row.get(column) for column in columns}
    if ancestry.learned and not row.get("supermask"):
        recipe, learning = json.loads(ancestry.learned)
        mask = {key: learning.get(key) for key in MASK_COLUMNS} | learning | json.loads(recipe)
        told |= {f"mask {key}": _plain(value) for key, value in mask.items()}
    dense = {key: _plain(value) for key, value in json.loads(ancestry.dense or "{}").items()}
    return told | {f"dense {key}": value for key, value in dense.items() if value != row.get(key)}


def _plain(value: Any) -> Value:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _labels(told: Mapping[str, Row]) -> dict[str, str]:
    """What each line is called: its treatment, and as little more as tells it from the others of that treatment."""
    found: dict[str, str] = {}
    by_treatment: dict[str, list[str]] = defaultdict(list)
    for key, row in told.items():
        by_treatment[str(row["treatment"])].append(key)
    for treatment, keys in by_treatment.items():
        names = dict.fromkeys(keys, treatment)
        columns = dict.fromkeys(column for key in keys for column in told[key])
        for column in sorted(columns, key=lambda column: column.startswith("dense ")):
            longer = {key: f"{name}{_setting_text(column, told[key].get(column))}" for key, name in names.items()}
            if len(set(longer.values())) > len(set(names.values())):
                names = longer
        for number, (key, name) in enumerate(names.items(), start=1):
            found[key] = name if list(names.values()).count(name) == 1 else f"{name} ({number})"
    return found


def _setting_text(column: str, value: Value) -> str:
    """`, adam`, `, lr 0.1`, `, rescaled`, `, untrained`; empty where there is nothing to say."""
    if value is None or value == DEFAULT_VALUES.get(column) or value is (column == "trained"):
        return ""
    if isinstance(value, bool):
        return f", {'untrained' if column == 'trained' else column.replace('_', ' ')}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f", {text}" if column in UNLABELED_COLUMNS else f", {column.replace('_', ' ')} {text}"
