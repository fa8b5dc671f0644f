"""Dashboard over HTTP: content of the pages, which follow the store and write nothing."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.forgery import forge
from helpers.serving import SUBJECT, Page, client, every_address, files
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import RUNS, TrainedStudy
from PIL import Image

from supermask.store import Store
from supermask.store.files.entry import RunFacts, Tensors
from supermask.store.records import decode_curve
from supermask.store.tables import COLUMNS
from supermask.study.networks import run_network


def test_status_of_a_finished_study(page: Page, trained: TrainedStudy) -> None:
    status = page.get("/live.json").json()
    (study,) = status["studies"]
    assert (study["name"], study["title"], study["subject"]) == ("small", "A small study", "fc-8 on digits")
    assert (study["done"], study["total"], status["runs"]) == (RUNS, RUNS, RUNS)
    assert (status["commands"], status["damaged"], status["trouble"], status["reading"]) == ([], [], "", None)


def test_choices_table_and_csv_have_every_run(page: Page, trained: TrainedStudy) -> None:
    (subject,) = page.get("/explore/choices.json").json()["subjects"]
    assert {name: subject[name] for name in SUBJECT} == SUBJECT
    assert subject["runs"] == RUNS
    assert [t["label"] for t in subject["treatments"]] == [
        "dense",
        "large_final, rewind, freeze_init",
        "large_final, rewind, zero",
        "random, rewind, freeze_init",
        "random, rewind, zero",
    ]
    assert [t["runs"] for t in subject["treatments"]] == [2, 4, 4, 4, 4]
    table_page = page.get("/explore/runs.json", params={**SUBJECT, "sort": "early_stop_test_accuracy"}).json()
    accuracies = [row[5] for row in table_page["rows"]]
    assert table_page["total"] == len(table_page["rows"]) == RUNS
    assert accuracies == sorted(accuracies)
    table = list(csv.DictReader(io.StringIO(page.get("/explore/runs.csv", params=SUBJECT).text)))
    assert list(table[0]) == list(COLUMNS)
    assert {row["id"] for row in table} == trained.open_store().run_ids()
    assert {float(row["early_stop_test_accuracy"]) for row in table} == set(accuracies)


def test_page_of_a_run_shows_the_notes_of_its_certificate(store_copy: Path, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)

    def add_note(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        facts["certificate"]["notes"] = {"biases_train": ["fc1.bias: unchanged <b>"]}

    forge(replace(trained, store=store_copy), run_id, add_note)
    html = client(store_copy).get(f"/run/{run_id}").text
    assert "noted: fc1.bias: unchanged &lt;b&gt;" in html


def test_page_of_a_run_shows_the_stored_facts(page: Page, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    entry = trained.open_store().read(run_id)
    html = page.get(f"/run/{run_id}").text
    assert "<h1>large_final, rewind, zero, level 2, seed 0</h1>" in html
    assert "In study small: large_final + zero" in html
    assert html.count("✓ holds") == len(entry.facts["certificate"]["checks"])
    assert f"supermask pack {run_id[:8]} ticket.safetensors" in html
    for ancestor in (entry.facts["parent"], trained.run_id(0)):
        assert f'href="/run/{ancestor}"' in html
    assert f'href="/run/{run_id}"' in page.get(f"/run/{trained.run_id(1)}").text
    curve = decode_curve(entry.tensors)
    figure = page.get(f"/run/{run_id}/curve.json").json()
    (loss,), (accuracy,) = figure["data"], figure["views"][0]["data"]
    assert loss["x"] == accuracy["x"] == curve.iterations
    assert loss["y"] == curve.validation_loss
    assert np.allclose(accuracy["y"], [100 * value for value in curve.validation_accuracy], rtol=1e-15)


@pytest.mark.parametrize("network", ["resnet20-2", "wrn-10-1"])
def test_page_of_a_residual_network_has_masks_without_dead_units(network: str, tmp_path: Path) -> None:
    plan = small_plan(network=network, prune={"levels": 1, "rates": {"conv": 0.3, "output": 0.2}})
    train_plan(plan, tmp_path)
    for run_id in plan.runs:
        answer = client(tmp_path).get(f"/run/{run_id}")
        assert answer.status_code == 200
        table = answer.text.partition('aria-label="Masks"')[2].partition("</tbody>")[0]
        assert table.count('<td class="number">-</td></tr>') == len(run_network(plan.runs[run_id]).tensors)


def test_mask_images_show_the_stored_bits(page: Page, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    tensors = trained.open_store().read(run_id).tensors
    mask = np.unpackbits(tensors["mask/fc1.weight"], count=8 * 64).reshape(8, 64).astype(bool)
    picture = np.asarray(Image.open(io.BytesIO(page.get(f"/run/{run_id}/mask/0.png").content)))
    assert np.array_equal(picture.sum(axis=2) < 300, mask)
    share = mask.mean(axis=0).reshape(8, 8)
    pixels = np.asarray(Image.open(io.BytesIO(page.get(f"/run/{run_id}/pixels.png").content))).astype(float)
    darkness = 255 - pixels[..., 0]
    assert np.allclose(darkness / darkness.max(), share / share.max(), atol=0.5 / 245 + 1e-9)


@pytest.mark.slow
def test_nothing_is_written(trained: TrainedStudy, page: Page) -> None:
    before = files(trained)
    for path in every_address(trained.run_id(2)):
        assert page.get(path).status_code == 200, path
    assert files(trained) == before


@pytest.mark.slow
def test_pages_of_a_read_only_store(store_copy: Path, trained: TrainedStudy) -> None:
    for path in [store_copy, *store_copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    page = client(store_copy)
    for path in every_address(trained.run_id(2)):
        assert page.get(path).status_code == 200, path


# --- changes of the store ---


@pytest.mark.slow
def test_new_run_appears_without_a_restart(store_copy: Path, trained: TrainedStudy, no_wait: None) -> None:
    run_id = trained.run_id(2, "random")
    away = store_copy.parent / "away"
    shutil.move(store_copy / "runs" / run_id[:2] / run_id, away)
    page = client(store_copy)
    first = page.get("/live.json").json()
    assert (first["runs"], first["studies"][0]["done"]) == (RUNS - 1, RUNS - 1)
    assert page.get(f"/run/{run_id}").status_code == 404
    shutil.move(away, store_copy / "runs" / run_id[:2] / run_id)
    second = page.get("/live.json").json()
    assert (second["runs"], second["studies"][0]["done"]) == (RUNS, RUNS)
    assert second["revision"] > first["revision"]
    assert page.get(f"/run/{run_id}").status_code == 200


def test_removed_runs_disappear(store_copy: Path, trained: TrainedStudy, no_wait: None) -> None:
    page = client(store_copy)
    assert page.get("/live.json").json()["runs"] == RUNS
    shutil.rmtree(store_copy / "runs")
    assert page.get("/live.json").json()["runs"] == 0
    assert page.get("/explore/choices.json").json()["subjects"] == []
    assert page.get(f"/run/{trained.run_id(1)}").status_code == 404


@pytest.mark.slow
def test_a_run_that_was_computed_again_unseen_shows_its_new_result(
    store_copy: Path, trained: TrainedStudy, no_wait: None
) -> None:
    """While no page is open, a run may be set aside and trained again to another result."""
    run_id, page = trained.run_id(2, "random"), client(store_copy)
    first = page.get("/live.json").json()["revision"]
    store = Store(store_copy)
    entry = store.read(run_id)
    store.quarantine(run_id, "a test")
    facts = {**entry.facts, "metrics": {**entry.facts["metrics"], "final_test_accuracy": 0.0}}
    store.commit(run_id, facts, entry.tensors, entry.weights or {})
    second = page.get("/live.json").json()
    assert second["revision"] > first and second["runs"] == RUNS
    lines = csv.DictReader(io.StringIO(page.get("/explore/runs.csv", params=SUBJECT).text))
    assert {line["id"]: line["final_test_accuracy"] for line in lines}[run_id] == "0.0"
    assert page.get("/live.json").json()["revision"] == second["revision"]


def test_damage_is_reported_and_the_rest_is_shown(store_copy: Path, trained: TrainedStudy, no_wait: None) -> None:
    sealed, tensors = trained.run_id(1), trained.run_id(1, "random")
    (store_copy / "runs" / sealed[:2] / sealed / "run.json").write_text("{}")
    path = store_copy / "runs" / tensors[:2] / tensors / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    page = client(store_copy)
    status = page.get("/live.json").json()
    assert status["runs"] == RUNS - 1
    assert status["damaged"][0].startswith(f"{sealed} in the store is damaged")
    answer = page.get(f"/run/{sealed}")
    assert answer.status_code == 404
    assert "is damaged: run.json does not match its seal" in answer.text
    answer = page.get(f"/run/{tensors}")
    assert answer.status_code == 200
    assert "tensors.safetensors has" in answer.text
    assert page.get(f"/run/{tensors}/curve.json").status_code == 500
    assert "is damaged" in page.get(f"/run/{tensors}/mask/0.png").json()["error"]
    assert page.get("/explore/runs.json", params=SUBJECT).json()["total"] == RUNS - 1


def test_empty_store(tmp_path: Path) -> None:
    page = client(tmp_path)
    assert page.get("/").status_code == page.get("/explore").status_code == 200
    status = page.get("/live.json").json()
    assert (status["runs"], status["studies"], status["commands"]) == (0, [], [])
    assert page.get("/explore/choices.json").json()["subjects"] == []


def test_unreadable_store_is_reported(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    status = client(tmp_path).get("/live.json").json()
    assert "needs a folder" in status["trouble"]
