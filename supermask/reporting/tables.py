"""Tables as LaTeX and Markdown, for papers and notes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from supermask.core.text import Row, Value

TextTable = tuple[list[str], list[list[Value]]]
"""Column titles, and one list of values per row."""

_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    # In LaTeX's default encoding these are other characters: a dash and upside-down marks.
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    # Characters of formulas and captions that pdfLaTeX does not know.
    **{
        character: f"\\ensuremath{{{command}}}"
        for character, command in {
            "−": "-",
            "·": r"\cdot",
            "×": r"\times",
            "±": r"\pm",
            "∂": r"\partial",
            "∞": r"\infty",
            "α": r"\alpha",
            "≥": r"\geq",
            "≤": r"\leq",
        }.items()
    },
    "…": r"\ldots{}",
}

_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#&~$])")


def table_of_rows(rows: Sequence[Row], columns: Sequence[str] = ()) -> TextTable:
    """Return the rows as a table; without `columns`, with those of the first row except the values by seed."""
    names = list(columns) or [name for name in (rows[0] if rows else ()) if name != "values_by_seed"]
    return names, [[row.get(name) for name in names] for row in rows]


def format_latex(titles: Sequence[str], rows: Sequence[Sequence[Value]], caption: str = "") -> str:
    """Return a LaTeX table with rules of the package booktabs; columns of numbers are right-aligned.

    Every special character is escaped. With a caption it is a `table` environment, else a `tabular`.
    """
    alignment = "".join("r" if is_numeric else "l" for is_numeric in _numeric_columns(titles, rows))
    lines = [
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        _latex_line(titles),
        "\\midrule",
        *map(_latex_line, rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    if caption:
        lines = ["\\begin{table}", "\\centering", *lines, f"\\caption{{{_escape_latex(caption)}}}", "\\end{table}"]
    return "\n".join(["% needs \\usepackage{booktabs}", *lines]) + "\n"


def format_markdown(titles: Sequence[str], rows: Sequence[Sequence[Value]], caption: str = "") -> str:
    """Return a Markdown table, followed by the caption if there is one; every special character is escaped."""
    rules = ["---:" if is_numeric else "---" for is_numeric in _numeric_columns(titles, rows)]
    lines = [_markdown_line(titles), f"| {' | '.join(rules)} |", *map(_markdown_line, rows)]
    return "\n".join([*lines, *(["", _escape_markdown(caption)] if caption else [])]) + "\n"


def _numeric_columns(titles: Sequence[str], rows: Sequence[Sequence[Value]]) -> list[bool]:
    columns = [[row[index] for row in rows if row[index] is not None] for index in range(len(titles))]
    return [bool(values) and all(map(_is_number, values)) for values in columns]


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _format_value(value: Value) -> str:
    """Format a cell: six significant digits, empty if missing, one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def _latex_line(values: Sequence[Value]) -> str:
    line = " & ".join(_escape_latex(_format_value(value)) for value in values) + r" \\"
    # After the end of a row, `[` begins its optional argument, and `*` is part of the command.
    return f"{{{line[0]}}}{line[1:]}" if line[0] in "[*" else line


def _escape_latex(text: str) -> str:
    escaped = "".join(_LATEX_ESCAPES.get(character, character) for character in text)
    # Two hyphens would be one dash.
    return re.sub("-(?=-)", "-{}", escaped)


def _markdown_line(values: Sequence[Value]) -> str:
    return f"| {' | '.join(_escape_markdown(_format_value(value)) for value in values)} |"


def _escape_markdown(text: str) -> str:
    return _MARKDOWN_SPECIAL.sub(r"\\\1", text)
