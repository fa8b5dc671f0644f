"""The typer application, the arguments that several commands share, and the mapping from errors to exit statuses."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from typer import echo
from typer.main import get_command

from supermask.core.errors import SystemFailure, UserError, did_you_mean

app = typer.Typer(
    name="supermask",
    add_completion=False,
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


StudyArg = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a shipped study, or path to a .yaml file.")]
OverridesArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that override the study file, such as scale=digits 'seeds=[0,1]' train.lr=1e-3.",
        show_default=False,
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Folder of the store [default: $SUPERMASK_STORE or ./supermask-store].", show_default=False
    ),
]
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


def print_warnings(texts: Sequence[str]) -> None:
    """Print warnings to standard error, one per line, so that standard output holds the result alone."""
    for text in texts:
        echo(f"supermask: {text}", err=True)


INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells report it."""

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Base class of typer's errors about arguments that cannot be parsed; it has no public name."""


def run_command(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status.

    0: success. 1: system failure or a failed check. 2: the user's input cannot be used. 3: refused runs. 128 + n: ended
    by signal n.
    """
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
        with suppress(OSError):
            # The buffer still holds text that cannot be written; Python would print a second error when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            file = f" ({error.filename})" if error.filename else ""
            _print_error(f"system error: {error.strerror or error}{file}.")
        return SystemFailure.exit_status


def _invoke(app: typer.Typer, arguments: list[str]) -> int:
    command = get_command(app)
    try:
        with command.make_context("supermask", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        raise UserError(_usage_message(error)) from error
    return 0


def _usage_message(error: Exception) -> str:
    """Return the error of the argument parser as one message, with the nearest option and a pointer to the help."""
    context = getattr(error, "ctx", None)
    message: str = error.format_message()  # type: ignore[attr-defined]
    message = message.replace("Value error, ", "").rstrip(".")
    unknown = getattr(error, "option_name", None)
    if context is not None and unknown and message.startswith("No such option"):
        options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]
        message = f"No such option {unknown}{_override_hint(unknown) or did_you_mean(unknown, options)}"
    path = context.command_path if context is not None else "supermask"
    return f"{message}{'' if message.endswith('?') else '.'} See `{path} --help`."


def _override_hint(option: str) -> str:
    """Return a hint for options such as `--scale`: keys of a study are written without dashes."""
    from supermask.study.loading import STUDY_KEYS

    key = option.lstrip("-").partition(".")[0]
    if key in ("scale", *STUDY_KEYS):
        return f"; settings of a study are written without dashes: {option.lstrip('-')}=VALUE"
    return ""


def _print_error(message: str) -> None:
    typer.echo(f"supermask: {message}", err=True)
