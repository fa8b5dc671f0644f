"""Masks loaded from stored runs and ticket files, and the command `masks`."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import call, refused
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import TrainedStudy, train_study
from matplotlib.figure import Figure
from safetensors.numpy import load_file
from torch import Tensor

from supermask import Ticket, analyze_masks, load_masks, pack_run, save_ticket
from supermask.analysis.masks import WeightArrays
from supermask.api import masks as api_masks
from supermask.api import runs as api_runs
from supermask.api.masks import ANALYSES
from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError
from supermask.core.rng import random_stream
from supermask.core.types import Layer
from supermask.reporting.figures import RenderedFigure, save_figure
from supermask.store import Store

LAYERS = {"fc1.weight": (8, 64), "fc2.weight": (10, 8)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("looking"))


@pytest.fixture(scope="module")
def masks_only(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    """The same runs without weights."""
    return train_study(tmp_path_factory.mktemp("dropped"), keep="masks")


@pytest.fixture(autouse=True)
def one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures as SVG alone: embedding a PDF's fonts takes half a second. One test asks for all formats."""
    monkeypatch.setattr(api_masks, "save_figure", partial(save_figure, formats=["svg"]))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder, without environment variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)


def same(arrays: WeightArrays | None, exported: dict[str, Any], kind: str) -> bool:
    assert arrays is not None
    return all(np.array_equal(arrays[name], exported[f"{kind}.{name}"]) for name in LAYERS)


# --- runs of a store ---


def test_mask_of_a_run_has_the_exported_arrays_run_mask_and_parent(trained: TrainedStudy, tmp_path: Path) -> None:
    parent, run = trained.run_id(1, mask0="freeze_init"), trained.run_id(2, mask0="freeze_init")
    (mask,) = load_masks([run[:12]], trained.open_store())
    exported, parent_exported = (
        load_file(api_runs.export(run_id, tmp_path / run_id, trained.store)[1]) for run_id in (run, parent)
    )
    assert same(mask.masks, exported, "mask")
    assert same(mask.alive, parent_exported, "mask")
    assert same(mask.w_i, parent_exported, "start")
    assert same(mask.w_f, parent_exported, "final")
    assert same(mask.initial_weights, exported, "start")
    assert same(mask.final_weights, exported, "final")
    assert (mask.network, mask.dataset, mask.image_shape) == ("fc-8", "digits", (1, 8, 8))
    assert (mask.criterion, mask.level, mask.seed, mask.name) == ("large_final", 2, 0, run)
    assert mask.label == "large_final, level 2, seed 0"


def test_criterion_on_the_loaded_weights_gives_the_mask(trained: TrainedStudy) -> None:
    """No pruned weight that was alive scores higher than a kept one."""
    (mask,) = load_masks([trained.run_id(2)], trained.open_store())
    assert mask.w_i is not None
    assert mask.w_f is not None
    for name in LAYERS:
        w_i, w_f, alive, kept = map(
            torch.from_numpy, (mask.w_i[name], mask.w_f[name], mask.alive[name], mask.masks[name])
        )
        scores = CRITERIA["large_final"](Layer(1.0, w_i, w_f, alive, w_i), random_stream(0, "score"))
        assert bool((kept & ~alive).any()) is False
        assert scores[kept].min() >= scores[alive & ~kept].max()


def test_w_i_and_w_f_are_the_snapshots_that_the_step_reads(tmp_path: Path) -> None:
    plan = small_plan({"criterion": "movement", "w_init": 4, "w_final": 8}, levels=1)
    train_plan(plan, tmp_path / "store")
    dense, pruned = plan.runs
    store = Store(tmp_path / "store")
    (mask,) = load_masks([pruned], store)
    assert mask.w_i is not None
    assert mask.w_f is not None
    for name, kept in mask.masks.items():
        for values, point in ((mask.w_i, "iteration_4"), (mask.w_f, "iteration_8")):
            stored = store.read_snapshot(dense, point).tensors[f"kept/{name}"]
            assert np.array_equal(values[name].ravel(), stored)
        moved = np.abs(mask.w_f[name] - mask.w_i[name])
        assert moved[kept].min() >= moved[~kept].max()


def test_dense_run_has_its_own_start_and_end(trained: TrainedStudy) -> None:
    run = next(run.id for run in trained.plan.runs.values() if run.level == 0)
    (mask,) = load_masks([run], trained.open_store())
    assert all(kept.all() for kept in mask.masks.values())
    assert (mask.w_i, mask.w_f) == (mask.initial_weights, mask.final_weights)
    assert mask.criterion is None


@pytest.mark.slow
def test_dropped_weights_are_none(trained: TrainedStudy, masks_only: TrainedStudy) -> None:
    run = trained.run_id(2)
    (whole,), (mask,) = (load_masks([run], study.open_store()) for study in (trained, masks_only))
    assert mask.w_f is None
    assert mask.final_weights is None
    assert mask.w_i is not None
    for name in LAYERS:
        assert np.array_equal(mask.masks[name], whole.masks[name])
        assert np.array_equal(mask.alive[name], whole.alive[name])
        assert whole.w_i is not None
        assert np.array_equal(mask.w_i[name], whole.w_i[name])


def test_without_weights_only_masks_are_read(trained: TrainedStudy) -> None:
    (mask,) = load_masks([trained.run_id(1)], trained.open_store(), weights=False)
    assert mask.w_i is mask.w_f is mask.initial_weights is mask.final_weights is None
    assert mask.masks["fc1.weight"].shape == LAYERS["fc1.weight"]


def test_duplicates_are_loaded_once(trained: TrainedStudy) -> None:
    run = trained.run_id(1)
    assert len(load_masks([run, run[:20]], trained.open_store())) == 1


@pytest.mark.slow
def test_one_name_and_the_folder_of_a_store(trained: TrainedStudy, tmp_path: Path) -> None:
    run = trained.run_id(1)
    expected = load_masks([run], trained.open_store())[0]
    for store in (trained.store, str(trained.store)):
        (loaded,) = load_masks(run, store)
        assert loaded.name == expected.name
        assert all(np.array_equal(loaded.masks[name], mask) for name, mask in expected.masks.items())
    assert [info.name for info in analyze_masks(run, trained.store, tmp_path).masks] == [expected.name]
    with pytest.raises(UserError, match="there is no store at"):
        load_masks(run, tmp_path / "none")


def test_unknown_names_are_refused(trained: TrainedStudy) -> None:
    with pytest.raises(UserError, match=r"'ticket.safetensors' is neither a file nor"):
        load_masks(["ticket.safetensors"], trained.open_store())
    with pytest.raises(UserError, match="no store was given"):
        load_masks(["abc"])
    with pytest.raises(UserError, match="0 masks were given: give 1 to 64"):
        load_masks([], trained.open_store())
    with pytest.raises(UserError, match="65 masks"):
        load_masks(["a"] * 65, trained.open_store())


def test_failed_certificate_is_a_warning(trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Store.facts
    monkeypatch.setattr(Store, "facts", lambda store, run: {**true(store, run), "status": "certificate_failed"})
    status, _, err = call("masks", trained.run_id(1), "--store", trained.store, "--only", "density")
    assert status == 0
    assert "supermask: large_final, level 1, seed 0: its certificate failed" in err


# --- ticket files ---


def mask_of(*shape: int, every: int = 2) -> Tensor:
    return torch.arange(int(np.prod(shape))).reshape(shape) % every == 0


def test_ticket_has_masks_initial_network_and_stored_weights(trained: TrainedStudy, tmp_path: Path) -> None:
    run_id = trained.run_id(2)
    ticket = pack_run(Store(trained.store), run_id)
    save_ticket(ticket, tmp_path / "one.safetensors")
    run_mask, ticket_mask = load_masks([run_id, tmp_path / "one.safetensors"], Store(trained.store))
    assert (ticket_mask.criterion, ticket_mask.level, ticket_mask.seed) == ("large_final", 2, 0)
    assert (ticket_mask.image_shape, ticket_mask.subject) == ((1, 8, 8), "fc-8 on digits")
    for name, mask in run_mask.masks.items():
        assert np.array_equal(ticket_mask.masks[name], mask)
        assert ticket_mask.alive[name].all()
        assert ticket_mask.final_weights is not None
        assert run_mask.final_weights is not None
        assert np.array_equal(ticket_mask.final_weights[name], run_mask.final_weights[name])
        assert ticket_mask.w_i is not None
        assert np.array_equal(ticket_mask.w_i[name], ticket.initial_weights()[name].numpy())
    assert ticket_mask.w_f is ticket_mask.initial_weights is None


def test_tickets_with_missing_or_hostile_facts(tmp_path: Path) -> None:
    criterion = "\x1b[2J\u202eevil" * 2000
    hostile = {"run": {"criterion": criterion, "level": "7", "seed": True, "dataset": ["x"], "mask1": {}}}
    masks = {"a": mask_of(4, 6)}
    weights = {name: mask.float() for name, mask in masks.items()}
    for name, facts in (("plain", {}), ("odd", hostile)):
        save_ticket(Ticket(masks, weights, {}, facts=facts), tmp_path / f"{name}.safetensors")
    first, second = load_masks([tmp_path / "plain.safetensors", tmp_path / "odd.safetensors"])
    assert (first.label, first.subject, first.image_shape) == ("plain", "a network without a name", None)
    assert first.w_i is None
    assert second.label.isprintable()
    assert len(second.label) < 120
    assert (second.level, second.seed, second.image_shape) == (None, None, None)


def test_ticket_of_a_foreign_network_has_its_own_name_and_true_reasons(tmp_path: Path) -> None:
    """The first layer reads pixels, but of how many channels and rows the ticket does not say."""
    masks = {"body.0.weight": mask_of(4, 6), "body.2.weight": mask_of(2, 4)}
    weights = {name: mask.float() for name, mask in masks.items()}
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "lenet-pruned.safetensors", tmp_path / "folder" / "lenet-pruned.safetensors"]
    for path in paths:
        save_ticket(Ticket(masks, weights, {}), path)
    conv = {"c.weight": mask_of(4, 3, 2, 2)}
    save_ticket(Ticket(conv, {"c.weight": conv["c.weight"].float()}, {}), tmp_path / "conv.safetensors")
    assert [mask.label for mask in load_masks([*paths[:1], tmp_path / "conv.safetensors"])] == ["lenet-pruned", "conv"]
    # Equal names of files in two folders are told apart by their paths, of which the end is kept.
    labels = [mask.label for mask in load_masks(paths)]
    assert labels == [str(path)[-100:].removesuffix(".safetensors") for path in paths]
    ended = call("masks", paths[0], tmp_path / "conv.safetensors", "--only", "plane,pixels", "--out", tmp_path / "out")
    assert ended.status == 0
    assert ended.err.splitlines() == [
        "supermask: not in planes and distributions, because a ticket does not hold the weights that a criterion saw: "
        "lenet-pruned; conv",
        "supermask: no pixel map, because the shape of the network's images is not known: lenet-pruned",
        "supermask: no pixel map, because the first layer has no weights per pixel: conv",
    ]
    assert "mask," not in ended.out


@pytest.mark.slow
def test_masks_of_different_networks_are_not_compared(trained: TrainedStudy, tmp_path: Path) -> None:
    masks = {"fc1.weight": mask_of(2, 64), "fc2.weight": mask_of(10, 2)}
    ticket = Ticket(masks, network="fc-2", dataset="digits", seed=0)
    save_ticket(ticket, tmp_path / "other.safetensors")
    names = (trained.run_id(1), tmp_path / "other.safetensors")
    message = refused(call("masks", *names, "--store", trained.store))
    assert "fc-8 on digits" in message
    assert "--only density,plane,distribution,pixels" in message
    status, out, err = call("masks", *names, "--store", trained.store, "--only", "density,plane,pixels")
    assert status == 0
    assert "fc-8 on digits, fc-2" in out
    assert "not in planes and distributions" in err


@pytest.mark.slow
def test_learned_mask_as_run_and_as_ticket(tmp_path: Path) -> None:
    store = tmp_path / "masks"
    learn = {"lr": 20, "batch_size": 30, "epochs": 1, "evaluate_every": 20, "samples": 2, "hardened_at": []}
    plan = small_plan({"supermask": {"rescaled": True}}, network="fc-8", learn=learn)
    train_plan(plan, store)
    run_id = next(run.id for run in plan.runs.values() if run.learning is not None)
    save_ticket(pack_run(Store(store), run_id), tmp_path / "learned.safetensors")
    run_mask, ticket_mask = load_masks([run_id, tmp_path / "learned.safetensors"], Store(store))
    assert run_mask.criterion == ticket_mask.criterion == "supermask"
    for name, mask in run_mask.masks.items():
        assert 0 < mask.sum() < mask.size
        assert np.array_equal(ticket_mask.masks[name], mask)
        assert run_mask.alive[name].all()
    status, out, err = call("masks", run_id, tmp_path / "learned.safetensors", "--store", store)
    assert (status, err) == (0, "") or "not in" in err
    assert "supermask" in out


# --- the command ---


@pytest.mark.slow
def test_several_runs_have_table_pairs_and_every_figure(
    trained: TrainedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_masks, "save_figure", save_figure)
    runs = [trained.run_id(level, criterion) for criterion in ("large_final", "random") for level in (1, 2)]
    status, out, err = call("masks", *runs, "--store", trained.store, "--out", tmp_path / "out")
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
        assert f"{tmp_path / 'out' / f'masks-{name}'}.{{pdf,svg,png,csv,txt}}" in lines
    rows = list(csv.DictReader((tmp_path / "out" / "masks-layers.csv").read_text().splitlines()))
    assert [(row["layer"], row["kept"]) for row in rows[:3]] == [("fc1", "256"), ("fc2", "56"), ("all layers", "312")]
    assert {row["units"] for row in rows} == {"8", "10", ""}


def test_figures_of_layers_with_alike_names_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "encoder.layers.{}.self_attention.query_projection.inner.weight"
    layers = ["block.a.weight", "block_a.weight", long.format(0), long.format(1)]
    masks = {name: torch.ones(2, 2, dtype=torch.bool) for name in layers}
    weights = {name: torch.ones(2, 2) for name in layers}
    save_ticket(Ticket(masks=masks, weights=weights, others={}), tmp_path / "t.safetensors")
    drawn = RenderedFigure(Figure(), "caption", [{"x": 1}])
    names = [f"plane-{name.removesuffix('.weight')}" for name in layers]
    monkeypatch.setitem(ANALYSES, "plane", lambda _masks, _pairs: ((name, drawn) for name in names))
    analysis = analyze_masks([tmp_path / "t.safetensors"], out=tmp_path / "out", only="plane")
    stems = [paths[0].stem for _, paths in analysis.saved]
    assert len(set(stems)) == len(layers)
    assert stems[:2] == ["masks-plane-block-a", "masks-plane-block-a-2"]
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {*stems, "masks-layers"}


@pytest.mark.slow
def test_one_run_has_no_overlap_and_one_panel_per_layer(trained: TrainedStudy, tmp_path: Path) -> None:
    analysis = analyze_masks([trained.run_id(1)], trained.store, tmp_path / "out")
    assert [paths[0].stem for _, paths in analysis.saved] == [
        f"masks-{name}" for name in ("density", "plane", "distribution", "pixels")
    ]
    assert "overlap" not in analysis.text
    assert analysis.notes == []
    by_layer = {row["panel"] for row in analysis.saved[1][0].data_rows}
    assert by_layer == {"fc1", "fc2"}


@pytest.mark.slow
def test_hexagons_and_bins_count_every_weight(trained: TrainedStudy, tmp_path: Path) -> None:
    """All alive weights except those that the captions count as outside."""
    runs = [trained.run_id(2, criterion) for criterion in ("large_final", "random")]
    analysis = analyze_masks(runs, trained.store, tmp_path, only="distribution,plane")
    planes, others = analysis.saved[:2], analysis.saved[2:]
    alive = {"fc1": 256, "fc2": 56}
    for (plane, paths), (distribution, _) in zip(planes, others, strict=True):
        layer = paths[0].stem.rpartition("-")[2]
        drawn = sum(int(row["kept"] or 0) + int(row["pruned"] or 0) for row in plane.data_rows)
        assert f"{2 * alive[layer] - drawn:,} of {2 * alive[layer]:,} points" in plane.caption
        counted = sum(int(row["alive"] or 0) for row in distribution.data_rows)
        assert f"{4 * alive[layer] - counted:,} of {4 * alive[layer]:,} values" in distribution.caption
        assert drawn > 0.97 * 2 * alive[layer]


@pytest.mark.slow
def test_masks_without_weights_can_be_analyzed(masks_only: TrainedStudy, tmp_path: Path) -> None:
    runs = [masks_only.run_id(1, criterion) for criterion in ("large_final", "random")]
    status, out, err = call("masks", *runs, "--store", masks_only.store, "--out", tmp_path / "out")
    assert status == 0
    assert "the store has dropped the weights that the criterion saw (--keep)" in err
    assert not list((tmp_path / "out").glob("masks-plane*"))
    assert (tmp_path / "out" / "masks-overlap.svg").exists()
    assert " - " in out.splitlines()[4]


def test_chain_is_drawn_over_levels_from_the_dense_network(trained: TrainedStudy, tmp_path: Path) -> None:
    dense = next(run.id for run in trained.plan.runs.values() if run.level == 0 and run.seed == 0)
    runs = [dense, *(trained.run_id(level, criterion) for criterion in ("large_final", "random") for level in (2, 1))]
    (figure, _), *_ = analyze_masks(runs, trained.store, tmp_path, only="density").saved
    assert [(row["mask"], row["kept"]) for row in figure.data_rows if row["layer"] == "fc1"] == [
        (f"{criterion}, level {level}", kept)
        for criterion in ("large_final", "random")
        for level, kept in ((0, 512), (1, 256), (2, 128))
    ]
    assert "stands for 2 chains with the same densities" in figure.caption
    assert len(figure.figure.axes) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'RUN_OR_FILE...'"),
        (["--only", "plans"], "Missing argument"),
        (["zz"], "'zz' is neither a file nor a folder with a ticket, nor the beginning of a run's id."),
        (["abc"], "there is no store at"),
        (["abc", "--only", "plain"], "'plain' is not an analysis of masks; did you mean 'plane'?"),
        (["abc", "--only", ""], "'' is not an analysis of masks. Allowed: overlap, density"),
    ],
)
def test_invalid_input_is_one_message(
    arguments: list[str], message: str, trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    if arguments[:1] == ["zz"]:
        monkeypatch.setenv("SUPERMASK_STORE", str(trained.store))
    assert message in refused(call("masks", *arguments))


def test_file_in_place_of_a_folder(trained: TrainedStudy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    store = ("--store", trained.store, "--only", "density")
    assert "is not a folder" in refused(call("masks", trained.run_id(1), "--out", tmp_path / "file", *store))


def test_the_help_names_every_analysis() -> None:
    out = "".join(call("masks", "--help")[1].replace("│", "").split())
    assert ",".join(ANALYSES) in out
