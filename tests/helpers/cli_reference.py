"""Writes docs/cli.md from the command table itself: `make cli-reference`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from supermask.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

HEAD = """# The command line

Made from the command table by `make cli-reference`; a test compares the two.

`STUDY` is the name of a shipped study (`supermask studies` lists them) or a path to a `.yaml` file. `KEY=VALUE` are
settings that replace the study's: `scale=digits` picks one of its scales, any key of `docs/studies.md` replaces what
the scale and the file say.

Exit status: 0; 1 where the machine refused (disk full, read-only ...) or a check failed; 2 where something given cannot
be used; 130 after Ctrl-C. Errors are one message on standard error, and what was finished is kept.

Environment: `SUPERMASK_STORE` is the default of `--store`, `SUPERMASK_DATA` the folder of the data sets,
`SUPERMASK_CACHE` the folder of decoded data sets.

Python: `supermask.api` has one function per command, with the same arguments; it returns data and prints nothing.
`supermask.run`, `supermask.table` and `supermask.figure` are for notebooks: [notebook.md](notebook.md).
"""


def commands() -> dict[str, Callable[..., None]]:
    """The live command table: name -> the function that carries it out."""
    found = {}
    for command in app.registered_commands:
        assert command.callback is not None
        found[command.name or command.callback.__name__] = command.callback
    return found


def example(command: Callable[..., None]) -> str:
    """The command line that the command's help gives as an example."""
    found = re.search(r"Example: `([^`]+)`", command.__doc__ or "")
    assert found, f"{command.__name__} has no example"
    return found[1]


def page() -> str:
    """docs/cli.md as it has to be."""
    return HEAD + "".join("\n" + "\n".join(_section(name, command)) for name, command in commands().items())


def _section(name: str, command: Callable[..., None]) -> Iterator[str]:
    defaults = inspect.signature(command).parameters
    lines, words = [], []
    for parameter, annotation in get_type_hints(command, include_extras=True).items():
        if parameter == "return":
            continue
        kind, about = get_args(annotation)
        default = defaults[parameter].default
        if isinstance(about, ArgumentInfo):
            word = about.metavar or parameter.upper()
            words.append(word if default is inspect.Parameter.empty else f"[{word}]...")
            lines.append((word, about.help or ""))
        else:
            assert isinstance(about, OptionInfo)
            told = f" [default: {default}]" if about.show_default and kind is not bool else ""
            flag = (about.param_decls or [f"--{parameter}"])[0]
            lines.append((f"{flag} {_value(kind)}".rstrip(), f"{about.help}{told}"))
    yield f"## supermask {' '.join([name, *words])}\n"
    yield inspect.cleandoc(command.__doc__ or "").partition("Example:")[0].strip() + "\n"
    yield f"    {example(command)}\n"
    if lines:
        yield "| | |\n|---|---|"
        yield from (f"| `{_cell(what)}` | {_cell(text)} |" for what, text in lines)
        yield ""


def _value(kind: Any) -> str:
    """What follows an option: its choices, or what it is."""
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    if all(isinstance(k, str) for k in kinds):
        return "|".join(kinds)
    return {Path: "PATH", int: "N", str: "NAME", list[str]: "NAME ...", bool: ""}[kinds[0]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
