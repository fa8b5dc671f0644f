"""The typer application, the arguments that several commands share, and the mapping from errors to exit statuses."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from supermask.cli.output import discard_unwritten_text, echo, prepare_streams
from supermask.core.errors import SystemFailure, UserError, did_you_mean

app = typer.Typer(
    name="supermask",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        from supermask import __version__

        echo(f"supermask {__version__}")
        raise typer.Exit


@app.callback()
def supermask(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Lottery tickets and supermasks: run a study, test its claims, and verify every run from its stored tensors."""


def complete_studies() -> list[str]:
    """Return the shipped studies and the study files of the current folder."""
    from supermask.study.loading import builtin_study_names

    return [*builtin_study_names(), *sorted(file.name for file in Path().glob("*.yaml"))]


def complete_scales() -> list[str]:
    """Return the scales of all shipped studies."""
    from supermask.study import builtin_studies

    return list(dict.fromkeys(scale for study in builtin_studies() for scale in study.scales))


def complete_overrides(incomplete: str) -> list[str]:
    """Return the keys of a study, each with `=`; after `scale=` also the scales."""
    from supermask.study.schema import Settings
    from supermask.study.yaml import nested_keys

    scales = [f"scale={name}" for name in complete_scales()] if incomplete.startswith("scale=") else ["scale="]
    return [f"{key}=" for key in nested_keys(Settings)] + scales


def complete_studies_and_overrides(incomplete: str) -> list[str]:
    """Return the completions of an argument that is a study or an override."""
    return complete_studies() + complete_overrides(incomplete)


StudyArg = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="Name of a shipped study, or path to a .yaml file.", autocompletion=complete_studies
    ),
]
OverridesArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that override the study file, such as scale=digits 'seeds=[0,1]' train.lr=1e-3.",
        show_default=False,
        autocompletion=complete_overrides,
    ),
]
ScaleOption = Annotated[
    str | None,
    typer.Option(
        "--scale",
        help="Scale of the study, such as digits; the same as scale=NAME.",
        show_default=False,
        autocompletion=complete_scales,
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Folder of the store [default: $SUPERMASK_STORE or ./supermask-store].", show_default=False
    ),
]
RowsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--rows",
        metavar="FILE.parquet",
        help="Table of runs (`supermask table --format parquet`) to read in place of a store; several can be given.",
        show_default=False,
    ),
]
RunIdArg = Annotated[str, typer.Argument(metavar="RUN_ID", help="Id of a run, or a unique prefix of it.")]
OutputFolderOption = Annotated[Path, typer.Option("--out", help="Output folder, created if it is missing.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Worker processes, one thread each [default: one per core].", show_default=False
    ),
]


OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")
"""Beginning of an argument of the form `KEY=VALUE`."""


def split_studies_and_overrides(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Split positional arguments into studies (names or .yaml files) and overrides (`KEY=VALUE`)."""
    overrides = [text for text in arguments or [] if OVERRIDE.match(text) and not text.endswith((".yaml", ".yml"))]
    return [text for text in arguments or [] if text not in overrides], overrides


def split_row_files(arguments: list[str] | None, rows: list[Path] | None) -> tuple[list[str], list[Path]]:
    """Move Parquet files among the arguments to the tables: `--rows *.parquet` gives the option the first one alone."""
    if not rows:
        return list(arguments or []), []
    moved = [text for text in arguments or [] if text.endswith(".parquet")]
    return [text for text in arguments or [] if text not in moved], [*rows, *map(Path, moved)]


def add_scale(overrides: Sequence[str] | None, scale: str | None) -> list[str]:
    """Return the overrides with the option `--scale` as `scale=NAME`. Raises UserError if they name two scales."""
    overrides = list(overrides or [])
    settings = [text.partition("=")[2] for text in overrides if text.startswith("scale=")]
    if scale is None or settings[-1:] == [scale]:
        return overrides
    if settings:
        raise UserError(f"--scale {scale} and scale={settings[-1]} differ: give one of them.")
    return [*overrides, f"scale={scale}"]


def print_warnings(texts: Sequence[str]) -> None:
    """Print warnings to standard error, one per line, so that standard output holds the result alone."""
    for text in texts:
        echo(f"supermask: {text}", err=True)


COMPLETION_VARIABLE = "_SUPERMASK_COMPLETE"
"""Variable by which the completion script of a shell asks for completions."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells report it."""

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Base class of typer's errors about arguments that cannot be parsed; it has no public name."""


def run_command(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status.

    0: success. 1: system failure or a failed check. 2: the user's input cannot be used. 3: a certificate failed.
    128 + n: ended by signal n.
    """
    prepare_streams()
    try:
        status = _invoke(app, list(arguments) or ["--help"])
        sys.stdout.flush()
        return status
    except (UserError, SystemFailure) as error:
        _print_error(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _print_error("interrupted.")
        return INTERRUPTED
    except OSError as error:
        discard_unwritten_text()
        if error.errno != errno.EPIPE:
            file = f" ({error.filename})" if error.filename else ""
            _print_error(f"system error: {error.strerror or error}{file}.")
        return SystemFailure.exit_status


@cache
def build_parser(app: typer.Typer) -> Any:
    """Return the parser of a command table, built once per process: it reads the signatures of all commands."""
    return get_command(app)


def _invoke(app: typer.Typer, arguments: list[str]) -> int:
    _refuse_empty_paths(arguments)
    command = build_parser(app)
    if os.environ.get(COMPLETION_VARIABLE):
        command.main(arguments, "supermask", complete_var=COMPLETION_VARIABLE)
    try:
        with command.make_context("supermask", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        raise UserError(_usage_message(error)) from error
    return 0


PATH_OPTIONS = ("--store", "--out", "--rows", "--with", "--to-folder")
"""Options whose value is a path."""


def _refuse_empty_paths(arguments: Sequence[str]) -> None:
    """Raise UserError for an option with an empty path, which the parser takes for the current folder."""
    for option in PATH_OPTIONS:
        if f"{option}=" in arguments or (option, "") in pairwise(arguments):
            raise UserError(
                f"{option} is empty: give it a path. Is a variable of the shell not set, as in {option} $NAME?"
            )


def _usage_message(error: Exception) -> str:
    """Return the error of the argument parser as one message, with the nearest option and a pointer to the help."""
    context = getattr(error, "ctx", None)
    message: str = error.format_message()  # type: ignore[attr-defined]
    message = message.replace("Value error, ", "").rstrip(".")
    unknown = getattr(error, "option_name", None)
    if context is not None and unknown and message.startswith("No such option"):
        options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]
        takes_overrides = any("KEY=VALUE" in (parameter.metavar or "") for parameter in context.command.params)
        hint = _override_hint(unknown) if takes_overrides else ""
        message = f"No such option {unknown}{hint or did_you_mean(unknown, options)}"
    path = context.command_path if context is not None else "supermask"
    return f"{message}{'' if message.endswith('?') else '.'} See `{path} --help`."


def _override_hint(option: str) -> str:
    """Return a hint for options such as `--seeds` and `--lr`: keys of a study are written without dashes."""
    from supermask.study.loading import STUDY_KEYS
    from supermask.study.schema import KEY_ALIASES, Settings
    from supermask.study.yaml import nested_keys

    key = option.lstrip("-")
    nested = {dotted.rpartition(".")[2]: dotted for dotted in reversed(list(nested_keys(Settings)))}
    if key.partition(".")[0] not in STUDY_KEYS:
        key = nested.get(key) or KEY_ALIASES.get(key) or ""
    return f"; settings of a study are written without dashes: {key}=VALUE" if key else ""


def _print_error(message: str) -> None:
    # Standard error may be closed as well; the exit status still tells the failure.
    with suppress(OSError):
        echo(f"supermask: {message}", err=True)
