"""Results of others from a CSV table with one run per line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from supermask.analysis.comparisons.other_results import OtherResult, OtherResults
from supermask.analysis.summary import Metric
from supermask.core.environment import expand_path
from supermask.core.errors import UserError, did_you_mean, quote

MAX_TABLE_BYTES = 50_000_000
"""A table of 100,000 runs has about 5 MB with the few columns that are read."""

ValueUnit = Literal["auto", "percent", "share"]


@dataclass(frozen=True)
class TableColumns:
    """Columns of a CSV table of runs, and the unit of its values."""

    treatment: str = "treatment"
    level: str | None = "level"
    """None if levels are matched by density."""
    value: str = "value"
    seed: str | None = None
    density: str | None = None
    """Weights remaining, as a share or in percent: percent if one of the numbers is above 1.02."""
    unit: ValueUnit = "auto"


def column_names(path: str | Path) -> list[str]:
    """Return the names in the header of a CSV file; none for a Parquet file. Raises UserError if it cannot be read."""
    path = expand_path(path)
    if path.suffix == ".parquet":
        return []
    header = _read_text(path).partition("\n")[0]
    return [name.strip().strip('"') for name in header.split(_separator(header))]


def read_csv_results(path: str | Path, columns: TableColumns, metric: Metric) -> OtherResults:
    """Read a CSV table with one run per line. The separator is a comma, a semicolon or a tab.

    Lines whose value is empty or not finite (runs that did not finish) are left out and counted in a note. Raises
    UserError for a file that cannot be read, missing columns, text in place of numbers, values of another unit, and a
    run that occurs twice.
    """
    path = expand_path(path)
    lines = list(_read_lines(path, columns))
    if not lines:
        raise UserError(f"{path} has a header and no line below it: there is nothing to compare with.")
    parsed, seen, left_out = list[OtherResult](), dict[tuple[object, ...], int](), 0
    for number, line in lines:
        value = _number(path, number, columns.value, line[columns.value], allow_missing=True)
        level = None if columns.level is None else _level(path, number, columns.level, line[columns.level])
        density = None
        if columns.density is not None:
            density = _number(path, number, columns.density, line[columns.density])
        treatment = line[columns.treatment].strip()
        if not treatment:
            raise UserError(f"{path}, line {number}: column {quote(columns.treatment)} is empty: name the treatment.")
        seed = line[columns.seed].strip() if columns.seed else None
        if columns.seed:
            key = (treatment, level, density, seed)
            if key in seen:
                raise UserError(
                    f"{path}: lines {seen[key]} and {number} are the same run: treatment {quote(treatment)}, "
                    f"{_place(level, density)}, seed {quote(seed)}. Give one line per run."
                )
            seen[key] = number
        if value is None:
            left_out += 1
            continue
        parsed.append(OtherResult(treatment, level, density, seed, value))
    if not parsed:
        raise UserError(f"{path}: column {quote(columns.value)} has no value in {len(lines)} lines.")
    results, notes = _in_our_units(path, parsed, columns, metric)
    if left_out:
        notes.append(f"{left_out} of {len(lines)} lines of {path.name} have no value and are left out.")
    return OtherResults(path.name, tuple(results), tuple(notes))


def _read_lines(path: Path, columns: TableColumns) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield (line number, column -> text) for the columns that are read."""
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text), delimiter=_separator(text.partition("\n")[0]), strict=True)
    try:
        names = [name.strip() for name in next(reader)]
        wanted = {
            option: name
            for option in ("treatment", "level", "density", "value", "seed")
            if (name := getattr(columns, option)) is not None
        }
        for option, name in wanted.items():
            _check_column(path, names, option, name)
        places = {name: names.index(name) for name in wanted.values()}
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(names):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields where the header has {len(names)}."
                )
            yield reader.line_num, {name: fields[place] for name, place in places.items()}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}.") from None


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            raise UserError(f"{path} has {size / 1e6:.0f} MB; a table of runs has at most {MAX_TABLE_BYTES / 1e6:.0f}.")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a CSV file in UTF-8: save the table as CSV.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not text.partition("\n")[0].strip():
        raise UserError(f"{path} is empty: give a CSV file with a header line.")
    return text


def _separator(header: str) -> str:
    """Return the separator of a header line: comma, semicolon or tab, whichever occurs most."""
    return max(",;\t", key=header.count)


def _check_column(path: Path, names: Sequence[str], option: str, name: str) -> None:
    if names.count(name) == 1:
        return
    if name in names:
        raise UserError(f"{path}: {names.count(name)} columns are called {quote(name)}: rename all but one.")
    near = did_you_mean(name, names) or "."
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise UserError(f"{path} has no column {quote(name)}{near} Name it with --{option} COLUMN. It has: {listed}.")


def _number(path: Path, line: int, column: str, text: str, allow_missing: bool = False) -> float | None:
    text = text.strip()
    if not text and not allow_missing:
        raise UserError(f"{path}, line {line}: column {quote(column)} is empty: give a number.")
    try:
        number = float(text) if text or not allow_missing else math.nan
    except ValueError:
        raise UserError(f"{path}, line {line}: column {quote(column)} has {quote(text)}, which is no number.") from None
    if math.isfinite(number):
        return number
    if allow_missing:
        return None
    raise UserError(f"{path}, line {line}: column {quote(column)} has {quote(text)}; it has to be a finite number.")


def _level(path: Path, line: int, column: str, text: str) -> int:
    number = _number(path, line, column, text)
    assert number is not None
    if number != int(number) or number < 0:
        raise UserError(
            f"{path}, line {line}: column {quote(column)} has {quote(text.strip())}, which is not a level (0, 1, 2 ...)"
            ". Shares of weights remaining are matched with --density COLUMN."
        )
    return int(number)


def _place(level: int | None, density: float | None) -> str:
    return f"level {level}" if level is not None else f"density {density:g}"


def _in_our_units(
    path: Path, results: Sequence[OtherResult], columns: TableColumns, metric: Metric
) -> tuple[list[OtherResult], list[str]]:
    notes: list[str] = []
    factor = 1.0
    values = [result.value for result in results]
    if metric.unit == "percent":
        unit = _value_unit(path, values, columns)
        factor = 100.0 if unit == "share" else 1.0
        if columns.unit == "auto":
            notes.append(f"{path.name}: {columns.value} is read as {_UNIT_NAMES[unit]} (--percent and --share say it).")
    elif columns.unit != "auto":
        raise UserError(f"--{columns.unit} is for accuracies; {metric.column} is in {metric.unit}.")
    elif any(value < 0 for value in values):
        raise UserError(
            f"{path}: column {quote(columns.value)} has {min(values):g}; {metric.column} is never negative."
        )
    density_factor = 1.0
    densities = [result.density for result in results if result.density is not None]
    if densities:
        if min(densities) <= 0 or max(densities) > 102:
            worst = min(densities) if min(densities) <= 0 else max(densities)
            raise UserError(
                f"{path}: column {quote(columns.density)} has {worst:g}; weights remaining are a share in (0, 1] or in "
                "percent."
            )
        # A dense network may be given as 100.3% or 1.003, by rounding.
        density_factor = 0.01 if max(densities) > 1.02 else 1.0
        unit = "percent" if density_factor < 1 else "share"
        notes.append(f"{path.name}: {columns.density} is read as {_UNIT_NAMES[unit]}.")
    converted = [
        OtherResult(
            result.treatment,
            result.level,
            None if result.density is None else result.density * density_factor,
            result.seed,
            result.value * factor,
        )
        for result in results
    ]
    return converted, notes


_UNIT_NAMES = {"percent": "percent", "share": "a share of 1"}


def _value_unit(path: Path, values: Sequence[float], columns: TableColumns) -> Literal["percent", "share"]:
    """Return the unit of accuracies: the given one if the values can have it, else the one that they have."""
    low, high = min(values), max(values)
    name = f"{path}: column {quote(columns.value)}"
    if low < 0 or high > 100:
        raise UserError(f"{name} has {low if low < 0 else high:g}, which is no accuracy: give shares or percent.")
    if columns.unit == "share" and high > 1:
        raise UserError(f"{name} has {high:g}, which is no share in [0, 1]: give --percent instead of --share.")
    if columns.unit == "percent" and high <= 1:
        raise UserError(f"{name} has no value above 1, so these are no percentages: give --share instead of --percent.")
    if columns.unit == "auto" and high > 1 and 0 < low <= 1:
        raise UserError(f"{name} has both {low:g} and {high:g}: give --percent if both are percentages.")
    if columns.unit != "auto":
        return columns.unit
    return "percent" if high > 1 else "share"
