"""Settings of the runs of two tables: they need not agree, but a comparison says where they do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from supermask.analysis.comparisons.matching import CellKey
from supermask.core.errors import UserError, quote, sanitize
from supermask.core.text import Row, Value, escape_controls
from supermask.store.tables import AUXILIARY, treatment_labels

SETTINGS = (
    "network",
    "initializer",
    "dataset",
    "data_fingerprint",
    "iterations",
    "optimizer",
    "lr",
    "batch_size",
    "prune_rate_conv",
    "prune_rate_hidden",
    "prune_rate_output",
    "prune_rate_global",
)
"""Columns of settings that all versions write."""


def check_one_setting(rows: Sequence[Row], source: str) -> None:
    """Raise UserError if finished runs of one treatment and level differ in a setting: no mean may mix them."""
    for (label, level), columns in _collect_settings(rows).items():
        for column, values in columns.items():
            if len(values) > 1:
                first, second, *_ = map(_format_value, values)
                raise UserError(
                    f"{escape_controls(source)} has runs of treatment {quote(label)} at level {level} with {column} "
                    f"{first} and {second}: rows of several settings. Give a table of one of them."
                )


def describe_other_settings(ours: Sequence[Row], theirs: Sequence[Row], source: str) -> list[str]:
    """Return a sentence on the settings in which runs of the same treatment and level differ; none if they agree."""
    differences: dict[str, dict[str, None]] = defaultdict(dict)
    our_settings, their_settings = _collect_settings(ours), _collect_settings(theirs)
    for key, columns in our_settings.items():
        for column, values in columns.items():
            other_values = their_settings.get(key, {}).get(column, values)
            if values.keys() != other_values.keys():
                here, there = (" and ".join(map(_format_value, part)) for part in (values, other_values))
                differences[column][f"{column} {there} (here {here})"] = None
    if not differences:
        return []
    listed = "; ".join(next(iter(texts)) + (" and others" if len(texts) > 1 else "") for texts in differences.values())
    return [f"The runs of {escape_controls(source)} have other settings: {listed}."]


def _collect_settings(rows: Sequence[Row]) -> dict[CellKey, dict[str, dict[Value, None]]]:
    """Return (label, level) -> column -> values of finished runs, in their order. Null is left out: not recorded."""
    collected: dict[CellKey, dict[str, dict[Value, None]]] = {}
    for row in rows:
        if row.get("status") != "finished":
            continue
        known = [(column, value) for column in SETTINGS if (value := row.get(column)) is not None]
        for label in treatment_labels(row):
            if label != AUXILIARY:
                columns = collected.setdefault((label, int(row["level"] or 0)), {})
                for column, value in known:
                    columns.setdefault(column, {})[value] = None
    return collected


def _format_value(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else sanitize(str(value))[:40]
