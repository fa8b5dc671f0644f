"""Results of others beside ours: reading their tables, Welch's test cell by cell, and messages on unusable tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import call
from helpers.compared_results import ACCURACY, LABELS, our_rows, theirs, write_study
from helpers.stored_study import train_study
from scipy import stats as scipy_stats

import supermask as sm
from supermask.analysis.comparisons import (
    OtherResult,
    OtherResults,
    ResultComparison,
    compare_results,
    find_metric,
    published_rows,
    published_values,
    row_results,
)
from supermask.analysis.comparisons.cells import CellComparison
from supermask.analysis.comparisons.formats import format_csv, format_json, format_text
from supermask.analysis.stats import compare as compare_means
from supermask.analysis.stats import equivalence
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.reporting.figures.comparison import comparison_caption
from supermask.store import tables
from supermask.store.rows import plan_rows


def test_cells_are_welchs_test_of_scipy() -> None:
    ours, others = our_rows(5), our_rows(7, shift=0.4, seed=1)
    result = compare_results(ours, theirs(others), ACCURACY, LABELS, "study", margin=0.2)
    assert [(cell.treatment, cell.level) for cell in result.cells] == [
        ("dense", 0),
        *((label, level) for label in LABELS for level in (1, 2, 3)),
    ]
    for cell in result.cells:
        a, b = (
            [100 * float(r["early_stop_test_accuracy"] or 0) for r in rows if (r["treatment"], r["level"]) == place]
            for rows in (ours, others)
            for place in [(cell.treatment, cell.level)]
        )
        expected = scipy_stats.ttest_ind(a, b, equal_var=False)
        assert cell.comparison.test == "Welch t"
        assert (cell.n, cell.other_n) == (5, 7)
        assert cell.comparison.p == pytest.approx(expected.pvalue)
        assert (cell.mean, cell.std) == pytest.approx((np.mean(a), np.std(a, ddof=1)))
        assert (cell.other_mean, cell.other_std) == pytest.approx((np.mean(b), np.std(b, ddof=1)))
        assert cell.differs == (expected.pvalue < 0.01)
        interval = expected.confidence_interval(0.90)
        assert cell.equivalent == (interval.low > -0.2 and interval.high < 0.2)
    by_label = {count.treatment: count for count in result.by_treatment}
    assert by_label["random"].differing == 3
    assert by_label["dense"].differing == by_label["large_final"].differing == 0
    assert result.total.expected_by_chance == pytest.approx(0.07)


def test_equal_implementations_differ_in_one_cell_of_a_hundred() -> None:
    differing = tested = 0
    for number in range(60):
        result = compare_results(
            our_rows(5, seed=1000 + number), theirs(our_rows(5, seed=number)), ACCURACY, LABELS, "study"
        )
        differing += result.total.differing
        tested += result.total.tested
        assert result.total.expected_by_chance == pytest.approx(0.01 * result.total.tested)
    assert tested == 420
    # Binomial with p = 0.01 or a little less (Welch's test is conservative): 0 to 12 in all but 1 case of 5,000.
    assert differing <= 12


def test_levels_match_by_density_to_the_nearest_within_two_percent() -> None:
    others = OtherResults(
        "theirs.csv",
        tuple(
            OtherResult("random", None, density, None, 95.0 + 0.1 * number)
            for density in (1.0, 0.61, 0.365, 0.30)
            for number in range(3)
        ),
    )
    result = compare_results(our_rows(), others, ACCURACY, LABELS, "study", by_density=True)
    # 0.61 is within 2% of 0.6, 0.365 of 0.36; 0.30 is next to nothing.
    assert [(cell.treatment, cell.level) for cell in result.cells] == [("dense", 0), ("random", 1), ("random", 2)]
    assert any("random at 30%" in note for note in result.notes)


def test_the_dense_network_repeated_in_front_of_each_treatment_is_one_cell() -> None:
    dense = [OtherResult(label, 0, None, None, value) for label in LABELS for value in (95.0, 95.2)]
    first = [OtherResult("random", 1, None, None, value) for value in (95.0, 95.2)]
    result = compare_results(our_rows(), OtherResults("t", (*dense, *first)), ACCURACY, LABELS, "study")
    assert [(cell.treatment, cell.level) for cell in result.cells] == [("dense", 0), ("random", 1)]


def test_a_part_of_the_dense_network_s_runs_in_front_of_another_treatment_is_no_second_cell() -> None:
    values = {"random": (95.0, 95.2, 95.1), "large_final": (95.2, 95.0)}
    dense = [OtherResult(label, 0, None, str(n), v) for label in LABELS for n, v in enumerate(values[label])]
    result = compare_results(our_rows(), OtherResults("t", tuple(dense)), ACCURACY, LABELS, "study")
    assert [(cell.treatment, cell.level, cell.other_n) for cell in result.cells] == [("dense", 0, 3)]


def test_equal_levels_of_other_prune_rates_are_not_compared() -> None:
    """Level 1 there has 80% of the weights, here 60%; level 2 there is nearly level 1 here, level 4 is there alone."""
    rates = {0: 1.0, 1: 0.8, 2: 0.605, 3: 0.45, 4: 0.36}
    others = [
        OtherResult(label, level, rates[level], str(seed), 95.0)
        for label, level in [("dense", 0), *(("random", level) for level in (1, 2, 3, 4))]
        for seed in range(5)
    ]
    result = compare_results(our_rows(), OtherResults("t", tuple(others)), ACCURACY, LABELS, "study")
    assert [(cell.treatment, cell.level) for cell in result.cells] == [("dense", 0)]
    assert result.notes == (
        "1 cell of t has no finished run here and is left out: random at level 4.",
        "3 cells of t are left out: other weights remaining than at that level here. random at level 1 (80%, here "
        "60%); random at level 2 (60.5%, here 36%); random at level 3 (45%, here 21.6%). --density density matches "
        "levels by weights remaining.",
    )
    by_density = compare_results(
        our_rows(), OtherResults("t", tuple(others)), ACCURACY, LABELS, "study", by_density=True
    )
    assert [(cell.treatment, cell.level) for cell in by_density.cells] == [("dense", 0), ("random", 1), ("random", 2)]
    # No level here is near 80%, so --density would not help.
    first = tuple(other for other in others if other.level in (0, 1))
    result = compare_results(our_rows(), OtherResults("t", first), ACCURACY, LABELS, "study")
    assert len(result.notes) == 1 and "--density" not in result.notes[0]
    with pytest.raises(UserError, match=r"There: level 1 \(80%, here 60%\)\. Here: level 0"):
        compare_results(our_rows(), OtherResults("t", first[5:]), ACCURACY, LABELS, "study")


def test_a_cell_is_left_out_if_one_of_its_runs_has_another_density() -> None:
    others = [OtherResult("random", 1, density, None, 95.0) for density in (0.6, 0.605, 0.62)]
    others += [OtherResult("random", 2, density, None, 95.0) for density in (0.36, None)]
    result = compare_results(our_rows(), OtherResults("t", tuple(others)), ACCURACY, LABELS, "study")
    assert [(cell.level, cell.other_n) for cell in result.cells] == [(2, 2)]
    assert "random at level 1 (60 to 62%, here 60%)" in result.notes[0]


@pytest.mark.parametrize("column", [{"supermask": "bernoulli"}, {"scope": "threshold"}, {}])
def test_densities_that_training_determines_do_not_have_to_agree(column: Row) -> None:
    rows = [row | column for row in our_rows()]
    if not column:
        rows = [row | {"density": float(row["density"] or 0) + 1e-4 * int(row["seed"] or 0)} for row in rows]
    others = [OtherResult("random", 1, density, None, 95.0) for density in (0.5, 0.65, 0.7)]
    result = compare_results(rows, OtherResults("t", tuple(others)), ACCURACY, LABELS, "study")
    assert [(cell.level, cell.other_n) for cell in result.cells] == [(1, 3)] and result.notes == ()


@pytest.mark.parametrize("has_seeds", [True, False])
def test_of_several_densities_at_one_level_the_nearest_is_compared(has_seeds: bool) -> None:
    others = [
        OtherResult("random", None, density, str(seed) if has_seeds else None, 95.0 + seed)
        for density in (1.0, 0.99, 0.61, 0.602, 0.591, 0.36)
        for seed in range(5)
    ]
    result = compare_results(our_rows(), OtherResults("t", tuple(others)), ACCURACY, LABELS, "s", by_density=True)
    assert [(cell.level, cell.other_n, cell.other_remaining) for cell in result.cells] == [
        (0, 5, pytest.approx(100)),
        (1, 5, pytest.approx(60.2)),
        (2, 5, pytest.approx(36)),
    ]
    assert result.notes[0].startswith("3 cells of t are left out: another density of theirs is nearer to the level")
    assert "random at 99%; random at 61%; random at 59.1%" in result.notes[0]
    assert ("--seed" in result.notes[0]) == (not has_seeds)


def test_a_density_that_varies_between_the_runs_of_a_level_is_one_cell() -> None:
    """Masks that are drawn or learned: no seed has two of the densities."""
    runs = [OtherResult("random", None, 0.6 + 0.002 * seed, str(seed), 95.0 + seed) for seed in range(5)]
    result = compare_results(our_rows(), OtherResults("t", tuple(runs)), ACCURACY, LABELS, "s", by_density=True)
    assert [(cell.level, cell.other_n) for cell in result.cells] == [(1, 5)]
    # Without seeds it is known where ours vary too.
    without = OtherResults("t", tuple(replace(run, seed=None) for run in runs))
    result = compare_results(our_rows(), without, ACCURACY, LABELS, "s", by_density=True)
    assert [(cell.level, cell.other_n) for cell in result.cells] == [(1, 1)]
    rows = [row | {"density": float(row["density"] or 0) * (1 + 1e-3 * int(row["seed"] or 0))} for row in our_rows()]
    result = compare_results(rows, without, ACCURACY, LABELS, "s", by_density=True)
    assert [(cell.level, cell.other_n) for cell in result.cells] == [(1, 5)]


@pytest.mark.parametrize("by_density", [False, True])
def test_treatments_with_dense_networks_of_their_own_are_compared_at_level_0(by_density: bool) -> None:
    rows = [
        row | {"treatment": label}
        for label in LABELS
        for row in our_rows(seed=len(label))
        if row["treatment"] == ("dense" if row["level"] == 0 else label)
    ]
    result = compare_results(rows, theirs(rows), ACCURACY, LABELS, "study", by_density=by_density)
    assert [(cell.treatment, cell.level) for cell in result.cells] == [
        (label, level) for label in LABELS for level in range(4)
    ]
    assert all(cell.comparison.difference == 0 for cell in result.cells)
    assert (result.shared_runs, result.equal_runs, result.notes) == (40, 40, ())
    # The dense network of another treatment is none of theirs, and no dense network is that of the study.
    others = [other for other in theirs(rows).results if other.treatment == "random"]
    ours = [row for row in rows if (row["treatment"], row["level"]) != ("random", 0)]
    result = compare_results(ours, OtherResults("t", tuple(others)), ACCURACY, LABELS, "study", by_density=by_density)
    assert [(cell.treatment, cell.level) for cell in result.cells] == [("random", level) for level in (1, 2, 3)]
    assert len(result.notes) == 1
    dense = OtherResult("dense", 0, 1.0, "0", 95.0)
    result = compare_results(
        rows, OtherResults("t", (dense, *others)), ACCURACY, LABELS, "study", by_density=by_density
    )
    assert {cell.treatment for cell in result.cells} == {"random"} and "dense" in result.notes[0]


def test_rows_of_several_settings_are_refused() -> None:
    rows = our_rows()
    with pytest.raises(UserError, match=r"several runs of treatment 'dense' at level 0 with seed 0: rows of several"):
        compare_results([*rows, *our_rows(seed=3)], theirs(rows), ACCURACY, LABELS, "study")
    with pytest.raises(UserError, match="rows of several settings"):
        row_results([*rows, *rows], ACCURACY, "rows.parquet")


@pytest.mark.parametrize("value", [1e101, 1e200, 1.7e308])
def test_values_beyond_the_range_of_a_variance_are_refused(value: float) -> None:
    loss = find_metric("final_test_loss")
    rows = [row | {"final_test_loss": 0.1 * int(row["seed"] or 0)} for row in our_rows()]
    others = OtherResults("t", (*(OtherResult("random", 1, None, None, v) for v in (0.3, value, 3.0)),))
    with pytest.raises(
        UserError, match=r"t: final_test_loss of treatment 'random' at level 1 is .*e\+.*at most 1e\+100"
    ):
        compare_results(rows, others, loss, LABELS, "study")
    rows[-1]["final_test_loss"] = value
    others = OtherResults("t", others.results[:1])
    with pytest.raises(UserError, match=r"here: final_test_loss of treatment 'random' at level 3 is"):
        compare_results(rows, others, loss, LABELS, "study")


@pytest.mark.parametrize("size", [1e100, 1e77, 1e-90, 1e-200, 5e-324])
def test_very_large_and_small_values_are_compared(size: float) -> None:
    loss = find_metric("final_test_loss")
    rows = [row | {"final_test_loss": 0.1 * size * (1 + int(row["seed"] or 0))} for row in our_rows()]
    others = tuple(OtherResult("random", 1, None, None, value * size) for value in (0.3, 0.5, 1.0))
    result = compare_results(rows, OtherResults("t", others), loss, LABELS, "study", margin=0.1)
    assert "random" in format_text(result) and json.loads(format_json(result))["cells"]
    if size > 1e-100:
        welch = scipy_stats.ttest_ind([0.1, 0.2, 0.3, 0.4, 0.5], [0.3, 0.5, 1.0], equal_var=False)
        assert result.cells[0].comparison.p == pytest.approx(welch.pvalue)


def test_no_common_level_is_refused() -> None:
    others = OtherResults("theirs.csv", (OtherResult("random", 9, None, None, 95.0),))
    with pytest.raises(UserError, match=r"There: level 9\. Here: level 0, level 1, level 2, level 3"):
        compare_results(our_rows(), others, ACCURACY, LABELS, "study")


def test_formats_agree() -> None:
    result = compare_results(our_rows(), theirs(our_rows(seed=2, shift=1)), ACCURACY, LABELS, "study", margin=0.2)
    lines = list(csv.DictReader(io.StringIO(format_csv(result))))
    data = json.loads(format_json(result))
    assert len(lines) == len(data["cells"]) == 7
    for line, cell, computed in zip(lines, data["cells"], result.cells, strict=True):
        assert float(line["p"]) == cell["p"] == computed.comparison.p
        assert line["treatment"] == cell["treatment"] == computed.treatment
    assert data["total"]["differing"] == result.total.differing == 3
    assert data["total"]["expected_by_chance"] == pytest.approx(0.07)
    assert "3 of 7 tested cells differ at p < 0.01; 0.07 would by chance" in format_text(result)


def make_cell(value: float, differs: bool, is_tested: bool = True, treatment: str = "random") -> CellComparison:
    """A cell that differs or is equivalent, of one treatment."""
    n = 5 if is_tested else 1
    ours = {seed: value + 0.01 * seed + (5 if differs else 0) for seed in range(n)}
    test = compare_means(ours, {-1 - seed: value + 0.01 * seed for seed in range(n)})
    p = test.p
    return CellComparison(
        treatment, 1, 60.0, None, n, value, 0.1, n, value, 0.1, test, equivalence(test, 0.2), None if p is None else p
    )


def summarize_cells(differing: int, equal: int, untested: int = 0, shared: int = 0, same: int = 0) -> list[str]:
    cells = (
        [make_cell(95.0, True)] * differing
        + [make_cell(95.0, False)] * equal
        + [make_cell(95.0, False, False)] * untested
    )
    return ResultComparison("s", "fc", "t", ACCURACY, 0.2, tuple(cells), shared, same, ()).summary()


@pytest.mark.parametrize(
    ("differing", "equal", "sentences"),
    [
        (0, 1, ("0 of 1 tested cell differs at", "0 differ after", "1 of 1 tested cell is equivalent within")),
        (1, 0, ("1 of 1 tested cell differs at", "1 differs after", "0 of 1 tested cell is equivalent within")),
        (0, 2, ("0 of 2 tested cells differ at", "0 differ after", "2 of 2 tested cells are equivalent within")),
        (1, 1, ("1 of 2 tested cells differs at", "1 differs after", "1 of 2 tested cells is equivalent within")),
        (2, 0, ("2 of 2 tested cells differ at", "2 differ after", "0 of 2 tested cells are equivalent within")),
    ],
)
def test_the_summary_agrees_in_number(differing: int, equal: int, sentences: tuple[str, ...]) -> None:
    summary = summarize_cells(differing, equal)
    assert len(summary) == 3
    assert all(text.startswith(sentence) for text, sentence in zip(summary, sentences, strict=True)), summary


@pytest.mark.parametrize(
    ("untested", "sentence"),
    [
        (1, "1 cell is not tested: fewer than two runs, or no spread."),
        (2, "2 cells are not tested: fewer than two runs, or no spread."),
    ],
)
def test_without_a_tested_cell_there_is_nothing_else_to_say(untested: int, sentence: str) -> None:
    assert summarize_cells(0, 0, untested) == [sentence]
    assert sentence in summarize_cells(1, 1, untested)


@pytest.mark.parametrize(
    ("shared", "same", "sentence"),
    [
        (1, 0, "0 of 1 run with the same treatment, level and seed has exactly the same value."),
        (1, 1, "1 of 1 run with the same treatment, level and seed has exactly the same value."),
        (2, 0, "0 of 2 runs with the same treatment, level and seed have exactly the same value."),
        (2, 1, "1 of 2 runs with the same treatment, level and seed has exactly the same value."),
        (2, 2, "2 of 2 runs with the same treatment, level and seed have exactly the same value."),
    ],
)
def test_shared_runs_agree_in_number(shared: int, same: int, sentence: str) -> None:
    assert summarize_cells(0, 1, shared=shared, same=same)[-1] == sentence


@pytest.mark.parametrize(
    ("levels", "note"),
    [
        ((4,), "1 cell of t has no finished run here and is left out: random at level 4."),
        ((4, 5), "2 cells of t have no finished run here and are left out: random at level 4; random at level 5."),
        (
            range(4, 11),
            "7 cells of t have no finished run here and are left out: random at level 4; random at level 5; "
            "random at level 6; random at level 7; random at level 8; random at level 9; ...",
        ),
    ],
)
def test_notes_on_cells_that_are_left_out_agree_in_number(levels: Iterable[int], note: str) -> None:
    others = [OtherResult("random", level, None, None, 95.0) for level in (1, *levels)]
    assert compare_results(our_rows(), OtherResults("t", tuple(others)), ACCURACY, LABELS, "s").notes == (note,)


def test_the_caption_agrees_in_number() -> None:
    single = replace(make_cell(95.0, False), n=1, other_n=1)
    for cells, text in (
        ((single,), "n = 1 run here and 1 there"),
        ((single, make_cell(95, True)), "n = 1 to 5 runs here"),
    ):
        comparison = ResultComparison("s", "fc", "t", ACCURACY, 0.2, cells, 0, 0, ())
        assert text in comparison_caption(comparison)


def test_published_values_are_shown_beside_ours() -> None:
    values = published_values()
    assert {value.network for value in values} == {"fc-300-100", "conv2", "conv4", "conv6"}
    assert all(value.source and 0 < value.percent < 100 for value in values)
    rows = [row | {"network": "fc-300-100"} for row in our_rows()]
    shown = published_rows(rows)
    assert [(row["treatment"], row["published_text"], row["confirmed"]) for row in shown] == [
        ("dense", "97.7", False),
        ("dense", "97.43", True),
    ]
    measured = [100 * float(row["early_stop_test_accuracy"] or 0) for row in rows if row["level"] == 0]
    assert shown[0]["mean"] == pytest.approx(np.mean(measured))
    assert "p" not in shown[0]
    assert published_rows(our_rows()) == []


@pytest.mark.slow
def test_the_command_reads_stores_tables_and_rows(tmp_path: Path) -> None:
    made = train_study(tmp_path)
    rows, _ = plan_rows(made.plan, made.open_store())
    table = write_study(tmp_path, tables.to_csv(rows))
    for name in ("rows.parquet", "ROWS.PARQUET"):
        (tmp_path / name).write_bytes(tables.to_parquet(rows))
    columns = ["--value", "early_stop_test_accuracy", "--seed", "seed", "--format", "json"]
    answers = []
    for source in (
        ["--store", made.store, "--with", table, *columns],
        ["--store", made.store, "--store", made.store, "--format", "json"],
        ["--rows", tmp_path / "rows.parquet", "--with", table, *columns],
        ["--rows", tmp_path / "rows.parquet", "--with", tmp_path / "rows.parquet", "--format", "json"],
        ["--rows", tmp_path / "ROWS.PARQUET", "--with", tmp_path / "ROWS.PARQUET", "--format", "json"],
    ):
        status, out, err = call("compare", made.study, *source)
        assert (status, err) == (0, "")
        answers.append(json.loads(out))
    for answer in answers:
        assert (answer["shared_runs"], answer["equal_runs"]) == (18, 18)
        assert [cell | {"other_weights_remaining_percent": None} for cell in answer["cells"]] == [
            cell | {"other_weights_remaining_percent": None} for cell in answers[0]["cells"]
        ]
        assert all(cell["difference"] == 0 for cell in answer["cells"])
    result = sm.compare(made.study, table, value="early_stop_test_accuracy", seed="seed", store=made.store)
    assert result.data_rows() == answers[0]["cells"]


@pytest.mark.slow
def test_the_command_draws_a_figure_and_the_report_has_a_section(tmp_path: Path) -> None:
    made = train_study(tmp_path)
    rows, _ = plan_rows(made.plan, made.open_store())
    lines = ["treatment,level,seed,value"]
    lines += [f"{r['treatment']},{r['level']},{r['seed']},{r['final_test_accuracy']}" for r in rows]
    table = write_study(tmp_path, "\n".join(lines))
    at = [made.study, "--store", made.store, "--with", table]
    status, out, err = call("compare", *at, "--out", tmp_path / "figures")
    assert status == 0
    assert "theirs" in err
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".pdf", ".svg", ".png", ".csv", ".txt"}
    assert "0 of 9 tested cells" in out
    status, _, err = call("report", *at, "--out", tmp_path / "report.html")
    assert (status, err) == (0, "")
    page = (tmp_path / "report.html").read_text()
    assert "Beside the numbers of theirs.csv" in page
    assert "--with theirs.csv" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one thing to compare with"),
        (["--with", "t.csv", "--percent", "--share"], "--percent and --share contradict each other"),
        (["--with", "t.csv", "--map", "random"], "give THEIRS=OURS"),
        (["--with", "t.csv", "--metric", "accuracy"], "'accuracy' is not a metric that can be compared"),
        (["--with", "t.csv", "--margin", "0"], "a margin of 0 is not possible"),
        (["--with", "missing.csv"], "missing.csv cannot be read"),
        (["--with", "t.csv", "--metric", "early_stop_iteration", "--share"], "--share is for accuracies"),
        (["--with", "t.parquet"], "t.parquet is not a Parquet file."),
    ],
)
def test_unusable_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    made = train_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, "treatment,level,value\nrandom + zero,1,0.5\n", "t.csv")
    write_study(tmp_path, "no parquet", "t.parquet")
    status, out, err = call("compare", *made.args, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
