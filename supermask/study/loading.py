"""From a study file, its scales and overrides to a Study, with every fault told at the place where it was made.

The `claims` of a study file: treatments named by pattern become labels, lists become clauses of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.study.claims import CHANCE, DENSE, RELATIONS, Claim, Clause
from supermask.study.overrides import apply_overrides
from supermask.study.schema import Settings, Study, Treatment
from supermask.study.treatments import assign_labels, find_treatment_label
from supermask.study.yaml import (
    Node,
    describe_kind,
    from_python,
    locate,
    parse_yaml,
    to_python,
    unknown_key_message,
    validate,
)

CLAIM_EXAMPLE = (
    "such as claims: [{id: a-short-name, statement: ..., clauses: [{treatment: large_final, above: random}]}]"
)
CLAUSE_EXAMPLE = "such as {treatment: large_final, above: random}"
CLAUSE_KEYS = ("treatment", *RELATIONS, "margin", "remaining", "at", "where", "measure")
MAX_CLAUSES = 1_000
"""Of a study file, in all."""


def load_claims(node: Node | None, treatments: Sequence[Treatment], faults: list[str]) -> tuple[Claim, ...]:
    """The claims of a list; what is wrong with them goes to `faults`."""
    if node is None:
        return ()
    if not isinstance(node.value, tuple):
        faults.append(f"{node.location}: claims: {describe_kind(node)} is not a list of claims, {CLAIM_EXAMPLE}.")
        return ()
    if sum(map(_clause_count, node.value)) > MAX_CLAUSES:
        faults.append(f"{node.location}: claims: there are more than {MAX_CLAUSES:,} clauses, lists multiplied out.")
        return ()
    claims: dict[str, Claim] = {}
    for number, item in enumerate(node.value):
        claim = load_claim(item, treatments, f"claims[{number}]", faults)
        if claim is not None and claims.setdefault(claim.id, claim) is not claim:
            faults.append(f"{item.location}: claims[{number}]: two claims have the id {claim.id}; give it another.")
    return tuple(claims.values())


def load_claim(node: Node, treatments: Sequence[Treatment], at: str, faults: list[str]) -> Claim | None:
    """One claim, or None and its faults."""
    if not isinstance(node.value, dict):
        faults.append(f"{node.location}: {at}: {describe_kind(node)} is not a map of keys and values, {CLAIM_EXAMPLE}.")
        return None
    given = node.value.get("clauses")
    if given is None or not isinstance(given.value, tuple) or not given.value:
        faults.append(f"{node.location}: {at}: clauses: there have to be some, {CLAUSE_EXAMPLE}.")
        return None
    before = len(faults)
    clauses: list[Clause] = []
    for number, item in enumerate(given.value):
        clauses += _clauses(item, treatments, f"{at}.clauses[{number}]", faults)
    keys = {key: value for key, value in node.value.items() if key != "clauses"}
    claim = validate(Claim, replace(node, value=keys), at, faults)
    return None if claim is None or len(faults) > before else claim.model_copy(update={"clauses": tuple(clauses)})


def _clause_count(claim: Node) -> int:
    """How many clauses a claim has, one for each treatment that is named."""
    given = claim.value.get("clauses") if isinstance(claim.value, dict) else None
    clauses = given.value if given is not None and isinstance(given.value, tuple) else ()
    named = [clause.value.get("treatment") for clause in clauses if isinstance(clause.value, dict)]
    return sum(len(each.value) if each is not None and isinstance(each.value, tuple) else 1 for each in named)


def _clauses(node: Node, treatments: Sequence[Treatment], at: str, faults: list[str]) -> list[Clause]:
    """A clause for each treatment of the list, each with a label for it and for what it is compared with."""
    if not isinstance(node.value, dict):
        faults.append(
            f"{node.location}: {at}: {describe_kind(node)} is not a map of keys and values, {CLAUSE_EXAMPLE}."
        )
        return []
    relations = [key for key in node.value if key in RELATIONS]
    if len(relations) != 1 or "treatment" not in node.value:
        needs = f"a treatment, and one of {', '.join(RELATIONS)}"
        faults.append(f"{node.location}: {at}: a clause needs {needs}, {CLAUSE_EXAMPLE}.")
        return []
    relation, other = relations[0], node.value[relations[0]]
    before = len(faults)
    reference = (
        other.value
        if other.value in (DENSE, CHANCE)
        else find_treatment_label(other, treatments, f"{at}.{relation}", faults)
    )
    given = node.value["treatment"]
    named = given.value if isinstance(given.value, tuple) else (given,)
    labels = [find_treatment_label(each, treatments, f"{at}.treatment", faults) for each in named]
    if not named:
        faults.append(f"{given.location}: {at}.treatment: an empty list claims nothing, {CLAUSE_EXAMPLE}.")
    if len(faults) == before and reference in labels:
        faults.append(f"{node.location}: {at}: {quote(reference)} cannot be compared with itself.")
    faults += [
        f"{node.value[key].location}: {unknown_key_message(Clause, [key], at, CLAUSE_KEYS)}"
        for key in node.value
        if key not in CLAUSE_KEYS
    ]
    if len(faults) > before:
        return []
    rest = {key: value for key, value in node.value.items() if key not in ("treatment", relation)}
    found: list[Clause] = []
    for label in labels:
        own = {"treatment": label, "relation": relation, "reference": reference}
        value = {**{key: Node(text, node.location) for key, text in own.items()}, **rest}
        clause = validate(Clause, replace(node, value=value), at, faults)
        if clause is None:
            break
        found.append(clause)
    return found


MAX_FILE_BYTES = 1_000_000
"""Bytes. The shipped studies have about 5,000."""
MAX_TREATMENTS = 10_000

Keys = TypeVar("Keys", bound=BaseModel)

StudyLike = str | Path | Mapping[str, Any] | Study
"""What stands for a study: a shipped name, a file, plain data with a study file's keys, or the study itself."""

STUDY_KEYS = (*Settings.model_fields, "treatments", "reference", "scales", "claims")
EXAMPLE = "such as treatments: [{criterion: [large_final, random]}]"


@dataclass(frozen=True)
class BuiltinStudy:
    """A study that comes with the package."""

    name: str
    title: str
    scales: tuple[str, ...]


def builtin_study_names() -> list[str]:
    """Names of the studies that come with the package."""
    files = resources.files("supermask").joinpath("study", "presets").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def builtin_studies() -> list[BuiltinStudy]:
    """What ships, for a list."""
    found = []
    for name in builtin_study_names():
        root = _read_tree(name)
        scales = to_python(root).get("scales", {})
        found.append(BuiltinStudy(name, _study(root, name).title, tuple(scales)))
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
                f"{quote(overrides[0])} cannot be set: a Study is complete. Give its name, its file or its plain data."
            )
        return study
    if isinstance(study, Mapping):
        return study_from_dict(study, overrides)
    name = str(study) if str(study) in builtin_study_names() else Path(study).stem
    return _study(apply_overrides(_read_tree(study), overrides), name)


def study_from_dict(data: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "study") -> Study:
    """The study of plain data with a study file's keys, as in a notebook. Raises UserError as `load_study` does."""
    return _study(apply_overrides(from_python(data, f"study {quote(name)}"), overrides), name)


def _read_tree(study: str | Path) -> Node:
    shipped = builtin_study_names()
    if str(study) in shipped:
        return read_study_file(Path(str(resources.files("supermask").joinpath("study", "presets", f"{study}.yaml"))))
    path = Path(study)
    if isinstance(study, Path) or len(path.parts) > 1 or path.suffix in (".yaml", ".yml") or _exists(study):
        return read_study_file(path)
    raise UserError(
        f"study {quote(study)} is not known{did_you_mean(study, shipped) or ';'} "
        f"shipped: {', '.join(shipped)}; or give a path to a .yaml file."
    )


def _exists(study: str) -> bool:
    try:
        return study != "" and Path(study).exists()
    except (OSError, ValueError):
        return False


def read_study_file(path: Path) -> Node:
    """The tree of a study file. Raises UserError: cannot be read, too large, not UTF-8, or not a study's YAML."""
    name = sanitize(path.name)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"study file {quote(str(path))}: there is no such file.") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"study file {quote(str(path))} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise UserError(f"{name}: larger than {MAX_FILE_BYTES:,} bytes; a study file is a page of text.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {line}: not UTF-8 text; save the file in UTF-8.") from None
    root = parse_yaml(text, name)
    if root.value is None:
        raise UserError(f"{name}: the file is empty; a study needs treatments, e.g. treatments: [{{mask0: [zero]}}].")
    if not isinstance(root.value, dict):
        raise UserError(f"{name}: not a map of keys and values, such as dataset: mnist, but {describe_kind(root)}.")
    return replace(root, location=name)


@dataclass(frozen=True)
class _ExpandedTreatment:
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
    settings = validate(Settings, settings_node, "", faults, STUDY_KEYS)
    entries = _expand_treatments(given.get("treatments"), root.location, faults)
    treatments = _treatments(entries, settings or Settings(), faults)
    _check_scales(given.get("scales"), faults)
    reference = ""
    claims: tuple[Claim, ...] = ()
    if not faults:
        asked = given.get("reference")
        reference = find_treatment_label(asked, treatments, "reference", faults) if asked else treatments[0].label
        claims = load_claims(given.get("claims"), treatments, faults)
    if faults or settings is None:
        raise UserError("\n".join(dict.fromkeys(faults)))
    return Study(
        **dict(settings), name=sanitize(name), treatments=tuple(treatments), reference=reference, claims=claims
    )


def _expand_treatments(node: Node | None, file: str, faults: list[str]) -> list[_ExpandedTreatment]:
    """The product of each item's lists, in the order written (the first key written varies slowest)."""
    if node is None or not isinstance(node.value, tuple) or not node.value:
        given = (
            "there are none"
            if node is None or node.value in (None, ())
            else f"{describe_kind(node)} is not a list of them"
        )
        faults.append(f"{node.location if node else file}: treatments: {given}; a study needs at least one, {EXAMPLE}.")
        return []
    entries: list[_ExpandedTreatment] = []
    for i, item in enumerate(node.value):
        if not isinstance(item.value, dict):
            faults.append(
                f"{item.location}: treatments[{i}]: {describe_kind(item)} is not a map of keys and values, {EXAMPLE}."
            )
            continue
        values = [_expand_value(v) if k != "name" else (v,) for k, v in item.value.items()]
        for key, choices in zip(item.value, values, strict=True):
            if not choices:
                faults.append(f"{item.value[key].location}: treatments[{i}].{key}: an empty list leaves nothing to do.")
        if len(entries) + prod(map(len, values)) > MAX_TREATMENTS:
            faults.append(
                f"{item.location}: treatments[{i}]: the products make more than {MAX_TREATMENTS:,} treatments."
            )
            return entries
        for chosen in product(*values):
            entries.append(_ExpandedTreatment(i, replace(item, value=dict(zip(item.value, chosen, strict=True)))))
    return entries


def _expand_value(node: Node) -> tuple[Node, ...]:
    """What a value stands for: itself; each of a list; of a map, the product of what its values stand for.

    A list in a list stands for itself, and is then refused.
    """
    if isinstance(node.value, tuple):
        nested = ((each,) if isinstance(each.value, tuple) else _expand_value(each) for each in node.value)
        return tuple(choice for choices in nested for choice in choices)
    if not isinstance(node.value, dict):
        return (node,)
    inner = [_expand_value(value) for value in node.value.values()]
    if prod(map(len, inner)) > MAX_TREATMENTS:
        return (node,) * (MAX_TREATMENTS + 1)
    return tuple(replace(node, value=dict(zip(node.value, chosen, strict=True))) for chosen in product(*inner))


def _treatments(entries: Sequence[_ExpandedTreatment], settings: Settings, faults: list[str]) -> list[Treatment]:
    """The treatments, each with a label. Faults: values, the same treatment twice, the same name twice."""
    treatments: list[Treatment] = []
    unnamed: list[bool] = []
    contents: dict[object, _ExpandedTreatment] = {}
    for entry in entries:
        given, place = entry.fields.value, entry.fields.location
        assert isinstance(given, dict)
        schedule = "iterative" if "supermask" in given else settings.prune.schedule
        defaults = {"name": "-", "schedule": schedule, "scope": settings.prune.scope}
        node = replace(entry.fields, value={**{k: Node(v, place) for k, v in defaults.items()}, **given})
        treatment = validate(Treatment, node, f"treatments[{entry.index}]", faults)
        if treatment is None:
            continue
        twin = contents.setdefault(treatment.identity, entry)
        if twin is not entry:
            does = f"treatments[{entry.index}] ({treatment.criterion}, {treatment.mask1}, {treatment.mask0}, ...)"
            faults.append(
                f"{place}: {does} is the same treatment as one of treatments[{twin.index}]; remove one of them."
            )
        treatments.append(treatment)
        unnamed.append("name" not in given)
    if faults:
        return treatments
    labels = assign_labels(treatments, unnamed)
    first = {label: k for k, label in reversed(list(enumerate(labels)))}
    for k, label in enumerate(labels):
        if first[label] != k:
            at = f"{locate(entries[k].fields, ['name'])}: treatments[{entries[k].index}]"
            faults.append(
                f"{at}: two treatments are called {quote(label)}; a name goes with one treatment, without lists."
            )
    return [t.model_copy(update={"name": label}) for t, label in zip(treatments, labels, strict=True)]


def _check_scales(node: Node | None, faults: list[str]) -> None:
    if node is None:
        return
    if not isinstance(node.value, dict):
        faults.append(
            f"{node.location}: scales: {describe_kind(node)} is not a map, "
            "such as scales: {small: {train.epochs: 3}}."
        )
        return
    for name, scale in node.value.items():
        if not isinstance(scale.value, dict):
            faults.append(
                f"{scale.location}: scale {quote(name)}: {describe_kind(scale)} is not a map, "
                "such as {train.epochs: 3}."
            )
