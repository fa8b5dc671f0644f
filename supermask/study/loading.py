"""From a study file, its scales and overrides to a Study, with every fault told at the place where it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from supermask.errors import UserError, did_you_mean
from supermask.study.checking import checked
from supermask.study.claim import Claim
from supermask.study.claim_loading import claims_of
from supermask.study.labels import labels_of
from supermask.study.matching import label_of
from supermask.study.model import Settings, Study, Treatment
from supermask.study.overrides import apply_overrides
from supermask.study.yaml_tree import Node, from_plain, kind, locate, parse_yaml, plain, printable, shown

LARGEST_FILE = 1_000_000
"""Bytes. The shipped studies have about 5,000."""
MOST_TREATMENTS = 10_000

Keys = TypeVar("Keys", bound=BaseModel)

StudyLike = str | Path | Mapping[str, Any] | Study
"""What stands for a study: a shipped name, a file, plain data with a study file's keys, or the study itself."""

STUDY_KEYS = (*Settings.model_fields, "treatments", "reference", "scales", "claims")
EXAMPLE = "such as treatments: [{criterion: [large_final, random]}]"


@dataclass(frozen=True)
class ShippedStudy:
    """A study that comes with the package."""

    name: str
    title: str
    scales: tuple[str, ...]


def shipped_names() -> list[str]:
    """Names of the studies that come with the package."""
    files = resources.files("supermask").joinpath("studies").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def shipped_studies() -> list[ShippedStudy]:
    """What ships, for a list."""
    found = []
    for name in shipped_names():
        root = _root(name)
        scales = plain(root).get("scales", {})
        found.append(ShippedStudy(name, _study(root, name).title, tuple(scales)))
    return found


def load_study(study: StudyLike, overrides: Sequence[str] = ()) -> Study:
    """The study of a shipped name or a YAML file, with overrides (`train.lr=1e-3`, `scale=digits`) applied.

    Plain data are taken as by `study_from`; a Study is complete, and takes no overrides.
    Overrides win over the chosen scale, the scale over the file, the file over the defaults. Imports what the study
    names by import path. Raises UserError, one line for each fault. Source: issue "study files".
    """
    if isinstance(study, Study):
        if overrides:
            raise UserError(
                f"{shown(overrides[0])} cannot be set: a Study is complete. Give its name, its file or its plain data."
            )
        return study
    if isinstance(study, Mapping):
        return study_from(study, overrides)
    name = str(study) if str(study) in shipped_names() else Path(study).stem
    return _study(apply_overrides(_root(study), overrides), name)


def study_from(data: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "study") -> Study:
    """The study of plain data with a study file's keys, as in a notebook. Raises UserError as `load_study` does."""
    return _study(apply_overrides(from_plain(data, f"study {shown(name)}"), overrides), name)


def _root(study: str | Path) -> Node:
    shipped = shipped_names()
    if str(study) in shipped:
        return read_study_file(Path(str(resources.files("supermask").joinpath("studies", f"{study}.yaml"))))
    path = Path(study)
    if isinstance(study, Path) or len(path.parts) > 1 or path.suffix in (".yaml", ".yml") or _exists(study):
        return read_study_file(path)
    raise UserError(
        f"study {shown(study)} is not known{did_you_mean(study, shipped) or ';'} "
        f"shipped: {', '.join(shipped)}; or give a path to a .yaml file."
    )


def _exists(study: str) -> bool:
    try:
        return study != "" and Path(study).exists()
    except (OSError, ValueError):
        return False


def read_study_file(path: Path) -> Node:
    """The tree of a study file. Raises UserError: cannot be read, too large, not UTF-8, or not a study's YAML."""
    name = printable(path.name)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UserError(f"study file {shown(str(path))}: there is no such file.") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"study file {shown(str(path))} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from None
    if len(raw) > LARGEST_FILE:
        raise UserError(f"{name}: larger than {LARGEST_FILE:,} bytes; a study file is a page of text.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {line}: not UTF-8 text; save the file in UTF-8.") from None
    root = parse_yaml(text, name)
    if root.value is None:
        raise UserError(f"{name}: the file is empty; a study needs treatments, e.g. treatments: [{{mask0: [zero]}}].")
    if not isinstance(root.value, dict):
        raise UserError(f"{name}: not a map of keys and values, such as dataset: mnist, but {kind(root)}.")
    return replace(root, place=name)


@dataclass(frozen=True)
class _Entry:
    """One treatment of the product that an item of `treatments` stands for."""

    index: int
    """Of the item, as written."""
    fields: Node


def _study(root: Node, name: str) -> Study:
    """Checks everything and raises all faults at once. Raises UserError."""
    assert isinstance(root.value, dict)
    given = root.value
    settings_node = replace(
        root, value={k: v for k, v in given.items() if k not in ("treatments", "reference", "scales", "claims")}
    )
    faults: list[str] = []
    settings = checked(Settings, settings_node, "", faults, STUDY_KEYS)
    entries = _expanded(given.get("treatments"), root.place, faults)
    treatments = _treatments(entries, settings or Settings(), faults)
    _check_scales(given.get("scales"), faults)
    reference = ""
    claims: tuple[Claim, ...] = ()
    if not faults:
        asked = given.get("reference")
        reference = label_of(asked, treatments, "reference", faults) if asked else treatments[0].label
        claims = claims_of(given.get("claims"), treatments, faults)
    if faults or settings is None:
        raise UserError("\n".join(dict.fromkeys(faults)))
    return Study(
        **dict(settings), name=printable(name), treatments=tuple(treatments), reference=reference, claims=claims
    )


def _expanded(node: Node | None, file: str, faults: list[str]) -> list[_Entry]:
    """The product of each item's lists, in the order written (the first key written varies slowest)."""
    if node is None or not isinstance(node.value, tuple) or not node.value:
        given = "there are none" if node is None or node.value in (None, ()) else f"{kind(node)} is not a list of them"
        faults.append(f"{node.place if node else file}: treatments: {given}; a study needs at least one, {EXAMPLE}.")
        return []
    entries: list[_Entry] = []
    for i, item in enumerate(node.value):
        if not isinstance(item.value, dict):
            faults.append(f"{item.place}: treatments[{i}]: {kind(item)} is not a map of keys and values, {EXAMPLE}.")
            continue
        values = [_choices(v) if k != "name" else (v,) for k, v in item.value.items()]
        for key, choices in zip(item.value, values, strict=True):
            if not choices:
                faults.append(f"{item.value[key].place}: treatments[{i}].{key}: an empty list leaves nothing to do.")
        if len(entries) + prod(map(len, values)) > MOST_TREATMENTS:
            faults.append(f"{item.place}: treatments[{i}]: the products make more than {MOST_TREATMENTS:,} treatments.")
            return entries
        for chosen in product(*values):
            entries.append(_Entry(i, replace(item, value=dict(zip(item.value, chosen, strict=True)))))
    return entries


def _choices(node: Node) -> tuple[Node, ...]:
    """What a value stands for: itself; each of a list; of a map, the product of what its values stand for.

    A list in a list stands for itself, and is then refused.
    """
    if isinstance(node.value, tuple):
        nested = ((each,) if isinstance(each.value, tuple) else _choices(each) for each in node.value)
        return tuple(choice for choices in nested for choice in choices)
    if not isinstance(node.value, dict):
        return (node,)
    inner = [_choices(value) for value in node.value.values()]
    if prod(map(len, inner)) > MOST_TREATMENTS:
        return (node,) * (MOST_TREATMENTS + 1)
    return tuple(replace(node, value=dict(zip(node.value, chosen, strict=True))) for chosen in product(*inner))


def _treatments(entries: Sequence[_Entry], settings: Settings, faults: list[str]) -> list[Treatment]:
    """The treatments, each with a label. Faults: values, the same treatment twice, the same name twice."""
    treatments: list[Treatment] = []
    unnamed: list[bool] = []
    contents: dict[object, _Entry] = {}
    for entry in entries:
        given, place = entry.fields.value, entry.fields.place
        assert isinstance(given, dict)
        schedule = "iterative" if "supermask" in given else settings.prune.schedule
        defaults = {"name": "-", "schedule": schedule, "scope": settings.prune.scope}
        node = replace(entry.fields, value={**{k: Node(v, place) for k, v in defaults.items()}, **given})
        treatment = checked(Treatment, node, f"treatments[{entry.index}]", faults)
        if treatment is None:
            continue
        twin = contents.setdefault(treatment.content, entry)
        if twin is not entry:
            does = f"treatments[{entry.index}] ({treatment.criterion}, {treatment.mask1}, {treatment.mask0}, ...)"
            faults.append(
                f"{place}: {does} is the same treatment as one of treatments[{twin.index}]; remove one of them."
            )
        treatments.append(treatment)
        unnamed.append("name" not in given)
    if faults:
        return treatments
    labels = labels_of(treatments, unnamed)
    first = {label: k for k, label in reversed(list(enumerate(labels)))}
    for k, label in enumerate(labels):
        if first[label] != k:
            at = f"{locate(entries[k].fields, ['name'])}: treatments[{entries[k].index}]"
            faults.append(
                f"{at}: two treatments are called {shown(label)}; a name goes with one treatment, without lists."
            )
    return [t.model_copy(update={"name": label}) for t, label in zip(treatments, labels, strict=True)]


def _check_scales(node: Node | None, faults: list[str]) -> None:
    if node is None:
        return
    if not isinstance(node.value, dict):
        faults.append(
            f"{node.place}: scales: {kind(node)} is not a map, such as scales: {{small: {{train.epochs: 3}}}}."
        )
        return
    for name, scale in node.value.items():
        if not isinstance(scale.value, dict):
            faults.append(
                f"{scale.place}: scale {shown(name)}: {kind(scale)} is not a map, such as {{train.epochs: 3}}."
            )
