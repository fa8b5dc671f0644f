"""A map of a study file against its model: every fault told at the place where it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError

from supermask.errors import did_you_mean
from supermask.study.yaml_tree import Node, locate, plain, shown

Keys = TypeVar("Keys", bound=BaseModel)


def checked(model: type[Keys], node: Node, at: str, faults: list[str], allowed: Sequence[str] = ()) -> Keys | None:
    """The model of a map, or None and its faults; `at` is the map's own path.

    `allowed`: the map's keys, where they are more than the model's.
    """
    try:
        return model.model_validate(plain(node))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            path = list(fault["loc"])
            place = locate(node, path)
            if fault["type"] == "extra_forbidden":
                faults.append(f"{place}: {no_such_key(model, path, at, allowed)}")
            elif fault["type"] == "missing":
                faults.append(f"{place}: {at} has no {path[-1]}; it needs one.")
            elif fault["type"] == "rule":
                faults.append(f"{place}: {_dotted(at, path)}: {fault['msg']}")
            else:
                faults.append(f"{place}: {_dotted(at, path)}: {shown(fault['input'])} is not a map of keys and values.")
    return None


def _dotted(at: str, path: Sequence[str | int]) -> str:
    text = at
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def no_such_key(model: type[BaseModel], path: list[str | int], at: str, allowed: Sequence[str] = ()) -> str:
    """`path` ends in the unknown key; the maps above it are models."""
    outermost = model
    for part in path[:-1]:
        inner = model.model_fields[str(part)].annotation
        models = [each for each in (inner, *get_args(inner)) if isinstance(each, type) and issubclass(each, BaseModel)]
        model = models[0]
    known = [field.alias or name for name, field in model.model_fields.items()]
    if allowed and model is outermost:
        known = list(allowed)
    key = str(path[-1])
    near = did_you_mean(key, known) or "."
    return f"{_dotted(at, path[:-1]) or 'a study'} has no key {shown(key)}{near} Allowed: {', '.join(known)}."
