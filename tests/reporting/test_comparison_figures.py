"""Figures of differences, overview, ranking and Table 1, and styles: numbers equal plain NumPy and SciPy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_studies import small_plan, train_plan
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from supermask.analysis.summary import Summary
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.reporting.figures import (
    ACCURACY,
    RenderedFigure,
    compute_differences,
    compute_overview,
    compute_ranking,
    difference_figure,
    has_table_one,
    overview_figure,
    ranking_figure,
    save_figure,
    summarize,
    table_one_figure,
    table_one_rows,
)
from supermask.reporting.figures.catalog import study_figures
from supermask.reporting.figures.overview import OverviewCell, cell_text, color_level
from supermask.reporting.figures.ranking import ranks
from supermask.reporting.figures.style import FALLBACK_STYLES, STYLES, assign_styles, style_for
from supermask.reporting.figures.table_one import COLUMNS, PAPER_VALUES
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import builtin_studies, load_study

LABELS = ["large_final", "random", "movement"]
CRITERIA = ("large_final_same_sign", "large_final")
DRAW = (difference_figure, overview_figure, ranking_figure)


def run(treatment: str, level: int, seed: int, accuracy: float | None, **facts: Any) -> Row:
    return {
        "id": f"{treatment}-{level}-{seed}",
        "network": "fc-300-100",
        "dataset": "mnist",
        "treatment": treatment,
        "level": level,
        "seed": seed,
        "density": 0.5**level,
        "status": "finished" if accuracy is not None else "to_do",
        "early_stop_test_accuracy": accuracy,
        "early_stop_validation_accuracy": accuracy,
        "early_stop_iteration": 100,
        "data_note": None,
        **facts,
    }


def accuracies(levels: int = 3, seeds: int = 5) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(7)
    middle = {"large_final": 0.97, "random": 0.90, "movement": 0.968}
    return {
        (label, level): np.round(middle[label] - 0.01 * level + rng.normal(0, 0.004, seeds), 4)
        for label in LABELS
        for level in range(1, levels + 1)
    }


def study(levels: int = 3, seeds: int = 5) -> list[Row]:
    rows = [run("dense", 0, seed, 0.98) for seed in range(seeds)]
    for (label, level), values in accuracies(levels, seeds).items():
        rows += [run(label, level, seed, float(value)) for seed, value in enumerate(values)]
    return rows


def summary(rows: list[Row], labels: list[str] = LABELS) -> Summary:
    return summarize(rows, labels, labels[0], ACCURACY)


def unfinished(rows: list[Row], treatment: str, level: int, seed: int, status: str) -> None:
    row = next(r for r in rows if (r["treatment"], r["level"], r["seed"]) == (treatment, level, seed))
    row |= {"status": status, "early_stop_test_accuracy": None}


def texts(drawn: RenderedFigure) -> list[str]:
    inside = [text for axes in drawn.figure.axes for text in axes.texts]
    return [text.get_text().replace("\n", "") for text in [*drawn.figure.texts, *inside]]


# --- differences ---


def test_differences_are_paired_t_intervals_and_holm_over_the_levels() -> None:
    found, values = compute_differences(summary(study())), accuracies()
    assert list(found) == ["random", "movement"]
    for label, line in found.items():
        ps = []
        for each in line:
            apart = 100 * (values[label, each.level] - values["large_final", each.level])
            half = scipy_stats.t.ppf(0.975, 4) * apart.std(ddof=1) / np.sqrt(5)
            got = (each.difference, each.low95, each.high95)
            assert got == pytest.approx((apart.mean(), apart.mean() - half, apart.mean() + half))
            assert each.weights_remaining_percent == pytest.approx(100 * 0.5**each.level)
            assert (each.n, each.n_reference, each.test) == (5, 5, "paired t")
            ps.append(float(scipy_stats.ttest_1samp(apart, 0).pvalue))
        order = np.argsort(ps)
        holm = np.maximum.accumulate([min(1.0, (3 - k) * ps[i]) for k, i in enumerate(order)])
        assert [line[i].p_holm for i in order] == pytest.approx(list(holm))
        assert [each.significant for each in line] == [p is not None and p < 0.05 for p in (e.p_holm for e in line)]


def test_the_difference_figure_draws_these_numbers_in_one_panel_per_treatment() -> None:
    drawn = difference_figure(study(), LABELS, "large_final", "A study")
    found = compute_differences(summary(study()))
    assert len(drawn.figure.axes) == 2
    for axes, (label, line) in zip(drawn.figure.axes, found.items(), strict=True):
        marked = next(each for each in axes.lines if each.get_marker() == STYLES[label].marker)
        assert list(np.asarray(marked.get_ydata())) == pytest.approx([each.difference for each in line])
        stars = [each for each in axes.lines if each.get_marker() == "*"]
        starred = [each.difference for each in line if each.significant]
        assert [float(y) for star in stars for y in np.asarray(star.get_ydata())] == pytest.approx(starred)
    assert [(r["treatment"], r["level"]) for r in drawn.data_rows] == list(itertools.product(LABELS[1:], (1, 2, 3)))
    assert "mean over n = 5 pairs of runs that share a seed" in drawn.caption
    assert "after Holm's correction over 3 levels, for each treatment by itself" in drawn.caption
    assert "logarithmic beyond about 0.5 points" in drawn.caption, "random is seven points away"


@pytest.mark.slow
def test_unequal_seeds_are_compared_unpaired_and_the_diverged_run_is_counted() -> None:
    rows = study()
    unfinished(rows, "random", 2, 0, "diverged")
    for draw in DRAW:
        caption = draw(rows, LABELS, "large_final", "A study").caption
        assert "In no mean, of 50 runs: 1 diverged (random 1)." in caption
    line = compute_differences(summary(rows))["random"]
    assert [(each.n, each.n_reference, each.test) for each in line] == [
        (5, 5, "paired t"),
        (4, 5, "Welch t"),
        (5, 5, "paired t"),
    ]


@pytest.mark.slow
def test_treatments_of_other_densities_are_not_compared_and_listed() -> None:
    rows = [r | {"density": 0.45} if r["treatment"] == "movement" else r for r in study(levels=1)]
    assert compute_differences(summary(rows))["movement"] == []
    assert "No level to compare: movement." in difference_figure(rows, LABELS, "large_final", "x").caption
    drawn = overview_figure(rows, LABELS, "large_final", "x")
    assert "n/a: large_final has no level with as many weights remaining." in drawn.caption
    assert "n/a" in texts(drawn)
    ranking = compute_ranking(summary(rows))
    assert [each.treatment for each in ranking.levels[0].places] == ["large_final", "random"]
    assert ranking.unranked == [("movement", 1)]
    drawn = ranking_figure(rows, LABELS, "large_final", "x")
    assert "Not ranked, because the density differs or runs are missing: movement." in drawn.caption


def test_the_reference_alone_cannot_be_compared() -> None:
    assert compute_differences(summary(study(), ["random"])) == {}
    with pytest.raises(UserError, match="there is nothing to draw: no level has finished runs both"):
        difference_figure(study(), ["random"], "random", "x")
    with pytest.raises(UserError, match="there is nothing to rank"):
        ranking_figure(study(), ["random"], "random", "x")


# --- overview ---


def test_the_overview_is_the_reference_and_the_differences_to_it() -> None:
    overview, values = compute_overview(summary(study(), ["random", "large_final", "movement"])), accuracies()
    assert (overview.reference, overview.treatments) == ("random", ["random", "large_final", "movement"])
    assert [each.level for each in overview.levels] == [1, 2, 3]
    for label, row in zip(overview.treatments, overview.cells, strict=True):
        for level, cell in zip((1, 2, 3), row, strict=True):
            assert cell is not None
            assert cell.mean == pytest.approx(100 * values[label, level].mean())
            apart = 100 * (values[label, level] - values["random", level]).mean()
            assert cell.difference == (None if label == "random" else pytest.approx(apart))


def test_the_overview_shows_every_number_and_stars_where_significant() -> None:
    drawn, overview = overview_figure(study(), LABELS, "large_final", "x"), compute_overview(summary(study()))
    axes = drawn.figure.axes[0]
    printed = [text.get_text() for text in axes.texts]
    expected = [cell_text(cell, reference=i == 0) for i, row in enumerate(overview.cells) for cell in row]
    assert printed == expected
    stars = sum(each.get_marker() == "*" for each in axes.lines)
    assert stars == sum(cell.significant for row in overview.cells for cell in row if cell) > 0
    assert len(drawn.data_rows) == 9


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (-0.123, "-0.12"),
        (0.004, "0.00"),
        (-0.004, "0.00"),
        (0.996, "+1.0"),
        (-9.94, "-9.9"),
        (-9.96, "-10"),
        (-86.2, "-86"),
        (None, "n/a"),
    ],
)
def test_numbers_in_cells_have_a_sign(difference: float | None, text: str) -> None:
    assert cell_text(OverviewCell(5, 97.0, difference, None, False)) == text


def test_cells_without_a_run_are_empty_and_explained() -> None:
    assert cell_text(None) == ""
    rows = [r for r in study() if (r["treatment"], r["level"]) != ("movement", 2)]
    drawn = overview_figure(rows, LABELS, "large_final", "x")
    assert "Hatched: no finished run." in drawn.caption
    assert len(drawn.data_rows) == 8


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_colors_grow_with_the_difference_up_to_ten_points(a: float, b: float) -> None:
    assert (color_level(-10), color_level(0), color_level(10), color_level(-99)) == (-1, 0, 1, -1)
    assert color_level(a) <= color_level(b) or a > b
    assert color_level(a) == -color_level(-a)


def test_many_levels_are_drawn_in_several_blocks() -> None:
    drawn = overview_figure(study(levels=24, seeds=2), LABELS, "large_final", "x")
    assert [len(axes.texts) for axes in drawn.figure.axes] == [36, 36]


# --- ranking ---


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_ranks_equal_those_of_scipy(values: list[int]) -> None:
    assert ranks(values) == pytest.approx(list(scipy_stats.rankdata([-value for value in values])))


def test_mean_ranks_and_their_intervals_are_within_seeds_and_per_level() -> None:
    ranking, values = compute_ranking(summary(study())), accuracies()
    assert [level.level for level in ranking.levels] == [1, 2, 3]
    for level in ranking.levels:
        table = np.array([values[label, level.level] for label in LABELS])
        within = scipy_stats.rankdata(-table, axis=0)
        for each in level.places:
            own = within[LABELS.index(each.treatment)]
            half = scipy_stats.t.ppf(0.975, 4) * own.std(ddof=1) / np.sqrt(5)
            assert each.mean_rank == pytest.approx(own.mean())
            assert each.low95 == pytest.approx(max(1.0, own.mean() - half))
            assert each.high95 == pytest.approx(min(3.0, own.mean() + half))
            assert (each.best_rank, each.worst_rank) == (own.min(), own.max())
        of_means = scipy_stats.rankdata(-table.mean(axis=1))
        assert {e.treatment: e.rank_of_mean for e in level.places} == dict(zip(LABELS, of_means, strict=True))
        assert [e.mean_rank for e in level.places] == sorted(e.mean_rank for e in level.places)


def test_only_seeds_that_all_treatments_have_are_ranked() -> None:
    rows = study()
    unfinished(rows, "random", 2, 3, "diverged")
    assert [level.seeds for level in compute_ranking(summary(rows)).levels] == [[*range(5)], [0, 1, 2, 4], [*range(5)]]
    caption = ranking_figure(rows, LABELS, "large_final", "x").caption
    assert "mean rank over n = 4 to 5 seeds" in caption
    assert "Seeds in which some treatment has not finished are not ranked." in caption


def test_up_to_five_levels_are_drawn_and_all_are_in_the_data() -> None:
    drawn = ranking_figure(study(levels=10), LABELS, "large_final", "x")
    assert len(drawn.figure.axes) == 5
    assert "5 of 10 levels" in drawn.caption
    assert {row["level"] for row in drawn.data_rows} == set(range(1, 11))
    heads = [text for text in texts(drawn) if text.endswith("%")]
    assert heads == ["50%", "12.5%", "3.1%", "0.39%", "0.098%"]


# --- differences, overview and ranking ---


@pytest.mark.parametrize("draw", DRAW)
def test_one_seed_and_one_level_can_be_drawn(draw: Any) -> None:
    single = draw(study(seeds=1), LABELS, "large_final", "x")
    assert "1 seed" in single.caption or "n = 1" in single.caption
    assert "Star" not in single.caption
    assert draw(study(levels=1), LABELS, "large_final", "x").data_rows
    if draw is difference_figure:
        assert "One seed: no interval and no test." in single.caption
        assert {row["low95"] for row in single.data_rows} == {None}


@pytest.mark.parametrize("draw", DRAW)
def test_no_finished_run_is_an_error(draw: Any) -> None:
    with pytest.raises(UserError, match="none of the 9 runs has finished"):
        draw([run(label, level, 0, None) for label in LABELS for level in (1, 2, 3)], LABELS, "random", "x")


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAW)
def test_equal_rows_give_byte_identical_files(draw: Any, tmp_path: Path) -> None:
    files = [
        save_figure(draw(rows, LABELS, "random", "x"), tmp_path / n, "a")
        for n, rows in (("1", study()), ("2", study()))
    ]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAW)
def test_hostile_names_are_literal_and_inside_the_page(draw: Any, tmp_path: Path) -> None:
    names = ["<script>$x_1$</script>", "\N{RIGHT-TO-LEFT OVERRIDE}abc \N{GRINNING FACE}", "../" * 100]
    rows = [
        run(name, level, seed, 0.9 + 0.01 * i) for i, name in enumerate(names) for level in (1, 2) for seed in (0, 1)
    ]
    drawn = draw(rows, names, names[0], "W" * 300)
    paths = save_figure(drawn, tmp_path, names[0])
    assert {path.parent for path in paths} == {tmp_path}
    figure = drawn.figure
    assert not any(text.get_parse_math() for axes in figure.axes for text in [*figure.texts, *axes.texts])
    assert any("<script>$x_1$" in text for text in texts(drawn))
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert {row["treatment"] for row in drawn.data_rows} >= set(names[1:])


# --- Table 1 ---


def table_study(network: str = "fc-300-100", seeds: int = 3) -> list[Row]:
    rows = [run("dense", 0, seed, 0.97 + 0.001 * seed) for seed in range(seeds)]
    for place, column in enumerate(COLUMNS[:-1]):
        for seed in range(seeds):
            accuracy = 0.80 + 0.02 * place + 0.001 * seed
            if place < 2:
                untrained: dict[str, Any] = {"trained": False, "criterion": "large_final_same_sign"}
                rows += [
                    run(column, level, seed, accuracy - 0.1 * (level - 2) ** 2, **untrained) for level in (1, 2, 3)
                ]
            else:
                more = {"thresholded_test_accuracy": 0.5, "expected_test_accuracy": 0.6, "expected_density": 0.4}
                rows.append(run(column, 1, seed, accuracy, supermask="bernoulli", trained=True, **more))
    return [row | {"network": network} for row in rows]


def test_the_values_of_the_papers_table_are_complete() -> None:
    assert {network: [cell.percent for cell in row.values()] for (network, _), row in PAPER_VALUES.items()} == {
        "fc-300-100": [80, 86, 95.3, 96.4, 97.8, 98.0, 97.7],
        "conv2": [22.3, 37.4, 64.4, 66.3, 65.0, 66.0, 69.2],
        "conv4": [23.7, 39.7, 65.4, 66.2, 71.7, 72.5, 75.4],
        "conv6": [24, 41, 65.3, 65.4, 76.3, 76.5, 78.3],
    }
    confirmed = {
        (key[0], column) for key, row in PAPER_VALUES.items() for column, cell in row.items() if cell.confirmed
    }
    quoted = {(network, "DWR, signed constant") for network in ("fc-300-100", "conv2", "conv4", "conv6")}
    assert confirmed == set(itertools.product(("fc-300-100", "conv6"), COLUMNS[:3])) | quoted


def test_table_one_has_measured_and_paper_values() -> None:
    rows = table_one_rows(table_study())
    assert [row["column"] for row in rows] == list(COLUMNS)
    for place, row in enumerate(rows[:-1]):
        values = 100 * (0.80 + 0.02 * place + 0.001 * np.arange(3))
        low, high = scipy_stats.t.interval(0.95, 2, values.mean(), scipy_stats.sem(values))
        assert (row["n"], row["mean"]) == (3, pytest.approx(values.mean()))
        assert (row["mean_low95"], row["mean_high95"]) == (pytest.approx(low), pytest.approx(high))
        assert row["level"] == (2 if place < 2 else 1), "heuristic: the level of best validation accuracy"
    assert rows[-1]["mean"] == pytest.approx(97.1)
    assert [row["paper_text"] for row in rows[:4]] == ["about 80 (79.3)", "86 (86.3)", "95.3", "96.4"]
    assert [row["paper_confirmed"] for row in rows] == [True, True, True, False, False, True, False]
    assert rows[2]["difference_to_paper"] == pytest.approx(84.1 - 95.3)


def test_table_one_is_drawn_with_both_values() -> None:
    drawn = table_one_figure(table_study(), "Table 1", 10.0)
    diamonds = [each for each in drawn.figure.axes[0].lines if each.get_marker() == "D"]
    shown = [float(np.asarray(each.get_xdata())[0]) for each in diamonds]
    assert shown == [cell.percent for cell in PAPER_VALUES["fc-300-100", "mnist"].values()]
    assert {"about 80 (79.3)", "95.3", "84.1 (83.9 to 84.3)"} <= set(texts(drawn))
    assert "gray: from memory, unconfirmed" in drawn.caption


def test_table_one_of_another_data_set_and_of_unfinished_treatments() -> None:
    rows = [row | {"dataset": "digits"} for row in table_study() if row["treatment"] != "DWR, w_i"]
    rows += [run("DWR, w_i", 1, seed, None, dataset="digits", status="diverged") for seed in (0, 1)]
    drawn = table_one_figure(rows, "x", 10.0)
    missing = next(row for row in drawn.data_rows if row["column"] == "DWR, w_i")
    assert (missing["n"], missing["mean"], missing["paper_percent"]) == (0, None, None)
    assert "no finished run" in texts(drawn)
    assert "The paper's table does not have fc-300-100 on digits." in drawn.caption
    assert "2 diverged (DWR, w_i 2)" in drawn.caption
    with pytest.raises(UserError, match="there is nothing to draw"):
        table_one_figure([row | {"status": "to_do"} for row in rows], "x", 10.0)
    with pytest.raises(UserError, match="one network on one dataset"):
        table_one_rows([*rows, *table_study("conv2")])


def test_table_one_takes_other_labels() -> None:
    rows = [row | {"treatment": f"my {row['treatment']}"} if row["level"] else row for row in table_study()]
    names = {column: f"my {column}" for column in COLUMNS[:-1]} | {COLUMNS[-1]: "dense"}
    found, plain = table_one_rows(rows, names), table_one_rows(table_study())
    assert [row["mean"] for row in found] == [row["mean"] for row in plain]
    assert [row["treatment"] for row in found] == list(names.values())


def test_the_study_of_learned_supermasks_has_table_one() -> None:
    labels = [treatment.label for treatment in load_study("learned-supermasks", ["scale=digits"]).treatments]
    assert has_table_one(labels)
    assert not has_table_one(labels[1:])


@pytest.mark.slow
def test_a_study_with_the_treatments_of_table_one_has_its_figure(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{"weights": w, "rescaled": r} for r in (False, True) for w in ("init", "constant")]
    learned = [{"name": name, "supermask": kind} for name, kind in zip(COLUMNS[2:6], kinds, strict=True)]
    heuristic = [{"name": name, "criterion": c, "trained": False} for name, c in zip(COLUMNS, CRITERIA, strict=False)]
    learn = {"lr": 20, "batch_size": 30, "epochs": 1, "evaluate_every": 10, "samples": 2}
    plan = small_plan(*heuristic, *learned, {"name": "ticket"}, {"name": "other", "criterion": "random"}, learn=learn)
    store = Store(tmp_path)
    rows, _ = plan_rows(plan, store)
    with pytest.raises(UserError, match="run the study first"):
        study_figures(plan, rows, store)
    assert train_plan(plan, tmp_path).schedule.tasks_left == 0
    rows, _ = plan_rows(plan, store)
    drawn = study_figures(plan, rows, store)
    trained = ["accuracy", "early-stop", "differences", "overview", "ranking", "weight-changes"]
    assert list(drawn) == ["supermasks", "table-one", "learning", *trained]
    assert {row["n"] for row in drawn["table-one"].data_rows} == {1}
    assert all(each.caption.endswith(".") and each.data_rows for each in drawn.values())


# --- styles ---


@pytest.mark.parametrize("name", [each.name for each in builtin_studies()])
def test_treatments_of_a_shipped_study_have_distinct_styles(name: str) -> None:
    labels = [treatment.label for treatment in load_study(name).treatments]
    if name == "heuristic-supermasks":
        labels = list(dict.fromkeys(treatment.criterion for treatment in load_study(name).treatments))
    found = assign_styles(labels)
    assert len(set(found.values())) == len(labels)
    assert all(found[label] == STYLES[label] for label in labels if label in STYLES)


@pytest.mark.slow
@given(
    st.lists(st.text(max_size=30) | st.sampled_from(list(STYLES)), min_size=1, max_size=12, unique=True), st.randoms()
)
def test_colors_depend_on_the_label_alone_and_styles_not_on_the_order(labels: list[str], chance: Any) -> None:
    found = assign_styles(labels)
    assert {label: look.color for label, look in found.items()} == {each: style_for(each).color for each in labels}
    assert len(set(found.values())) == len(labels)
    shuffled = chance.sample(labels, len(labels))
    assert assign_styles(shuffled) == found
    assert list(assign_styles(shuffled)) == shuffled


def test_composite_labels_have_the_style_of_the_criterion_or_action_in_them() -> None:
    assert style_for("large_final + rewind + zero") == STYLES["large_final"]
    assert style_for("large_final + signed_constant + zero") == STYLES["signed_constant"]
    assert style_for("large_final + rewind + freeze_init") == STYLES["freeze_init"]
    assert style_for("ticket, large_final_same_sign") == STYLES["large_final_same_sign"]
    two = style_for("random + signed_constant + zero")
    assert two == STYLES["random"]._replace(marker=STYLES["signed_constant"].marker)
    grid = [f"{criterion} + {mask0}" for criterion in ("large_final", "random") for mask0 in ("zero", "freeze_init")]
    assert assign_styles(grid) == {label: style_for(label) for label in grid}


def test_fallback_styles_are_distinct() -> None:
    assert len(set(FALLBACK_STYLES)) == len({(look.color, look.line) for look in FALLBACK_STYLES}) == 40
    assert len({(look.color, look.marker) for look in FALLBACK_STYLES}) == 40
