"""The paper's fifteen claims: what decides them, and on which studies."""

from __future__ import annotations

import re

import pytest

from supermask.analysis.claims import evaluate_claims
from supermask.analysis.claims.paper import paper_tasks
from supermask.core.text import Row
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import Study, builtin_studies, load_study
from supermask.study.plan import make_plan
from supermask.study.plan_inputs import PlanInputs


@pytest.mark.slow
def test_the_paper_s_fifteen_claims_can_all_be_decided_at_some_scale() -> None:
    shipped = {study.name: study for study in builtin_studies()}
    assert sorted({task.number or 0 for task in paper_tasks()}) == list(range(1, 16))
    assert len({task.id for task in paper_tasks()}) == len(paper_tasks())
    for task in paper_tasks():
        if not task.study:
            assert task.number == 15 and "ResNet-20" in task.reason_not_evaluable
            continue
        scales = [load_study(task.study, [f"scale={scale}"]) for scale in shipped[task.study].scales]
        about = [study for study in scales if task.is_about(study.network, study)]
        assert {study.network for study in about if study.dataset != "digits"} == set(task.networks)
        for study in about:
            claim = task.with_claim_for(study).claim
            assert claim is not None and claim.clauses
            assert task.statement and task.source and task.figure
        command = re.search(r"`supermask run (\S+) (scale=\S+)`", task.reason_not_evaluable)
        assert command is not None
        named = load_study(command[1], [command[2]])
        assert task.is_about(named.network, named)


def test_a_clause_of_the_paper_states_its_band_and_a_margin_or_a_share() -> None:
    for task in paper_tasks():
        if not task.study:
            continue
        claim = task.with_claim_for(load_study(task.study)).claim
        assert claim is not None
        for clause in claim.clauses:
            assert clause.where != "some"
            assert clause.band is not None or clause.at == "best" or clause.where == "every"
            if clause.relation in ("at_least", "at_most", "matches") and clause.reference != "chance":
                assert clause.margin == 0.2 or clause.share == 25


def test_a_changed_study_decides_the_claims_it_has_treatments_for() -> None:
    treatments = "treatments=[{criterion: [large_final, magnitude_increase]}]"
    study = load_study("mask-criteria", ["scale=laptop", treatments])
    found = {claim.name: claim for claim in evaluate_claims([(study, [])])}
    assert "lacks treatments of the claim" in found["2a"].sentence
    assert "no level" in found["1a"].sentence


def test_claims_on_networks_that_were_not_run_say_what_would_decide_them() -> None:
    laptop = load_study("mask-0-actions", ["scale=laptop"])
    found = {claim.name: claim for claim in evaluate_claims([(laptop, [])])}
    assert list(found) == ["7a", "7b", "7c", "8a", "8b"]
    for name in ("7a", "8b"):
        assert found[name].verdict == "not enough data" and found[name].setting == ""
        assert found[name].sentence.startswith(
            "No run on Conv2, Conv4, Conv6 on CIFAR-10. `supermask run mask-0-actions "
        )
    conv = load_study("mask-0-actions", ["scale=paper-conv4"])
    found = {claim.name: claim for claim in evaluate_claims([(laptop, []), (conv, [])])}
    assert {name: claim.setting for name, claim in found.items()} == {
        "7a": "conv4 on cifar10",
        "7b": "fc-300-100 on mnist",
        "7c": "fc-300-100 on mnist",
        "8a": "fc-300-100 on mnist",
        "8b": "conv4 on cifar10",
    }
    other = load_study("mask-0-actions", ["scale=laptop", "network=fc-20"])
    assert all(claim.sentence.startswith("No run on ") for claim in evaluate_claims([(other, [])]))


def test_claim_13_needs_the_paper_s_prune_rates() -> None:
    for scale, decides in (("laptop", False), ("paper", True)):
        study = load_study("supermask-questions", [f"scale={scale}"])
        (claim,) = (claim for claim in evaluate_claims([(study, [])]) if claim.number == 13)
        assert (claim.setting != "") == decides
        assert ("at most 20% of a hidden layer pruned per level" in claim.sentence) != decides


def test_all_claims_without_runs() -> None:
    every = evaluate_claims([], whole_paper=True)
    assert [claim.name for claim in every] == [f"{task.number}{task.part}" for task in paper_tasks()]
    assert {claim.verdict for claim in every} == {"not enough data"}


def finished_rows(study: Study) -> list[Row]:
    """Return rows of a study as if every run had finished, with the accuracies and rises of converged masks."""
    rows, _ = plan_rows(make_plan(study, PlanInputs()), Store("no-store"))
    result = {"status": "finished", "early_stop_validation_accuracy": 0.9, "early_stop_test_accuracy": 0.9}
    return [row | result | ({"validation_rise": 0.0} if row.get("supermask") else {}) for row in rows]


@pytest.mark.slow
def test_a_study_that_learns_longer_decides_claim_11_beside_the_one_to_run_first() -> None:
    scale = ["scale=paper", "seeds=[0]"]
    shorter, longer = (load_study(name, scale) for name in ("learned-supermasks", "table-one"))
    rows = {study.name: finished_rows(study) for study in (shorter, longer)}
    both = evaluate_claims([(longer, rows["table-one"]), (shorter, rows["learned-supermasks"])])
    assert {(claim.name, claim.study, claim.setting) for claim in both if claim.number == 11 and claim.setting} == {
        ("11a", "learned-supermasks", "fc-300-100 on mnist, 50,417 iterations, masks learned for 110,000"),
        ("11a", "table-one", "fc-300-100 on mnist, 50,417 iterations, masks learned for 440,000"),
    }
    # Alone it decides too, also before its first run.
    for some in (rows["table-one"], []):
        (alone,) = (claim for claim in evaluate_claims([(longer, some)]) if claim.name == "11a")
        assert alone.study == "table-one" and len(alone.clauses) == 5


def test_a_study_whose_runs_are_all_in_another_one_gives_no_second_verdict() -> None:
    """At scale=laptop the masks of Table 1 are runs of `learned-supermasks`."""
    scale = ["scale=laptop", "seeds=[0]"]
    shorter, longer = (load_study(name, scale) for name in ("learned-supermasks", "table-one"))
    rows = finished_rows(shorter)
    same = {row["id"] for row in rows}
    shared = [row if row["id"] in same else row | {"status": "to_do"} for row in finished_rows(longer)]
    found = evaluate_claims([(shorter, rows), (longer, shared)])
    assert [claim.study for claim in found if claim.name == "11a"] == ["learned-supermasks"]


@pytest.mark.slow
def test_every_study_that_a_claim_names_has_its_treatments() -> None:
    for task in paper_tasks():
        for name in task.studies:
            assert task.with_claim_for(load_study(name)).claim is not None, (task.id, name)
