"""Generator of docs/cli.md from the live command table; `make cli-reference` runs it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

from supermask.cli import app
from supermask.cli.app import build_parser

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
    """Return the live command table: name -> function of the command. Commands of a group are named `group command`."""
    table = {}
    groups = [(f"{group.name} ", group.typer_instance) for group in app.registered_groups]
    for prefix, part in [("", app), *groups]:
        assert part is not None
        for command in part.registered_commands:
            assert command.callback is not None
            table[prefix + (command.name or command.callback.__name__)] = command.callback
    return table


def example(command: Callable[..., None]) -> str:
    """Return the example in the help of a command."""
    match = re.search(r"Example: `([^`]+)`", command.__doc__ or "")
    assert match, f"{command.__name__} has no example"
    return match[1]


@cache
def page() -> str:
    """Return the content of docs/cli.md."""
    return HEAD + "".join("\n" + "\n".join(_section(name, command)) for name, command in commands().items())


def _section(name: str, command: Callable[..., None]) -> Iterator[str]:
    parsed = build_parser(app)
    for word in name.split():
        parsed = parsed.commands[word]
    parameters = parsed.params
    arguments = [_argument(p) for p in parameters if p.param_type_name == "argument"]
    yield f"## supermask {' '.join([name, *arguments])}\n"
    yield inspect.cleandoc(command.__doc__ or "").partition("Example:")[0].strip() + "\n"
    yield f"    {example(command)}\n"
    if parameters:
        yield "| | |\n|---|---|"
        yield from (f"| `{_cell(_usage(parameter))}` | {_cell(_help(parameter))} |" for parameter in parameters)
        yield ""


def _argument(parameter: Any) -> str:
    many = "..." if parameter.nargs == -1 else ""
    return _metavar(parameter) if parameter.required else f"[{_metavar(parameter)}]{many}"


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _usage(parameter: Any) -> str:
    """Return an argument as its metavar; an option as all its names and its value."""
    if parameter.param_type_name == "argument":
        return _metavar(parameter)
    value = "" if parameter.is_flag else parameter.metavar or _value(parameter.type_descriptor.annotation)
    return f"{', '.join([*parameter.opts, *parameter.secondary_opts])} {value}".rstrip()


def _help(parameter: Any) -> str:
    """Return the help of a parameter, with the default that the parser fills in; None and unset flags are none."""
    shown = parameter.param_type_name == "option" and parameter.show_default and not parameter.is_flag
    return f"{parameter.help}{f' [default: {parameter.default}]' if shown and parameter.default is not None else ''}"


def _value(kind: Any) -> str:
    """Return the value of an option as shown after its flag: the allowed words, or the type."""
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    if all(isinstance(k, str) for k in kinds):
        return "|".join(kinds)
    # An optional Literal: its words are one level deeper.
    if words := [word for k in kinds for word in get_args(k) if isinstance(word, str)]:
        return "|".join(words)
    names = {Path: "PATH", int: "N", float: "X", str: "NAME", list[str]: "NAME ...", list[Path]: "PATH ..."}
    return names[kinds[0]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
