"""What treatments are called in tables and figures, where a study does not say.

Which treatment a study file means, where it names one by some of its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from supermask.core.errors import quote
from supermask.study.schema import Supermask, Treatment
from supermask.study.yaml import Node, describe_kind, to_python, unknown_key_message

KEYS_SHOWN_ALONE = ("criterion", "mask1", "mask0", "schedule", "scope")
"""Fields whose values name themselves in a label; the others stand there as field=value."""


def assign_labels(treatments: Sequence[Treatment], unnamed: Sequence[bool]) -> list[str]:
    """Its name, or else the values of the fields that differ among the treatments, or else its criterion."""
    fields = [f for f in Treatment.model_fields if f not in ("name", "supermask")]
    pruned = [t for t in treatments if t.supermask is None]
    differ = [f for f in fields if len({dict(t.identity)[f] for t in pruned}) > 1]

    def label(treatment: Treatment) -> str:
        if treatment.supermask is not None:
            return _supermask_label(treatment, treatment.supermask)
        values = {f: getattr(treatment, f) for f in differ}
        parts = [str(v) if f in KEYS_SHOWN_ALONE else f"{f}={str(v).lower()}" for f, v in values.items()]
        return " + ".join(parts) or treatment.criterion

    return [label(t) if free else t.name for t, free in zip(treatments, unnamed, strict=True)]


def _supermask_label(treatment: Treatment, kind: Supermask) -> str:
    """Its method, and every value that is not the default: of the mask, then of what follows it."""
    usual = {name: field.default for name, field in Treatment.model_fields.items()}
    own = [f"{name}={str(value).lower()}" for name, value in kind if value != Supermask.model_fields[name].default]
    then = {f: v for f, v in treatment if f not in ("name", "supermask") and v != usual[f]}
    after = [str(v) if f in KEYS_SHOWN_ALONE else f"{f}={str(v).lower()}" for f, v in then.items()]
    return " + ".join([kind.method, *(part for part in own if not part.startswith("method=")), *after])


def find_treatment_label(node: Node, treatments: Sequence[Treatment], what: str, faults: list[str]) -> str:
    """The label of the one treatment that has the given fields, or is called so; else empty, and a fault.

    `what`: the key that it is given for.
    """
    labels = [t.label for t in treatments]
    if isinstance(node.value, str) and node.value in labels:
        return node.value
    if not isinstance(node.value, dict):
        given = quote(node.value) if isinstance(node.value, str) else describe_kind(node)
        also = f"; the study's treatments are: {format_list(labels)}" if isinstance(node.value, str) else ""
        faults.append(f"{node.location}: {what}: {given} is not a map of keys and values of one treatment{also}.")
        return ""
    unknown = [
        f"{value.location}: {unknown_key_message(Treatment, [key], what)}"
        for key, value in node.value.items()
        if key not in Treatment.model_fields
    ]
    faults.extend(unknown)
    wanted = to_python(node)
    matching = [t.label for t in treatments if _has(t, wanted)]
    if len(matching) == 1 or unknown:
        return matching[0] if matching else ""
    asked = ", ".join(f"{key}: {quote(value)}" for key, value in wanted.items())
    if matching:
        says = f"{len(matching)} treatments have {{{asked}}}: {format_list(matching)}; add keys until one "
        says += "is left, or its name."
    else:
        says = f"no treatment has {{{asked}}}; the study's treatments are: {format_list(labels)}."
    last = list(node.value.values())[-1:] or [node]
    faults.append(f"{last[0].location}: {what}: {says}")
    return ""


def _has(model: BaseModel, wanted: Mapping[str, Any]) -> bool:
    """Whether these fields have the wanted values; types told apart (0 is not false)."""
    known = type(model).model_fields
    for key, value in wanted.items():
        own = getattr(model, key) if key in known else None
        if isinstance(value, dict) and isinstance(own, BaseModel):
            if not _has(own, value):
                return False
        elif key not in known or (type(own), own) != (type(value), value):
            return False
    return True


def format_list(labels: Sequence[str]) -> str:
    """So many that a message stays readable."""
    return ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
