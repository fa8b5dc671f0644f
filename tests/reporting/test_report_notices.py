"""Notices at the top of the report: demonstration data, notes on the data, diverged runs."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.command_line import call
from helpers.report_page import Element, read, rows_of
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import TEXT, TrainedStudy, train_study, write_study

from supermask.analysis.claims import evaluate_claims
from supermask.analysis.claims.formats import claim_notices
from supermask.api import runs
from supermask.core.text import Row
from supermask.datasets.specs import DATASETS, data_notices, demo_notice
from supermask.reporting.html import Report, build_report, render_report, sections, table_data
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import load_study
from supermask.study.plan import make_plan

DEMONSTRATION = "A demonstration, on 1,797 images of 8x8 pixels (digits): it shows everything at work and gives no"
CLAIM = """
claims:
  - id: mine
    statement: "It is so."
    clauses: [{treatment: random + zero, above: large_final + zero}]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    """Four seeds, and a claim."""
    return train_study(tmp_path_factory.mktemp("notices"), text=TEXT.replace("seeds: 2", "seeds: 4") + CLAIM)


def make_report(trained: TrainedStudy, rows: list[Row]) -> Report:
    claims = evaluate_claims([(trained.plan.study, rows)])
    return build_report([(trained.plan, rows, [])], claims, trained.open_store(), "")


def rows_in(trained: TrainedStudy) -> list[Row]:
    return runs.study_rows(str(trained.study), store=trained.store)[1]


def section(report: Report, name: str) -> Element:
    return read(sections(report)[name])


# --- a demonstration ---


def test_only_digits_are_a_demonstration() -> None:
    assert demo_notice(["mnist", "cifar10", ""]) == demo_notice([]) == ""
    text = demo_notice(["mnist", "digits", "digits"])
    assert text.startswith(DEMONSTRATION) and "verdict, because" in text and "--scale laptop" in text
    facts = DATASETS["digits"]
    assert facts.training_images + facts.test_images == 1797 and facts.image_shape == (1, 8, 8)


@pytest.mark.slow
def test_the_demonstration_notice_is_on_top_of_report_and_command_output(trained: TrainedStudy, tmp_path: Path) -> None:
    top = section(make_report(trained, rows_in(trained)), "summary")
    assert [each.text for each in top.all("p")][:1] == [
        "A demonstration: no verdicts. 1 study of fc-8 on digits; n = 4 seeds; 36 runs."
    ]
    assert [each.text for each in top.all("p")][1].startswith(DEMONSTRATION)
    assert top.all("li") == []
    text = call("claims", *trained.args)
    assert text.out.startswith(DEMONSTRATION) and text.err == ""
    printed = call("claims", *trained.args, "--format", "json")
    assert DEMONSTRATION in printed.err
    assert json.loads(printed.out)[0]["dataset"] == "digits"
    for given in ("text", "markdown", "csv", "json"):
        check_no_verdict(call("claims", *trained.args, "--format", given).out)
    result = call("report", *trained.args, "--out", str(tmp_path / "r.html"))
    assert result.out.count(DEMONSTRATION) == 1


@pytest.mark.slow
def test_reproduce_prints_the_demonstration_notice(tmp_path: Path) -> None:
    at = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "r.html"), "--workers", "2"]
    result = call("reproduce", "--scale", "digits", "--only", "mask-points", *at)
    assert result.status == 0, result.err
    assert result.out.count(DEMONSTRATION) == 1
    assert result.out.index(DEMONSTRATION) < result.out.index("* 14. ")
    check_no_verdict(result.out)
    (page,) = read((tmp_path / "r.html").read_text(encoding="utf-8")).all("main")
    check_no_verdict(page.text)


def test_a_demonstration_shows_its_figures_first_and_no_verdict(trained: TrainedStudy) -> None:
    report = make_report(trained, rows_in(trained))
    assert list(sections(report)) == ["summary", "study-small", "claims", "provenance"]
    assert report.is_demonstration and set(report.verdicts.values()) == {0}
    page = read(render_report(report))
    check_no_verdict(page.all("main")[0].text)
    (article,) = section(report, "claims").all("article")
    assert article.all("h3")[0].text == "· no verdict It is so."
    links = [each.attributes["href"] for each in page.all("nav")[0].all("a")]
    assert links == ["#summary", "#study-small", "#claims", "#provenance"]
    drawn = call("figure", *trained.args, "--only", "accuracy", "--format", "md", "--out", str(trained.store.parent))
    check_no_verdict(drawn.out)
    for plot in report.studies[0].plots:
        if plot.name not in ("accuracy", "overview", "ranking", "early-stop"):
            continue
        assert "A demonstration on digits: nothing is tested; intervals say nothing" in plot.caption
        assert "Takeaway: against" not in plot.caption


def check_no_verdict(text: str) -> None:
    assert not re.search(r"(?<!un)supported|contradicted|not enough data|holds", text)


def test_the_note_on_the_data_is_on_top_once(trained: TrainedStudy) -> None:
    note = "images decoded from JPEG: pixels differ from the original's."
    rows = [{**row, "dataset": "cifar10", "data_note": note} for row in rows_in(trained)]
    report = make_report(trained, rows)
    said = [each.text for each in section(report, "summary").all("p")]
    assert said.count(f"Data: {note}") == 1
    assert f"Data: {note}" in claim_notices(report.claims)
    assert data_notices([note, note, ""]) == [f"Data: {note}"]


# --- diverged runs ---


def test_a_study_whose_dense_runs_all_diverge(tmp_path: Path) -> None:
    """The learning rate is too high: every dense run diverges, and no other run can start."""
    plan = small_plan({"criterion": "large_final"}, {"criterion": "random"}, lr=3e37, optimizer="sgd", seeds=3)
    train_plan(plan, tmp_path)
    rows, _ = plan_rows(plan, Store(tmp_path))
    assert Counter(row["status"] for row in rows) == {"diverged": 3, "ancestor_diverged": 12}
    report = build_report([(plan, rows, [])], [], Store(tmp_path), "")
    for name in ("study-study", "provenance"):
        text = section(report, name).text
        assert "3 runs diverged, and 12 runs could not start after them" in text
    for row in rows:
        if row["status"] == "diverged":
            when = f"loss not finite at iteration {row['diverged_at']}"
            assert f"dense, level 0, seed {row['seed']} ({when})" in section(report, "study-study").text
            assert when in section(report, "provenance").text
    assert "has finished, and none is to do: there is no mean" in section(report, "study-study").text
    assert render_report(report)


def test_a_study_whose_runs_all_diverged_is_reported(tmp_path: Path) -> None:
    study = write_study(tmp_path, text=TEXT.replace("train: {", "train: {lr: 3e37, optimizer: sgd, "))
    train_plan(make_plan(load_study(study)), tmp_path / "store")
    result = call("report", study, "--store", tmp_path / "store", "--out", tmp_path / "r.html")
    assert (result.status, result.err) == (0, "")
    assert "2 runs diverged, and 16 runs could not start after them" in (tmp_path / "r.html").read_text()


@pytest.fixture(scope="module")
def some_diverged(trained: TrainedStudy) -> Report:
    """One run diverged, so its child could not start; all others finished."""
    status = {1: "diverged", 2: "ancestor_diverged"}
    rows: list[Row] = []
    for row in rows_in(trained):
        if (row["treatment"], row["seed"]) == ("random + zero", 3):
            gone: Row = {name: None for name in row if name.startswith(("early_stop", "final", "initial"))}
            row = {**row, **gone, "status": status[int(row["level"] or 0)], "certificate": None}
            row["diverged_at"] = 7 if row["level"] == 1 else None
        rows.append(row)
    return make_report(trained, rows)


def test_a_diverged_run_is_listed_above_its_study_and_in_the_provenance(some_diverged: Report) -> None:
    top = section(some_diverged, "study-small").all("p")[1].text
    assert top.startswith("1 run diverged, and 1 run could not start after it; they are in no mean:")
    assert "random + zero, level 1, seed 3 (loss not finite at iteration 7)." in top
    end = section(some_diverged, "provenance")
    assert "1 run diverged, and 1 run could not start after" in end.text
    (table,) = (each for each in end.all("table") if "Runs that diverged" in each.text)
    assert [cell.text for cell in table.all("td")][:5] == [
        "small",
        "random + zero",
        "1",
        "3",
        "loss not finite at iteration 7",
    ]


def test_a_diverged_run_is_counted_in_every_caption(some_diverged: Report) -> None:
    plots = some_diverged.studies[0].plots
    assert [plot.name for plot in plots] == ["accuracy", "overview", "ranking", "weight-changes"]
    for plot in plots:
        assert "1 diverged (random + zero 1)" in plot.caption
        assert "1 not started because an ancestor diverged (random + zero 1)" in plot.caption
    ranking = next(plot for plot in plots if plot.name == "ranking")
    assert "Seeds in which some treatment has not finished are not ranked." in ranking.caption


def test_a_diverged_run_is_in_no_mean_and_counted_in_the_table(some_diverged: Report) -> None:
    rows = rows_of(table_data(some_diverged)["study-small-summary"])
    own = [row for row in rows if row["treatment"] == "random + zero"]
    assert [(row["n"], row["left_out"], row["test"], row["p_sign_flip"]) for row in own] == [
        (3, 1, "Welch t", None)
    ] * 2


def test_claims_list_lost_seeds_and_leave_them_out(some_diverged: Report) -> None:
    (clause,) = some_diverged.claims[0].clauses
    assert clause.effect is not None and clause.effect.n == 3
    lost = (
        "random + zero: 1 diverged (level 1 seed 3)",
        "random + zero: 1 ancestor diverged (level 2 seed 3)",
    )
    assert clause.missing == lost
    claims = section(some_diverged, "claims")
    assert all(text in claims.text for text in lost)
    assert "sign-flip" not in claims.text
    assert [line.all("td")[1].text for line in claims.all("tbody")[0].all("tr")] == ["3", "3"]
