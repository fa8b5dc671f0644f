"""Runs the cells of a tutorial (py:percent format) and prints what each shows, as JSON: `tutorial_cells.py FILE`.

A process of its own, so that warnings are errors there and a failed cell fails the build.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stdout
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


def shorten(text: str) -> str:
    """Return a text without its middle lines, if it is long."""
    lines = text.rstrip().splitlines()
    if len(lines) <= MAX_LINES:
        return "\n".join(lines)
    left_out = f"... {len(lines) - MAX_LINES + 1} lines ..."
    return "\n".join([*lines[: MAX_LINES // 2], left_out, *lines[-(MAX_LINES // 2 - 1) :]])


if __name__ == "__main__":
    namespace: dict[str, Any] = {"__name__": "__main__"}
    sources = [source for kind, source in parse_cells(Path(sys.argv[1]).read_text("utf-8")) if kind == "code"]
    outputs = [run_cell(source, namespace) for source in sources]
    home = str(Path.cwd().resolve())
    json.dump([{**output, "text": shorten(output["text"].replace(home, "."))} for output in outputs], sys.stdout)
