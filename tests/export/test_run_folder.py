"""`export` against an independent reading: json, safetensors and NumPy alone."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_studies import carry_out, small_plan
from helpers.stored_study import Carried, carried_out
from numpy.typing import NDArray
from safetensors.numpy import load_file

from supermask.api import runs
from supermask.core.errors import SystemFailure, UserError

LAYERS = {"fc1.weight": (8, 64), "fc2.weight": (10, 8)}
KEYS = {"id", "parent", "network", "dataset", "criterion", "mask1", "mask0", "schedule", "level", "seed"}
KEYS |= {"prune_rates", "metrics", "certificate", "environment", "status"}


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    return carried_out(tmp_path_factory.mktemp("export"))


def exported(carried: Carried, run_id: str, folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    assert runs.export(run_id, folder, carried.store) == [folder / "run.json", folder / "tensors.safetensors"]
    return json.loads((folder / "run.json").read_text()), load_file(folder / "tensors.safetensors")


def test_run_json_has_the_keys_of_the_contract(carried: Carried, tmp_path: Path) -> None:
    run_id = carried.run_id(2, "random", "freeze_init", seed=1)
    facts, _ = exported(carried, run_id, tmp_path)
    assert facts.keys() >= KEYS
    wanted = {
        "id": run_id,
        "parent": carried.run_id(1, "random", "freeze_init", seed=1),
        "network": "fc-8",
        "dataset": "digits",
        "criterion": "random",
        "mask1": "rewind",
        "mask0": "freeze_init",
        "schedule": "iterative",
        "level": 2,
        "seed": 1,
        "prune_rates": {"hidden": 0.5, "output": 0.3},
        "status": "finished",
    }
    assert {key: facts[key] for key in wanted} == wanted
    assert facts["certificate"]["held"] is True
    assert facts["environment"]["fingerprint"]
    assert 0 <= facts["metrics"]["early_stop_test_accuracy"] <= 1


def test_the_dense_run_has_no_step(carried: Carried, tmp_path: Path) -> None:
    facts, tensors = exported(carried, carried.run_id(0), tmp_path)
    assert [facts[key] for key in ("parent", "criterion", "mask1", "mask0", "schedule")] == [None] * 5
    assert facts["prune_rates"] == {}
    assert all(tensors[f"mask.{name}"].all() for name in LAYERS)


def test_every_maskable_weight_has_start_final_and_mask(carried: Carried, tmp_path: Path) -> None:
    _, tensors = exported(carried, carried.run_id(1), tmp_path)
    for name, shape in LAYERS.items():
        for kind, dtype in (("start", np.float32), ("final", np.float32), ("mask", np.bool_)):
            tensor = tensors.pop(f"{kind}.{name}")
            assert tensor.shape == shape
            assert tensor.dtype == dtype
    assert sorted(tensors) == [
        f"other_{kind}.{bias}" for kind in ("final", "start") for bias in ("fc1.bias", "fc2.bias")
    ]


def test_masks_have_the_exact_counts(carried: Carried, tmp_path: Path) -> None:
    for level, counts in ((1, {"fc1.weight": 256, "fc2.weight": 56}), (2, {"fc1.weight": 128, "fc2.weight": 39})):
        _, tensors = exported(carried, carried.run_id(level), tmp_path)
        assert {name: int(tensors[f"mask.{name}"].sum()) for name in LAYERS} == counts


def test_a_rewound_ticket_starts_from_the_dense_start_times_its_mask(carried: Carried, tmp_path: Path) -> None:
    _, dense = exported(carried, carried.run_id(0), tmp_path)
    for level in (1, 2):
        _, ticket = exported(carried, carried.run_id(level), tmp_path)
        for name in LAYERS:
            start, mask = dense[f"start.{name}"], ticket[f"mask.{name}"]
            assert np.array_equal(ticket[f"start.{name}"], np.where(mask, start, np.float32(0)))
            assert np.array_equal(ticket[f"final.{name}"][~mask], np.zeros((~mask).sum(), np.float32))
            assert (ticket[f"final.{name}"][mask] != ticket[f"start.{name}"][mask]).any()


def test_frozen_values_are_exported(carried: Carried, tmp_path: Path) -> None:
    _, dense = exported(carried, carried.run_id(0), tmp_path)
    _, ticket = exported(carried, carried.run_id(2, mask0="freeze_init"), tmp_path)
    for name in LAYERS:
        mask = ticket[f"mask.{name}"]
        assert np.array_equal(ticket[f"start.{name}"], dense[f"start.{name}"])
        assert np.array_equal(ticket[f"final.{name}"][~mask], dense[f"start.{name}"][~mask])


def test_the_mask_is_that_of_the_largest_final_weights(carried: Carried, tmp_path: Path) -> None:
    _, dense = exported(carried, carried.run_id(0), tmp_path)
    _, ticket = exported(carried, carried.run_id(1), tmp_path)
    for name in LAYERS:
        magnitude, mask = np.abs(dense[f"final.{name}"]), ticket[f"mask.{name}"]
        assert magnitude[mask].min() >= magnitude[~mask].max()


def test_one_shot_is_told_apart_from_level_2_on(tmp_path: Path) -> None:
    plan = small_plan({"schedule": "one_shot"}, network="fc-8")
    carry_out(plan, tmp_path / "store")
    told = []
    for run in plan.runs.values():
        runs.export(run.id, tmp_path / "out", tmp_path / "store")
        told.append(json.loads((tmp_path / "out" / "run.json").read_text())["schedule"])
    assert told == [None, "iterative", "one_shot"]


def test_export_again_replaces_its_two_files_and_no_other(carried: Carried, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    exported(carried, carried.run_id(0), tmp_path)
    facts, _ = exported(carried, carried.run_id(1), tmp_path)
    assert facts["level"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "run.json", "tensors.safetensors"]


def test_an_id_may_be_cut_short_and_in_capitals(carried: Carried, tmp_path: Path) -> None:
    run_id = carried.run_id(1)
    facts, _ = exported(carried, run_id[:12].upper(), tmp_path)
    assert facts["id"] == run_id


@pytest.mark.parametrize(
    ("prefix", "said"),
    [("zzzz", "no run in"), ("", "no run in"), ("../../etc", "no run in"), ("0123456789abcdef" * 2, "no run in")],
)
def test_an_unknown_run_is_refused(carried: Carried, tmp_path: Path, prefix: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        runs.export(prefix, tmp_path / "out", carried.store)
    assert not (tmp_path / "out").exists()


def test_an_ambiguous_beginning_names_what_it_may_mean(carried: Carried, tmp_path: Path) -> None:
    ids = sorted(carried.plan.runs)
    first = next(a[0] for a, b in pairwise(ids) if a[0] == b[0])
    meant = [run_id for run_id in ids if run_id.startswith(first)]
    with pytest.raises(UserError, match=f"{len(meant)} runs begin with '{first}': {meant[0]}, {meant[1]}"):
        runs.export(first, tmp_path, carried.store)


def test_a_file_where_the_folder_should_be_is_refused_and_left_alone(carried: Carried, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    for folder in (file, file / "below"):
        with pytest.raises(UserError, match="is not a folder"):
            runs.export(carried.run_id(1), folder, carried.store)
    assert file.read_text() == "mine"


def test_what_the_system_refuses_is_the_machines_fault(
    carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(carried, carried.run_id(0), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        whole(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SystemFailure, match="No space left on device"):
        runs.export(carried.run_id(1), tmp_path, carried.store)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_dropped_weights_and_diverged_runs_cannot_be_exported(tmp_path: Path) -> None:
    masks = carried_out(tmp_path, keep="masks")
    with pytest.raises(UserError, match=r"weights of run .* were dropped \(--keep\)"):
        runs.export(masks.run_id(2), tmp_path / "out", masks.store)
    diverging = small_plan(network="fc-8", lr=1e30)
    carry_out(diverging, tmp_path / "diverged")
    with pytest.raises(UserError, match="diverged at iteration"):
        runs.export(next(iter(diverging.runs)), tmp_path / "out", tmp_path / "diverged")
    assert not (tmp_path / "out").exists()


def test_damage_is_found_before_anything_is_written(tmp_path: Path) -> None:
    damaged = carried_out(tmp_path)
    run_id = damaged.run_id(1)
    weights = damaged.store / "runs" / run_id[:2] / run_id / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(SystemFailure, match="damaged"):
        runs.export(run_id, tmp_path / "out", damaged.store)
    assert not (tmp_path / "out").exists()
