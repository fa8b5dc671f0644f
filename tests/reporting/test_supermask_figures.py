"""Figures of supermasks: numbers equal the rows, and a study of supermasks has all its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.small_studies import small_plan, train_plan
from matplotlib.collections import LineCollection
from scipy import stats as scipy_stats

from supermask.api import runs
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import TaskResult
from supermask.reporting.figures import (
    RenderedFigure,
    accuracy_figure,
    curve_points,
    is_heuristic,
    learning_curves_figure,
    supermask_curves_figure,
    supermask_figure,
    table_one_figure,
    untrained_figure,
    untrained_masks_figure,
)
from supermask.reporting.figures.learning_curves import curve_notes
from supermask.store import Store
from supermask.store.rows import learning_curve_rows, plan_rows

SEEDS = range(3)


def row(treatment: str, seed: int, accuracy: float, level: int = 1, **facts: Any) -> Row:
    return {
        "id": f"{treatment}-{level}-{seed}",
        "treatment": treatment,
        "network": "fc",
        "dataset": "mnist",
        "seed": seed,
        "level": level,
        "status": "finished",
        "density": 0.5**level,
        "trained": True,
        "early_stop_test_accuracy": accuracy,
        "early_stop_validation_accuracy": accuracy,
        **facts,
    }


def heuristic(criterion: str, mask1: str, level: int, seed: int, accuracy: float, **facts: Any) -> Row:
    about = {"criterion": criterion, "mask1": mask1, "rescaled": False, "schedule": "one_shot", **facts}
    return row(f"{criterion} {mask1} {about}", seed, accuracy, level, trained=False, **about)


def learned(treatment: str, seed: int, accuracy: float) -> Row:
    hard = {"thresholded_test_accuracy": accuracy + 0.01, "expected_test_accuracy": accuracy + 0.02}
    return row(treatment, seed, accuracy, supermask="bernoulli", expected_density=0.4, **hard)


def dense() -> list[Row]:
    return [row("dense", seed, 0.97 + 0.001 * seed, level=0) for seed in SEEDS]


# --- heuristic ---


def heuristics() -> list[Row]:
    return dense() + [
        heuristic(criterion, mask1, level, seed, 0.1 * level + 0.01 * seed + (0.3 if mask1 == "rewind" else 0.5))
        for criterion in ("large_final", "random")
        for mask1 in ("rewind", "signed_constant")
        for level in (1, 2)
        for seed in SEEDS
    ]


def test_heuristic_points_are_means_over_seeds_with_their_intervals() -> None:
    drawn = untrained_figure(heuristics(), "Heuristic")
    assert len(drawn.data_rows) == 8
    point = next(p for p in drawn.data_rows if (p["criterion"], p["mask1"], p["level"]) == ("random", "rewind", 2))
    values = [50.0, 51.0, 52.0]
    low, high = scipy_stats.t.interval(0.95, 2, loc=51.0, scale=scipy_stats.sem(values))
    assert (point["mean"], point["n"], point["weights_remaining_percent"]) == (pytest.approx(51.0), 3, 25.0)
    assert (point["mean_low95"], point["mean_high95"]) == (pytest.approx(low), pytest.approx(high))
    panels = drawn.figure.axes
    assert [len(panel.lines) for panel in panels] == [5, 5], "two lines with their markers, and the dense network"


def test_intervals_of_a_single_level_are_bars() -> None:
    drawn = untrained_figure([r for r in heuristics() if r["level"] < 2], "Heuristic")
    for panel in drawn.figure.axes:
        assert sum(len(c.get_segments()) for c in panel.collections if isinstance(c, LineCollection)) == 2
    assert "; bar: 95% t-interval of the mean." in drawn.caption
    assert "; band: 95% t-interval of the mean." in untrained_figure(heuristics(), "Heuristic").caption


def test_a_run_of_both_schedules_is_in_both_panels() -> None:
    rows = [heuristic("large_final", "rewind", 1, seed, 0.5, schedule="one_shot | iterative") for seed in SEEDS]
    drawn = untrained_figure(rows, "Heuristic")
    assert [point["schedule"] for point in drawn.data_rows] == ["one_shot", "iterative"]
    assert len(drawn.figure.axes) == 2


def test_lines_named_by_treatment_keep_the_runs_that_two_schedules_share() -> None:
    def rows(label: str, accuracy: float) -> list[Row]:
        chains = []
        for seed in SEEDS:
            for level, name in ((1, "one_shot | iterative"), (2, "one_shot"), (2, "iterative")):
                labels = " | ".join(f"{label}, {schedule}" for schedule in name.split(" | "))
                mask = heuristic("large_final", "rewind", level, seed, accuracy, schedule=name)
                chains.append({**mask, "treatment": labels})
        return chains

    drawn = untrained_figure(rows("fast", 0.5) + rows("slow", 0.2), "Heuristic")
    lines = [(point["schedule"], point["criterion"], point["level"]) for point in drawn.data_rows]
    assert sorted(lines) == sorted(
        (schedule, f"{label}, {schedule}", level)
        for label in ("fast", "slow")
        for schedule in ("one_shot", "iterative")
        for level in (1, 2)
    )
    assert {p.series for p in curve_points(rows("fast", 0.5) + rows("slow", 0.2))} == {
        "fast, one_shot",
        "slow, one_shot",
    }


def test_every_caption_has_the_notes_on_the_data_and_the_finding_last() -> None:
    """A note on the data, such as images decoded from JPEG files, is under every figure."""
    note, label = "images decoded from JPEG files", "learned, w_i"
    masks = [*heuristics(), *(learned(label, seed, 0.9) for seed in SEEDS)]
    rows: list[Row] = [{**row, "data_note": note, "initial_validation_accuracy": 0.1} for row in masks]
    points: list[Row] = [
        {"treatment": label, "seed": seed, "iteration": 10, "validation_accuracy": 0.5} for seed in SEEDS
    ]
    captions = {
        "heuristic": untrained_figure(rows, "T", 10.0).caption,
        "figure-6": untrained_masks_figure(rows, "T", 10.0).caption,
        "figure-7": supermask_curves_figure(rows, "T", 10.0).caption,
        "supermasks": supermask_figure(rows, [label], label, "T", 10.0).caption,
        "table-one": table_one_figure(rows, "T", 10.0).caption,
        "learning": learning_curves_figure(points, "T", notes=curve_notes(rows, [label])).caption,
    }
    for name, caption in captions.items():
        assert caption.count(f"Data: {note}.") == 1, name
        assert caption.rstrip(".").rpartition(". ")[2].startswith("Takeaway: "), name
    demonstration = [{**row, "dataset": "digits"} for row in rows]
    for caption in (
        untrained_figure(demonstration, "T", 10.0).caption,
        untrained_masks_figure(demonstration, "T", 10.0).caption,
        supermask_curves_figure(demonstration, "T", 10.0).caption,
    ):
        assert caption.count("A demonstration on digits: nothing is tested") == 1


def test_learning_curves_count_the_runs_without_a_curve() -> None:
    rows = [learned("learned", seed, 0.9) for seed in SEEDS]
    assert curve_notes(rows, ["learned"]) == [""]
    rows[0] |= {"status": "to_do"}
    assert curve_notes(rows, ["learned"]) == [f"In no mean, of {len(rows)} runs: 1 still to do (learned 1)."]
    assert curve_notes(rows, ["other"]) == [""]


def test_rescaled_networks_are_described_in_the_caption_only() -> None:
    rows = heuristics()
    rescaled = [r | {"rescaled": True, "early_stop_test_accuracy": _accuracy(r) + 0.002} for r in rows if r["level"]]
    drawn = untrained_figure(rows + rescaled, "Heuristic")
    assert len(drawn.data_rows) == 8
    assert "Rescaled networks (24 pairs) differ from these by at most 0.2 points." in drawn.caption
    assert "Rescaled" not in untrained_figure(rows, "Heuristic").caption


def test_is_heuristic() -> None:
    assert is_heuristic(heuristic("random", "rewind", 1, 0, 0.1))
    assert not is_heuristic(heuristic("learned", "rewind", 2, 0, 0.1))
    assert not is_heuristic(row("x", 0, 0.9, criterion="random"))
    assert not any(map(is_heuristic, dense()))


def _accuracy(row: Row) -> float:
    value = row["early_stop_test_accuracy"]
    assert isinstance(value, float)
    return value


# --- learned ---


def supermasks() -> list[Row]:
    rows = dense() + [learned("learned", seed, 0.90 + 0.002 * seed) for seed in SEEDS]
    rows += [learned("better", seed, 0.95 + 0.002 * seed + 0.0003 * seed**2) for seed in SEEDS]
    for level, base in ((1, 0.7), (2, 0.8)):
        facts = {"early_stop_validation_accuracy": 0.9 if level == 1 else 0.5}
        rows += [heuristic("random", "rewind", level, s, base, **facts) | {"treatment": "heuristic"} for s in SEEDS]
    return rows


def test_a_learned_mask_has_three_networks_and_a_heuristic_mask_its_best_validated_level() -> None:
    drawn = supermask_figure(supermasks(), ["heuristic", "learned", "better"], "learned", "Supermasks", 10.0)
    shown = [(r["treatment"], r["network"], r["level"], round(float(r["mean"] or 0), 6)) for r in drawn.data_rows]
    assert shown[0] == ("heuristic", "untrained", 1, 70.0)
    assert shown[1:4] == [
        ("learned", "samples", 1, 90.2),
        ("learned", "thresholded", 1, 91.2),
        ("learned", "expected", 1, 92.2),
    ]
    assert {r["density_percent"] for r in drawn.data_rows if r["network"] == "samples"} == {40.0}


def test_a_mask_that_is_not_sampled_is_no_mean_of_samples() -> None:
    """Rounded, edge-popup and signed masks are one network each."""
    rows = [{**learned("signed", seed, 0.9), "supermask": "signed", "density": 0.4} for seed in SEEDS]
    drawn = supermask_figure(rows, ["signed"], "signed", "T", 10.0)
    assert [(row["network"], row["density_percent"]) for row in drawn.data_rows] == [("fixed", pytest.approx(40.0))]
    assert "samples" not in drawn.caption
    assert drawn.caption.endswith("is signed with 90.0% (learned mask that is not sampled).")
    (legend,) = drawn.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["learned mask that is not sampled"]


def test_treatments_are_compared_with_the_reference_paired_by_seed() -> None:
    drawn = supermask_figure(supermasks(), ["learned", "better"], "learned", "Supermasks", 10.0)
    better = next(r for r in drawn.data_rows if (r["treatment"], r["network"]) == ("better", "samples"))
    a, b = ([100 * _accuracy(r) for r in supermasks() if r["treatment"] == name] for name in ("better", "learned"))
    assert better["p"] == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    assert (better["difference"], better["test"]) == (pytest.approx(5.05), "paired t")
    assert "All differ from learned" in drawn.caption


def test_a_mask_that_is_trained_further_is_drawn_once_without_its_tickets() -> None:
    on = [learned("on", seed, 0.9) for seed in SEEDS] + [row("on", seed, 0.97, level=2) for seed in SEEDS]
    alone = supermask_figure(on, ["on"], "on", "Supermasks", 10.0).data_rows
    assert [(r["treatment"], r["network"], r["level"]) for r in alone] == [
        ("on", kind, 1) for kind in ("samples", "thresholded", "expected")
    ]
    both = [r | {"treatment": "learned | on"} if r["level"] == 1 else r for r in on]
    shown = supermask_figure(both, ["on", "learned"], "learned", "Supermasks", 10.0).data_rows
    assert {r["treatment"] for r in shown} == {"learned"}
    with pytest.raises(UserError, match="no supermask of this study has finished"):
        supermask_figure(dense(), ["on"], "on", "Supermasks", 10.0)


def test_captions_describe_tests_and_heuristic_masks() -> None:
    fewer = [r for r in supermasks() if (r["treatment"], r["seed"]) != ("better", 2)]
    drawn = supermask_figure(fewer, ["learned", "better"], "learned", "Supermasks", 10.0)
    assert "else Welch's" in drawn.caption
    assert "Heuristic" not in drawn.caption
    assert "Heuristic masks" in supermask_figure(supermasks(), ["heuristic", "learned"], "learned", "S", 10.0).caption
    one = [r for r in supermasks() if r["seed"] == 0]
    alone = supermask_figure(one, ["learned", "better"], "learned", "Supermasks", 10.0).caption
    assert "n = 1 seed." in alone
    assert "Not tested (too few seeds, or no spread): better." in alone


def test_masks_with_other_settings_are_separate_lines() -> None:
    rows = [heuristic("large_final", "rewind", 1, s, 0.5, mask0=m) for s in SEEDS for m in ("zero", "freeze_final")]
    drawn = untrained_figure(rows, "Heuristic")
    assert [p["criterion"] for p in drawn.data_rows] == ["large_final", "large_final, mask0 freeze_final"]
    with pytest.raises(UserError, match="several runs of one seed"):
        untrained_figure([*rows, rows[0]], "Heuristic")


@pytest.mark.slow
def test_levels_of_other_densities_are_not_compared() -> None:
    rows = dense()
    for seed in SEEDS:
        rows += [row("a", seed, 0.9 + 0.01 * seed), row("b", seed, 0.8 + 0.02 * seed, density=0.4)]
    points = accuracy_figure(rows, ["a", "b"], "a", "Two").data_rows
    assert next(p for p in points if p["treatment"] == "b")["p"] is None
    alike = [r | {"density": 0.4999} if r["treatment"] == "b" else r for r in rows]
    assert next(p for p in accuracy_figure(alike, ["a", "b"], "a", "Two").data_rows if p["treatment"] == "b")["p"]


def test_curves_are_means_over_seeds_at_common_iterations() -> None:
    points: list[Row] = [
        {"treatment": "learned", "seed": seed, "iteration": i, "validation_accuracy": 0.5 + 0.1 * i / 100 + 0.01 * seed}
        for seed in SEEDS
        for i in (0, 100, 200, 300)
        if (seed, i) != (2, 300)
    ]
    drawn = learning_curves_figure(points, "Learning")
    assert [(r["iteration"], r["n"], round(float(r["mean"] or 0), 6)) for r in drawn.data_rows] == [
        (100, 3, 61.0),
        (200, 3, 71.0),
    ]
    with pytest.raises(UserError, match="no mask of this study has been learned"):
        learning_curves_figure([], "Learning")


@pytest.mark.slow
@pytest.mark.parametrize("hostile", ["$x^2$ & <script>", "_nolegend_", "\N{RIGHT-TO-LEFT OVERRIDE}abc", "a" * 80])
def test_names_are_drawn_literally(hostile: str, tmp_path: Path) -> None:
    rows = dense() + [learned(hostile, seed, 0.9) for seed in SEEDS]
    shown = supermask_figure(rows, [hostile], hostile, hostile, 10.0)
    points: list[Row] = [{"treatment": hostile, "seed": 0, "iteration": 5, "validation_accuracy": 0.5}]
    for drawn in (shown, learning_curves_figure(points, hostile)):
        _drawable(drawn, tmp_path)
        assert drawn.data_rows[0]["treatment"] == hostile


def _drawable(drawn: RenderedFigure, folder: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        drawn.figure.savefig(folder / "x.png")


# --- from a study to its files ---


@pytest.mark.slow
def test_a_study_of_supermasks_has_figures_of_its_finished_runs(tmp_path: Path) -> None:
    study = tmp_path / "masks.yaml"
    study.write_text(
        """
network: fc-8
seeds: 2
train: {epochs: 1, evaluate_every: 10}
prune: {levels: 2, rates: {hidden: 0.5, output: 0.3}}
learn: {lr: 20, batch_size: 30, epochs: 1, evaluate_every: 10, samples: 2}
treatments:
  - {name: heuristic, criterion: large_final, schedule: one_shot, trained: false}
  - {name: learned, supermask: {}}
  - {name: trained on, supermask: {}, levels: 1}
  - {name: ticket}
"""
    )
    store = tmp_path / "store"
    plan = runs.plan(str(study), store=store).plan
    assert train_plan(plan, store).schedule.tasks_left == 0
    saved, damaged = runs.figures(str(study), [], tmp_path / "figures", store)
    assert not damaged
    names = [paths[0].stem for _, paths in saved]
    drawn = ["figure-7", "supermasks", "learning", "accuracy", "early-stop", "weight-changes"]
    assert names == [f"masks-{name}" for name in drawn]
    assert all(path.stat().st_size for _, paths in saved for path in paths)
    rows, _ = plan_rows(plan, Store(store))
    points = learning_curve_rows(plan, Store(store))
    assert {p["treatment"] for p in points} == {"learned"}, "a run that serves several has the label of the first"
    assert {p["seed"] for p in points} == {0, 1}
    selected = learning_curve_rows(plan, Store(store), ["ticket", "trained on"])
    assert [{**p, "treatment": "learned"} for p in selected] == points
    assert {p["treatment"] for p in selected} == {"trained on"}, "the label of the first of those that are wanted"
    assert sum(r["supermask"] == "bernoulli" for r in rows if r.get("supermask")) == 2


def test_work_left_ends_at_zero_and_weighs_training_runs_more(tmp_path: Path) -> None:
    plan = small_plan({"criterion": "random"}, {"supermask": {}, "levels": 1, "trained": False}, network="fc-8")
    schedule = Scheduler(plan, Store(tmp_path))
    weights = []
    while (task := schedule.take()) is not None:
        before = schedule.work_left
        schedule.finish(task, TaskResult(task.run.id, "finished"))
        weights.append((before - schedule.work_left, task.run.is_trained))
    assert schedule.work_left == pytest.approx(0)
    assert min(w for w, trains in weights if trains) > max(w for w, trains in weights if not trains)
