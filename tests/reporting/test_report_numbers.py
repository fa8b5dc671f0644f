"""Numbers of the report equal those of `supermask table`, and its means those of NumPy."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import call
from helpers.mask_studies import done
from helpers.report_page import blocks, read, rows_of
from helpers.stored_study import RUNS, TrainedStudy, train_study
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from supermask.api import runs as api_runs
from supermask.core.text import Row
from supermask.reporting.html import Report, build_report, plot_data, render_report, table_data
from supermask.reporting.html.tables import pack_columns
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.store.tables import COLUMNS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def report(trained: TrainedStudy) -> Report:
    found = api_runs.study_rows(str(trained.study), store=trained.store)
    return build_report([found], [], Store(trained.store), "supermask report small.yaml")


def table_of(trained: TrainedStudy) -> list[dict[str, str]]:
    """Rows that `supermask table` prints."""
    return list(csv.DictReader(io.StringIO(call("table", *trained.args)[1])))


def accuracies(trained: TrainedStudy, treatment: str, level: int) -> list[float]:
    """Percent, by seed, of the CSV."""
    rows = [row for row in table_of(trained) if (row["treatment"], int(row["level"])) == (treatment, level)]
    return [100 * float(row["early_stop_test_accuracy"]) for row in sorted(rows, key=lambda row: int(row["seed"]))]


def test_the_table_of_runs_has_every_run_and_every_number(trained: TrainedStudy, report: Report) -> None:
    """The values of the CSV are parsed with the types of the JSON values."""
    runs = rows_of(blocks(read(render_report(report)))["study-small-runs"])
    printed = table_of(trained)
    assert len(runs) == len(printed) == RUNS
    for run, line in zip(runs, printed, strict=True):
        assert list(run) == list(line) == list(COLUMNS)
        for name, value in run.items():
            if value is None:
                assert line[name] == ""
            elif isinstance(value, bool):
                assert line[name] == str(value).lower()
            elif isinstance(value, int | float):
                assert float(line[name]) == value
            else:
                assert line[name] == value


@pytest.mark.slow
def test_means_intervals_and_differences_are_those_of_numpy_over_the_csv(trained: TrainedStudy, report: Report) -> None:
    summary = rows_of(blocks(read(render_report(report)))["study-small-summary"])
    assert len(summary) == 1 + 4 * 2
    for row in summary:
        values = np.array(accuracies(trained, row["treatment"], row["level"]))
        assert row["n"] == len(values) == 2
        assert math.isclose(row["mean"], values.mean(), rel_tol=1e-12)
        half = scipy_stats.t.ppf(0.975, 1) * values.std(ddof=1) / math.sqrt(2)
        assert math.isclose(row["mean_high95"], min(values.mean() + half, 100), rel_tol=1e-9)
        assert math.isclose(row["mean_low95"], max(values.mean() - half, 0), rel_tol=1e-9)
        if row["difference"] is not None:
            reference = np.array(accuracies(trained, "large_final + zero", row["level"]))
            assert math.isclose(row["difference"], (values - reference).mean(), rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.slow
def test_lines_are_drawn_through_the_means(trained: TrainedStudy, report: Report) -> None:
    figure = plot_data(report)["study-small-accuracy"]
    views = {view["label"]: view for view in (figure, *figure["views"])}
    assert set(views) == {"Accuracy", "Accuracy, log axis of the error", "Difference to the reference"}
    for treatment in ("large_final + zero", "random + freeze_init"):
        means = [np.mean(accuracies(trained, *at)) for at in (("dense", 0), (treatment, 1), (treatment, 2))]
        plain, in_errors = (named(views[label], treatment) for label in sorted(views)[:2])
        assert np.allclose(plain["y"], means, rtol=1e-12)
        assert np.allclose(in_errors["y"], 100 - np.array(means), rtol=1e-12)
        assert f"{means[1]:.2f}%" in plain["hovertext"][1]
        assert "n = 2" in plain["hovertext"][1]
    ours, theirs = (np.array(accuracies(trained, label, 2)) for label in ("random + zero", "large_final + zero"))
    drawn = named(views["Difference to the reference"], "random + zero")["y"][-1]
    assert math.isclose(drawn, (ours - theirs).mean(), rel_tol=1e-9, abs_tol=1e-9)


def named(view: dict[str, Any], name: str) -> dict[str, Any]:
    """The one trace of a name."""
    (found,) = (trace for trace in view["data"] if trace.get("name") == name)
    return dict(found)


def test_the_overview_has_the_differences(trained: TrainedStudy, report: Report) -> None:
    (heat,) = plot_data(report)["study-small-overview"]["data"]
    ours, theirs = (np.array(accuracies(trained, label, 2)) for label in ("random + zero", "large_final + zero"))
    row = list(plot_data(report)["study-small-overview"]["layout"]["yaxis"]["ticktext"]).index("random + zero")
    assert math.isclose(heat["z"][row][1], (ours - theirs).mean(), rel_tol=1e-9, abs_tol=1e-9)
    assert heat["z"][0] == [0.0, 0.0] and heat["text"][0] == ["ref.", "ref."]


def test_a_missing_level_is_a_gap_and_the_band_follows_the_line(trained: TrainedStudy) -> None:
    plan, rows, _ = api_runs.study_rows(str(trained.study), store=trained.store)
    gone = [
        {**row, "status": "to_do", "early_stop_test_accuracy": None, "early_stop_iteration": None}
        if (row["treatment"], row["level"]) == ("random + zero", 1)
        else row
        for row in rows
    ]
    figure = plot_data(build_report([(plan, gone, [])], [], Store(trained.store), ""))["study-small-accuracy"]
    traces = [trace for trace in figure["data"] if trace["legendgroup"] == "random + zero"]
    assert [None if y is None else "there" for y in traces[-1]["y"]] == ["there", None, "there"]
    whole = [trace for trace in figure["data"] if trace["legendgroup"] == "large_final + zero"]
    band, line = whole
    assert band["fill"] == "toself" and band["showlegend"] is False and line["name"] == "large_final + zero"
    assert band["x"] == [*line["x"][1:], *reversed(line["x"][1:])]


def test_supermasks_and_their_curves(tmp_path: Path) -> None:
    found = done(
        tmp_path / "store",
        {"name": "learned", "supermask": {}},
        {"name": "heuristic", "trained": False, "schedule": "one_shot"},
        seeds=2,
    )
    rows, _ = plan_rows(found.plan, found.open_store())
    report = build_report([(found.plan, rows, [])], [], found.open_store(), "")
    figures, tables = plot_data(report), {name: rows_of(table) for name, table in table_data(report).items()}
    linear = next(v for v in figures["study-study-supermasks"]["views"] if v["label"] == "Linear axis")
    learned = [row for row in rows if row["treatment"] == "learned"]
    samples = np.mean([100 * float(row["early_stop_test_accuracy"] or 0) for row in learned])
    assert np.isclose(named(linear, "mean of the mask's single samples")["x"], samples).all()
    (network,) = (r for r in tables["study-study-networks"] if (r["treatment"], r["network"]) == ("learned", "samples"))
    assert math.isclose(network["mean"], samples)
    curve = named(figures["study-study-learning"]["views"][0], "learned")
    entry = found.open_store().read(str(learned[0]["id"])).tensors
    assert set(curve["x"]) <= set(entry["curve/iterations"].tolist())
    last = [
        100 * found.open_store().read(str(row["id"])).tensors["curve/validation_accuracy"].tolist()[-1]
        for row in learned
    ]
    assert math.isclose(curve["y"][-1], np.mean(last))


VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["", "a", "b", "1"])


@pytest.mark.slow
@given(st.lists(st.fixed_dictionaries(dict.fromkeys("abc", VALUES)), min_size=1, max_size=12))
def test_packed_columns_keep_every_value_and_its_type(rows: list[Row]) -> None:
    packed = json.loads(json.dumps(pack_columns(rows, ["a", "b", "c"]), allow_nan=False))
    found = rows_of({"rows": len(rows), "columns": packed})
    for row, back in zip(rows, found, strict=True):
        for name, value in row.items():
            finite = None if isinstance(value, float) and not math.isfinite(value) else value
            assert (type(back[name]), back[name]) == (type(finite), finite)


def test_repeated_columns_are_small() -> None:
    rows: list[Row] = [{"a": "x" * 100, "b": f"{'y' * 100}{i % 3}", "c": i / 7, "d": i / 7} for i in range(1000)]
    rows[500]["d"] = -1.0
    packed = pack_columns(rows, ["a", "b", "c", "d"])
    assert packed["a"] == {"all": "x" * 100}
    assert len(json.dumps(packed["b"])) < 5_000
    assert packed["d"] == {"like": "c", "rows": [500], "values": [-1.0]}


@pytest.mark.slow
def test_the_table_compares_as_the_figure_does(tmp_path: Path) -> None:
    """A study's reference that is not trained level by level is not what trained levels are compared with."""
    treatments = [
        {"name": "learned", "supermask": {}},
        {"name": "ticket", "criterion": "large_final"},
        {"name": "random", "criterion": "random"},
        {"name": "on", "supermask": {}, "levels": 2},
    ]
    found = done(tmp_path / "store", *treatments, seeds=2, reference={"name": "learned"}, levels=1)
    rows, _ = plan_rows(found.plan, found.open_store())
    report = build_report([(found.plan, rows, [])], [], found.open_store(), "")
    (figure,) = (plot.figure for plot in report.studies[0].plots if plot.name == "accuracy")
    view = next(view for view in figure["views"] if view["label"] == "Difference to the reference")
    summary = rows_of(table_data(report)["study-study-summary"])
    found_at = [(row["treatment"], row["level"]) for row in summary]
    assert found_at == [("dense", 0), ("learned", 1), ("ticket", 1), ("random", 1), ("on", 1), ("on", 2), ("on", 3)]
    (row,) = (row for row in summary if row["treatment"] == "random")
    assert row["reference"] == "ticket"
    assert named(view, "random")["y"][0] == row["difference"]
