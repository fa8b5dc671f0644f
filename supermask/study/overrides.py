"""Overrides of study keys: those of a scale, then those of the command line.

Each value keeps the location where it was written, so that an error names the override or the scale's line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.study.train_settings import Train, unused_train_keys
from supermask.study.yaml import Node, describe_kind, parse_yaml, to_python


def apply_scale(root: Node, name: str, location: str) -> Node:
    """Return the study with one of its `scales` applied. Raises UserError for an unknown or inapplicable scale."""
    scales = root.value.get("scales") if isinstance(root.value, dict) else None
    known = scales.value if scales is not None and isinstance(scales.value, dict) else {}
    if name not in known:
        allowed = f"this study has: {', '.join(map(sanitize, known))}" if known else "this study has no scales"
        raise UserError(f"{location}: scale {quote(name)} is not known{did_you_mean(name, known) or ';'} {allowed}.")
    scale = known[name]
    if not isinstance(scale.value, dict):
        raise UserError(f"{scale.location}: scale {quote(name)} is not a map of overrides, such as train.epochs: 10.")
    for key, value in scale.value.items():
        root = set_key(root, key, value)
    return root


def apply_overrides(root: Node, overrides: Sequence[str]) -> Node:
    """Return the study with its scale (`scale=NAME`; the last one wins), then `dotted.key=VALUE` overrides applied.

    VALUE is YAML. Maps are merged key by key, other values replaced. Raises UserError, one line per error.
    """
    errors: list[str] = []
    scale: tuple[str, str] | None = None
    settings: list[tuple[str, Node]] = []
    for text in overrides:
        location = f"override {quote(text)}"
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            errors.append(f"{location}: not of the form KEY=VALUE, such as train.epochs=3.")
        elif key == "scale":
            scale = (value.strip(), location)
        else:
            try:
                settings.append((key, parse_yaml(value, location, lines=False)))
            except UserError as error:
                errors.append(str(error))
    if scale:
        try:
            root = _drop_unused_train_keys(root, apply_scale(root, *scale))
        except UserError as error:
            errors.append(str(error))
    before = root
    for key, node in settings:
        try:
            root = set_key(root, key, node)
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(errors))
    return _check_given_train_keys(before, _drop_unused_train_keys(before, root))


def _check_given_train_keys(before: Node, after: Node) -> Node:
    """Return the study. Raises UserError for a `train` key that an override gives without effect."""
    old, new = (_train_keys(root) for root in (before, after))
    for key, reason in unused_train_keys({name: to_python(node) for name, node in new.items()}).items():
        if key not in new or new[key] is old.get(key):
            continue
        value, default = to_python(new[key]), Train.model_fields[key].default
        if value != (list(default) if isinstance(default, tuple) else default):
            raise UserError(f"{new[key].location}: train.{key} has no effect {reason}; leave it out.")
    return after


def _train_keys(root: Node) -> dict[str, Node]:
    train = root.value.get("train") if isinstance(root.value, dict) else None
    return train.value if train is not None and isinstance(train.value, dict) else {}


def _drop_unused_train_keys(before: Node, after: Node) -> Node:
    """Return the study without the `train` keys that overrides have made unused, such as momentum under Adam.

    Keys that the overrides give themselves stay, and so do those that had no effect before: both are errors later.
    """
    old, new = (root.value.get("train") if isinstance(root.value, dict) else None for root in (before, after))
    if old is None or new is None or not (isinstance(old.value, dict) and isinstance(new.value, dict)):
        return after
    unused_before = unused_train_keys(to_python(old))
    # Nodes are never changed in place: an inherited value is the same object.
    dropped = {
        key
        for key in unused_train_keys(to_python(new)).keys() - unused_before.keys()
        if key in new.value and new.value[key] is old.value.get(key)
    }
    train = replace(new, value={key: value for key, value in new.value.items() if key not in dropped})
    return replace(after, value={**after.value, "train": train}) if isinstance(after.value, dict) else after


def set_key(root: Node, key: str, new: Node) -> Node:
    """Return the tree with `new` at a dotted key; `treatments.0.mask0` and `treatments[0].mask0` index a list.

    Maps are merged key by key, except `reference`, whose keys only make sense together. Raises UserError.
    """
    path = re.sub(r"\[([0-9]+)\]", r".\1", key).split(".")
    if path[0] in ("scales", "scale"):
        raise UserError(f"{new.location}: {path[0]} cannot be set here: set the keys themselves, such as train.epochs.")
    return _put(root, path, new, "", path != ["reference"])


def _put(old: Node | None, path: Sequence[str], new: Node, parent_path: str, merge: bool) -> Node:
    """Return `old` with `new` at `path` below it; nodes are never changed in place."""
    if not path:
        if merge and old is not None and isinstance(old.value, dict) and isinstance(new.value, dict):
            merged = dict(old.value)
            for key, child in new.value.items():
                merged[key] = _put(old.value.get(key), [], child, "", merge)
            return replace(old, value=merged)
        return new
    head, rest = path[0], path[1:]
    head_path = sanitize(f"{parent_path}.{head}" if parent_path else head)
    if old is None or isinstance(old.value, dict):
        children = {} if old is None or not isinstance(old.value, dict) else old.value
        child = _put(children.get(head), rest, new, head_path, merge)
        return Node({**children, head: child}, new.location if old is None else old.location)
    if isinstance(old.value, tuple):
        last = len(old.value) - 1
        if not re.fullmatch(r"[0-9]{1,6}", head, re.ASCII) or int(head) > last:
            items = f"items 0 to {last}" if last else "one item, 0" if last == 0 else "no item"
            raise UserError(
                f"{new.location}: {quote(head)} is not an item of {parent_path}: as it is written, it has {items}."
            )
        index = int(head)
        child = _put(old.value[index], rest, new, head_path, merge)
        return replace(old, value=(*old.value[:index], child, *old.value[index + 1 :]))
    raise UserError(f"{new.location}: {parent_path} is {describe_kind(old)}, which has no key {quote(head)}.")
