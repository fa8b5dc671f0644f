"""Recheck of stored accuracies with weights and data, which `verify` alone cannot do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import call
from helpers.small_studies import small_plan, train_plan

from supermask.api import runs
from supermask.store import Store
from supermask.store.files.entry import RunFacts, encode_entry
from supermask.store.verify import VerificationResult
from supermask.study.run import Run

LEARN = {"lr": 20, "batch_size": 60, "epochs": 2, "evaluate_every": 20, "samples": 2, "hardened_at": [0.2]}
PLAN = small_plan(
    {"name": "ticket"},
    {"name": "learned", "supermask": {"rescaled": True}},
    {"name": "untrained", "schedule": "one_shot", "trained": False},
    learn=LEARN,
    levels=1,
)
KINDS: dict[str, Callable[[Run], bool]] = {
    "trained": lambda run: run.is_trained and run.learning is None,
    "learned": lambda run: run.learning is not None,
    "untrained": lambda run: not run.is_trained,
}


@pytest.fixture(scope="module")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remeasure")
    train_plan(PLAN, folder)
    return folder


@pytest.fixture
def store(trained_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_store, tmp_path / "store")
    return tmp_path / "store"


def verdicts_of(store: Path) -> dict[str, VerificationResult]:
    return {verdict.key: verdict for verdict in runs.recheck_accuracies(store)}


def forge(store: Path, run_id: str, change: Callable[[RunFacts], Any]) -> None:
    """Change a stored run and recompute every checksum."""
    entry = Store(store).read(run_id)
    change(entry.facts)
    parts = {"tensors": entry.tensors} | ({"weights": entry.weights} if entry.weights else {})
    for name, data in encode_entry("run", run_id, entry.facts, parts).items():
        (store / "runs" / run_id[:2] / run_id / name).write_bytes(data)


@pytest.mark.slow
def test_every_kind_of_run_is_rechecked(store: Path) -> None:
    assert {key: verdict.verdict for key, verdict in verdicts_of(store).items()} == dict.fromkeys(PLAN.runs, "held")
    status, out, _ = call("verify", "--accuracies", "--store", store)
    assert (status, out.splitlines()) == (0, ["4 held", "accuracies measured again: 4 held"])


@pytest.mark.parametrize("kind", ["trained", "untrained"])
def test_forged_accuracy_is_detected(store: Path, kind: str) -> None:
    run = next(run for run in PLAN.runs.values() if KINDS[kind](run))
    forge(store, run.id, lambda facts: facts["metrics"].update({"final_test_accuracy": 0.9999}))
    verdict = verdicts_of(store)[run.id]
    assert (verdict.verdict, "not 0.9999" in verdict.reason) == ("failed", True)
    status, out, _ = call("verify", "--accuracies", "--store", store)
    assert status == 1
    assert f"{run.id} failed: final_test_accuracy is" in out


@pytest.mark.parametrize("name", ["thresholded", "expected", "ones_in_all"])
def test_forged_number_of_a_learned_mask_is_detected(store: Path, name: str) -> None:
    run = next(run for run in PLAN.runs.values() if run.learning is not None)
    forge(store, run.id, lambda facts: facts["supermask"].update({name: facts["supermask"][name] + 1e-9}))
    verdict = verdicts_of(store)[run.id]
    assert (verdict.verdict, verdict.reason.startswith(f"{name} is")) == ("failed", True)


def test_dropped_weights_and_other_data_are_reported_as_partly(store: Path) -> None:
    learned = next(run for run in PLAN.runs.values() if run.learning is not None)
    trained = next(run for run in PLAN.runs.values() if KINDS["trained"](run) and run.level == 1)
    Store(store).drop_weights(learned.id)
    forge(store, trained.id, lambda facts: facts["data"].update(fingerprint="another"))
    verdicts = verdicts_of(store)
    assert verdicts[learned.id].verdict == verdicts[trained.id].verdict == "partly"
    assert "dropped" in verdicts[learned.id].reason
    assert "other digits" in verdicts[trained.id].reason
