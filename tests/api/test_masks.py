"""Specimens of stored runs and of ticket files, and the command that looks at them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import call, refused
from helpers.small_studies import carry_out, small_plan
from helpers.stored_study import Carried, carried_out
from safetensors.numpy import load_file
from torch import Tensor

from supermask import Ticket, analyze_masks, load_masks, pack_run, save_ticket
from supermask.analysis.masks import WeightArrays
from supermask.api import runs as api_runs
from supermask.api.masks import ANALYSES
from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError
from supermask.core.rng import random_stream
from supermask.core.types import Layer
from supermask.store import Store

LAYERS = {"fc1.weight": (8, 64), "fc2.weight": (10, 8)}


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    return carried_out(tmp_path_factory.mktemp("looking"))


@pytest.fixture(scope="module")
def masks_only(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """The same runs, their weights dropped."""
    return carried_out(tmp_path_factory.mktemp("dropped"), keep="masks")


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with nothing set."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)


def same(found: WeightArrays | None, exported: dict[str, Any], kind: str) -> bool:
    assert found is not None
    return all(np.array_equal(found[name], exported[f"{kind}.{name}"]) for name in LAYERS)


# --- of a store ---


def test_a_specimen_is_what_the_run_and_its_parent_export(carried: Carried, tmp_path: Path) -> None:
    parent, run = carried.run_id(1, mask0="freeze_init"), carried.run_id(2, mask0="freeze_init")
    (found,) = load_masks([run[:12]], carried.opened())
    own, before = (load_file(api_runs.export(run_id, tmp_path / run_id, carried.store)[1]) for run_id in (run, parent))
    assert same(found.masks, own, "mask")
    assert same(found.alive, before, "mask")
    assert same(found.w_i, before, "start")
    assert same(found.w_f, before, "final")
    assert same(found.initial_weights, own, "start")
    assert same(found.final_weights, own, "final")
    assert (found.network, found.dataset, found.image_shape) == ("fc-8", "digits", (1, 8, 8))
    assert (found.criterion, found.level, found.seed, found.name) == ("large_final", 2, 0, run)
    assert found.label == "large_final, level 2, seed 0"


def test_kept_and_pruned_are_what_the_criterion_says_of_what_a_specimen_holds(carried: Carried) -> None:
    """Every pruned weight that was alive scores no higher than every kept one, by the values of the specimen."""
    (found,) = load_masks([carried.run_id(2)], carried.opened())
    assert found.w_i is not None
    assert found.w_f is not None
    for name in LAYERS:
        w_i, w_f, alive, mask = map(
            torch.from_numpy, (found.w_i[name], found.w_f[name], found.alive[name], found.masks[name])
        )
        scores = CRITERIA["large_final"](Layer(1.0, w_i, w_f, alive, w_i), random_stream(0, "score"))
        assert bool((mask & ~alive).any()) is False
        assert scores[mask].min() >= scores[alive & ~mask].max()


def test_points_of_the_trajectory_are_those_that_the_step_reads(tmp_path: Path) -> None:
    plan = small_plan({"criterion": "movement", "w_init": 4, "w_final": 8}, levels=1)
    carry_out(plan, tmp_path / "store")
    dense, pruned = plan.runs
    store = Store(tmp_path / "store")
    (found,) = load_masks([pruned], store)
    assert found.w_i is not None
    assert found.w_f is not None
    for name, mask in found.masks.items():
        for values, point in ((found.w_i, "iteration_4"), (found.w_f, "iteration_8")):
            stored = store.read_snapshot(dense, point).tensors[f"kept/{name}"]
            assert np.array_equal(values[name].ravel(), stored)
        moved = np.abs(found.w_f[name] - found.w_i[name])
        assert moved[mask].min() >= moved[~mask].max()


def test_a_dense_run_has_its_own_start_and_end(carried: Carried) -> None:
    run = next(run.id for run in carried.plan.runs.values() if run.level == 0)
    (found,) = load_masks([run], carried.opened())
    assert all(mask.all() for mask in found.masks.values())
    assert (found.w_i, found.w_f) == (found.initial_weights, found.final_weights)
    assert found.criterion is None


def test_dropped_weights_are_unknown_and_masks_are_there(carried: Carried, masks_only: Carried) -> None:
    run = carried.run_id(2)
    (whole,), (found,) = (load_masks([run], study.opened()) for study in (carried, masks_only))
    assert found.w_f is None
    assert found.final_weights is None
    assert found.w_i is not None
    for name in LAYERS:
        assert np.array_equal(found.masks[name], whole.masks[name])
        assert np.array_equal(found.alive[name], whole.alive[name])
        assert whole.w_i is not None
        assert np.array_equal(found.w_i[name], whole.w_i[name])


def test_masks_alone_are_read_where_weights_are_not_asked_for(carried: Carried) -> None:
    (found,) = load_masks([carried.run_id(1)], carried.opened(), weights=False)
    assert found.w_i is found.w_f is found.initial_weights is found.final_weights is None
    assert found.masks["fc1.weight"].shape == LAYERS["fc1.weight"]


def test_one_named_twice_is_there_once(carried: Carried) -> None:
    run = carried.run_id(1)
    assert len(load_masks([run, run[:20]], carried.opened())) == 1


def test_what_is_neither_a_run_nor_a_file(carried: Carried) -> None:
    with pytest.raises(UserError, match=r"'ticket.safetensors' is neither a file nor"):
        load_masks(["ticket.safetensors"], carried.opened())
    with pytest.raises(UserError, match="no store was given"):
        load_masks(["abc"])
    with pytest.raises(UserError, match="0 masks to look at: give 1 to 64"):
        load_masks([], carried.opened())
    with pytest.raises(UserError, match="65 masks"):
        load_masks(["a"] * 65, carried.opened())


def test_a_run_that_is_no_result_is_said_to_be_none(carried: Carried, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Store.facts
    monkeypatch.setattr(Store, "facts", lambda store, run: {**true(store, run), "status": "certificate_failed"})
    status, _, err = call("masks", carried.run_id(1), "--store", carried.store, "--only", "density")
    assert status == 0
    assert "supermask: large_final, level 1, seed 0: its certificate does not hold" in err


# --- of ticket files ---


def mask_of(*shape: int, every: int = 2) -> Tensor:
    return torch.arange(int(np.prod(shape))).reshape(shape) % every == 0


def test_a_ticket_has_its_masks_its_seeds_network_and_its_own(carried: Carried, tmp_path: Path) -> None:
    run_id = carried.run_id(2)
    ticket = pack_run(Store(carried.store), run_id)
    save_ticket(ticket, tmp_path / "one.safetensors")
    of_run, of_file = load_masks([run_id, tmp_path / "one.safetensors"], Store(carried.store))
    assert (of_file.criterion, of_file.level, of_file.seed) == ("large_final", 2, 0)
    assert (of_file.image_shape, of_file.subject) == ((1, 8, 8), "fc-8 on digits")
    for name, mask in of_run.masks.items():
        assert np.array_equal(of_file.masks[name], mask)
        assert of_file.alive[name].all()
        assert of_file.final_weights is not None
        assert of_run.final_weights is not None
        assert np.array_equal(of_file.final_weights[name], of_run.final_weights[name])
        assert of_file.w_i is not None
        assert np.array_equal(of_file.w_i[name], ticket.initial_weights()[name].numpy())
    assert of_file.w_f is of_file.initial_weights is None


def test_a_ticket_that_says_nothing_or_too_much(tmp_path: Path) -> None:
    criterion = "\x1b[2J\u202eevil" * 2000
    hostile = {"run": {"criterion": criterion, "level": "7", "seed": True, "dataset": ["x"], "mask1": {}}}
    masks = {"a": mask_of(4, 6)}
    weights = {name: mask.float() for name, mask in masks.items()}
    for name, facts in (("plain", {}), ("odd", hostile)):
        save_ticket(Ticket(masks, weights, {}, facts=facts), tmp_path / f"{name}.safetensors")
    first, second = load_masks([tmp_path / "plain.safetensors", tmp_path / "odd.safetensors"])
    assert (first.label, first.subject, first.image_shape) == ("dense", "a network without a name", None)
    assert first.w_i is None
    assert second.label.isprintable()
    assert len(second.label) < 120
    assert (second.level, second.seed, second.image_shape) == (None, None, None)


def test_a_run_and_a_ticket_of_another_network_are_not_laid_over_each_other(carried: Carried, tmp_path: Path) -> None:
    masks = {"fc1.weight": mask_of(2, 64), "fc2.weight": mask_of(10, 2)}
    ticket = Ticket(masks, network="fc-2", dataset="digits", seed=0)
    save_ticket(ticket, tmp_path / "other.safetensors")
    names = (carried.run_id(1), tmp_path / "other.safetensors")
    said = refused(call("masks", *names, "--store", carried.store))
    assert "fc-8 on digits" in said
    assert "--only density,plane,distribution,pixels" in said
    status, out, err = call("masks", *names, "--store", carried.store, "--only", "density,plane,pixels")
    assert status == 0
    assert "fc-8 on digits, fc-2" in out
    assert "not in planes and distributions" in err


def test_a_learned_mask_is_looked_at_as_a_run_and_as_a_ticket(tmp_path: Path) -> None:
    store = tmp_path / "masks"
    learn = {"lr": 20, "batch_size": 30, "epochs": 1, "evaluate_every": 20, "samples": 2, "hardened_at": []}
    plan = small_plan({"supermask": {"rescaled": True}}, network="fc-8", learn=learn)
    carry_out(plan, store)
    run_id = next(run.id for run in plan.runs.values() if run.learning is not None)
    save_ticket(pack_run(Store(store), run_id), tmp_path / "learned.safetensors")
    of_run, of_file = load_masks([run_id, tmp_path / "learned.safetensors"], Store(store))
    assert of_run.criterion == of_file.criterion == "supermask"
    for name, mask in of_run.masks.items():
        assert 0 < mask.sum() < mask.size
        assert np.array_equal(of_file.masks[name], mask)
        assert of_run.alive[name].all()
    status, out, err = call("masks", run_id, tmp_path / "learned.safetensors", "--store", store)
    assert (status, err) == (0, "") or "not in" in err
    assert "supermask" in out


# --- the command ---


def test_several_runs_have_a_table_pairs_and_every_figure(carried: Carried, tmp_path: Path) -> None:
    runs = [carried.run_id(level, criterion) for criterion in ("large_final", "random") for level in (1, 2)]
    status, out, err = call("masks", *runs, "--store", carried.store, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "fc-8 on digits, seed 0"
    kept = {1: 256 + 56, 2: 128 + 39}
    assert lines[4].split()[:6] == ["large_final,", "level", "1", str(kept[1]), f"{kept[1] / 592:.2%}", "fc2"]
    assert "overlap of 6 pairs against chance: " in out
    assert len([line for line in lines if "above, nested" in line]) == 2
    stems = {path.stem for path in (tmp_path / "out").iterdir()}
    figures = ["overlap", "overlap-layers", "density", "pixels"]
    figures += [f"{kind}-fc{layer}" for kind in ("plane", "distribution") for layer in (1, 2)]
    assert stems == {f"masks-{name}" for name in [*figures, "layers"]}
    assert all(path.stat().st_size for path in (tmp_path / "out").iterdir())
    for name in figures:
        assert f"{tmp_path / 'out' / f'masks-{name}'}.{{pdf,svg,png,csv}}" in lines
    rows = list(csv.DictReader((tmp_path / "out" / "masks-layers.csv").read_text().splitlines()))
    assert [(row["layer"], row["kept"]) for row in rows[:3]] == [("fc1", "256"), ("fc2", "56"), ("all layers", "312")]
    assert {row["units"] for row in rows} == {"8", "10", ""}


def test_one_run_has_no_overlap_and_a_panel_a_layer(carried: Carried, tmp_path: Path) -> None:
    looked = analyze_masks([carried.run_id(1)], carried.store, tmp_path / "out")
    assert [paths[0].stem for _, paths in looked.saved] == [
        f"masks-{name}" for name in ("density", "plane", "distribution", "pixels")
    ]
    assert "overlap" not in looked.text
    assert looked.notes == []
    by_layer = {row["panel"] for row in looked.saved[1][0].data_rows}
    assert by_layer == {"fc1", "fc2"}


def test_hexagons_and_bins_count_every_weight(carried: Carried, tmp_path: Path) -> None:
    """All alive weights but those that the captions say lie outside."""
    runs = [carried.run_id(2, criterion) for criterion in ("large_final", "random")]
    looked = analyze_masks(runs, carried.store, tmp_path, only="distribution,plane")
    planes, others = looked.saved[:2], looked.saved[2:]
    alive = {"fc1": 256, "fc2": 56}
    for (plane, paths), (distribution, _) in zip(planes, others, strict=True):
        layer = paths[0].stem.rpartition("-")[2]
        drawn = sum(int(row["kept"] or 0) + int(row["pruned"] or 0) for row in plane.data_rows)
        assert f"{2 * alive[layer] - drawn:,} of {2 * alive[layer]:,} points" in plane.caption
        counted = sum(int(row["alive"] or 0) for row in distribution.data_rows)
        assert f"{4 * alive[layer] - counted:,} of {4 * alive[layer]:,} values" in distribution.caption
        assert drawn > 0.97 * 2 * alive[layer]


def test_masks_whose_weights_were_dropped_can_be_looked_at(masks_only: Carried, tmp_path: Path) -> None:
    runs = [masks_only.run_id(1, criterion) for criterion in ("large_final", "random")]
    status, out, err = call("masks", *runs, "--store", masks_only.store, "--out", tmp_path / "out")
    assert status == 0
    assert "weights dropped by --keep" in err
    assert not list((tmp_path / "out").glob("masks-plane*"))
    assert (tmp_path / "out" / "masks-overlap.png").exists()
    assert " - " in out.splitlines()[4]


def test_a_chain_is_drawn_over_its_levels_from_the_dense_network_on(carried: Carried, tmp_path: Path) -> None:
    dense = next(run.id for run in carried.plan.runs.values() if run.level == 0 and run.seed == 0)
    runs = [dense, *(carried.run_id(level, criterion) for criterion in ("large_final", "random") for level in (2, 1))]
    (drawn, _), *_ = analyze_masks(runs, carried.store, tmp_path, only="density").saved
    assert [(row["specimen"], row["kept"]) for row in drawn.data_rows if row["layer"] == "fc1"] == [
        (f"{criterion}, level {level}", kept)
        for criterion in ("large_final", "random")
        for level, kept in ((0, 512), (1, 256), (2, 128))
    ]
    assert "stands for 2 chains with the same densities" in drawn.caption
    assert len(drawn.figure.axes) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'RUN_OR_FILE...'"),
        (["--only", "plans"], "Missing argument"),
        (["zz"], "'zz' is neither a file nor the beginning of a run's id."),
        (["abc"], "there is no store at"),
        (["abc", "--only", "plain"], "'plain' is nothing that can be drawn; did you mean 'plane'?"),
        (["abc", "--only", ""], "'' is nothing that can be drawn. Allowed: overlap, density"),
    ],
)
def test_what_cannot_be_used_is_one_message(
    arguments: list[str], said: str, carried: Carried, monkeypatch: pytest.MonkeyPatch
) -> None:
    if arguments[:1] == ["zz"]:
        monkeypatch.setenv("SUPERMASK_STORE", str(carried.store))
    assert said in refused(call("masks", *arguments))


def test_a_file_for_a_folder(carried: Carried, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    store = ("--store", carried.store, "--only", "density")
    assert "is not a folder" in refused(call("masks", carried.run_id(1), "--out", tmp_path / "file", *store))


def test_the_help_names_every_analysis() -> None:
    out = "".join(call("masks", "--help")[1].replace("│", "").split())
    assert ",".join(ANALYSES) in out
