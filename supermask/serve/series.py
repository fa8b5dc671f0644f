"""Series of runs across studies: one curve per treatment, with one point per level and one run per seed.

Two runs belong to one series if they differ in nothing but level and seed: network, dataset, recipe, step and learned
mask are equal, and so are the recipe of their dense ancestor and the learned mask of their ancestors.
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
"""Hexadecimal digits of a series key: 48 bits."""

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
    "train_images",
    "label_noise",
    "validation_images",
)
"""Columns that may distinguish series of one treatment, the most informative first."""

RECIPE_COLUMNS = (
    *("optimizer", "lr", "iterations", "batch_size", "weight_decay", "momentum", "warmup", "lr_drops"),
    *("lr_schedule", "nesterov", "betas", "eps", "label_smoothing", "loss", "augment", "normalize", "precision"),
    "evaluate_every",
)
"""Further such columns; they do not apply to untrained networks."""

DEFAULT_VALUES: Row = {
    "schedule": "iterative",
    "scope": "layer",
    "w_init": "start",
    "w_final": "end",
    "rewind_to": "start",
    "first_iteration": 0,
}
"""Values that a label omits."""

MASK_COLUMNS = ("method", "weights", "rescaled", "start_logit", "confidence")
"""Settings that distinguish learned masks, the most informative first."""

UNLABELED_COLUMNS = ("schedule", "base", "scope", "optimizer")
"""Columns whose value is shown without the column name."""


@dataclass(frozen=True)
class SeriesKey:
    """Series of a run, and what its children inherit, as JSON."""

    key: str
    dense: str
    """Recipe of the dense ancestor."""
    learned: str
    """Recipe and settings of the last learned mask; empty without one."""


@dataclass(frozen=True)
class Series:
    """Runs that differ only in level and seed."""

    key: str
    label: str
    """Unique among the series of its network and dataset."""
    run_ids: tuple[str, ...]


def series_keys(facts: Mapping[str, RunFacts]) -> dict[str, SeriesKey]:
    """Return run id -> series key, for runs with all their facts."""
    keys: dict[str, SeriesKey] = {}
    # By level, so that parents come before their children.
    for run_id in sorted(facts, key=lambda run_id: int(facts[run_id]["level"])):
        run = facts[run_id]
        parent = keys.get(run["parent"] or "") or SeriesKey("", "", "")
        recipe, learning = json.dumps(run["recipe"], sort_keys=True), run.get("learning")
        learned = json.dumps([recipe, learning], sort_keys=True) if learning else parent.learned
        dense = recipe if run["level"] == 0 else parent.dense
        content = [run["network"], run["dataset"], recipe, _step(run), learning, dense, parent.learned]
        # Other data of one name, or other options of the data: no curve may mix them.
        content += [run[name] for name in ("data_fingerprint", "data_options") if name in run]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]
        keys[run_id] = SeriesKey(key, dense, learned)
    return keys


def _step(facts: RunFacts) -> dict[str, Any] | None:
    """Return the step of a run without the settings that change between levels of one treatment."""
    step = facts["step"]
    if step is None:
        return None
    kept = {key: value for key, value in step.items() if key not in ("levels", "rescaled_before", "rewind_to")}
    # Under late rewinding to iteration k, level 1 stores rewind_to = k; later levels start at k, so they store "start".
    rewound = "end" if step["rewind_to"] == "end" else facts["first_iteration"]
    return {**kept, "rewound": rewound, "iterative": step["levels"] == 1}


def group_series(rows: Mapping[str, Row], ancestry: Mapping[str, SeriesKey]) -> dict[str, Series]:
    """Group the runs of one network and dataset into series, by key: dense networks first, then sorted by label."""
    members: dict[str, list[str]] = defaultdict(list)
    for run_id in rows:
        members[ancestry[run_id].key].append(run_id)
    # Labels describe the lowest level, whose step has all settings (see `_step`).
    lowest = {key: min((rows[run_id] for run_id in ids), key=_level) for key, ids in members.items()}
    labels = _labels({key: _series_settings(row, ancestry[str(row["id"])]) for key, row in lowest.items()})
    order = sorted(members, key=lambda key: (lowest[key]["level"] != 0, labels[key]))
    return {key: Series(key, labels[key], tuple(members[key])) for key in order}


def _level(row: Row) -> int:
    return int(row["level"] or 0)


def _series_settings(row: Row, ancestry: SeriesKey) -> Row:
    """Return the settings of a series: its own columns, then those of its ancestors."""
    columns = (*DISTINGUISHING_COLUMNS, *RECIPE_COLUMNS) if row["trained"] else DISTINGUISHING_COLUMNS
    settings: Row = {"treatment": row["treatment"]} | {column: row.get(column) for column in columns}
    if ancestry.learned and not row.get("supermask"):
        recipe, learning = json.loads(ancestry.learned)
        mask = {key: learning.get(key) for key in MASK_COLUMNS} | learning | json.loads(recipe)
        settings |= {f"mask {key}": _plain(value) for key, value in mask.items()}
    dense = {key: _plain(value) for key, value in json.loads(ancestry.dense or "{}").items()}
    return settings | {f"dense {key}": value for key, value in dense.items() if value != row.get(key)}


def _plain(value: Any) -> Value:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _labels(settings: Mapping[str, Row]) -> dict[str, str]:
    """Return series key -> label: the treatment, and the fewest settings that distinguish it from equal treatments."""
    labels: dict[str, str] = {}
    by_treatment: dict[str, list[str]] = defaultdict(list)
    for key, row in settings.items():
        by_treatment[str(row["treatment"])].append(key)
    for treatment, keys in by_treatment.items():
        names = dict.fromkeys(keys, treatment)
        columns = dict.fromkeys(column for key in keys for column in settings[key])
        for column in sorted(columns, key=lambda column: column.startswith("dense ")):
            longer = {key: f"{name}{_setting_text(column, settings[key].get(column))}" for key, name in names.items()}
            if len(set(longer.values())) > len(set(names.values())):
                names = longer
        for number, (key, name) in enumerate(names.items(), start=1):
            labels[key] = name if list(names.values()).count(name) == 1 else f"{name} ({number})"
    return labels


def _setting_text(column: str, value: Value) -> str:
    """Return a setting as part of a label, such as `, adam`, `, lr 0.1` or `, untrained`; empty for a default."""
    if value is None or value == DEFAULT_VALUES.get(column) or value is (column == "trained"):
        return ""
    if isinstance(value, bool):
        return f", {'untrained' if column == 'trained' else column.replace('_', ' ')}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f", {text}" if column in UNLABELED_COLUMNS else f", {column.replace('_', ' ')} {text}"
