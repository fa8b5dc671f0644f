"""First figure, takeaways, bounded intervals, figures that would be empty, and studies of one name told apart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.report_page import read
from helpers.stored_study import TrainedStudy, train_study

from supermask import load_study
from supermask.analysis.claims.clauses import evaluate_clause
from supermask.analysis.claims.endpoint_band import compare_over_band, endpoint_band
from supermask.analysis.claims.evidence import ClaimData
from supermask.analysis.stats import PERCENT, mean_interval
from supermask.analysis.summary import Metric, summarize
from supermask.api import runs as api_runs
from supermask.reporting.figures.accuracy import ACCURACY, EARLY_STOP, count_unconverged, unconverged_note
from supermask.reporting.figures.caption import takeaway
from supermask.reporting.figures.ranking import compute_ranking, ranking_caption
from supermask.reporting.html import Report, build_report, sections
from supermask.reporting.html.study import NO_EARLY_STOP, tell_apart
from supermask.reporting.html.takeaways import (
    accuracy_takeaway,
    iterations_takeaway,
    overview_takeaway,
    ranking_takeaway,
)
from supermask.reporting.plotly.accuracy import overview_plot
from supermask.store import Store
from supermask.study.claims import Clause


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("takeaways"))


@pytest.fixture(scope="module")
def report(trained: TrainedStudy) -> Report:
    found = api_runs.study_rows(str(trained.study), (), trained.store)
    return build_report([found], [], Store(trained.store), "supermask report small.yaml")


def row(treatment: str, level: int, seed: int, accuracy: float, iteration: int = 40) -> dict[str, Any]:
    return {
        "treatment": "dense" if level == 0 else treatment,
        "level": level,
        "seed": seed,
        "status": "finished",
        "density": 0.5**level,
        "early_stop_test_accuracy": accuracy,
        "early_stop_iteration": iteration,
        "network": "fc-8",
        "dataset": "digits",
    }


ROWS = [
    row(name, level, seed, accuracy + 0.001 * seed, iteration)
    for name, level, accuracy, iteration in (
        ("a", 0, 0.97, 40),
        ("a", 1, 0.96, 20),
        ("b", 1, 0.90, 30),
        ("a", 2, 0.95, 10),
        ("b", 2, 0.40, 40),
        ("a", 3, 0.5, 40),
    )
    for seed in range(3)
]


def changed(rows: list[dict[str, Any]], treatment: str, **facts: Any) -> list[dict[str, Any]]:
    return [{**r, **facts} if r["treatment"] == treatment else r for r in rows]


def test_takeaways_compare_treatments_of_equal_density_only() -> None:
    """A network of its own may have twice the weights at the same level."""
    rows = [r for r in ROWS if r["level"] < 3] + [row("c", level, seed, 0.99) for level in (1, 2) for seed in range(3)]
    mixed = summarize(changed(rows, "c", density=0.9), ["c", "a", "b"], "a", ACCURACY)
    text = accuracy_takeaway(mixed)
    assert text.startswith("With 25% of the weights, 95.10% (a) is the highest mean test accuracy and 40.10% (b) the ")
    figure, _ = overview_plot(mixed, ["c", "a", "b"])
    assert figure["layout"]["xaxis"]["ticktext"] == ["50.0", "25.0"]


def test_ties_are_not_called_a_first_place() -> None:
    level = [r for r in ROWS if r["level"] in (0, 1)]
    tied = changed(changed(level, "a", early_stop_test_accuracy=0.9), "b", early_stop_test_accuracy=0.9)
    summary = summarize(tied, ["a", "b"], "a", ACCURACY)
    ranking = compute_ranking(summary)
    assert ranking_takeaway(ranking) == "With 50% of the weights, all treatments have the same mean rank, 1.50."
    caption = ranking_caption(summary, ranking, "one panel", "")
    assert caption.endswith("Takeaway: a and b are ranked first at 50% of the weights (mean rank 1.5).")
    assert "all treatments have the same mean test accuracy, 90.00%; the dense" in accuracy_takeaway(summary)
    third = [{**r, "treatment": "c", "early_stop_test_accuracy": 0.1} for r in tied if r["treatment"] == "a"]
    ranking = compute_ranking(summarize([*tied, *third], ["a", "b", "c"], "a", ACCURACY))
    assert ranking_takeaway(ranking) == (
        "With 50% of the weights, a and b have the best mean rank, 1.50, and c the last, 3.00."
    )


def test_one_difference_is_no_range() -> None:
    few = [r for r in ROWS if r["level"] in (0, 1)]
    assert overview_takeaway(summarize(few, ["a", "b"], "a", ACCURACY)) == (
        "The mean difference of b to a with 50% of the weights is −6.00 points."
    )


def noisy(row: dict[str, Any]) -> float:
    """Accuracy with a spread of its differences: without one a difference is not tested."""
    return float(row["early_stop_test_accuracy"]) + 1e-4 * (row["seed"] ** 2 if row["treatment"] == "b" else 0)


def summary(metric: Metric = ACCURACY) -> Any:
    return summarize(ROWS, ["a", "b"], "a", metric)


def band_rows(seeds: int) -> list[dict[str, Any]]:
    """Rows of mask-criteria on MNIST: level 1 lies outside the band from 20% to 5%; levels of one seed go together."""
    means = {"large_final": 0.98, "magnitude_increase": 0.982, "random": 0.95, "movement": 0.98}
    return [
        row(label, level, seed, mean + 0.001 * seed + 1e-4 * ((7 * seed + 3 * level + place) % 5))
        | {"dataset": "mnist", "network": "fc-300-100", "density": density}
        for place, (label, mean) in enumerate(means.items())
        for level, density in ((1, 0.5), (2, 0.18), (3, 0.06))
        for seed in range(seeds)
    ]


def test_a_takeaway_follows_the_primary_endpoint_of_the_study() -> None:
    study = load_study("mask-criteria")
    band = endpoint_band(study, "fc-300-100", "large_final", ACCURACY.column)
    assert band == (20, 5)
    labels = ["large_final", "magnitude_increase", "random", "movement"]
    summary = replace(summarize(band_rows(5), labels, "large_final", ACCURACY), band=band)
    tested = compare_over_band(summary)
    evidence = ClaimData(study, band_rows(5), 10)
    for label in labels[1:]:
        clause = Clause(treatment=label, relation="above", reference="large_final", band=band)
        effect = evaluate_clause(clause, evidence).effect
        assert effect is not None
        assert (tested[label].p, tested[label].difference) == (effect.p, effect.difference)
    assert takeaway(summary) == (
        "Takeaway: in the mean from 20% to 5% of the weights, against large_final, magnitude_increase is better; "
        "random is worse; movement is not significantly different (one t-test per treatment over n = 5 seeds, p < "
        "0.05)."
    )


def test_without_an_endpoint_or_its_seeds_a_takeaway_is_about_levels() -> None:
    mask0 = load_study("mask-0-actions")
    assert endpoint_band(mask0, "fc-300-100", "zero", ACCURACY.column) is None, "its claims have several bands"
    few = replace(summarize(band_rows(4), ["large_final", "random"], "large_final", ACCURACY), band=(20, 5))
    assert takeaway(few) == "Takeaway: against large_final, random is worse at some level."


def test_a_takeaway_over_a_band_takes_all_of_its_planned_levels() -> None:
    """A claim on these rows has no verdict either: one of the band's two levels is not trained."""
    labels = ["large_final", "magnitude_increase", "random", "movement"]
    unfinished = [
        {**row, "status": "to_do", "early_stop_test_accuracy": None}
        if row["level"] == 3 and row["treatment"] in ("random", "movement")
        else row
        for row in band_rows(5)
    ]
    summary = replace(summarize(unfinished, labels, "large_final", ACCURACY), band=(20.0, 5.0))
    assert list(compare_over_band(summary)) == ["magnitude_increase"]
    clause = Clause(treatment="random", relation="above", reference="large_final", band=(20, 5))
    effect = evaluate_clause(clause, ClaimData(load_study("mask-criteria"), unfinished, 10)).effect
    assert effect is not None and effect.n == 0
    assert takeaway(summary) == (
        "Takeaway: in the mean from 20% to 5% of the weights, against large_final, magnitude_increase is better (one "
        "t-test per treatment over n = 5 seeds, p < 0.05)."
    )
    # Without the reference's level, no treatment has a mean over the band.
    no_reference = [
        {**row, "status": "to_do", "early_stop_test_accuracy": None}
        if row["level"] == 3 and row["treatment"] == "large_final"
        else row
        for row in band_rows(5)
    ]
    summary = replace(summarize(no_reference, labels, "large_final", ACCURACY), band=(20.0, 5.0))
    assert compare_over_band(summary) == {}


def test_takeaways_name_measured_means_at_the_last_common_level() -> None:
    """Level 3 has one treatment only, so level 2 is compared."""
    assert accuracy_takeaway(summary()) == (
        "With 25% of the weights, 95.10% (a) is the highest mean test accuracy and 40.10% (b) the lowest; the dense "
        "network has 97.10%."
    )
    assert iterations_takeaway(summary(EARLY_STOP)) == (
        "With 25% of the weights, the validation loss is lowest at iteration 10 on average for a and 40 for b."
    )
    assert overview_takeaway(summary()) == (
        "Mean differences to a go from −55.00 points (b with 25% of the weights) to −6.00 points (b with 50% of the "
        "weights)."
    )
    spread = [row | {"dataset": "mnist", "early_stop_test_accuracy": noisy(row)} for row in ROWS]
    tested = summarize(spread, ["a", "b"], "a", ACCURACY)
    assert overview_takeaway(tested) == "Of 2 tested cells, 0 are significantly above a and 2 below."
    # Level 2 of b has one seed: it is not tested.
    one_seed = [row for row in spread if (row["treatment"], row["level"]) != ("b", 2) or row["seed"] == 0]
    summary_of_two = summarize(one_seed, ["a", "b"], "b", ACCURACY)
    assert overview_takeaway(summary_of_two) == "Of 1 tested cell, 1 is significantly above b and 0 below."


def test_intervals_are_cut_off_at_their_bounds() -> None:
    values = [99.0, 100.0, 98.0]
    free, bounded = mean_interval(values), mean_interval(values, PERCENT)
    assert free.high is not None and free.high > 100 == bounded.high
    assert bounded.low == free.low
    assert mean_interval([0.0, 1.0], PERCENT).low == 0.0
    assert mean_interval([5.0], PERCENT).high is None
    points = [*summary().points, *summary(EARLY_STOP).points]
    assert all((point.interval.low or 0) >= 0 for point in points)


def test_the_first_figure_comes_before_verdicts_and_is_drawn_once(report: Report) -> None:
    page = sections(report)
    assert report.lead is report.studies[0].plots[0]
    assert report.lead.id in {figure.attributes["id"] for figure in read(page["summary"]).all("figure")}
    places = [figure.attributes["id"] for html in page.values() for figure in read(html).all("figure")]
    assert sorted(places) == sorted(plot.id for part in report.studies for plot in part.plots)
    links = [link.attributes["href"] for link in read(page["study-small"]).all("a")]
    assert f"#{report.lead.id}" in links


def test_figures_tables_and_files_have_ids_of_their_own(report: Report) -> None:
    """The data of the page is one mapping: an equal id would give a figure the rows of a table."""
    ids = [part.id for part in report.studies for part in (*part.plots, *part.tables)]
    assert len(ids) == len(set(ids))


def test_every_figure_says_what_it_shows(report: Report) -> None:
    html = "".join(sections(report).values())
    for plot in report.studies[0].plots:
        assert re.search(r"\d", plot.takeaway), plot.name
        place = next(div for div in read(html).all("div") if div.attributes.get("data-plot") == plot.id)
        assert place.attributes["data-label"] == f"{plot.title}. {plot.takeaway}"


def test_a_figure_of_early_stopping_needs_runs_that_stopped_early() -> None:
    """With half of the runs at their last iteration the median is censored."""
    rows = [{**each, "early_stop_iteration": 40, "iterations": 40} for each in ROWS]
    assert count_unconverged(rows) == (18, 18)
    rows[0]["early_stop_iteration"] = 20
    assert count_unconverged([*rows, row("a", 4, 0, 0.5) | {"status": "to_do"}]) == (17, 18)
    assert unconverged_note(rows) == "In 17 of 18 runs the loss was lowest at the last iteration, 40."


@pytest.mark.parametrize(("late", "has_figure"), [(1.0, False), (0.5, False), (0.4, True)])
def test_most_runs_have_to_stop_early(trained: TrainedStudy, late: float, has_figure: bool) -> None:
    rows = api_runs.study_rows(str(trained.study), (), trained.store)[1]
    for place, each in enumerate(rows):
        each["early_stop_iteration"] = each["iterations"] if place < late * len(rows) else 1
    section = build_report([(trained.plan, rows, [])], [], Store(trained.store), "test").studies[0]
    assert ("early-stop" in {plot.name for plot in section.plots}) == has_figure
    assert bool(section.no_early_stop) != has_figure


def test_a_sentence_replaces_the_empty_figure(trained: TrainedStudy, report: Report) -> None:
    """Every run of these rows has its lowest loss at the last iteration."""
    rows = [
        {**each, "early_stop_iteration": each["iterations"]}
        for each in api_runs.study_rows(str(trained.study), (), trained.store)[1]
    ]
    plan = trained.plan
    flat = build_report([(plan, rows, [])], [], Store(trained.store), "test").studies[0]
    assert "early-stop" not in {plot.name for plot in flat.plots}
    assert flat.no_early_stop == NO_EARLY_STOP.format("In 18 of 18 runs the loss was lowest at the last iteration, 13.")
    page = sections(build_report([(plan, rows, [])], [], Store(trained.store), "test"))
    assert "There is no figure: most of these runs end before" in page["study-small"]


def test_studies_of_one_name_are_told_apart_by_what_differs() -> None:
    studies = [
        load_study("mask-criteria", ["scale=digits"]),
        load_study("mask-criteria", ["scale=digits", "seeds=2", "train.lr=0.02"]),
        load_study("mask-1-actions", ["scale=digits"]),
    ]
    assert tell_apart(studies) == ["seeds=[0, 1, 2, 3, 4], train.lr=0.01", "seeds=[0, 1], train.lr=0.02", ""]


def test_the_page_names_the_difference(trained: TrainedStudy, tmp_path: Path) -> None:
    both = [api_runs.study_rows(str(trained.study), overrides, trained.store) for overrides in ((), ("seeds=[0]",))]
    page = sections(build_report(both, [], Store(trained.store), "test"))
    assert "seeds=[0, 1]" in read(page["study-small"]).all("h2")[0].text
    assert "seeds=[0]" in read(page["study-small-2"]).all("h2")[0].text
