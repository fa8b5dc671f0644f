"""Tables and numbers as text."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from decimal import Decimal

from supermask.core.errors import UserError, quote

Value = int | float | str | bool | None

Row = dict[str, Value]
"""One row of a table: column -> value; a missing column means None."""

_NUMBER = re.compile(r"-?[0-9][0-9.e+-]*%?|-?inf|nan|NULL|-")


def format_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format an aligned table: header, rule, one line per row; columns of numbers are right-aligned.

    Cells are never cut. Floats have six significant digits, None is `NULL`, unprintable characters become `?`.
    """
    from rich.cells import cell_len

    cells = [[_cell(value) for value in row] for row in rows]
    columns = list(zip(map(_cell, heads), *cells, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    right = [all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]

    def line(texts: Sequence[str]) -> str:
        padded = []
        for text, width, to_the_right in zip(texts, widths, right, strict=True):
            space = " " * (width - cell_len(text))
            padded.append(space + text if to_the_right else text + space)
        return "  ".join(padded).rstrip()

    rule = ["-" * width for width in widths]
    return "\n".join([line([column[0] for column in columns]), "  ".join(rule), *map(line, cells)]) + "\n"


def _cell(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "NULL" if value is None else str(value).lower()
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def format_csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format CSV with a header line; None is empty, floats round-trip exactly."""
    # By hand: the csv module leaves a carriage return unquoted where lines end in a line feed.
    lines = [",".join(map(_csv_field, row)) or '""' for row in (heads, *rows)]
    return "\n".join(lines) + "\n"


def _csv_field(value: object) -> str:
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else escape_controls(str(value))
    # A spreadsheet runs text that begins so as a formula: CSV injection. Numbers keep their sign.
    if isinstance(value, str) and text.startswith(("=", "+", "-", "@")):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def format_json(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a JSON list with one object per row and line.

    Numbers that are not finite become null; values without a JSON type become strings.
    Raises UserError if two columns have the same name.
    """
    if len(set(heads)) < len(heads):
        duplicate = next(head for head in heads if heads.count(head) > 1)
        raise UserError(f"two columns are named {quote(duplicate)}, but keys of a JSON object are unique: use AS.")
    lines = [json_line(dict(zip(heads, map(_plain, row), strict=True))) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"


def json_line(value: object) -> str:
    """Return JSON on one line, with every control character escaped; other Unicode text stays readable."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # json escapes those below 0x20 only; terminals obey the ones from 0x7f to 0x9f too.
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)


def escape_controls(text: str) -> str:
    """Return text with control characters as `\\x1b`: a terminal obeys them, a table breaks at line ends."""
    return re.sub("[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _plain(value: object) -> object:
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def format_percent(value: float) -> str:
    """Format a percentage with three digits, two below ten, without trailing zeros: 100, 51.2, 6.9, 0.47."""
    return f"{value:.2g}" if value < 10 else f"{value:.3g}"


def format_number(value: float, digits: int = 2, signed: bool = False) -> str:
    """A number with `digits` decimals: `1,234.50`, `−0.31`; `signed`: `+0.31`. Zero has no sign.

    The minus sign is U+2212, which is as wide as a digit.
    """
    is_zero = float(f"{value:.{digits}f}") == 0
    text = f"{0 if is_zero else value:{'' if is_zero or not signed else '+'},.{digits}f}"
    return text.replace("-", "−")


def format_p(p: float, significance: float = 0.05) -> str:
    """Write a p-value in a sentence: `p = 0.021`, `p < 0.001`. A p below `significance` is not rounded up to it."""
    return "p < 0.001" if p < 0.001 else f"p = {_round_p(p, f'{p:.2g}', significance)}"


def format_p_cell(p: float, significance: float = 0.05) -> str:
    """Write a p-value in a column of a table: `0.021`, `0.34`, `< 0.001`; rounded as in `format_p`."""
    return "< 0.001" if p < 0.001 else _round_p(p, f"{p:.3f}" if p < 0.1 else f"{p:.2f}", significance)


def _round_p(p: float, rounded: str, significance: float) -> str:
    """Return the rounded p-value, or the next lower thousandth if it would look not significant and p is."""
    return f"{significance - 0.001:.3f}" if p < significance <= float(rounded) else rounded


def format_range(counts: Collection[int]) -> str:
    """`5`, or `3 to 5`; `0` without counts."""
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """`1 run`, `1,205 runs`; `plural` where it is not the noun with an s: `2 studies`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def agree(singular: str, plural: str, count: int, total: int = 0) -> str:
    """Return the verb that agrees with a count, alone or out of a total: 1 differs, 0 of 1 differs, 0 of 7 differ."""
    return singular if 1 in (count, total) else plural


def slugify(text: str) -> str:
    """Return a file name for any text: [a-z0-9-]{1,60}, never a path; `figure` if nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "figure"


def format_duration(seconds: float) -> str:
    """Format seconds: `0.4 s`, `45 s`, `12 min`, `3 h 05 min`, `2 days 4 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if 0 < seconds < 1 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
