"""Generator of docs/cli.md from the live command table; `make cli-reference` runs it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from supermask.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

HEAD = """# Command line

Generated from the command table by `make cli-reference`; a test compares the two.

`STUDY` is the name of a shipped study (`supermask studies` lists them) or a path to a `.yaml` file. `KEY=VALUE` are
settings that override the study file: `scale=digits` (or `--scale digits`) selects one of its scales, and any key of
`docs/studies.md` overrides the value of the scale and of the file.

Exit status: 0 on success; 1 if the system fails (disk full, read-only, ...), a check fails or no run of a study has
finished; 2 if the input cannot be used; 3 if the certificate of a run failed; 130, 143 or 129 after Ctrl-C, SIGTERM or
SIGHUP. An error is one message on standard error, and finished runs are kept.

Characters that the encoding of a stream lacks are escaped as `\\uXXXX`; `PYTHONUTF8=1` selects UTF-8. If standard
output can no longer be written while a study trains (closed pipe, full disk, lost terminal), the training continues,
and the command ends with status 1.

Shell completion of commands, options, studies and settings: run `supermask --install-completion` (bash, zsh, fish,
PowerShell) and open a new terminal; `supermask --show-completion` prints the script instead.

A leading `~` is the home folder in every path, also in the variables below.

Environment: `SUPERMASK_STORE` is the default of `--store`, `SUPERMASK_DATA` the folder of the datasets,
`SUPERMASK_MIRROR` an address that replaces the mirrors of `supermask data get`,
`SUPERMASK_CACHE` the folder of decoded datasets and measured costs. `SUPERMASK_MEASURE_COSTS=1` lets the sparse engine
measure its costs on this machine (`docs/performance.md`).

Python: `supermask.api` has one function per command, with the same arguments; it returns data and prints nothing.
`supermask.run`, `supermask.table` and `supermask.figure` are for notebooks: [notebook.md](notebook.md).
"""


def commands() -> dict[str, Callable[..., None]]:
    """Return the live command table: name -> function of the command. A group and its command are two words."""
    table = {}
    for command in app.registered_commands:
        assert command.callback is not None
        table[command.name or command.callback.__name__] = command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            table[f"{group.name} {command.name or command.callback.__name__}"] = command.callback
    return table


def example(command: Callable[..., None]) -> str:
    """Return the example in the help of a command."""
    match = re.search(r"Example: `([^`]+)`", command.__doc__ or "")
    assert match, f"{command.__name__} has no example"
    return match[1]


def page() -> str:
    """Return the content of docs/cli.md."""
    return HEAD + "".join("\n" + "\n".join(_section(name, command)) for name, command in commands().items())


def _section(name: str, command: Callable[..., None]) -> Iterator[str]:
    defaults = inspect.signature(command).parameters
    table, arguments = [], []
    for parameter, annotation in get_type_hints(command, include_extras=True).items():
        if parameter == "return":
            continue
        kind, info = get_args(annotation)
        default = defaults[parameter].default
        if isinstance(info, ArgumentInfo):
            metavar = info.metavar or parameter.upper()
            arguments.append(metavar if default is inspect.Parameter.empty else f"[{metavar}]...")
            table.append((metavar, info.help or ""))
        else:
            assert isinstance(info, OptionInfo)
            shown = info.show_default and kind is not bool and default is not None
            flag = (info.param_decls or [f"--{parameter.replace('_', '-')}"])[0]
            table.append((f"{flag} {_value(kind)}".rstrip(), f"{info.help}{f' [default: {default}]' if shown else ''}"))
    yield f"## supermask {' '.join([name, *arguments])}\n"
    yield inspect.cleandoc(command.__doc__ or "").partition("Example:")[0].strip() + "\n"
    yield f"    {example(command)}\n"
    if table:
        yield "| | |\n|---|---|"
        yield from (f"| `{_cell(usage)}` | {_cell(text)} |" for usage, text in table)
        yield ""


def _value(kind: Any) -> str:
    """Return the value of an option as shown after its flag: the allowed words, or the type."""
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    if all(isinstance(k, str) for k in kinds):
        return "|".join(kinds)
    # An optional Literal: its words are one level deeper.
    if words := [word for k in kinds for word in get_args(k) if isinstance(word, str)]:
        return "|".join(words)
    return {Path: "PATH", int: "N", str: "NAME", list[str]: "NAME ...", bool: ""}[kinds[0]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
