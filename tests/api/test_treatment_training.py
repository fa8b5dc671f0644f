"""One study of several training settings, from plan to figures: each treatment has its own dense network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supermask.analysis.claims.clauses import evaluate_clause
from supermask.analysis.claims.evidence import ClaimData
from supermask.analysis.summary import data_rows, summarize
from supermask.api import runs
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.reporting.figures.accuracy import ACCURACY
from supermask.reporting.status import format_status
from supermask.store import Store
from supermask.store.tables import treatment_labels
from supermask.study.loading import study_from_dict
from supermask.study.plan import Plan

LOSS = """
from torch.nn.functional import cross_entropy


def doubled(logits, labels):
    return 2 * cross_entropy(logits, labels)


def broken(logits, labels):
    return logits.nothing


def several(logits, labels):
    return cross_entropy(logits, labels, reduction="none")
"""

STUDY: dict[str, Any] = {
    "network": "fc-12",
    "seeds": 3,
    "train": {"epochs": 2, "evaluate_every": 20, "lr_drops": [1]},
    "prune": {"levels": 2},
    "treatments": [
        {"train": {"schedule": ["step", "cosine"]}},
        {
            "name": "other",
            "train": {
                "optimizer": "sgd",
                "lr": 0.1,
                "loss": "own_losses:doubled",
                "augment": {"crop": 1, "cutout": 2},
                "normalize": "per_channel",
            },
        },
    ],
    "claims": [
        {
            "id": "better",
            "statement": "The other settings are better.",
            "clauses": [
                {"treatment": "other", "above": {"train": {"schedule": "cosine"}}},
                {"treatment": "other", "matches": "dense", "margin": 50},
            ],
        }
    ],
}
LABELS = ["lr_drops=1 + schedule=step", "schedule=cosine", "other"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, list[Row]]:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "own_losses.py").write_text(LOSS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        schedule = runs.run(STUDY, store=folder / "store", workers=1)
        assert set(schedule.status.values()) == {"finished"}
        plan, rows, damaged = runs.study_rows(STUDY, store=folder / "store")
    assert not damaged
    return folder, plan, rows


@pytest.mark.slow
def test_the_rows_of_a_dense_network_name_its_treatments(trained: tuple[Path, Plan, list[Row]]) -> None:
    _, plan, rows = trained
    assert runs.treatment_labels(plan) == LABELS
    dense = [row for row in rows if row["level"] == 0]
    assert sorted(str(row["treatment"]) for row in dense) == sorted(LABELS * 3)
    assert {row["treatment"]: row["lr_schedule"] for row in dense} == dict(
        zip(LABELS, ["step", "cosine", "step"], strict=True)
    )
    other = next(row for row in dense if row["treatment"] == "other")
    assert (other["loss"], other["augment"], other["normalize"]) == (
        "own_losses:doubled",
        "crop=1 cutout=2",
        "per_channel",
    )
    assert (other["betas"], other["eps"], dense[0]["betas"], dense[0]["eps"]) == (None, None, "0.9 0.999", 1e-8)


def test_each_engine_trains_what_it_has(trained: tuple[Path, Plan, list[Row]]) -> None:
    folder, plan, rows = trained
    assert {(row["treatment"] == "other", row["engine"]) for row in rows} == {(False, "sparse"), (True, "reference")}
    store = Store(folder / "store")
    other = next(role.run_id for role in plan.treatment_runs if role.treatment == "other")
    assert store.facts(other)["engine_reason"] == "auto: the sparse engine does not have augment, loss, normalize"


def test_level_0_of_each_treatment_is_its_own_dense_network(trained: tuple[Path, Plan, list[Row]]) -> None:
    _, _, rows = trained
    summary = summarize(rows, LABELS, LABELS[0], ACCURACY)
    assert summary.dense is None
    assert summary.has_own_dense_networks
    for label, points in summary.series.items():
        assert [point.level for point in points] == [0, 1, 2]
        for point in points:
            own = [row for row in rows if label in treatment_labels(row) and row["level"] == point.level]
            accuracies = {int(row["seed"] or 0): 100 * float(row["early_stop_test_accuracy"] or 0) for row in own}
            assert point.values == pytest.approx(accuracies)
    assert summary.series["other"][0].comparison is not None
    assert len(data_rows(summary)) == 9
    assert not summary.excluded


def test_a_claim_about_dense_means_the_treatments_own(trained: tuple[Path, Plan, list[Row]]) -> None:
    _, plan, rows = trained
    data, clause = ClaimData(plan.study, rows, 10), plan.study.claims[0].clauses[1]
    finding = evaluate_clause(clause, data, 0.5)
    own = [row for row in rows if row["level"] == 0 and row["treatment"] == "other"]
    mean = sum(100 * float(row["early_stop_test_accuracy"] or 0) for row in own) / 3
    assert [level.level for level in finding.levels] == [1, 2]
    assert [level.reference_mean for level in finding.levels] == pytest.approx([mean, mean])
    versus = evaluate_clause(plan.study.claims[0].clauses[0], data, 0.5)
    assert [level.level for level in versus.levels] == [1, 2]


def test_status_counts_dense_networks_with_their_treatments(trained: tuple[Path, Plan, list[Row]]) -> None:
    _, plan, rows = trained
    table = format_status(runs.treatment_labels(plan), rows)
    assert "dense" not in table
    assert [line.split()[-6] for line in table.splitlines() if line.startswith(tuple(LABELS))] == ["9"] * 3


@pytest.mark.slow
def test_figures_say_where_the_dense_networks_are(trained: tuple[Path, Plan, list[Row]], tmp_path: Path) -> None:
    folder, _, _ = trained
    saved, notices = runs.figures(
        STUDY, [], tmp_path, store=folder / "store", only=["accuracy", "overview"], formats=["svg"]
    )
    accuracy, overview = (figure.caption for figure, _ in saved)
    own = "Each treatment has its own training settings and its own dense network"
    assert f"{own}: first point of its line." in accuracy
    assert f"{own}: column of 100% of the weights." in overview
    assert "No dense network" not in accuracy + overview
    assert any("own_losses" in notice for notice in notices)


@pytest.mark.slow
def test_stored_accuracies_are_measured_again_on_normalized_inputs(trained: tuple[Path, Plan, list[Row]]) -> None:
    folder, plan, _ = trained
    results = list(runs.recheck_accuracies(folder / "store"))
    assert len(results) == len(plan.runs)
    assert {result.verdict for result in results} == {"held"}


@pytest.mark.slow
def test_the_store_verifies(trained: tuple[Path, Plan, list[Row]]) -> None:
    folder, _, _ = trained
    assert {result.verdict for result in runs.verify(folder / "store")} == {"held"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "loss 'own_losses:broken' failed at line 10 of "),
        ("several", "loss 'own_losses:several' returned a tensor of shape (60,)"),
    ],
)
def test_a_loss_that_fails_ends_the_study_with_one_message(
    trained: tuple[Path, Plan, list[Row]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, said: str
) -> None:
    folder, _, _ = trained
    monkeypatch.chdir(folder)
    study = {**STUDY, "train": {"epochs": 1, "loss": f"own_losses:{name}"}, "treatments": [{}], "claims": []}
    with pytest.raises(UserError) as caught:
        runs.run(study, store=tmp_path / "store", workers=1)
    assert said in str(caught.value)


def test_an_engine_that_was_asked_for_refuses_what_it_lacks(tmp_path: Path) -> None:
    study = {"network": "fc-12", "train": {"epochs": 1, "augment": {"flip": True}}, "treatments": [{}]}
    with pytest.raises(UserError, match="sparse engine does not have augment: use --engine auto or --engine reference"):
        runs.run(study, store=tmp_path / "store", workers=1, engine="sparse")


def test_the_plan_is_json_and_names_every_setting() -> None:
    study = study_from_dict({**STUDY, "claims": []}, name="mine")
    data = json.loads(json.dumps(study.as_data(), allow_nan=False))
    assert [t["train"]["schedule"] for t in data["treatments"]] == ["step", "cosine", "step"]
    assert study_from_dict(data, name="mine") == study
