"""The `claims` of a study file: treatments named by pattern become labels, lists become clauses of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from supermask.study.checking import checked
from supermask.study.claim import CHANCE, DENSE, RELATIONS, Claim, Clause
from supermask.study.matching import label_of
from supermask.study.model import Treatment
from supermask.study.yaml_tree import Node, kind

EXAMPLE = "such as claims: [{id: a-short-name, statement: ..., clauses: [{treatment: large_final, above: random}]}]"
CLAUSE_EXAMPLE = "such as {treatment: large_final, above: random}"


def claims_of(node: Node | None, treatments: Sequence[Treatment], faults: list[str]) -> tuple[Claim, ...]:
    """The claims of a list; what is wrong with them goes to `faults`."""
    if node is None:
        return ()
    if not isinstance(node.value, tuple):
        faults.append(f"{node.place}: claims: {kind(node)} is not a list of claims, {EXAMPLE}.")
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
