"""Rows of Parquet files in comparisons: each is taken for what its id says, on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from helpers.command_line import call, refused
from helpers.stored_study import TEXT, TrainedStudy, train_study

import supermask as sm
from supermask.analysis.comparisons import ResultComparison, TableColumns
from supermask.api.comparisons import compare_study
from supermask.api.row_files import read_other_rows, read_study_from_tables
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.store.rows import plan_rows
from supermask.store.tables import to_parquet
from supermask.study.yaml import parse_yaml, to_python

RESULTS = Path(__file__).parents[2] / "results"
PAPER, LAPTOP = RESULTS / "mask-criteria-paper.parquet", RESULTS / "mask-criteria-laptop.parquet"
FIGURES = RESULTS / "fc-laptop-figures.parquet"
"""Seeds 0 to 4 of the laptop scale, of several studies; LAPTOP has seeds 5 to 9."""

SWAPPED = (
    "CASE treatment WHEN 'random' THEN 'large_final' WHEN 'large_final' THEN 'random' ELSE treatment END AS treatment"
)


def join(out: Path, *paths: Path, replace: str = "seed AS seed") -> Path:
    """Write the rows of mask-criteria of several tables to one, with other values of some columns."""
    duckdb.execute(
        f"COPY (SELECT * REPLACE ({replace}) FROM read_parquet({list(map(str, paths))}, union_by_name = true) "  # noqa: S608
        f"WHERE study = 'mask-criteria') TO '{out}' (FORMAT parquet)"
    )
    return out


def compare_tables(rows: Path, table: Path, *overrides: str, **options: object) -> ResultComparison:
    return compare_study("mask-criteria", overrides, table, rows=rows, **options)  # type: ignore[arg-type]


def counts(result: ResultComparison) -> set[tuple[int, int]]:
    return {(cell.n, cell.other_n) for cell in result.cells}


# --- published tables ---


@pytest.mark.slow
def test_two_published_tables_of_one_scale_are_compared() -> None:
    for scale in ((), ("scale=laptop",)):
        result = compare_tables(LAPTOP, FIGURES, *scale)
        assert len(result.cells) == 91 and counts(result) == {(5, 5)}
        assert result.total.differing == 0
        assert result.notes == (() if scale else ("The runs here are of scale=laptop.",))


@pytest.mark.slow
def test_all_seeds_of_a_table_are_compared(tmp_path: Path) -> None:
    """Those of the study are 0 to 4."""
    both = join(tmp_path / "both.parquet", LAPTOP, FIGURES)
    assert counts(compare_tables(both, LAPTOP, "scale=laptop")) == {(10, 5)}
    assert counts(compare_tables(LAPTOP, both, "scale=laptop")) == {(5, 10)}
    # `seeds` selects ours.
    assert counts(compare_tables(both, both, "scale=laptop", "seeds=[0, 7, 8]")) == {(3, 10)}


@pytest.mark.slow
def test_rows_of_another_scale_are_compared_where_densities_agree() -> None:
    result = compare_tables(PAPER, LAPTOP, "scale=paper")
    assert [(cell.treatment, cell.level) for cell in result.cells] == [("dense", 0)]
    left_out, settings = result.notes
    assert "large_final at level 1 (65.1%, here 80%)" in left_out and "--density density" in left_out
    assert settings == (
        "The runs of mask-criteria-laptop.parquet have other settings: iterations 16500 (here 50417); "
        "prune_rate_hidden 0.35 (here 0.2); prune_rate_output 0.2 (here 0.1)."
    )
    by_density = compare_tables(PAPER, LAPTOP, "scale=paper", columns=TableColumns(level=None, density="density"))
    assert [(cell.level, round(cell.remaining, 1)) for cell in by_density.cells if cell.treatment == "random"] == [
        (2, 64.1)
    ]


@pytest.mark.slow
def test_our_rows_are_those_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"455 of 455 rows of study 'mask-criteria' .* are not of scale=paper\."):
        compare_tables(LAPTOP, PAPER, "scale=paper")
    both = join(tmp_path / "both.parquet", LAPTOP, PAPER)
    with pytest.raises(UserError, match=r"rows of several scales \(laptop, paper\): select one with scale=NAME"):
        compare_tables(both, LAPTOP)
    result = compare_tables(both, both, "scale=laptop")
    assert len(result.cells) == 91 and counts(result) == {(5, 5)}
    assert result.equal_runs == result.shared_runs == 455
    assert [note for note in result.notes if "1,069 of 1,524 rows" in note and "other settings" in note] == list(
        result.notes
    )
    with pytest.raises(UserError, match=r"several scales \(laptop, paper\), and none of these settings"):
        read_other_rows(both, "mask-criteria", ["scale=digits"], "digits")


@pytest.mark.slow
def test_labels_are_those_of_the_study(tmp_path: Path) -> None:
    swapped = join(tmp_path / "swapped.parquet", LAPTOP, replace=SWAPPED)
    expected = compare_tables(LAPTOP, LAPTOP, "scale=laptop")
    for ours, theirs in ((swapped, LAPTOP), (LAPTOP, swapped)):
        result = compare_tables(ours, theirs, "scale=laptop")
        assert (result.cells, result.equal_runs, result.notes) == (expected.cells, 455, ())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ("CASE WHEN level = 3 THEN NULL ELSE density END AS density", "the run has finished, and density is empty"),
        ("0.5 * density AS density", "in the table, and 1.0 by its id: the table was changed"),
        ("seed + 1 AS seed", "by its id: the table was changed"),
    ],
)
def test_changed_tables_are_refused_on_both_sides(tmp_path: Path, replace: str, message: str) -> None:
    changed = join(tmp_path / "changed.parquet", LAPTOP, replace=replace)
    for ours, theirs in ((changed, LAPTOP), (LAPTOP, changed)):
        error = refused(call("compare", "mask-criteria", "scale=laptop", "--rows", ours, "--with", theirs))
        assert message in error


def test_a_table_of_other_studies_is_refused() -> None:
    other = RESULTS / "resnet20-laptop.parquet"
    for ours, theirs in ((other, LAPTOP), (LAPTOP, other)):
        with pytest.raises(UserError, match=r"no row of study 'mask-criteria'; the tables have 'resnet20'\."):
            compare_tables(ours, theirs, "scale=laptop")


# --- tables of other settings ---


@pytest.mark.slow
def test_rows_without_our_settings_are_told_by_their_ids(trained: TrainedStudy, tmp_path: Path) -> None:
    names = {"random + zero": "large_final + zero", "large_final + zero": "random + zero"}
    table = write_rows(
        trained,
        tmp_path / "t.parquet",
        lambda row: {**row, "treatment": names.get(str(row["treatment"]))} if row["treatment"] in names else row,
    )
    rows, notes = read_other_rows(table, str(trained.study), ["train.lr=0.5", "seeds=1"])
    expected, _ = plan_rows(trained.plan, trained.open_store())
    assert [(row["id"], row["treatment"]) for row in rows] == [(row["id"], row["treatment"]) for row in expected]
    assert notes == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("comparisons"))


def write_rows(trained: TrainedStudy, path: Path, change: Callable[[Row], Row]) -> Path:
    path.write_bytes(to_parquet([change(row) for row in plan_rows(trained.plan, trained.open_store())[0]]))
    return path


def with_other_id(row: Row, **values: object) -> Row:
    """A row of another version of the program, whose ids are other hashes."""
    return {**row, "id": str(row["id"])[::-1], **values}  # type: ignore[dict-item]


@pytest.mark.slow
def test_rows_of_another_version_keep_their_labels(trained: TrainedStudy, tmp_path: Path) -> None:
    other = write_rows(trained, tmp_path / "other.parquet", with_other_id)
    note = (
        "The rows of other.parquet are of other settings than the study here, or of another version: their treatments "
        "and levels are taken from the table's labels."
    )
    result = sm.compare(trained.study, other, store=trained.store)
    assert (len(result.cells), result.shared_runs, result.equal_runs) == (9, 18, 18)
    assert result.notes == (note,)
    # Settings are compared, densities have to agree.
    other = write_rows(trained, tmp_path / "other.parquet", lambda row: with_other_id(row, lr=0.5))
    result = sm.compare(trained.study, other, store=trained.store)
    assert result.notes == (note, "The runs of other.parquet have other settings: lr 0.5 (here 0.0012).")
    other = write_rows(
        trained, tmp_path / "other.parquet", lambda row: with_other_id(row, density=float(row["density"] or 0) ** 2)
    )
    result = sm.compare(trained.study, other, store=trained.store)
    assert {cell.level for cell in result.cells} == {0} and "8 cells of other.parquet are left out" in result.notes[0]
    # As our own runs they are refused.
    with pytest.raises(UserError, match=r"18 of 18 rows of study 'small' .* are not of its scales"):
        sm.compare(trained.study, other, rows=other)


@pytest.mark.slow
def test_rows_of_several_unknown_settings_are_refused(trained: TrainedStudy, tmp_path: Path) -> None:
    other = write_rows(
        trained, tmp_path / "other.parquet", lambda row: with_other_id(row, iterations=12 + int(row["seed"] or 0))
    )
    with pytest.raises(UserError, match="treatment 'dense' at level 0 with iterations 12 and 13: rows of several"):
        sm.compare(trained.study, other, store=trained.store)


@pytest.mark.slow
def test_a_study_in_python_is_read_from_a_table(trained: TrainedStudy, tmp_path: Path) -> None:
    table = write_rows(trained, tmp_path / "small.parquet", dict)
    keys = to_python(parse_yaml(TEXT, "small.yaml"))
    for study in (sm.Study("small", **keys), trained.study):
        result = sm.compare(study, table, rows=table)
        assert (len(result.cells), result.equal_runs, result.notes) == (9, 18, ())
    part = read_study_from_tables([table], sm.Study("small", **{**keys, "seeds": 5}))
    assert part.plan.study.seeds == (0, 1)
