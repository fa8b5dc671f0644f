"""Facts of layers of stored runs: recorded, in the tables, verified, and recomputed for runs that have none."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import call
from helpers.forgery import forge, verdicts
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import train_study

from supermask.store import Store
from supermask.store.layer_facts import layer_rows, recompute_layer_facts
from supermask.store.replay import StateReplayer
from supermask.store.rows import plan_rows, store_rows
from supermask.store.tables import COLUMNS, LAYER_COLUMNS
from supermask.store.verify import verify_store


def test_recorded_facts_are_those_of_the_stored_tensors(tmp_path: Path) -> None:
    made = train_study(tmp_path)
    store, replayer = made.open_store(), StateReplayer(made.open_store())
    rows = {row["id"]: row for row in plan_rows(made.plan, store)[0]}
    for run in made.plan.runs.values():
        recorded = store.facts(run.id)["layers"]
        assert recorded == recompute_layer_facts(store, replayer, run.id)
        row, kept = rows[run.id], sum(store.facts(run.id)["kept"].values())
        changed = sum(layer["sign_changed"] for layer in recorded.values())
        assert row["sign_changed"] == changed / kept
        assert row["shrunk"] == sum(layer["shrunk"] for layer in recorded.values()) / kept
        if run.step is None:
            assert row["ties_drawn"] is None
        else:
            assert row["ties_drawn"] == (kept if run.step.criterion == "random" else 0)


@pytest.mark.slow
def test_the_table_of_layers(tmp_path: Path) -> None:
    made = train_study(tmp_path)
    status, out, err = call("table", *made.args, "--layers")
    assert (status, err) == (0, "")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert list(lines[0]) == list(LAYER_COLUMNS)
    assert len(lines) == 2 * len(made.plan.runs)
    status, out, _ = call("table", *made.args)
    runs = {line["id"]: line for line in csv.DictReader(io.StringIO(out))}
    for run_id, run in runs.items():
        layers = [line for line in lines if line["id"] == run_id]
        assert sum(int(line["kept"]) for line in layers) == int(run["kept"])
        changed = sum(float(line["sign_changed"]) * int(line["kept"]) for line in layers)
        assert changed / int(run["kept"]) == pytest.approx(float(run["sign_changed"]))
    for suffix in ("json", "markdown", "latex"):
        status, out, _ = call("table", *made.args, "--layers", "--format", suffix)
        assert status == 0 and "fc1" in out
    status, out, _ = call("query", "SELECT sum(ties_drawn), max(shrunk) <= 1 FROM runs", "--store", made.store)
    assert status == 0 and "true" in out


@pytest.mark.slow
def test_runs_of_earlier_versions_have_none_and_are_recomputed(tmp_path: Path) -> None:
    made = train_study(tmp_path)
    store = made.open_store()
    recorded = list(layer_rows(store, plan_rows(made.plan, store)[0]))
    for run_id in made.plan.runs:
        forge(made, run_id, lambda facts, tensors, weights: facts.pop("layers"))
    rows, damaged = store_rows(made.open_store())
    assert not damaged
    assert all(row["ties_drawn"] is row["sign_changed"] is row["shrunk"] is None for row in rows)
    assert {"ties_drawn", "sign_changed", "shrunk"} <= COLUMNS.keys()
    assert list(layer_rows(made.open_store(), plan_rows(made.plan, made.open_store())[0])) == recorded
    assert {verdict.verdict for verdict in verify_store(made.open_store())} == {"held"}
    # Without weights there is nothing to count from.
    run_id = made.run_id(2)
    made.open_store().drop_weights(run_id)
    left = [row for row in layer_rows(made.open_store(), rows) if row["id"] == run_id]
    assert left and all(row["sign_changed"] is None for row in left)


@pytest.mark.slow
def test_a_learned_mask_and_an_untrained_network(tmp_path: Path) -> None:
    plan = small_plan(
        {"name": "mask", "supermask": {"weights": "init"}, "levels": 1},
        {"name": "untrained", "criterion": "movement", "trained": False, "schedule": "one_shot"},
        learn={"epochs": 0.6, "batch_size": 60, "evaluate_every": 6, "lr": 10},
        levels=1,
    )
    train_plan(plan, tmp_path)
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in plan_rows(plan, Store(tmp_path))[0]:
        by_label.setdefault(str(row["treatment"]), []).append(row)
    for row in by_label["untrained"]:
        # Some pixels of the digits are always 0, so weights tie at no movement.
        assert row["sign_changed"] is None and row["ties_drawn"] is not None
    learned = [row for row in by_label["mask"] if row.get("supermask")]
    assert learned and all(row["ties_drawn"] is row["sign_changed"] is None for row in learned)
    assert {verdict.verdict for verdict in verify_store(Store(tmp_path))} == {"held"}


@pytest.mark.slow
@pytest.mark.parametrize("fact", ["ties_drawn", "sign_changed", "shrunk"])
def test_forged_facts_of_layers_are_found(tmp_path: Path, fact: str) -> None:
    made = train_study(tmp_path)
    run_id = made.run_id(1)

    def change(facts: dict[str, Any], tensors: object, weights: object) -> None:
        facts["layers"]["fc1.weight"][fact] += 1

    forge(made, run_id, change)
    verdict = verdicts(made.store)[run_id]
    assert verdict.verdict == "failed"
    assert "facts of layers do not match the tensors: fc1.weight" in verdict.reason
