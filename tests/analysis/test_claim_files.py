"""Claims of study files: parts, lists and patterns, and refused claims."""

from __future__ import annotations

import time
from typing import Any

import pytest
from helpers.claims import rows_of, study_with

from supermask.analysis.claims import evaluate_claims
from supermask.core.errors import UserError
from supermask.study import study_from_dict


def test_a_claim_needs_all_of_its_parts() -> None:
    good, bad = {"treatment": "a", "above": "b"}, {"treatment": "a", "below": "b"}
    rows = rows_of([2, 2, 2, 2])
    (finding,) = evaluate_claims([(study_with(good, bad), rows)])
    assert finding.verdict == "contradicted"
    assert finding.sentence.startswith("Of 2 clauses: 1 supported, 1 contradicted. a is below b: ")
    (finding,) = evaluate_claims([(study_with(good, good), rows)])
    assert finding.sentence.startswith("All 2 clauses are supported. The weakest: a is above b: yes; +2.00 [")
    assert ", mean over 4 levels from 50% to 6.2% of the weights, n = 5 pairs, p < 0.001; error rate x 0.80 [" in (
        finding.sentence
    )


def test_lists_of_treatments_and_patterns_become_clauses() -> None:
    study = study_with({"treatment": [{"criterion": "large_final"}, "b"], "below": "chance"}, detect=2)
    (claim,) = study.claims
    assert [(c.treatment, c.relation, c.reference) for c in claim.clauses] == [
        ("a", "below", "chance"),
        ("b", "below", "chance"),
    ]
    assert study_from_dict(study.as_data(), name="own") == study


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (3, "claims[0]: 3 is not a map of keys and values"),
        ({"statement": "x", "clauses": []}, "claims[0]: clauses: there have to be some"),
        ({"id": "a b"}, "claims[0].id: 'a b' is not a short name: a-z, 0-9 and -."),
        ({"id": "../x"}, "claims[0].id: '../x' is not a short name"),
        ({"statment": "x"}, "has no key 'statment'; did you mean 'statement'?"),
        ({"clauses": [{"above": "b"}]}, "claims[0].clauses[0]: a clause needs a treatment, and one of above, below"),
        ({"clauses": [{"treatment": "a", "above": "b", "below": "b"}]}, "a clause needs a treatment, and one of"),
        ({"clauses": [{"treatment": "d", "above": "b"}]}, "claims[0].clauses[0].treatment: 'd' is not a map"),
        ({"clauses": [{"treatment": "a", "above": {"criterion": "grad"}}]}, "above: no treatment has {criterion: "),
        ({"clauses": [{"treatment": "a", "above": "b", "margn": 1}]}, "has no key 'margn'; did you mean 'margin'?"),
        ({"clauses": [{"treatment": "a", "matches": "b"}]}, "matches needs a margin in percentage points"),
        ({"clauses": [{"treatment": "a", "above": "b", "remaining": [5, 20]}]}, "the larger one first"),
        ({"clauses": [{"treatment": "a", "above": "b", "band": 20}]}, "two shares of the weights in percent"),
        (
            {"clauses": [{"treatment": "a", "above": "b", "levels": [3, 1]}]},
            "two pruning levels, the smaller one first",
        ),
        ({"clauses": [{"treatment": "a", "above": "b", "band": [20, 5], "at": "best"}]}, "leave out band, levels"),
        ({"clauses": [{"treatment": "a", "above": "b", "band": [20, 5], "remaining": [9, 1]}]}, "former name of band"),
        ({"clauses": [{"treatment": "a", "above": "b", "band": [20, 5], "levels": [1, 2]}]}, "leave one out"),
        ({"clauses": [{"treatment": "a", "above": "b", "where": "any"}]}, "Allowed: mean, every, some"),
        ({"clauses": [{"treatment": "a", "above": "b", "where": "some", "at": "best"}]}, "leave out where: some"),
        ({"clauses": [{"treatment": "a", "at_least": "b", "share": 25}]}, "share and control belong together"),
        ({"clauses": [{"treatment": "a", "above": "b", "control": "c"}]}, "share and control belong together"),
        ({"clauses": [{"treatment": "a", "at_least": "b", "share": 25, "control": "b"}]}, "a side of the comparison"),
        ({"clauses": [{"treatment": "a", "at_least": "b", "share": 25, "control": "x"}]}, ".control: 'x' is not a map"),
        ({"clauses": [{"treatment": "a", "at_least": "b", "share": 25, "control": "c", "margin": 1}]}, "leave one out"),
        ({"clauses": [{"treatment": "a", "above": "chance", "share": 25, "control": "c"}]}, "an accuracy without"),
        ({"clauses": [{"treatment": "a", "above": "chance", "measure": "early_stop_iteration"}]}, "chance is an acc"),
        ({"clauses": [{"treatment": "a", "above": "b", "margin": 200}]}, "200 percentage points; at most 100"),
        ({"clauses": [{"treatment": "a", "above": "b", "measure": "id"}]}, "'id' is not what a claim can be about"),
        ({"clauses": [{"treatment": [], "above": "b"}]}, "clauses[0].treatment: an empty list claims nothing"),
        ({"clauses": [{"treatment": ["b", "a"], "above": "b"}]}, "clauses[0]: 'b' cannot be compared with itself."),
        ({"clauses": [{"treatment": "a", "above": "b", "relation": "below"}]}, "has no key 'relation'"),
        ({"clauses": [{"treatment": "a", "above": "b", "reference": "c"}]}, "Allowed: treatment, above, below, at_le"),
        ({"clauses": [{"treatment": "a", "above": "b"}] * 1001}, "claims: there are more than 1,000 clauses"),
        ({"clauses": [{"treatment": ["a"] * 1001, "above": "b"}]}, "claims: there are more than 1,000 clauses"),
        ({"statement": "\x1b[31mred"}, "'\\x1b[31mred' is not a sentence: one line of text"),
        ({"source": "two\nlines"}, "claims[0].source: 'two\\nlines' is not a sentence: one line of text"),
        ({"figure": "../x"}, "claims[0].figure: '../x' is not the name of a figure"),
        ({"figure": 5}, "claims[0].figure: 5 is not the name of a figure, such as accuracy."),
    ],
)
def test_invalid_claims_of_a_study_file_are_refused(claim: Any, message: str) -> None:
    whole = {"id": "x", "statement": "y", "clauses": [{"treatment": "a", "above": "b"}]}
    given = {**whole, **claim} if isinstance(claim, dict) else claim
    with pytest.raises(UserError) as refused:
        study_from_dict(
            {
                "treatments": [{"name": "a"}, {"name": "b", "criterion": "random"}, {"name": "c", "mask1": "reinit"}],
                "claims": [given],
            }
        )
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["dense", "chance", "(chain)"])
def test_reference_words_are_refused_as_treatment_names(name: str) -> None:
    with pytest.raises(UserError, match="have a meaning of their own"):
        study_from_dict({"treatments": [{"name": name}]})


@pytest.mark.slow
def test_many_treatments_and_claims_are_read_in_time() -> None:
    treatments = [{"name": f"t{k}", "rewind_to": k + 1} for k in range(1000)]
    clauses = [{"treatment": {"rewind_to": k + 1}, "above": "t999"} for k in range(900)]
    claims = [{"id": "x", "statement": "y", "clauses": clauses}]
    began = time.process_time()
    study = study_from_dict({"treatments": treatments, "claims": claims})
    assert [clause.treatment for clause in study.claims[0].clauses] == [f"t{k}" for k in range(900)]
    assert time.process_time() - began < 10


def test_two_claims_with_one_id_are_refused() -> None:
    claim = {"id": "x", "statement": "y", "clauses": [{"treatment": "a", "above": "chance"}]}
    with pytest.raises(UserError, match="two claims have the id x"):
        study_from_dict({"treatments": [{"name": "a"}], "claims": [claim, claim]})
