"""Study files: from a file, its scales and overrides to a Study, with every error at the place where it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from supermask.core.environment import expand_path
from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.study.claims import CHANCE, DENSE, RELATIONS, Claim, Clause
from supermask.study.overrides import apply_overrides
from supermask.study.prune_settings import Prune
from supermask.study.schema import Settings, Study, Treatment
from supermask.study.train_settings import Train, inherited_train_keys
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

MAX_FILE_BYTES = 300_000
"""Parsing takes up to 2.5 s per MB and is bounded by `MAX_VALUES`. The built-in studies have about 5,000 bytes."""
MAX_TREATMENTS = 10_000
MAX_USER_FUNCTIONS = 100
"""Criteria, losses and networks by import path in a study's treatments. Finding the file of one takes up to 1 ms."""
MAX_CLAUSES = 1_000
"""Clauses of all claims of a study file, lists multiplied out."""

StudyLike = str | Path | Mapping[str, Any] | Study
"""Anything that stands for a study: a built-in name, a file, a dict with a study file's keys, or the study itself."""

STUDY_KEYS = (*Settings.model_fields, "treatments", "reference", "scales", "claims")
CLAUSE_KEYS = (
    "treatment",
    *RELATIONS,
    "margin",
    "share",
    "control",
    "band",
    "levels",
    "remaining",
    "at",
    "where",
    "measure",
)
"""`remaining` is the former name of `band`."""
TREATMENTS_EXAMPLE = "such as treatments: [{criterion: [large_final, random]}]"
CLAIM_EXAMPLE = (
    "such as claims: [{id: a-short-name, statement: ..., clauses: [{treatment: large_final, above: random}]}]"
)
CLAUSE_EXAMPLE = "such as {treatment: large_final, above: random}"


@dataclass(frozen=True)
class BuiltinStudy:
    """A study that comes with the package."""

    name: str
    title: str
    scales: tuple[str, ...]


def builtin_study_names() -> list[str]:
    """Return the names of the studies that come with the package."""
    files = resources.files("supermask").joinpath("study", "presets").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


@cache
def builtin_studies() -> tuple[BuiltinStudy, ...]:
    """Return name, title and scales of every study that comes with the package."""
    studies = []
    for name in builtin_study_names():
        root = _read_builtin_tree(name)
        scales = to_python(root).get("scales", {})
        studies.append(BuiltinStudy(name, _build_study(root, name).title, tuple(scales)))
    return tuple(studies)


NOT_IN_THE_PAPER = ("resnet20",)
"""Shipped studies of what the authors left open; they take hours except at the scale `digits`, so `reproduce` runs them
at other scales only if they are named."""


def paper_studies() -> list[BuiltinStudy]:
    """Return the shipped studies that reproduce the paper."""
    return [study for study in builtin_studies() if study.name not in NOT_IN_THE_PAPER]


def load_study(study: StudyLike, overrides: Sequence[str] = ()) -> Study:
    """Return the study of a built-in name or a YAML file, with overrides (`train.lr=1e-3`, `scale=digits`) applied.

    A dict is taken as by `study_from_dict`; a Study is complete and takes no overrides.
    Overrides win over the chosen scale, the scale over the file, the file over the defaults. Functions that the
    study names by import path are checked but not imported. Raises UserError, one line per error.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides are a list of texts, such as [{quote(overrides)}].")
    if isinstance(study, Study):
        if overrides:
            raise UserError(
                f"{quote(overrides[0])} cannot be set: a Study is complete. Give its name, its file or its plain data."
            )
        return study
    if isinstance(study, Mapping):
        return study_from_dict(study, overrides)
    if not isinstance(study, str | Path):
        raise UserError(f"{quote(study)} is not a study: give a name, the path of a file, a dict or a Study.")
    name = str(study) if str(study) in builtin_study_names() else Path(study).stem
    return _build_study(apply_overrides(_read_tree(study), overrides), name)


def study_from_dict(data: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "study") -> Study:
    """Return the study of a dict with a study file's keys. Raises UserError as `load_study` does."""
    return _build_study(apply_overrides(from_python(data, f"study {quote(name)}"), overrides), name)


def _read_tree(study: str | Path) -> Node:
    names = builtin_study_names()
    if str(study) in names:
        return _read_builtin_tree(str(study))
    path = expand_path(study)
    if isinstance(study, Path) or len(path.parts) > 1 or path.suffix in (".yaml", ".yml") or _exists(study):
        return read_study_file(path)
    # Files of the current folder, whose suffix is easily left out.
    files = sorted(file.name for file in Path().glob("*.y*ml"))
    missing_suffix = [file for file in files if Path(file).stem == study]
    near = f"; did you mean {missing_suffix[0]!r}?" if missing_suffix else did_you_mean(study, [*names, *files])
    raise UserError(
        f"study {quote(study)} is not known{near or ';'} shipped: {', '.join(names)}; or give a path to a .yaml file."
    )


@cache
def _read_builtin_tree(name: str) -> Node:
    # Read once per process: describing the paper's claims loads every scale of every study. Trees are never changed.
    return read_study_file(Path(str(resources.files("supermask").joinpath("study", "presets", f"{name}.yaml"))))


def _exists(study: str) -> bool:
    try:
        return study != "" and Path(study).exists()
    except (OSError, ValueError):
        return False


def read_study_file(path: Path) -> Node:
    """Return the tree of a study file. Raises UserError if it cannot be read, is too large, not UTF-8 or not a map."""
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
    """Index of the item in the study file."""
    fields: Node


def _build_study(root: Node, name: str) -> Study:
    """Validate the tree. Raises UserError with all errors at once, one line each."""
    assert isinstance(root.value, dict)
    keys = root.value
    settings_node = replace(
        root, value={k: v for k, v in keys.items() if k not in ("treatments", "reference", "scales", "claims")}
    )
    errors: list[str] = []
    settings = validate(Settings, settings_node, "", errors, STUDY_KEYS)
    entries = _expand_treatments(keys.get("treatments"), root.location, errors)
    treatments = _build_treatments(entries, settings or Settings(), errors)
    _check_scales(keys.get("scales"), errors)
    reference = ""
    claims: tuple[Claim, ...] = ()
    # Labels exist only once all treatments are valid.
    if not errors:
        node = keys.get("reference")
        reference = find_treatment_label(node, treatments, "reference", errors) if node else treatments[0].label
        claims = load_claims(keys.get("claims"), treatments, errors)
    if errors or settings is None:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return Study.from_fields(
        **dict(settings), name=sanitize(name), treatments=tuple(treatments), reference=reference, claims=claims
    )


def _expand_treatments(node: Node | None, file: str, errors: list[str]) -> list[_ExpandedTreatment]:
    """Return the product of each item's lists, in the order written (the first key written varies slowest)."""
    if node is None or not isinstance(node.value, tuple) or not node.value:
        problem = (
            "there are none"
            if node is None or node.value in (None, ())
            else f"{describe_kind(node)} is not a list of them"
        )
        location = node.location if node else file
        errors.append(f"{location}: treatments: {problem}; a study needs at least one, {TREATMENTS_EXAMPLE}.")
        return []
    entries: list[_ExpandedTreatment] = []
    for i, item in enumerate(node.value):
        if not isinstance(item.value, dict):
            problem = f"{describe_kind(item)} is not a map of keys and values, {TREATMENTS_EXAMPLE}"
            errors.append(f"{item.location}: treatments[{i}]: {problem}.")
            continue
        choices = [_expand_value(v, k) if k != "name" else (v,) for k, v in item.value.items()]
        for key, values in zip(item.value, choices, strict=True):
            if not values:
                errors.append(f"{item.value[key].location}: treatments[{i}].{key}: an empty list leaves nothing to do.")
        if len(entries) + prod(map(len, choices)) > MAX_TREATMENTS:
            errors.append(
                f"{item.location}: treatments[{i}]: the products make more than {MAX_TREATMENTS:,} treatments."
            )
            return entries
        for combination in product(*choices):
            fields = dict(zip(item.value, combination, strict=True))
            entries.append(_ExpandedTreatment(i, replace(item, value=fields)))
    return entries


LIST_KEYS = ("betas", "lr_drops", "mean", "std")
"""Keys of a treatment whose value is a list: a list of lists has the alternatives."""


def _expand_value(node: Node, key: str) -> tuple[Node, ...]:
    """Return the alternatives of a key's value: itself, the items of a list, or the product over the values of a map.

    A list in a list is returned as it is; validation then refuses it, unless the key's value is a list.
    """
    if isinstance(node.value, tuple):
        if key in LIST_KEYS and not any(isinstance(item.value, tuple) for item in node.value):
            return (node,)
        nested = ((item,) if isinstance(item.value, tuple) else _expand_value(item, key) for item in node.value)
        return tuple(alternative for alternatives in nested for alternative in alternatives)
    if not isinstance(node.value, dict):
        return (node,)
    alternatives = [_expand_value(value, inner) for inner, value in node.value.items()]
    if prod(map(len, alternatives)) > MAX_TREATMENTS:
        # Too many to build; any tuple that is too long makes the caller refuse the item.
        return (node,) * (MAX_TREATMENTS + 1)
    return tuple(replace(node, value=dict(zip(node.value, c, strict=True))) for c in product(*alternatives))


def _build_treatments(entries: Sequence[_ExpandedTreatment], settings: Settings, errors: list[str]) -> list[Treatment]:
    """Return the labeled treatments. Errors: invalid values, equal treatments, equal names."""
    treatments: list[Treatment] = []
    unnamed: list[bool] = []
    entry_by_identity: dict[object, _ExpandedTreatment] = {}
    if error := _too_many_user_functions(entries):
        errors.append(error)
        return []
    for entry in entries:
        keys, location = entry.fields.value, entry.fields.location
        assert isinstance(keys, dict)
        schedule = "iterative" if "supermask" in keys else settings.prune.schedule
        defaults = {"name": "-", "schedule": schedule, "scope": settings.prune.scope}
        node = replace(entry.fields, value={**{k: Node(v, location) for k, v in defaults.items()}, **keys})
        node = _complete_train(node, settings)
        treatment = validate(Treatment, node, f"treatments[{entry.index}]", errors)
        if treatment is None:
            continue
        # The default may be written out beside a prune.scope that an override has changed.
        if not treatment.uses_scope and treatment.scope not in (settings.prune.scope, Prune().scope):
            problem = f"{treatment.scope} is not used by any level: level 1 learns the mask, and no later level prunes"
            errors.append(f"{keys['scope'].location}: treatments[{entry.index}].scope: {problem}; leave it out.")
        twin = entry_by_identity.setdefault(treatment.identity, entry)
        if twin is not entry:
            values = f"{treatment.criterion}, {treatment.mask1}, {treatment.mask0}, ..."
            errors.append(
                f"{location}: treatments[{entry.index}] ({values}) is the same treatment as one of "
                f"treatments[{twin.index}]; remove one of them."
            )
        treatments.append(treatment)
        unnamed.append("name" not in keys)
    if errors:
        return treatments
    if any(treatment.train is not None for treatment in treatments):
        # Explicit for all that use them, so that labels and references can name a treatment by its settings.
        treatments = [
            t.model_copy(update={"train": t.train or settings.train}) if t.uses_train else t for t in treatments
        ]
    labels = assign_labels(treatments, unnamed)
    first_index = {label: k for k, label in reversed(list(enumerate(labels)))}
    for k, label in enumerate(labels):
        if first_index[label] != k:
            location = f"{locate(entries[k].fields, ['name'])}: treatments[{entries[k].index}]"
            problem = f"two treatments are called {quote(label)}; a name goes with one treatment, without lists"
            errors.append(f"{location}: {problem}.")
    return [t.model_copy(update={"name": label}) for t, label in zip(treatments, labels, strict=True)]


def _complete_train(treatment: Node, settings: Settings) -> Node:
    """Return the treatment with the study's values for all keys that its `train` does not give.

    Settings equal to the study's are dropped, so that treatments with equal settings are equal.
    """
    assert isinstance(treatment.value, dict)
    node = treatment.value.get("train")
    if node is None or not isinstance(node.value, dict):
        return treatment
    inherited = from_python(inherited_train_keys(settings.train, node.value, to_python(node)), node.location)
    assert isinstance(inherited.value, dict)
    values = {key: replace(value, location=node.location) for key, value in inherited.value.items()}
    completed = replace(node, value={**values, **node.value})
    if validate(Train, completed, "", []) == settings.train:
        return replace(treatment, value={key: value for key, value in treatment.value.items() if key != "train"})
    return replace(treatment, value={**treatment.value, "train": completed})


def _too_many_user_functions(entries: Sequence[_ExpandedTreatment]) -> str:
    """Return an error, or an empty string, before the files of any functions are looked for."""
    functions: set[str] = set()
    for entry in entries:
        assert isinstance(entry.fields.value, dict)
        train = entry.fields.value.get("train")
        named = {key: entry.fields.value.get(key) for key in ("criterion", "network")}
        if train is not None and isinstance(train.value, dict):
            named["train.loss"] = train.value.get("loss")
        for key, node in named.items():
            if node is not None and isinstance(node.value, str) and ":" in node.value:
                functions.add(node.value)
            elif node is not None and key == "network" and not isinstance(node.value, str):
                functions.add(repr(to_python(node)))
            if len(functions) > MAX_USER_FUNCTIONS:
                path = f"treatments[{entry.index}].{key}"
                return f"{entry.fields.location}: {path}: more than {MAX_USER_FUNCTIONS} functions by import path."
    return ""


def _check_scales(node: Node | None, errors: list[str]) -> None:
    if node is None:
        return
    if not isinstance(node.value, dict):
        example = "scales: {small: {train.epochs: 3}}"
        errors.append(f"{node.location}: scales: {describe_kind(node)} is not a map, such as {example}.")
        return
    for name, scale in node.value.items():
        if not isinstance(scale.value, dict):
            problem = f"{describe_kind(scale)} is not a map, such as {{train.epochs: 3}}"
            errors.append(f"{scale.location}: scale {quote(name)}: {problem}.")


def load_claims(node: Node | None, treatments: Sequence[Treatment], errors: list[str]) -> tuple[Claim, ...]:
    """Return the claims of a list; append their errors to `errors`."""
    if node is None:
        return ()
    if not isinstance(node.value, tuple):
        errors.append(f"{node.location}: claims: {describe_kind(node)} is not a list of claims, {CLAIM_EXAMPLE}.")
        return ()
    if sum(map(_clause_count, node.value)) > MAX_CLAUSES:
        errors.append(f"{node.location}: claims: there are more than {MAX_CLAUSES:,} clauses, lists multiplied out.")
        return ()
    claims: dict[str, Claim] = {}
    for index, item in enumerate(node.value):
        claim = load_claim(item, treatments, f"claims[{index}]", errors)
        if claim is not None and claims.setdefault(claim.id, claim) is not claim:
            errors.append(f"{item.location}: claims[{index}]: two claims have the id {claim.id}; give it another.")
    return tuple(claims.values())


def load_claim(node: Node, treatments: Sequence[Treatment], path: str, errors: list[str]) -> Claim | None:
    """Return the claim at `path`, or None and append its errors."""
    if not isinstance(node.value, dict):
        problem = f"{describe_kind(node)} is not a map of keys and values, {CLAIM_EXAMPLE}"
        errors.append(f"{node.location}: {path}: {problem}.")
        return None
    items = node.value.get("clauses")
    if items is None or not isinstance(items.value, tuple) or not items.value:
        errors.append(f"{node.location}: {path}: clauses: there have to be some, {CLAUSE_EXAMPLE}.")
        return None
    errors_before = len(errors)
    clauses: list[Clause] = []
    for index, item in enumerate(items.value):
        clauses += _load_clauses(item, treatments, f"{path}.clauses[{index}]", errors)
    keys = {key: value for key, value in node.value.items() if key != "clauses"}
    claim = validate(Claim, replace(node, value=keys), path, errors)
    if claim is None or len(errors) > errors_before:
        return None
    return claim.model_copy(update={"clauses": tuple(clauses)})


def _clause_count(claim: Node) -> int:
    """Return the number of clauses of a claim, one per treatment named."""
    items = claim.value.get("clauses") if isinstance(claim.value, dict) else None
    clauses = items.value if items is not None and isinstance(items.value, tuple) else ()
    named = [clause.value.get("treatment") for clause in clauses if isinstance(clause.value, dict)]
    return sum(len(node.value) if node is not None and isinstance(node.value, tuple) else 1 for node in named)


def _load_clauses(node: Node, treatments: Sequence[Treatment], path: str, errors: list[str]) -> list[Clause]:
    """Return one clause per treatment of the list, with labels in place of patterns."""
    if not isinstance(node.value, dict):
        problem = f"{describe_kind(node)} is not a map of keys and values, {CLAUSE_EXAMPLE}"
        errors.append(f"{node.location}: {path}: {problem}.")
        return []
    relations = [key for key in node.value if key in RELATIONS]
    if len(relations) != 1 or "treatment" not in node.value:
        needed = f"a treatment, and one of {', '.join(RELATIONS)}"
        errors.append(f"{node.location}: {path}: a clause needs {needed}, {CLAUSE_EXAMPLE}.")
        return []
    relation, reference_node = relations[0], node.value[relations[0]]
    errors_before = len(errors)
    if reference_node.value in (DENSE, CHANCE):
        reference = str(reference_node.value)
    else:
        reference = find_treatment_label(reference_node, treatments, f"{path}.{relation}", errors)
    treatment_node = node.value["treatment"]
    named = treatment_node.value if isinstance(treatment_node.value, tuple) else (treatment_node,)
    labels = [find_treatment_label(item, treatments, f"{path}.treatment", errors) for item in named]
    if not named:
        errors.append(f"{treatment_node.location}: {path}.treatment: an empty list claims nothing, {CLAUSE_EXAMPLE}.")
    if len(errors) == errors_before and reference in labels:
        errors.append(f"{node.location}: {path}: {quote(reference)} cannot be compared with itself.")
    control = node.value.get("control")
    control_label = None if control is None else find_treatment_label(control, treatments, f"{path}.control", errors)
    if len(errors) == errors_before and control_label in (reference, *labels):
        errors.append(f"{node.location}: {path}.control: {quote(control_label)} is a side of the comparison.")
    if "band" in node.value and "remaining" in node.value:
        errors.append(f"{node.location}: {path}: remaining is the former name of band; leave it out.")
    errors += [
        f"{node.value[key].location}: {unknown_key_message(Clause, [key], path, CLAUSE_KEYS)}"
        for key in node.value
        if key not in CLAUSE_KEYS
    ]
    if len(errors) > errors_before:
        return []
    other_keys = {
        "band" if key == "remaining" else key: value
        for key, value in node.value.items()
        if key not in ("treatment", relation, "control")
    }
    if control is not None:
        other_keys["control"] = Node(control_label, control.location)
    clauses: list[Clause] = []
    for label in labels:
        fields = {"treatment": label, "relation": relation, "reference": reference}
        value = {**{key: Node(text, node.location) for key, text in fields.items()}, **other_keys}
        clause = validate(Clause, replace(node, value=value), path, errors)
        if clause is None:
            break  # The other labels would give the same errors.
        clauses.append(clause)
    return clauses
