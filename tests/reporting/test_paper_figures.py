"""The paper's figures as such: panels per network, untrained networks, learned and heuristic curves, criteria."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from helpers.stored_study import train_study
from scipy import stats as scipy_stats

from supermask.analysis.summary import summarize
from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.reporting.figures import (
    ACCURACY,
    RenderedFigure,
    collect_panels,
    criteria_table_figure,
    curve_points,
    make_store_finder,
    network_panels_figure,
    supermask_curves_figure,
    untrained_masks_figure,
)
from supermask.reporting.figures import network_panels as module
from supermask.reporting.figures.caption import takeaway
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import Plan, make_plan

SEEDS = range(3)


def texts(drawn: RenderedFigure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in drawn.figure.texts)


def rows_for(plan: Plan, factor: float = 1.0) -> list[Row]:
    """Finished rows of a plan: small_final and random are worse, all others equal large_final but for noise."""
    rows: list[Row] = []
    labels = {member.run_id: member.treatment for member in plan.treatment_runs}
    for run in plan.runs.values():
        label = labels.get(run.id, "dense") if run.level else "dense"
        loss = {"small_final": 0.1, "random": 0.05}.get(label, 0.0) * run.level
        noise = 1e-6 * (zlib.crc32(f"{label} {run.seed} {run.level}".encode()) % 4000)
        rows.append(
            {
                "id": run.id,
                "treatment": label,
                "level": run.level,
                "seed": run.seed,
                "status": "finished",
                "network": run.network,
                "dataset": run.dataset,
                "density": 0.5**run.level,
                "early_stop_test_accuracy": factor * (0.95 - loss + noise),
            }
        )
    return rows


@pytest.mark.slow
def test_networks_that_were_not_run_have_empty_panels_with_their_names(tmp_path: Path) -> None:
    plan = make_plan(load_study("mask-criteria", ["scale=laptop", "prune.levels=2"]))
    panels = collect_panels(plan, rows_for(plan), make_store_finder(Store(tmp_path)))
    assert [panel.title for panel in panels] == ["FC on MNIST", *(f"Conv{n} on CIFAR-10" for n in (2, 4, 6))]
    assert [panel.summary is None for panel in panels] == [False, True, True, True]
    drawn = network_panels_figure(panels, "Figure 3")
    assert "not run: supermask run mask-criteria scale=conv2" in texts(drawn)
    assert "Not run: Conv2 on CIFAR-10, Conv4 on CIFAR-10, Conv6 on CIFAR-10." in drawn.caption
    assert {row["network"] for row in drawn.data_rows} == {"fc-300-100"}
    means = {(row["treatment"], row["level"]): row["mean"] for row in drawn.data_rows}
    summary = panels[0].summary
    assert summary is not None
    assert means == {(p.treatment, p.level): p.interval.mean for p in [summary.dense, *summary.points] if p}
    with pytest.raises(UserError, match="no network of the paper has finished runs"):
        network_panels_figure(panels[1:], "Figure 3")


@pytest.mark.slow
def test_other_networks_come_from_the_other_scales_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_plan(load_study("mask-criteria", ["scale=paper-conv4"]))
    monkeypatch.setattr(Store, "run_ids", lambda store: {next(iter(other.runs))})
    monkeypatch.setattr(module, "plan_rows", lambda plan, store: (rows_for(plan, 0.8), []))
    plan = make_plan(load_study("mask-criteria", ["scale=laptop", "prune.levels=2"]))
    panels = collect_panels(plan, rows_for(plan), make_store_finder(Store(tmp_path)))
    assert [panel.network for panel in panels if panel.summary] == ["fc-300-100", "conv4"]
    assert panels[2].summary is not None and panels[2].summary.subject == "conv4 on cifar10"
    caption = network_panels_figure(panels, "Figure 3").caption
    # The stars of every panel are described.
    assert "after Holm's correction over 2 to 24 levels" in caption
    assert "Takeaway: FC on MNIST: against large_final, small_final and random are worse at some level" in caption
    assert "; Conv4 on CIFAR-10: in the mean from 20% to 5% of the weights, against large_final, small_final" in caption


@pytest.mark.slow
def test_figure_4_has_the_random_line_and_the_rescaled_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    also = make_plan(load_study("mask-1-rescaled", ["scale=laptop"]))
    monkeypatch.setattr(Store, "run_ids", lambda store: set(also.runs))
    monkeypatch.setattr(module, "plan_rows", lambda plan, store: (rows_for(plan), []))
    plan = make_plan(load_study("mask-1-actions", ["scale=laptop"]))
    summary = collect_panels(plan, rows_for(plan), make_store_finder(Store(tmp_path)))[0].summary
    assert summary is not None
    labels = list(summary.series)
    assert labels[0] == summary.reference == "rewind"
    assert {"random", "rewind, rescaled", "signed_constant, rescaled"} <= set(labels)
    assert len(labels) == len(plan.study.treatments) + len(also.study.treatments) - 1


def test_the_takeaway_names_those_that_differ_and_those_that_do_not() -> None:
    plan = make_plan(load_study("mask-criteria", ["scale=laptop", "prune.levels=2"]))
    labels = ["large_final", "random", "small_final", "movement"]
    text = takeaway(summarize(rows_for(plan), labels, "large_final", ACCURACY))
    assert text == (
        "Takeaway: against large_final, random and small_final are worse at some level; movement is different at no "
        "level."
    )
    names = {"random": "random, again", "small_final": "small"}
    renamed = [row | {"treatment": names.get(str(row["treatment"]), row["treatment"])} for row in rows_for(plan)]
    text = takeaway(summarize(renamed, ["large_final", "random, again", "small"], "large_final", ACCURACY))
    assert text == 'Takeaway: against large_final, "random, again" and small are worse at some level.'
    one = [row for row in rows_for(plan) if row["seed"] == 0]
    assert takeaway(summarize(one, labels, "large_final", ACCURACY)) == ""


def mask_row(criterion: str, mask1: str, level: int, seed: int, accuracy: float) -> Row:
    return {
        "id": f"{criterion}-{mask1}-{level}-{seed}",
        "treatment": f"{criterion} + {mask1}",
        "network": "fc",
        "dataset": "mnist",
        "seed": seed,
        "level": level,
        "status": "finished",
        "density": 0.5**level,
        "trained": False,
        "criterion": criterion,
        "mask1": mask1,
        "mask0": "zero",
        "schedule": "one_shot",
        "rescaled": False,
        "early_stop_test_accuracy": accuracy,
        "early_stop_validation_accuracy": accuracy,
    }


def supermask_rows() -> list[Row]:
    rows = [
        mask_row(criterion, mask1, level, seed, 0.1 * place + 0.2 * level + 0.01 * seed)
        for place, criterion in enumerate(("random", "large_final"))
        for mask1 in ("rewind", "signed_constant", "constant")
        for level in (1, 2)
        for seed in SEEDS
    ]
    for label, density, extra in (
        ("learned, w_i", 0.5, {}),
        ("learned, start logit 1", 0.7, {}),
        ("DWR, w_i", 0.4, {"rescaled": True}),
        ("learned, Adam", 0.4, {"optimizer": "adam"}),
        ("edge-popup", 0.4, {"supermask": "edge_popup"}),
    ):
        for seed in SEEDS:
            row = mask_row("", "", 1, seed, 0.9 + 0.01 * seed)
            row |= {"id": f"{label}-{seed}", "treatment": label, "supermask": "bernoulli", "base": "init"}
            row |= {"criterion": None, "mask1": None, "trained": True, "expected_density": density}
            rows.append(row | extra)
    dense: list[Row] = [
        {**mask_row("", "", 0, seed, 0.97), "treatment": "dense", "trained": True, "initial_validation_accuracy": 0.1}
        for seed in SEEDS
    ]
    return [row | ({"criterion": None} if not row["level"] else {}) for row in [*dense, *rows]]


def test_figure_7_joins_heuristic_and_learned_masks_on_two_kinds_of_weights() -> None:
    points = curve_points(supermask_rows())
    assert {(p.side, p.series) for p in points} == {
        *((side, criterion) for side in ("w_i", "signed constants") for criterion in ("random", "large_final")),
        ("w_i", "learned"),
        ("w_i", "learned, DWR"),
    }
    learned = {p.treatment: p for p in points if p.series.startswith("learned")}
    assert learned.keys() == {"learned, w_i", "learned, start logit 1", "DWR, w_i"}
    assert learned["learned, start logit 1"].remaining == pytest.approx(70)
    drawn = supermask_curves_figure(supermask_rows(), "Figure 7", 10.0)
    row = next(r for r in drawn.data_rows if (r["series"], r["weights"], r["level"]) == ("large_final", "w_i", 2))
    values = [50.0, 51.0, 52.0]
    low, high = scipy_stats.t.interval(0.95, 2, loc=51.0, scale=scipy_stats.sem(values))
    assert row["mean"] == pytest.approx(51.0)
    assert (row["mean_low95"], row["mean_high95"]) == (pytest.approx(low), pytest.approx(high))
    assert drawn.caption.endswith(
        "Takeaway: on w_i the best heuristic mask (large_final) reaches 51.0% with 25% of the weights and the best "
        "learned mask reaches 91.0% with 50% of the weights; on signed constants the best heuristic mask (large_final) "
        "reaches 51.0% with 25% of the weights."
    )
    assert {"on w_i", "on signed constants"} <= {text.get_text() for text in drawn.figure.texts}


def test_figure_7_says_that_no_learned_mask_has_finished_only_if_one_is_planned() -> None:
    heuristic = [row for row in supermask_rows() if not row.get("supermask")]
    planned = [row if not row.get("supermask") else row | {"status": "to_do"} for row in supermask_rows()]
    for rows, says_so in ((heuristic, False), (planned, True)):
        caption = supermask_curves_figure(rows, "Figure 7", 10.0).caption
        assert ("No learned mask has finished." in caption) == says_so


def test_figure_6_compares_no_mask_a_random_and_a_large_final_mask() -> None:
    drawn = untrained_masks_figure(supermask_rows(), "Figure 6", 10.0)
    assert [(row["network"], row["mean"]) for row in drawn.data_rows] == [
        ("untrained network", pytest.approx(10.0)),
        ("random mask (25% of the weights)", pytest.approx(41.0)),
        ("large_final mask (25% of the weights)", pytest.approx(51.0)),
    ]
    assert drawn.caption.endswith(
        "Takeaway: a large_final mask turns an untrained network into one of 51.0% accuracy; a random mask gives 41.0% "
        "and no mask 10.0%."
    )
    with pytest.raises(UserError, match="no random and large_final masks"):
        untrained_masks_figure([r for r in supermask_rows() if r["criterion"] != "random"], "Figure 6", 10.0)


def test_treatments_with_dense_networks_of_their_own_are_not_mixed() -> None:
    """Two masks of one criterion, of dense networks trained with other settings, are two lines and never one."""
    slow = [
        {**r, "id": f"slow-{r['id']}", "treatment": f"slow {r['criterion']}", "early_stop_test_accuracy": 0.05}
        | {"early_stop_validation_accuracy": 0.05}
        for r in supermask_rows()
        if r["criterion"] and r["mask1"] == "rewind"
    ]
    rows = [*supermask_rows(), *slow]
    for order in (rows, rows[::-1]):
        points = {(p.side, p.series, p.level): p.interval.mean for p in curve_points(order) if p.side == "w_i"}
        assert points["w_i", "large_final + rewind", 2] == pytest.approx(51.0)
        assert points["w_i", "slow large_final", 2] == pytest.approx(5.0)
        assert ("w_i", "large_final", 2) not in points
        drawn = untrained_masks_figure(order, "Figure 6", 10.0)
        assert [row["mean"] for row in drawn.data_rows] == [pytest.approx(mean) for mean in (10.0, 41.0, 51.0)]
        assert "large_final masks the one of best validation accuracy: large_final + rewind." in drawn.caption


def test_figure_6_leaves_out_masks_of_other_settings() -> None:
    """A mask of the criterion from another point of the trajectory is another mask."""
    other = [
        {**r, "id": f"other-{r['id']}", "treatment": "other", "w_final": "lowest_validation_loss"}
        | {"early_stop_test_accuracy": 0.99, "early_stop_validation_accuracy": 0.99}
        for r in supermask_rows()
        if (r["criterion"], r["mask1"]) == ("large_final", "rewind")
    ]
    drawn = untrained_masks_figure([*supermask_rows(), *other], "Figure 6", 10.0)
    assert drawn.data_rows[2]["mean"] == pytest.approx(51.0)
    assert "Of the treatments" not in drawn.caption


def test_figure_6_of_one_seed_has_no_interval_and_needs_no_untrained_network() -> None:
    rows = [row for row in supermask_rows() if row["seed"] == 0]
    caption = untrained_masks_figure(rows, "Figure 6", 10.0).caption
    assert "n = 1 seed. Masks" in caption
    assert "t-interval" not in caption
    unknown = [{**row, "initial_validation_accuracy": None} for row in rows]
    drawn = untrained_masks_figure(unknown, "Figure 6", 10.0)
    assert [str(row["network"]).partition(" ")[0] for row in drawn.data_rows] == ["random", "large_final"]


def test_the_table_of_criteria_is_complete() -> None:
    drawn = criteria_table_figure(["large_final"], "Criteria")
    assert [row["criterion"] for row in drawn.data_rows] == list(CRITERIA)
    assert [row["criterion"] for row in drawn.data_rows if row["in_study"]] == ["large_final"]
    assert all(row["score"] for row in drawn.data_rows)
    assert drawn.table is not None and len(drawn.table[1]) == len(CRITERIA)


@pytest.mark.slow
def test_a_study_of_ones_own_has_no_figure_of_the_paper(tmp_path: Path) -> None:
    from supermask.reporting.figures.catalog import study_figures
    from supermask.store.rows import plan_rows

    made = train_study(tmp_path)
    drawn = study_figures(made.plan, plan_rows(made.plan, made.open_store())[0], made.open_store())
    assert not [name for name in drawn if name.startswith("figure-") or name == "criteria"]
