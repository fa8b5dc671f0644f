"""Exported run folders, read with json, safetensors and NumPy only."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.golden_store import GOLDEN, golden_entries
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import TrainedStudy, train_study
from numpy.typing import NDArray
from safetensors.numpy import load_file

from supermask.api import runs
from supermask.core.errors import SystemFailure, UserError
from supermask.core.files import write_atomic

LAYERS = {"fc1.weight": (8, 64), "fc2.weight": (10, 8)}
KEYS = {"id", "parent", "network", "dataset", "criterion", "mask1", "mask0", "schedule", "level", "seed"}
KEYS |= {"prune_rates", "metrics", "certificate", "environment", "status", "tensor_prune_rates", "scope", "w_init"}
KEYS |= {"w_final", "rewind_to", "rescaled", "initializer"}


@pytest.fixture(scope="module")
def stored_study(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("export"))


def export_and_read(
    stored_study: TrainedStudy, run_id: str, folder: Path
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    assert runs.export(run_id, folder, stored_study.store) == [folder / "run.json", folder / "tensors.safetensors"]
    return json.loads((folder / "run.json").read_text()), load_file(folder / "tensors.safetensors")


def test_run_json_has_the_documented_keys(stored_study: TrainedStudy, tmp_path: Path) -> None:
    run_id = stored_study.run_id(2, "random", "freeze_init", seed=1)
    facts, _ = export_and_read(stored_study, run_id, tmp_path)
    assert facts.keys() >= KEYS
    expected = {
        "id": run_id,
        "parent": stored_study.run_id(1, "random", "freeze_init", seed=1),
        "network": "fc-8",
        "dataset": "digits",
        "criterion": "random",
        "mask1": "rewind",
        "mask0": "freeze_init",
        "schedule": "iterative",
        "level": 2,
        "seed": 1,
        "prune_rates": {"hidden": 0.5, "output": 0.3},
        "tensor_prune_rates": {"fc1.weight": 0.5, "fc2.weight": 0.3},
        "scope": "layer",
        "w_init": "start",
        "w_final": "end",
        "rewind_to": "start",
        "rescaled": False,
        "initializer": "glorot_normal",
        "status": "finished",
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["certificate"]["held"] is True
    assert facts["environment"]["fingerprint"]
    assert 0 <= facts["metrics"]["early_stop_test_accuracy"] <= 1


def test_dense_run_has_no_step(stored_study: TrainedStudy, tmp_path: Path) -> None:
    facts, tensors = export_and_read(stored_study, stored_study.run_id(0), tmp_path)
    assert [facts[key] for key in ("parent", "criterion", "mask1", "mask0", "schedule")] == [None] * 5
    assert facts["prune_rates"] == {}
    assert all(tensors[f"mask.{name}"].all() for name in LAYERS)


def test_every_prunable_tensor_has_start_final_and_mask(stored_study: TrainedStudy, tmp_path: Path) -> None:
    _, tensors = export_and_read(stored_study, stored_study.run_id(1), tmp_path)
    for name, shape in LAYERS.items():
        for kind, dtype in (("start", np.float32), ("final", np.float32), ("mask", np.bool_)):
            tensor = tensors.pop(f"{kind}.{name}")
            assert tensor.shape == shape
            assert tensor.dtype == dtype
    assert sorted(tensors) == [
        f"other_{kind}.{bias}" for kind in ("final", "start") for bias in ("fc1.bias", "fc2.bias")
    ]


def test_masks_have_the_exact_counts(stored_study: TrainedStudy, tmp_path: Path) -> None:
    for level, counts in ((1, {"fc1.weight": 256, "fc2.weight": 56}), (2, {"fc1.weight": 128, "fc2.weight": 39})):
        _, tensors = export_and_read(stored_study, stored_study.run_id(level), tmp_path)
        assert {name: int(tensors[f"mask.{name}"].sum()) for name in LAYERS} == counts


def test_rewound_ticket_starts_from_the_dense_start_times_its_mask(stored_study: TrainedStudy, tmp_path: Path) -> None:
    _, dense = export_and_read(stored_study, stored_study.run_id(0), tmp_path)
    for level in (1, 2):
        _, ticket = export_and_read(stored_study, stored_study.run_id(level), tmp_path)
        for name in LAYERS:
            start, mask = dense[f"start.{name}"], ticket[f"mask.{name}"]
            assert np.array_equal(ticket[f"start.{name}"], np.where(mask, start, np.float32(0)))
            assert np.array_equal(ticket[f"final.{name}"][~mask], np.zeros((~mask).sum(), np.float32))
            assert (ticket[f"final.{name}"][mask] != ticket[f"start.{name}"][mask]).any()


def test_frozen_values_are_exported(stored_study: TrainedStudy, tmp_path: Path) -> None:
    _, dense = export_and_read(stored_study, stored_study.run_id(0), tmp_path)
    _, ticket = export_and_read(stored_study, stored_study.run_id(2, mask0="freeze_init"), tmp_path)
    for name in LAYERS:
        mask = ticket[f"mask.{name}"]
        assert np.array_equal(ticket[f"start.{name}"], dense[f"start.{name}"])
        assert np.array_equal(ticket[f"final.{name}"][~mask], dense[f"start.{name}"][~mask])


def test_mask_keeps_the_largest_final_weights(stored_study: TrainedStudy, tmp_path: Path) -> None:
    _, dense = export_and_read(stored_study, stored_study.run_id(0), tmp_path)
    _, ticket = export_and_read(stored_study, stored_study.run_id(1), tmp_path)
    for name in LAYERS:
        magnitude, mask = np.abs(dense[f"final.{name}"]), ticket[f"mask.{name}"]
        assert magnitude[mask].min() >= magnitude[~mask].max()


@pytest.mark.slow
def test_every_kind_of_run_is_exported(tmp_path: Path) -> None:
    """Of an untrained network and of a learned mask, start and end share tensors."""
    for name, (kind, key, _, entry) in golden_entries(GOLDEN).items():
        if kind == "run" and name.startswith("finished"):
            folder = tmp_path / name
            runs.export(key, folder, GOLDEN)
            tensors = load_file(folder / "tensors.safetensors")
            assert {f"mask.{layer}" for layer in LAYERS} <= tensors.keys()
            assert json.loads((folder / "run.json").read_text())["metrics"] == entry.facts["metrics"]


def test_a_stopped_export_leaves_no_record_of_other_tensors(
    stored_study: TrainedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_and_read(stored_study, stored_study.run_id(0), tmp_path)

    def stop(path: Path, content: bytes, **options: Any) -> bool:
        if path.name == "run.json":
            raise KeyboardInterrupt
        return write_atomic(path, content, **options)

    monkeypatch.setattr("supermask.export.run_folder.write_atomic", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.export(stored_study.run_id(1), tmp_path, stored_study.store)
    assert [path.name for path in tmp_path.iterdir()] == ["tensors.safetensors"]


def test_schedule_is_one_shot_from_level_2_on(tmp_path: Path) -> None:
    plan = small_plan({"schedule": "one_shot"}, network="fc-8")
    train_plan(plan, tmp_path / "store")
    schedules = []
    for run in plan.runs.values():
        runs.export(run.id, tmp_path / "out", tmp_path / "store")
        schedules.append(json.loads((tmp_path / "out" / "run.json").read_text())["schedule"])
    assert schedules == [None, "iterative", "one_shot"]


def test_second_export_replaces_its_two_files_only(stored_study: TrainedStudy, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    export_and_read(stored_study, stored_study.run_id(0), tmp_path)
    facts, _ = export_and_read(stored_study, stored_study.run_id(1), tmp_path)
    assert facts["level"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "run.json", "tensors.safetensors"]


def test_id_may_be_a_prefix_in_upper_case(stored_study: TrainedStudy, tmp_path: Path) -> None:
    run_id = stored_study.run_id(1)
    facts, _ = export_and_read(stored_study, run_id[:12].upper(), tmp_path)
    assert facts["id"] == run_id


@pytest.mark.parametrize(
    ("prefix", "message"),
    [("zzzz", "no run in"), ("", "no run in"), ("../../etc", "no run in"), ("0123456789abcdef" * 2, "no run in")],
)
def test_unknown_run_is_refused(stored_study: TrainedStudy, tmp_path: Path, prefix: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        runs.export(prefix, tmp_path / "out", stored_study.store)
    assert not (tmp_path / "out").exists()


def test_ambiguous_prefix_lists_the_matching_runs(stored_study: TrainedStudy, tmp_path: Path) -> None:
    ids = sorted(stored_study.plan.runs)
    first = next(a[0] for a, b in pairwise(ids) if a[0] == b[0])
    meant = [run_id for run_id in ids if run_id.startswith(first)]
    with pytest.raises(UserError, match=f"{len(meant)} runs begin with '{first}': {meant[0]}, {meant[1]}"):
        runs.export(first, tmp_path, stored_study.store)


def test_file_in_place_of_the_folder_is_refused_and_kept(stored_study: TrainedStudy, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    for folder in (file, file / "below"):
        with pytest.raises(UserError, match="is not a folder"):
            runs.export(stored_study.run_id(1), folder, stored_study.store)
    assert file.read_text() == "mine"


def test_full_disk_is_a_system_failure_and_keeps_the_files(
    stored_study: TrainedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_and_read(stored_study, stored_study.run_id(0), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    open_file = Path.open

    def open_on_full_disk(path: Path, mode: str = "r") -> Any:
        file = open_file(path, mode)
        if "x" in mode:
            write = file.write

            def write_half(data: bytes) -> int:
                write(data[: len(data) // 2])
                raise OSError(28, "No space left on device")

            file.write = write_half  # type: ignore[method-assign]
        return file

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(SystemFailure, match="No space left on device"):
        runs.export(stored_study.run_id(1), tmp_path, stored_study.store)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_dropped_weights_and_diverged_runs_cannot_be_exported(tmp_path: Path) -> None:
    masks = train_study(tmp_path, keep="masks")
    with pytest.raises(UserError, match=r"weights of run .* were dropped \(--keep\)"):
        runs.export(masks.run_id(2), tmp_path / "out", masks.store)
    diverging = small_plan(network="fc-8", lr=1e30)
    train_plan(diverging, tmp_path / "diverged")
    with pytest.raises(UserError, match="diverged at iteration"):
        runs.export(next(iter(diverging.runs)), tmp_path / "out", tmp_path / "diverged")
    assert not (tmp_path / "out").exists()


def test_damage_is_detected_before_anything_is_written(tmp_path: Path) -> None:
    damaged = train_study(tmp_path)
    run_id = damaged.run_id(1)
    weights = damaged.store / "runs" / run_id[:2] / run_id / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(SystemFailure, match="damaged"):
        runs.export(run_id, tmp_path / "out", damaged.store)
    assert not (tmp_path / "out").exists()


def test_points_rescaling_and_global_rates_are_in_run_json(tmp_path: Path) -> None:
    treatment = {"rewind_to": 3, "w_final": "lowest_validation_loss", "rescaled": True, "scope": "global"}
    plan = small_plan(treatment, levels=1)
    train_plan(plan, tmp_path / "store")
    run = next(run for run in plan.runs.values() if run.level)
    runs.export(run.id, tmp_path / "out", tmp_path / "store")
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {key: facts[key] for key in treatment} == treatment
    assert facts["tensor_prune_rates"] == {"fc1.weight": 0.5, "fc2.weight": 0.5}
    dense = next(run for run in plan.runs.values() if not run.level)
    runs.export(dense.id, tmp_path / "dense", tmp_path / "store")
    facts = json.loads((tmp_path / "dense" / "run.json").read_text())
    assert (facts["scope"], facts["rewind_to"], facts["tensor_prune_rates"]) == (None, None, {})
    assert facts["initializer"] == "glorot_normal"


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("spared", [{"exclude": ["fc1"]}, {"only": ["fc2"]}])
def test_the_prune_rate_of_a_spared_tensor_is_0(spared: dict[str, Any], scope: str, tmp_path: Path) -> None:
    treatment = {"criterion": "random", "scope": scope}
    rates = {"hidden": 0.5, "output": 0.3, "global": 0.3}
    plan = small_plan(treatment, levels=1, rates=rates, **spared)
    train_plan(plan, tmp_path / "store")
    run = next(run for run in plan.runs.values() if run.level)
    runs.export(run.id, tmp_path / "out", tmp_path / "store")
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["tensor_prune_rates"] == {"fc1.weight": 0.0, "fc2.weight": 0.3}
    assert facts["kept"] == {"fc1.weight": 1280, "fc2.weight": 140}
