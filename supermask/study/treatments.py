"""Labels of treatments: generated for unnamed ones, and found from some of a treatment's keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from supermask.core.errors import UserError, quote
from supermask.networks.network import is_user_network
from supermask.study.mask_settings import Supermask
from supermask.study.networks import canonical_network, split_user_network
from supermask.study.schema import Treatment
from supermask.study.train_settings import Train, unused_train_keys
from supermask.study.yaml import Node, describe_kind, to_python, unknown_key_message

KEYS_SHOWN_ALONE = ("criterion", "mask1", "mask0", "schedule", "scope")
"""Fields whose bare values appear in a label; others appear as field=value."""


def assign_labels(treatments: Sequence[Treatment], unnamed: Sequence[bool]) -> list[str]:
    """Return each treatment's name, else the values of the fields in which treatments differ, else its criterion."""
    fields = [f for f in Treatment.model_fields if f not in ("name", "supermask", "train")]
    pruned = [dict(t.identity) for t in treatments if t.supermask is None]
    varying = [f for f in fields if len({identity[f] for identity in pruned}) > 1]
    trains = [t.train for t, is_unnamed in zip(treatments, unnamed, strict=True) if t.train is not None and is_unnamed]
    varying_train = [f for f in Train.model_fields if len({getattr(train, f) for train in trains}) > 1]

    def label(treatment: Treatment) -> str:
        train_parts = _train_parts(treatment.train, varying_train) if treatment.train else []
        if treatment.supermask is not None:
            return " + ".join([_supermask_label(treatment, treatment.supermask), *train_parts])
        values = {f: getattr(treatment, f) for f in varying}
        # None: that of the study. Untrained networks are named; a network is trained unless its label says otherwise.
        values = {f: v for f, v in values.items() if f not in ("network", "initializer") or v is not None}
        values = {f: v for f, v in values.items() if f != "trained" or not v}
        parts = [_part(f, v) for f, v in values.items()]
        return " + ".join([*parts, *train_parts]) or treatment.criterion

    return [label(t) if is_unnamed else t.name for t, is_unnamed in zip(treatments, unnamed, strict=True)]


def _supermask_label(treatment: Treatment, supermask: Supermask) -> str:
    """Return the method and every non-default value, those of the mask before those of the treatment."""
    defaults = {name: field.default for name, field in Treatment.model_fields.items()}
    mask_parts = [
        f"{name}={str(value).lower()}"
        for name, value in supermask
        if name != "method" and value != Supermask.model_fields[name].default
    ]
    changed = {f: v for f, v in treatment if f not in ("name", "supermask", "train") and v != defaults[f]}
    treatment_parts = [_part(f, v) for f, v in changed.items()]
    return " + ".join([supermask.method, *mask_parts, *treatment_parts])


def _part(field: str, value: Any) -> str:
    """Return a treatment's field for a label: `random`, `rewind_to=20`, `network=nets:Net(width=4)`."""
    if field in KEYS_SHOWN_ALONE:
        return str(value)
    if field == "network" and is_user_network(value):
        path, arguments = split_user_network(value)
        listed = ", ".join(f"{key}={json.dumps(item)}" for key, item in arguments.items())
        return f"{field}={path}({listed})" if listed else f"{field}={path}"
    return f"{field}={str(value).lower()}"


def _train_parts(train: Train, fields: Sequence[str]) -> list[str]:
    """Return these fields, without those that have no effect beside the others."""
    unused = unused_train_keys(dict(train))
    return [f"{f}={_short(getattr(train, f))}" for f in fields if f not in unused]


def _short(value: Any) -> str:
    """Return a training setting for a label: `0.1`, `0.9,0.95`, `crop 4 flip`, `none`."""
    if isinstance(value, BaseModel):
        shown = {name: setting for name, setting in value if setting}
        return " ".join(name if v is True else f"{name} {_short(v)}" for name, v in shown.items()) or "none"
    if isinstance(value, tuple):
        return ",".join(map(_short, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def find_treatment_label(node: Node, treatments: Sequence[Treatment], key_path: str, errors: list[str]) -> str:
    """Return the label of the one treatment with the given fields or label; else return "" and append an error.

    `key_path` is the key that names the treatment, for the message.
    """
    labels = [t.label for t in treatments]
    if isinstance(node.value, str) and node.value in labels:
        return node.value
    if not isinstance(node.value, dict):
        value = quote(node.value) if isinstance(node.value, str) else describe_kind(node)
        hint = f"; the study's treatments are: {format_list(labels)}" if isinstance(node.value, str) else ""
        errors.append(f"{node.location}: {key_path}: {value} is not a map of keys and values of one treatment{hint}.")
        return ""
    unknown = [
        f"{value.location}: {unknown_key_message(Treatment, [key], key_path)}"
        for key, value in node.value.items()
        if key not in Treatment.model_fields
    ]
    errors.extend(unknown)
    fields = to_python(node)
    matching = [t.label for t in treatments if _has_fields(t, fields)]
    if len(matching) == 1 or unknown:
        return matching[0] if matching else ""
    description = ", ".join(f"{key}: {quote(value)}" for key, value in fields.items())
    if matching:
        problem = f"{len(matching)} treatments have {{{description}}}: {format_list(matching)}; add keys until one "
        problem += "is left, or its name."
    else:
        problem = f"no treatment has {{{description}}}; the study's treatments are: {format_list(labels)}."
    last = list(node.value.values())[-1:] or [node]
    errors.append(f"{last[0].location}: {key_path}: {problem}")
    return ""


def _has_fields(model: BaseModel, fields: Mapping[str, Any]) -> bool:
    """Return True if the model has these fields with these values; types count, so that 0 and false differ."""
    known = type(model).model_fields
    for key, value in fields.items():
        if key == "network" and isinstance(value, dict):
            with suppress(UserError):
                value = canonical_network(value)
        field_value = getattr(model, key) if key in known else None
        if isinstance(value, dict) and isinstance(field_value, BaseModel):
            if not _has_fields(field_value, value):
                return False
        elif key not in known or (type(field_value), field_value) != (type(value), value):
            return False
    return True


def format_list(labels: Sequence[str], limit: int = 20) -> str:
    """Return the first `limit` labels and the number of others, so that a message stays readable."""
    return ", ".join(labels[:limit]) + (f" and {len(labels) - limit} more" if len(labels) > limit else "")
