"""Runs the cells of tutorials (py:percent format) and prints what each shows: `tutorial_cells.py FILE [FILE ...]`.

The output is JSON, one list per tutorial. A process of its own makes warnings errors, and a failed cell fails the
build. The tutorials share the process, because importing torch takes longer than most of them.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

MAX_LINES = 16
"""Printed lines shown per cell; of longer outputs, such as progress in a log, the first and the last."""


def parse_cells(text: str) -> list[tuple[str, str]]:
    """Return ("markdown" | "code", source) per cell. Markdown is without the comment signs."""
    cells = []
    for cell in text.split("# %%")[1:]:
        head, _, source = cell.partition("\n")
        if head.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in source.strip().splitlines()]
            cells.append(("markdown", "\n".join(lines)))
        else:
            cells.append(("code", source.strip()))
    return cells


def run_cell(source: str, names: dict[str, Any]) -> dict[str, str]:
    """Run a code cell; return its printed text and, as in a notebook, its last expression as text or PNG image."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), names)  # noqa: S102 (our own tutorials)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None  # noqa: S307
    text = printed.getvalue()
    if hasattr(value, "_repr_png_"):
        return {"text": text, "png": base64.b64encode(value._repr_png_()).decode(), "alt": value.caption}
    return {"text": text if value is None else f"{text}{value!r}\n"}


def run_tutorial(path: Path) -> list[dict[str, str]]:
    """Run the code cells of a tutorial with names and in a folder of their own; return what they show."""
    names: dict[str, Any] = {"__name__": "__main__"}
    sources = [source for kind, source in parse_cells(path.read_text("utf-8")) if kind == "code"]
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        try:
            outputs = [run_cell(source, names) for source in sources]
        except BaseException as error:
            error.add_note(f"in the tutorial {path.name}")
            raise
        home = str(Path.cwd().resolve())
    return [{**output, "text": shorten(output["text"].replace(home, "."))} for output in outputs]


def shorten(text: str) -> str:
    """Return a text without its middle lines, if it is long."""
    lines = text.rstrip().splitlines()
    if len(lines) <= MAX_LINES:
        return "\n".join(lines)
    left_out = f"... {len(lines) - MAX_LINES + 1} lines ..."
    return "\n".join([*lines[: MAX_LINES // 2], left_out, *lines[-(MAX_LINES // 2 - 1) :]])


if __name__ == "__main__":
    json.dump([run_tutorial(Path(name).resolve()) for name in sys.argv[1:]], sys.stdout)
