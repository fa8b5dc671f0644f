"""What treatments are called in tables and figures, where a study does not say."""

from __future__ import annotations

from collections.abc import Sequence

from supermask.study.model import Treatment
from supermask.study.supermask import Supermask

ALONE = ("criterion", "mask1", "mask0", "schedule", "scope")
"""Fields whose values name themselves in a label; the others stand there as field=value."""


def labels_of(treatments: Sequence[Treatment], unnamed: Sequence[bool]) -> list[str]:
    """Its name, or else the values of the fields that differ among the treatments, or else its criterion."""
    fields = [f for f in Treatment.model_fields if f not in ("name", "supermask")]
    pruned = [t for t in treatments if t.supermask is None]
    differ = [f for f in fields if len({dict(t.content)[f] for t in pruned}) > 1]

    def label(treatment: Treatment) -> str:
        if treatment.supermask is not None:
            return _supermask_label(treatment, treatment.supermask)
        values = {f: getattr(treatment, f) for f in differ}
        parts = [str(v) if f in ALONE else f"{f}={str(v).lower()}" for f, v in values.items()]
        return " + ".join(parts) or treatment.criterion

    return [label(t) if free else t.name for t, free in zip(treatments, unnamed, strict=True)]


def _supermask_label(treatment: Treatment, kind: Supermask) -> str:
    """Its method, and every value that is not the default: of the mask, then of what follows it."""
    usual = {name: field.default for name, field in Treatment.model_fields.items()}
    own = [f"{name}={str(value).lower()}" for name, value in kind if value != Supermask.model_fields[name].default]
    then = {f: v for f, v in treatment if f not in ("name", "supermask") and v != usual[f]}
    after = [str(v) if f in ALONE else f"{f}={str(v).lower()}" for f, v in then.items()]
    return " + ".join([kind.method, *(part for part in own if not part.startswith("method=")), *after])
