"""Which treatment a study file means, where it names one by some of its keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from supermask.study.checking import no_such_key
from supermask.study.model import Treatment
from supermask.study.yaml_tree import Node, kind, plain, shown


def label_of(node: Node, treatments: Sequence[Treatment], what: str, faults: list[str]) -> str:
    """The label of the one treatment that has the given fields, or is called so; else empty, and a fault.

    `what`: the key that it is given for.
    """
    labels = [t.label for t in treatments]
    if isinstance(node.value, str) and node.value in labels:
        return node.value
    if not isinstance(node.value, dict):
        given = shown(node.value) if isinstance(node.value, str) else kind(node)
        also = f"; the study's treatments are: {listed(labels)}" if isinstance(node.value, str) else ""
        faults.append(f"{node.place}: {what}: {given} is not a map of keys and values of one treatment{also}.")
        return ""
    unknown = [
        f"{value.place}: {no_such_key(Treatment, [key], what)}"
        for key, value in node.value.items()
        if key not in Treatment.model_fields
    ]
    faults.extend(unknown)
    wanted = plain(node)
    matching = [t.label for t in treatments if _has(t, wanted)]
    if len(matching) == 1 or unknown:
        return matching[0] if matching else ""
    asked = ", ".join(f"{key}: {shown(value)}" for key, value in wanted.items())
    if matching:
        says = (
            f"{len(matching)} treatments have {{{asked}}}: {listed(matching)}; add keys until one is left, or its name."
        )
    else:
        says = f"no treatment has {{{asked}}}; the study's treatments are: {listed(labels)}."
    last = list(node.value.values())[-1:] or [node]
    faults.append(f"{last[0].place}: {what}: {says}")
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


def listed(labels: Sequence[str]) -> str:
    """So many that a message stays readable."""
    return ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
