"""First figure, takeaways, bounded intervals, figures that would be empty, and studies of one name told apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.report_page import read
from helpers.stored_study import TrainedStudy, train_study

from supermask import load_study
from supermask.analysis.stats import PERCENT, mean_interval
from supermask.analysis.summary import Metric, summarize
from supermask.api import runs as api_runs
from supermask.reporting.figures.accuracy import ACCURACY, EARLY_STOP
from supermask.reporting.figures.catalog import TrainedSummaries
from supermask.reporting.html import Report, build_report, sections
from supermask.reporting.html.study import NO_EARLY_STOP, tell_apart
from supermask.reporting.html.takeaways import accuracy_takeaway, iterations_takeaway, overview_takeaway
from supermask.store import Store


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


def summary(metric: Metric = ACCURACY, dataset: str = "digits") -> Any:
    return summarize([row | {"dataset": dataset} for row in ROWS], ["a", "b"], "a", metric)


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
    assert overview_takeaway(summary(dataset="mnist")).startswith("Of 2 cells, 0 are significantly above a and ")


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


def summaries_of(iterations: int, changed: int) -> TrainedSummaries:
    rows = [{**each, "early_stop_iteration": 40} for each in ROWS]
    rows[0]["early_stop_iteration"] = changed
    early_stop = summarize(rows, ["a", "b"], "a", EARLY_STOP)
    return TrainedSummaries(early_stop, early_stop, "In 18 of 18 runs ..." if iterations == 40 else "")


def test_a_figure_of_early_stopping_needs_a_run_that_stopped_early() -> None:
    assert not summaries_of(40, changed=40).converged
    assert summaries_of(40, changed=20).converged
    assert summaries_of(60, changed=40).converged


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
    assert "There is no figure: these runs end before" in page["study-small"]


def test_studies_of_one_name_are_told_apart_by_what_differs() -> None:
    studies = [
        load_study("mask-criteria", ["scale=digits"]),
        load_study("mask-criteria", ["scale=digits", "seeds=2", "train.lr=0.01"]),
        load_study("mask-1-actions", ["scale=digits"]),
    ]
    assert tell_apart(studies) == ["seeds=[0, 1, 2, 3, 4], train.lr=0.0012", "seeds=[0, 1], train.lr=0.01", ""]


def test_the_page_names_the_difference(trained: TrainedStudy, tmp_path: Path) -> None:
    both = [api_runs.study_rows(str(trained.study), overrides, trained.store) for overrides in ((), ("seeds=[0]",))]
    page = sections(build_report(both, [], Store(trained.store), "test"))
    assert "seeds=[0, 1]" in read(page["study-small"]).all("h2")[0].text
    assert "seeds=[0]" in read(page["study-small-2"]).all("h2")[0].text
