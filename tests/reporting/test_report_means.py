"""Claims, ranking, Table 1 and supermasks in the report: every number equals NumPy over `supermask table`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import call
from helpers.mask_studies import TABLE_ONE, mask_plan
from helpers.report_page import blocks, read, rows_of
from helpers.small_studies import small_plan, train_plan
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from supermask.api import reports
from supermask.core.text import format_p_cell
from supermask.reporting.figures.table_one import COLUMNS
from supermask.reporting.html import Report, plot_data, render_report
from supermask.store import Store
from supermask.study.plan import Plan

CLAIMS = [
    {
        "id": "mine",
        "statement": "It is so.",
        "clauses": [
            {"treatment": "random", "above": "large_final"},
            {"treatment": "small_final", "at_most": "large_final", "margin": 1},
            {"treatment": "random", "matches": "small_final", "margin": 5},
            {"treatment": "large_final", "above": "chance"},
        ],
    }
]


@dataclass(frozen=True)
class Shown:
    """Report of a study and its rows from `supermask table`."""

    report: Report
    store: Store
    table: list[dict[str, str]]

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Tables of the page, by id."""
        found = blocks(read(render_report(self.report)))
        return {name: rows_of(block) for name, block in found.items() if "columns" in block}

    def percent(self, column: str = "early_stop_test_accuracy", **wanted: object) -> NDArray[np.float64]:
        """A column of the runs that have these values, by seed."""
        rows = [row for row in self.table if all(str(value) in row[k].split(" | ") for k, value in wanted.items())]
        return np.array([100 * float(row[column]) for row in sorted(rows, key=lambda row: int(row["seed"]))])


def shown(folder: Path, plan: Plan, **more: Any) -> Shown:
    train_plan(plan, folder / "store", engine="auto")
    file = folder / "own.yaml"
    file.write_text(json.dumps(plan.study.as_data() | more))
    report = reports.collect_report([str(file)], store=folder / "store")
    printed = call("table", str(file), "--store", str(folder / "store"))[1]
    return Shown(report, Store(folder / "store"), list(csv.DictReader(io.StringIO(printed))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Three treatments, two levels, five seeds, and claims about them; digits stand for data with verdicts."""
    treatments = [{"criterion": each} for each in ("large_final", "random", "small_final")]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("claims.evaluate", "summary"):
            patch.setattr(f"supermask.analysis.{module}.is_demonstration", lambda _: False)
        return shown(tmp_path_factory.mktemp("trained"), small_plan(*treatments, seeds=5), claims=CLAIMS)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return shown(tmp_path_factory.mktemp("masks"), mask_plan(*TABLE_ONE, seeds=3))


@pytest.fixture(scope="module")
def heuristics(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    treatment = {
        "criterion": ["large_final", "random"],
        "mask1": ["rewind", "constant"],
        "schedule": ["one_shot", "iterative"],
        "trained": False,
    }
    return shown(tmp_path_factory.mktemp("heuristics"), small_plan(treatment, seeds=3))


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = scipy_stats.t.interval(0.95, len(values) - 1, values.mean(), scipy_stats.sem(values))
    return float(low), float(high)


def has_mean(row: dict[str, Any], values: NDArray[np.float64]) -> None:
    """A row's n, mean and interval."""
    assert row["n"] == len(values) > 0
    assert math.isclose(row["mean"], values.mean(), rel_tol=1e-12)
    low, high = np.clip(interval(values), 0, 100)
    assert (row["mean_low95"], row["mean_high95"]) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))


def decimals(value: float, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''}.2f}".replace("-", "−")
    return "0.00" if float(f"{value:.2f}") == 0 else text


def two_sided_flips(apart: NDArray[np.float64]) -> float:
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(apart))).reshape(len(apart), -1)
    return float(np.mean(np.abs(apart @ signs) >= abs(apart.sum()) - 1e-9))


# --- claims ---


@pytest.mark.slow
def test_the_level_tables_of_claims(trained: Shown) -> None:
    (article,) = read(render_report(trained.report)).all("article")
    bodies = [table.all("tbody")[0].all("tr") for table in article.all("table")]
    clauses = CLAIMS[0]["clauses"]
    assert [len(body) for body in bodies] == [2, 2, 2, 2]
    for clause, body in zip(clauses, bodies, strict=True):
        assert isinstance(clause, dict)
        reference = next(str(clause[key]) for key in ("above", "at_most", "matches") if key in clause)
        for level, line in enumerate(body, start=1):
            ours = trained.percent(treatment=clause["treatment"], level=level)
            chance = reference == "chance"
            theirs = np.full(5, 10.0) if chance else trained.percent(treatment=reference, level=level)
            apart = ours - theirs
            outcome, *others = (cell.text for cell in line.all("td"))
            assert outcome.endswith(("holds", "opposite", "undecided", "untested")) or ": " in outcome
            cells = [line.all("th")[0].text, *others]
            low, high = (decimals(each, True) for each in interval(apart))
            remaining = trained.percent("density", treatment=clause["treatment"], level=level).mean()
            means = [decimals(remaining), "5", decimals(ours.mean()), decimals(theirs.mean())]
            assert cells[:5] == [*means, decimals(apart.mean(), True)]
            assert cells[5] == f"[{low}, {high}]"
            flips = two_sided_flips(apart)
            assert cells[9] == ("–" if chance else format_p_cell(flips))


def test_the_mean_over_the_band_of_claims(trained: Shown) -> None:
    (article,) = read(render_report(trained.report)).all("article")
    texts = [each.text for each in article.all("p") if "error rate" in each.text and each.text[0] in "+−0"]
    for clause, text in zip(CLAIMS[0]["clauses"], texts, strict=True):
        assert isinstance(clause, dict)
        reference = next(str(clause[key]) for key in ("above", "at_most", "matches") if key in clause)
        sides = []
        for name in (clause["treatment"], reference):
            levels = [trained.percent(treatment=name, level=level) for level in (1, 2) if name != "chance"]
            sides.append(np.mean(levels, axis=0) if levels else np.full(5, 10.0))
        apart = sides[0] - sides[1]
        low, high = (decimals(each, True) for each in interval(apart))
        assert text.startswith(f"{decimals(apart.mean(), True)} points [{low}, {high}], n = 5; error rate × ")
        if reference != "chance":
            assert f"p, flips {format_p_cell(two_sided_flips(apart))}" in text


def test_claims_describe_their_tests_and_the_limit_of_exact_tests(trained: Shown) -> None:
    (claims,) = (
        each for each in read(render_report(trained.report)).all("section") if each.attributes["id"] == "claims"
    )
    introduction = " ".join(each.text for each in claims.inside if each.tag == "p")
    assert "n = 5 seeds. The tested value of a seed is the mean over levels of its difference" in introduction
    assert "paired t, over the seeds that both sides have (3); one-sample t, against chance (1)." in introduction
    assert "“above” two-sided, “at most” one-sided against the margin, “matches” by two one-sided tests" in introduction
    assert introduction.count("With 5 paired seeds an exact sign-flip test cannot give p below 0.0625") == 1


def test_the_summary_has_medians_and_exact_p(trained: Shown) -> None:
    for row in trained.tables["study-own-summary"]:
        values = trained.percent(treatment=row["treatment"], level=row["level"])
        has_mean(row, values)
        assert row["median"] == pytest.approx(np.median(values), rel=1e-12)
        if row["p_sign_flip"] is not None:
            apart = values - trained.percent(treatment="large_final", level=row["level"])
            assert row["p_sign_flip"] == two_sided_flips(apart)
    assert sum(row["p_sign_flip"] is not None for row in trained.tables["study-own-summary"]) == 4


# --- ranking ---


def test_the_ranking_shows_mean_ranks_and_their_intervals(trained: Shown) -> None:
    figure = plot_data(trained.report)["study-own-ranking"]
    over_levels, *levels = (figure, *figure["views"])
    assert over_levels["label"] == "All levels"
    assert len(levels) == 2
    names = ["large_final", "random", "small_final"]
    for level, view in enumerate(levels, start=1):
        values = np.array([trained.percent(treatment=name, level=level) for name in names])
        ranks = scipy_stats.rankdata(-values, axis=0)
        for name, own in zip(names, ranks, strict=True):
            (dot,) = (trace for trace in view["data"] if trace.get("name") == name)
            assert dot["x"] == [pytest.approx(own.mean())]
            assert f"of 3, n = 5<br>rank {own.min():g} to {own.max():g}" in dot["hovertext"][0]
            if own.std() > 0:
                low, high = np.clip(interval(own), 1, 3)
                up, down = dot["error_x"]["array"][0], dot["error_x"]["arrayminus"][0]
                assert (own.mean() + up, own.mean() - down) == (pytest.approx(high), pytest.approx(low))
            else:
                assert "error_x" not in dot or dot["error_x"]["array"] == [0.0]
            (line,) = (trace for trace in over_levels["data"] if trace.get("name") == name)
            assert line["y"][level - 1] == pytest.approx(own.mean())
        order = [trace["x"][0] for trace in view["data"] if "name" in trace]
        assert order == sorted(order)


def test_two_treatments_have_no_ranking(tmp_path: Path) -> None:
    found = shown(tmp_path, small_plan({"criterion": "large_final"}, {"criterion": "random"}, levels=1))
    assert "study-own-ranking" not in plot_data(found.report)


# --- supermasks ---


@pytest.mark.slow
def test_table_one(masks: Shown) -> None:
    rows = masks.tables["study-own-table-one"]
    assert [row["column"] for row in rows] == list(COLUMNS)
    for row in rows:
        if row["treatment"].startswith("heuristic"):
            validated = [
                masks.percent("early_stop_validation_accuracy", treatment=row["treatment"], level=level).mean()
                for level in (1, 2)
            ]
            assert row["level"] == 1 + int(np.argmax(validated))
        has_mean(row, masks.percent(treatment=row["treatment"], level=row["level"]))
        assert (row["paper_percent"], row["paper_confirmed"]) == (None, None)
    (table,) = (table for table in masks.report.studies[0].tables if table.name == "table-one")
    assert "The paper's table does not have fc-100 on digits." in table.caption


def test_supermasks_and_their_networks(masks: Shown) -> None:
    column = {"thresholded": "thresholded_test_accuracy", "expected": "expected_test_accuracy"}
    rows = masks.tables["study-own-networks"]
    assert len(rows) == 2 + 4 * 3
    for row in rows:
        has_mean(row, masks.percent(column.get(row["network"], "early_stop_test_accuracy"), **at(row)))
        reference = next(each for each in rows if each["treatment"] == "heuristic, w_i")
        if row["difference"] is not None:
            apart = masks.percent(**at(row)) - masks.percent(**at(reference))
            assert row["difference"] == pytest.approx(apart.mean(), rel=1e-9)


def at(row: dict[str, Any]) -> dict[str, Any]:
    return {"treatment": row["treatment"], "level": row["level"]}


def test_learning_curves_are_means_over_seeds(masks: Shown) -> None:
    figure = plot_data(masks.report)["study-own-learning"]
    (linear,) = (view for view in (figure, *figure["views"]) if view["label"] == "Linear axis")
    lines = [trace for trace in linear["data"] if "name" in trace]
    assert [line["name"] for line in lines] == [each["name"] for each in TABLE_ONE[2:]]
    for line in lines:
        runs = [row["id"] for row in masks.table if row["treatment"] == line["name"]]
        curves = [masks.store.read(run).tensors for run in runs]
        iterations, means = curves[0]["curve/iterations"], mean_of(curves)
        assert line["x"] == [i for i in iterations.tolist() if i > 0]
        assert line["y"] == pytest.approx([mean for i, mean in zip(iterations, means, strict=True) if i > 0])
        last = interval(np.array([100 * float(curve["curve/validation_accuracy"][-1]) for curve in curves]))
        assert f"[{decimals(last[0])}, {decimals(last[1])}], n = 3" in line["hovertext"][-1]


def mean_of(curves: Sequence[dict[str, NDArray[Any]]]) -> NDArray[np.float64]:
    return np.mean([100 * curve["curve/validation_accuracy"].astype(np.float64) for curve in curves], axis=0)


@pytest.mark.slow
def test_heuristic_supermasks(heuristics: Shown) -> None:
    rows = heuristics.tables["study-own-heuristics"]
    assert len(rows) == 2 * 2 * 2 * 2
    figure = plot_data(heuristics.report)["study-own-heuristic"]
    drawn = {}
    for view, key in zip(
        (figure, *figure["views"]),
        [(mask1, schedule) for mask1 in ("rewind", "constant") for schedule in ("one_shot", "iterative")],
        strict=True,
    ):
        drawn[key] = {trace["name"]: trace for trace in view["data"] if "name" in trace}
    for row in rows:
        own = {key: row[key] for key in ("criterion", "mask1", "schedule", "level")}
        has_mean(row, heuristics.percent(**own, trained="false"))
        assert drawn[row["mask1"], row["schedule"]][row["criterion"]]["y"][row["level"] - 1] == row["mean"]
