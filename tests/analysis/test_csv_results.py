"""CSV tables of others: separators, numbers, units, densities, and tables that cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.compared_results import ACCURACY, LABELS, our_rows, write_study

from supermask.analysis.comparisons import (
    OtherResults,
    TableColumns,
    column_names,
    compare_results,
    find_metric,
    read_csv_results,
)
from supermask.core.errors import UserError
from supermask.store.row_files import is_parquet


def test_equal_values_are_counted_whatever_their_unit(tmp_path: Path) -> None:
    # 100 * 0.9807 and 98.07 differ in the last bit.
    rows = [
        row | {"early_stop_test_accuracy": round(float(row["early_stop_test_accuracy"] or 0), 4)} for row in our_rows(9)
    ]
    assert any(100 * row["early_stop_test_accuracy"] != round(100 * row["early_stop_test_accuracy"], 2) for row in rows)
    lines = ["treatment,level,seed,value"]
    lines += [
        f"{r['treatment']},{r['level']},{r['seed']},{round(100 * r['early_stop_test_accuracy'], 2)}" for r in rows
    ]
    others = read_csv_results(write_study(tmp_path, "\n".join(lines)), TableColumns(seed="seed"), ACCURACY)
    result = compare_results(rows, others, ACCURACY, LABELS, "study")
    assert (result.shared_runs, result.equal_runs) == (63, 63)
    # The smallest possible difference of 10,000 test images is one.
    others = OtherResults("t", tuple(replace(other, value=other.value + 0.01) for other in others.results))
    assert compare_results(rows, others, ACCURACY, LABELS, "study").equal_runs == 0


@pytest.mark.parametrize(
    ("density", "unit", "expected"),
    [
        (["0.6", "0.36"], "a share of 1", [0.6, 0.36]),
        (["60.0%", "36%"], "percent", [0.6, 0.36]),
        (["1", "0.02"], "a share of 1", [1.0, None]),  # 0.02 is too coarse: it may be 0.015
        (["60", "1"], "percent", [0.6, None]),
        (["0.61", ""], "a share of 1", [0.61, None]),
        (["dense", "0.36"], "", [None, None]),
        (["0.6", "-1"], "", [None, None]),
        (["", "nan"], "", [None, None]),
    ],
)
def test_weights_remaining_in_a_csv_table_are_checked(
    tmp_path: Path, density: list[str], unit: str, expected: list[float | None]
) -> None:
    """A column `density`, as `supermask table` writes it, need not be named."""
    lines = ["treatment,level,value,density", *(f"random,{i + 1},95,{text}" for i, text in enumerate(density))]
    read = read_csv_results(write_study(tmp_path, "\n".join(lines)), TableColumns(), ACCURACY)
    assert [result.density for result in read.results] == pytest.approx(expected)
    assert [note for note in read.notes if "density is read" in note] == (
        [f"theirs.csv: density is read as weights remaining, {unit}; levels have to agree in it."] if unit else []
    )
    is_unreadable = "dense" in density or "-1" in density
    assert any("not checked by their weights remaining: " in note for note in read.notes) == is_unreadable
    if expected == [0.6, 0.36]:
        result = compare_results(our_rows(), read, ACCURACY, LABELS, "study")
        assert [cell.level for cell in result.cells] == [1, 2]
        rows = [row | {"density": 0.8 ** int(row["level"] or 0)} for row in our_rows()]
        with pytest.raises(UserError, match=r"level 1 \(60%, here 80%\)"):
            compare_results(rows, read, ACCURACY, LABELS, "study")


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", {}, "is empty: give a CSV file"),
        ("treatment,level,value\n", {}, "has a header and no line below it"),
        ("treatment,level,accuracy\nrandom,1,0.9\n", {}, "no column 'value'"),
        ("treatment,level,values\nrandom,1,0.9\n", {}, "did you mean 'values'?"),
        ("treatment,level,value,value\nrandom,1,0.9,0.8\n", {}, "2 columns are called 'value'"),
        ("\n,,\n;\r\n", {}, "is empty: give a CSV file"),
        (
            "treatment,level,value\nrandom,1,high\n",
            {},
            "line 2: column 'value' has 'high', which is no number. Allowed: 98.03, a share such as 0.9803, or 98.03%; "
            "a run without a result has an empty field.",
        ),
        (
            "\n\ntreatment;level;value\nrandom;1;NA\n",
            {},
            "line 4: column 'value' has 'NA', which is no number. Allowed:",
        ),
        ("treatment;level;value\nrandom;1;NA\n", {}, "Allowed: 98.03 or 98,03, a share"),
        (
            'treatment,level,value\nrandom,1,"98,03"\n',
            {},
            "Decimal commas need another separator, such as a semicolon.",
        ),
        ("treatment;level;value\nrandom;1;1.234,5\n", {}, "'1.234,5', which is no number"),
        (
            "treatment;level;value\nrandom;1;98,03\nrandom;1;98.1\n",
            {},
            "has '98,03' in line 2 and '98.1' in line 3: write all of its numbers in one way",
        ),
        ("treatment,level,value\nrandom,1,98%\nrandom,1,0.97\n", {}, "has '98%' in line 2 and '0.97' in line 3"),
        ("treatment,level,value\nrandom,1,98%\n", {"unit": "share"}, "has percent signs: leave out --share"),
        ("treatment,level,value\nrandom,1,980%\n", {}, "980, which is no accuracy"),
        (
            "treatment;level;value\nrandom;1,0;95\n",
            {},
            "column 'level' has '1,0', which is no number. Allowed: a whole",
        ),
        ("treatment,level,value\nrandom,64%,95\n", {}, "column 'level' has '64%', which is no number"),
        ("treatment,level,value\nrandom,1e300,95\n", {}, "column 'level' has '1e300', which is not a level"),
        ("treatment,level,value\nrandom,one,0.9\n", {}, "column 'level' has 'one', which is no number"),
        ("treatment,level,value\nrandom,0.64,0.9\n", {}, "which is not a level (0, 1, 2 ...). Shares of weights"),
        ("treatment,level,value\nrandom,-1,0.9\n", {}, "which is not a level"),
        ("treatment,level,value\nrandom,,0.9\n", {}, "column 'level' is empty"),
        ("treatment,level,value\nrandom,inf,0.9\n", {}, "it has to be a finite number"),
        ("treatment,level,value\n,1,0.9\n", {}, "column 'treatment' is empty"),
        ("treatment,level,value\nrandom,1,\n", {}, "column 'value' has no value in 1 line."),
        ("treatment,level,value\nrandom,1\n", {}, "line 2: 2 fields where the header has 3"),
        ('treatment,level,value\n"random,1,0.9\n', {}, "not CSV"),
        ("treatment,level,value\nrandom,1,95\n", {"unit": "share"}, "give --percent instead of --share"),
        ("treatment,level,value\nrandom,1,0.95\n", {"unit": "percent"}, "give --share instead of --percent"),
        ("treatment,level,value\nrandom,1,0.95\nrandom,1,95\n", {}, "has both 0.95 and 95"),
        ("treatment,level,value\nrandom,1,950\n", {}, "950, which is no accuracy"),
        ("treatment,level,value\nrandom,1,-3\n", {}, "-3, which is no accuracy"),
        (
            "treatment,level,value,seed\nrandom,1,95,0\nrandom,1,96,0\n",
            {"seed": "seed"},
            "lines 2 and 3 are the same run: treatment 'random', level 1, seed '0'",
        ),
        ("treatment,left,value\nrandom,120,95\n", {"level": None, "density": "left"}, "weights remaining are a share"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, text: str, columns: dict[str, str], message: str) -> None:
    path = write_study(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_csv_results(path, TableColumns(**columns), ACCURACY)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"PAR1\xff\xfe")
    for path, message in (
        (tmp_path / "missing.csv", "No such file"),
        (tmp_path, "cannot be read"),
        (tmp_path / "binary.csv", "not a CSV file in UTF-8"),
    ):
        with pytest.raises(UserError, match=message):
            read_csv_results(path, TableColumns(), ACCURACY)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        # Blank lines, decimal commas, percent signs, line ends of old Macs.
        ("\n;;\n \r\ntreatment;level;value\nrandom;1;95\nrandom;1;50,5\n", [95.0, 50.5]),
        ("treatment\tlevel\tvalue\nrandom\t1\t9,5e1\nrandom\t1\t50,5\n", [95.0, 50.5]),
        ("treatment;level;value\nrandom;1;0,95 %\nrandom;1;0,5%\nrandom;1;nan\n", [0.95, 0.5]),
        ("treatment,level,value\rrandom,1,0.95\rrandom,1,0.5", [95.0, 50.0]),
        ("treatment,level,value\nrandom,1,0.95\nrandom,1,0.5\n", [95.0, 50.0]),
        ("treatment;level;value\r\nrandom;1.0;95\r\n\r\nrandom;1;50\r\n", [95.0, 50.0]),
        ("\ufefftreatment\tlevel\tvalue\nrandom\t1\t95\nrandom\t1\tnan\nrandom\t1\t50\n", [95.0, 50.0]),
    ],
)
def test_separators_units_and_missing_values(tmp_path: Path, text: str, values: list[float]) -> None:
    read = read_csv_results(write_study(tmp_path, text), TableColumns(), ACCURACY)
    assert [result.value for result in read.results] == pytest.approx(values)
    assert any("is read as" in note for note in read.notes)
    assert any("has no value" in note for note in read.notes) == ("nan" in text)


def test_repeated_header_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    header = "treatment,level,value,seed"
    path = write_study(tmp_path, "\n".join([header, "random,1,95,0", header, "random,1,96,1", header, "random,1,97,1"]))
    columns = TableColumns(unit="percent")
    read = read_csv_results(path, columns, ACCURACY)
    assert [result.value for result in read.results] == [95.0, 96.0, 97.0]
    assert read.notes == ("2 repeated header lines of theirs.csv are skipped.",)
    with pytest.raises(UserError, match="lines 4 and 6 are the same run"):
        read_csv_results(path, replace(columns, seed="seed"), ACCURACY)


def test_other_metrics_have_decimal_commas_but_iterations_do_not(tmp_path: Path) -> None:
    path = write_study(tmp_path, "treatment;level;value\nrandom;1;16,500\n")
    (result,) = read_csv_results(path, TableColumns(), find_metric("final_test_loss")).results
    assert result.value == 16.5
    with pytest.raises(UserError, match=r"'16,500', which is no number.*without separators of thousands"):
        read_csv_results(path, TableColumns(), find_metric("early_stop_iteration"))
    path = write_study(tmp_path, "treatment,level,value\nrandom,1,9.3%\n")
    with pytest.raises(UserError, match=r"'9\.3%', which is no number\. Allowed: 0\.0931"):
        read_csv_results(path, TableColumns(), find_metric("final_test_loss"))


def test_densities_with_percent_signs_are_in_percent(tmp_path: Path) -> None:
    path = write_study(tmp_path, "treatment;left;value\nrandom;0,8 %;95\nrandom;0,5%;95\n")
    read = read_csv_results(path, TableColumns(level=None, density="left"), ACCURACY)
    assert [result.density for result in read.results] == pytest.approx([0.008, 0.005])
    assert "theirs.csv: left is read as percent." in read.notes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,2\n", ["a", "b"]),
        ('\n;\n"a;b"; c \r1;2\r', ["a;b", "c"]),
    ],
)
def test_names_of_columns_are_those_of_the_header(tmp_path: Path, text: str, names: list[str]) -> None:
    assert column_names(write_study(tmp_path, text)) == names


def test_parquet_is_told_by_its_first_bytes_or_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.PARQUET").write_bytes(b"")
    (tmp_path / "b.csv").write_bytes(b"PAR1 and more")
    (tmp_path / "c.csv").write_bytes(b"PAR")
    (tmp_path / "d.parquet").mkdir()
    assert [is_parquet(tmp_path / name) for name in ("a.PARQUET", "b.csv", "c.csv", "d.parquet", "none.csv", ".")] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    assert column_names(tmp_path / "b.csv") == []


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        (("95", ""), ["1 of 2 lines of theirs.csv has no value and is left out."]),
        (("95", "", "nan"), ["2 of 3 lines of theirs.csv have no value and are left out."]),
        (("95",), []),
    ],
)
def test_notes_on_lines_without_a_value_agree_in_number(tmp_path: Path, values: list[str], notes: list[str]) -> None:
    path = write_study(tmp_path, "treatment,level,value\n" + "".join(f"random,1,{value}\n" for value in values))
    assert list(read_csv_results(path, TableColumns(unit="percent"), ACCURACY).notes) == notes
