"""Results of others from a CSV table with one run per line."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from supermask.analysis.comparisons.other_results import OtherResult, OtherResults
from supermask.analysis.summary import DENSITY_TOLERANCE, Metric
from supermask.core.environment import expand_path
from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.core.text import agree, escape_controls, pluralize
from supermask.store.row_files import is_parquet

MAX_TABLE_BYTES = 50_000_000
"""A table of 100,000 runs has about 5 MB with the few columns that are read."""

MAX_LEVEL = 1_000_000

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
    """Weights remaining, as a share or in percent: percent if one of the numbers is above 1.02 or has a % sign."""
    unit: ValueUnit = "auto"


DENSITY_COLUMN = "density"
"""Column of weights remaining in our own tables. It is read if it exists, as a check of levels."""


@dataclass(frozen=True)
class _Table:
    """Header and lines of a CSV file."""

    path: str
    """Path for messages."""
    name: str
    file: str
    """Name for notes."""
    separator: str
    names: list[str]
    lines: list[tuple[int, list[str]]]
    """(line number, fields)."""
    repeated_headers: int

    def column(self, name: str) -> list[tuple[int, str]]:
        """Return (line number, text) of each line."""
        place = self.names.index(name)
        return [(number, fields[place].strip()) for number, fields in self.lines]


@dataclass(frozen=True)
class _Numbers:
    """Numbers of a column; None where it has none."""

    values: list[float | None]
    in_percent: bool
    """True if they have percent signs."""


def column_names(path: str | Path) -> list[str]:
    """Return the names in the header of a CSV file; none for a Parquet file. Raises UserError if it cannot be read."""
    return [] if is_parquet(path) else _read_table(expand_path(path)).names


def read_csv_results(path: str | Path, columns: TableColumns, metric: Metric) -> OtherResults:
    """Read a CSV table with one run per line. The separator is a comma, a semicolon or a tab.

    Lines whose value is empty or not finite (runs that did not finish) are left out and counted in a note. Numbers may
    have a decimal comma if the separator is another, and accuracies a percent sign. Raises UserError for a file that
    cannot be read, missing columns, text in place of numbers, values of another unit, and a run that occurs twice.
    """
    table = _read_table(expand_path(path))
    for option in ("treatment", "level", "density", "value", "seed"):
        if (name := getattr(columns, option)) is not None:
            _check_column(table, option, name)
    if not table.lines:
        raise UserError(f"{table.path} has a header and no line below it: there is nothing to compare with.")
    values = _parse_numbers(table, columns.value, metric.unit, allow_missing=True)
    levels = _parse_levels(table, columns.level) if columns.level else [None] * len(table.lines)
    treatments = table.column(columns.treatment)
    for number, treatment in treatments:
        if not treatment:
            raise UserError(
                f"{table.path}, line {number}: column {quote(columns.treatment)} is empty: name the treatment."
            )
    densities: list[float | None] = [None] * len(table.lines)
    density_notes: list[str] = []
    if columns.density:
        densities, unit = _parse_densities(table, columns.density)
        density_notes.append(f"{table.file}: {columns.density} is read as {_UNIT_NAMES[unit]}.")
    seeds = [seed for _, seed in table.column(columns.seed)] if columns.seed else [None] * len(table.lines)
    if columns.seed:
        _check_distinct_lines(table, [treatment for _, treatment in treatments], levels, densities, seeds)
    finished = [value for value in values.values if value is not None]
    if not finished:
        raise UserError(
            f"{table.path}: column {quote(columns.value)} has no value in {pluralize(len(table.lines), 'line')}."
        )
    if not columns.density:
        densities, density_notes = _find_densities(table)
    factor, notes = _find_value_factor(table, finished, values.in_percent, columns, metric)
    notes += density_notes
    results = [
        OtherResult(treatment, level, density, seed, value * factor)
        for (_, treatment), level, density, seed, value in zip(
            treatments, levels, densities, seeds, values.values, strict=True
        )
        if value is not None
    ]
    if table.repeated_headers:
        be = agree("is", "are", table.repeated_headers)
        notes.append(f"{pluralize(table.repeated_headers, 'repeated header line')} of {table.file} {be} skipped.")
    if missing := len(table.lines) - len(finished):
        has = agree("has no value and is", "have no value and are", missing)
        notes.append(f"{missing} of {pluralize(len(table.lines), 'line')} of {table.file} {has} left out.")
    return OtherResults(table.name, tuple(results), tuple(notes))


def _read_table(path: Path) -> _Table:
    """Return header and lines. Blank lines count for line numbers only; the header may occur again."""
    shown = escape_controls(str(path))
    # Line ends of Windows and of old Macs, as Python's universal newlines.
    text = _read_text(path, shown).replace("\r\n", "\n").replace("\r", "\n")
    blank = re.match(r'(?:[ \t,;"]*\n)*', text)
    skipped = blank[0].count("\n") if blank else 0
    text = text.split("\n", skipped)[-1]
    header = text.partition("\n")[0]
    if not header.strip(' \t,;"'):
        raise UserError(f"{shown} is empty: give a CSV file with a header line.")
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    lines: list[tuple[int, list[str]]] = []
    repeated_headers = 0
    try:
        names = [name.strip() for name in next(reader)]
        for fields in reader:
            number = skipped + reader.line_num
            if not any(field.strip() for field in fields):
                continue
            if [field.strip() for field in fields] == names:
                repeated_headers += 1
                continue
            if len(fields) != len(names):
                raise UserError(
                    f"{shown}, line {number}: {pluralize(len(fields), 'field')} where the header has {len(names)}."
                )
            lines.append((number, fields))
    except csv.Error as error:
        raise UserError(f"{shown}, line {skipped + reader.line_num}: not CSV: {error}.") from None
    return _Table(shown, path.name, escape_controls(path.name), separator, names, lines, repeated_headers)


def _read_text(path: Path, shown: str) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            limit = MAX_TABLE_BYTES / 1e6
            raise UserError(f"{shown} has {size / 1e6:.0f} MB; a table of runs has at most {limit:.0f}.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown} is not a CSV file in UTF-8: save the table as CSV.") from None
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror or error}.") from None


def _check_column(table: _Table, option: str, name: str) -> None:
    names = table.names
    if names.count(name) == 1:
        return
    if name in names:
        raise UserError(f"{table.path}: {names.count(name)} columns are called {quote(name)}: rename all but one.")
    near = did_you_mean(name, names) or "."
    listed = ", ".join(map(sanitize, names[:20])) + (", ..." if len(names) > 20 else "")
    raise UserError(f"{table.path} has no column {quote(name)}{near} Name it with --{option} COLUMN. It has: {listed}.")


_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+([eE][+-]?[0-9]+)?")


def _parse_numbers(table: _Table, name: str, unit: str, allow_missing: bool = False) -> _Numbers:
    """Return the numbers of a column. `unit`: of the column; accuracies and shares (`percent`) may have % signs.

    Raises UserError for anything else, and for a column that mixes decimal points with commas, or numbers with and
    without a percent sign.
    """
    values: list[float | None] = []
    examples: dict[str, tuple[int, str]] = {}
    """First number of each notation."""
    for number, text in table.column(name):
        if not text and not allow_missing:
            raise UserError(f"{table.path}, line {number}: column {quote(name)} is empty: give a number.")
        digits = text
        if unit == "percent" and text.endswith("%"):
            digits = text[:-1].rstrip()
        # Whole numbers have no decimals: there a comma would separate thousands.
        has_comma = unit in ("percent", "nats") and table.separator != "," and _DECIMAL_COMMA.fullmatch(digits)
        try:
            value = float(digits.replace(",", ".") if has_comma else digits) if text else math.nan
        except ValueError:
            raise UserError(_no_number(table, number, name, text, unit, allow_missing)) from None
        if math.isfinite(value):
            examples.setdefault("percent sign" if digits != text else "no percent sign", (number, text))
            if has_comma or "." in digits:
                examples.setdefault("comma" if has_comma else "point", (number, text))
        elif not allow_missing:
            raise UserError(
                f"{table.path}, line {number}: column {quote(name)} has {quote(text)}; it has to be a finite number."
            )
        values.append(value if math.isfinite(value) else None)
    for first, second in (("comma", "point"), ("percent sign", "no percent sign")):
        if first in examples and second in examples:
            (line, text), (other_line, other_text) = examples[first], examples[second]
            raise UserError(
                f"{table.path}: column {quote(name)} has {quote(text)} in line {line} and {quote(other_text)} in line "
                f"{other_line}: write all of its numbers in one way."
            )
    return _Numbers(values, "percent sign" in examples)


def _no_number(table: _Table, line: int, name: str, text: str, unit: str, allow_missing: bool) -> str:
    has_commas = table.separator != ","
    allowed = {
        "percent": f"98.03{' or 98,03' if has_commas else ''}, a share such as 0.9803, or 98.03%",
        "nats": f"0.0931{' or 0,0931' if has_commas else ''}",
        "levels": "a whole number such as 3",
    }.get(unit, "a number such as 16500, without separators of thousands")
    hint = "; a run without a result has an empty field" if allow_missing else ""
    if not has_commas and _DECIMAL_COMMA.fullmatch(text.rstrip(" %")):
        hint += ". Decimal commas need another separator, such as a semicolon"
    problem = f"{table.path}, line {line}: column {quote(name)} has {quote(text)}, which is no number"
    return f"{problem}. Allowed: {allowed}{hint}."


def _parse_levels(table: _Table, name: str) -> list[int | None]:
    levels: list[int | None] = []
    numbers = _parse_numbers(table, name, "levels").values
    for (line, text), number in zip(table.column(name), numbers, strict=True):
        if number is None or number != int(number) or not 0 <= number <= MAX_LEVEL:
            raise UserError(
                f"{table.path}, line {line}: column {quote(name)} has {quote(text)}, which is not a level (0, 1, 2 ...)"
                ". Shares of weights remaining are matched with --density COLUMN."
            )
        levels.append(int(number))
    return levels


def _check_distinct_lines(
    table: _Table,
    treatments: Sequence[str],
    levels: Sequence[int | None],
    densities: Sequence[float | None],
    seeds: Sequence[str | None],
) -> None:
    """Raise UserError if two lines have the same treatment, level or density, and seed."""
    seen: dict[tuple[object, ...], int] = {}
    for (number, _), *run in zip(table.lines, treatments, levels, densities, seeds, strict=True):
        if tuple(run) in seen:
            treatment, level, density, seed = run
            place = f"level {level}" if level is not None else f"density {density:g}"
            raise UserError(
                f"{table.path}: lines {seen[tuple(run)]} and {number} are the same run: treatment {quote(treatment)}, "
                f"{place}, seed {quote(seed)}. Give one line per run."
            )
        seen[tuple(run)] = number


_UNIT_NAMES = {"percent": "percent", "share": "a share of 1"}


def _find_value_factor(
    table: _Table, values: Sequence[float], in_percent: bool, columns: TableColumns, metric: Metric
) -> tuple[float, list[str]]:
    """Return the factor from the values to the metric's unit, and a note if the unit was inferred."""
    if metric.unit == "percent":
        unit = _find_unit(table, values, in_percent, columns)
        notes = []
        if columns.unit == "auto":
            how = "it has percent signs" if in_percent else "--percent and --share say it"
            notes.append(f"{table.file}: {columns.value} is read as {_UNIT_NAMES[unit]} ({how}).")
        return (100.0 if unit == "share" else 1.0), notes
    if columns.unit != "auto":
        raise UserError(f"--{columns.unit} is for accuracies; {metric.column} is in {metric.unit}.")
    if any(value < 0 for value in values):
        raise UserError(
            f"{table.path}: column {quote(columns.value)} has {min(values):g}; {metric.column} is never negative."
        )
    return 1.0, []


def _find_unit(
    table: _Table, values: Sequence[float], in_percent: bool, columns: TableColumns
) -> Literal["percent", "share"]:
    """Return the unit of accuracies: the given one if the values can have it, else the one that they have."""
    low, high = min(values), max(values)
    name = f"{table.path}: column {quote(columns.value)}"
    if low < 0 or high > 100:
        raise UserError(f"{name} has {low if low < 0 else high:g}, which is no accuracy: give shares or percent.")
    if in_percent and columns.unit == "share":
        raise UserError(f"{name} has percent signs: leave out --share.")
    if in_percent:
        return "percent"
    if columns.unit == "share" and high > 1:
        raise UserError(f"{name} has {high:g}, which is no share in [0, 1]: give --percent instead of --share.")
    if columns.unit == "percent" and high <= 1:
        raise UserError(f"{name} has no value above 1, so these are no percentages: give --share instead of --percent.")
    if columns.unit == "auto" and high > 1 and 0 < low <= 1:
        raise UserError(f"{name} has both {low:g} and {high:g}: give --percent if both are percentages.")
    if columns.unit != "auto":
        return columns.unit
    return "percent" if high > 1 else "share"


def _parse_densities(
    table: _Table, name: str, allow_missing: bool = False
) -> tuple[list[float | None], Literal["percent", "share"]]:
    """Return weights remaining as shares, and the unit that they have. Raises UserError for other numbers."""
    numbers = _parse_numbers(table, name, "percent", allow_missing)
    densities = [value for value in numbers.values if value is not None] or [1.0]
    worst = min(densities) if min(densities) <= 0 else max(densities)
    if not 0 < worst <= 102:
        raise UserError(
            f"{table.path}: column {quote(name)} has {worst:g}; weights remaining are a share in (0, 1] or in percent."
        )
    # A dense network may be given as 100.3% or 1.003, by rounding.
    in_percent = numbers.in_percent or max(densities) > 1.02
    factor = 0.01 if in_percent else 1.0
    shares = [None if value is None else value * factor for value in numbers.values]
    return shares, "percent" if in_percent else "share"


def _find_densities(table: _Table) -> tuple[list[float | None], list[str]]:
    """Return weights remaining from a column that no option names, and a note if there are any.

    They are None where the column is missing or something else, and where its decimals are too few for a check.
    """
    none: list[float | None] = [None] * len(table.lines)
    if table.names.count(DENSITY_COLUMN) != 1:
        return none, []
    try:
        shares, unit = _parse_densities(table, DENSITY_COLUMN, allow_missing=True)
    except UserError as error:
        return none, [f"Levels are not checked by their weights remaining: {error}"]
    texts = [text.rstrip(" %").replace(",", ".") for _, text in table.column(DENSITY_COLUMN)]
    finite = [Decimal(text) for text in texts if text and math.isfinite(float(text))]
    decimals = max((-int(number.as_tuple().exponent) for number in finite), default=0)
    rounding = 0.5 * 10.0**-decimals * (0.01 if unit == "percent" else 1.0)
    checked = [None if share is None or rounding > DENSITY_TOLERANCE * share else share for share in shares]
    if not any(checked):
        return none, []
    note = (
        f"{table.file}: {DENSITY_COLUMN} is read as weights remaining, {_UNIT_NAMES[unit]}; levels have to agree in it."
    )
    return checked, [note]
