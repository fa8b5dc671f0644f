"""The `claims` of a study file: treatments named by pattern become labels, lists become clauses of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from supermask.study.checking import checked, no_such_key
from supermask.study.claim import CHANCE, DENSE, RELATIONS, Claim, Clause
from supermask.study.matching import label_of
from supermask.study.model import Treatment
from supermask.study.yaml_tree import Node, kind, shown

EXAMPLE = "such as claims: [{id: a-short-name, statement: ..., clauses: [{treatment: large_final, above: random}]}]"
CLAUSE_EXAMPLE = "such as {treatment: large_final, above: random}"
CLAUSE_KEYS = ("treatment", *RELATIONS, "margin", "remaining", "at", "where", "measure")
MOST_CLAUSES = 1_000
"""Of a study file, in all."""


def claims_of(node: Node | None, treatments: Sequence[Treatment], faults: list[str]) -> tuple[Claim, ...]:
    """The claims of a list; what is wrong with them goes to `faults`."""
    if node is None:
        return ()
    if not isinstance(node.value, tuple):
        faults.append(f"{node.place}: claims: {kind(node)} is not a list of claims, {EXAMPLE}.")
        return ()
    if sum(map(_stands_for, node.value)) > MOST_CLAUSES:
        faults.append(f"{node.place}: claims: there are more than {MOST_CLAUSES:,} clauses, lists multiplied out.")
        return ()
    claims: dict[str, Claim] = {}
    for number, item in enumerate(node.value):
        claim = claim_of(item, treatments, f"claims[{number}]", faults)
        if claim is not None and claims.setdefault(claim.id, claim) is not claim:
            faults.append(f"{item.place}: claims[{number}]: two claims have the id {claim.id}; give it another.")
    return tuple(claims.values())


def claim_of(node: Node, treatments: Sequence[Treatment], at: str, faults: list[str]) -> Claim | None:
    """One claim, or None and its faults."""
    if not isinstance(node.value, dict):
        faults.append(f"{node.place}: {at}: {kind(node)} is not a map of keys and values, {EXAMPLE}.")
        return None
    given = node.value.get("clauses")
    if given is None or not isinstance(given.value, tuple) or not given.value:
        faults.append(f"{node.place}: {at}: clauses: there have to be some, {CLAUSE_EXAMPLE}.")
        return None
    before = len(faults)
    clauses: list[Clause] = []
    for number, item in enumerate(given.value):
        clauses += _clauses(item, treatments, f"{at}.clauses[{number}]", faults)
    keys = {key: value for key, value in node.value.items() if key != "clauses"}
    claim = checked(Claim, replace(node, value=keys), at, faults)
    return None if claim is None or len(faults) > before else claim.model_copy(update={"clauses": tuple(clauses)})


def _stands_for(claim: Node) -> int:
    """How many clauses a claim has, one for each treatment that is named."""
    given = claim.value.get("clauses") if isinstance(claim.value, dict) else None
    clauses = given.value if given is not None and isinstance(given.value, tuple) else ()
    named = [clause.value.get("treatment") for clause in clauses if isinstance(clause.value, dict)]
    return sum(len(each.value) if each is not None and isinstance(each.value, tuple) else 1 for each in named)


def _clauses(node: Node, treatments: Sequence[Treatment], at: str, faults: list[str]) -> list[Clause]:
    """A clause for each treatment of the list, each with a label for it and for what it is compared with."""
    if not isinstance(node.value, dict):
        faults.append(f"{node.place}: {at}: {kind(node)} is not a map of keys and values, {CLAUSE_EXAMPLE}.")
        return []
    relations = [key for key in node.value if key in RELATIONS]
    if len(relations) != 1 or "treatment" not in node.value:
        needs = f"a treatment, and one of {', '.join(RELATIONS)}"
        faults.append(f"{node.place}: {at}: a clause needs {needs}, {CLAUSE_EXAMPLE}.")
        return []
    relation, other = relations[0], node.value[relations[0]]
    before = len(faults)
    reference = (
        other.value if other.value in (DENSE, CHANCE) else label_of(other, treatments, f"{at}.{relation}", faults)
    )
    given = node.value["treatment"]
    named = given.value if isinstance(given.value, tuple) else (given,)
    labels = [label_of(each, treatments, f"{at}.treatment", faults) for each in named]
    if not named:
        faults.append(f"{given.place}: {at}.treatment: an empty list claims nothing, {CLAUSE_EXAMPLE}.")
    if len(faults) == before and reference in labels:
        faults.append(f"{node.place}: {at}: {shown(reference)} cannot be compared with itself.")
    faults += [
        f"{node.value[key].place}: {no_such_key(Clause, [key], at, CLAUSE_KEYS)}"
        for key in node.value
        if key not in CLAUSE_KEYS
    ]
    if len(faults) > before:
        return []
    rest = {key: value for key, value in node.value.items() if key not in ("treatment", relation)}
    found: list[Clause] = []
    for label in labels:
        own = {"treatment": label, "relation": relation, "reference": reference}
        value = {**{key: Node(text, node.place) for key, text in own.items()}, **rest}
        clause = checked(Clause, replace(node, value=value), at, faults)
        if clause is None:
            break
        found.append(clause)
    return found
