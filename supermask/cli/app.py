"""The application that commands are added to, and what they have in common.

From a command to an exit status: what a person did wrong, or the machine refused, is one message on stderr.
"""

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


def _show_version(asked: bool) -> None:
    if asked:
        from supermask import __version__

        echo(f"supermask {__version__}")
        raise typer.Exit


@app.callback()
def supermask(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Lottery tickets and supermasks: run a study, see what it says, and have every run prove itself."""


StudyArg = Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study's name, or a path to a .yaml file.")]
OverridesArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that replace the study's, such as scale=digits 'seeds=[0,1]' train.lr=1e-3.",
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
    typer.Option("--workers", min=1, help="Processes, one thread each [default: one a core].", show_default=False),
]


SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def split_studies_and_overrides(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Of the words of a command: names and files of studies, and settings (`KEY=VALUE`) for all of them."""
    settings = [word for word in words or [] if SETTING.match(word) and not word.endswith((".yaml", ".yml"))]
    return [word for word in words or [] if word not in settings], settings


def print_warnings(texts: Sequence[str]) -> None:
    """What a command has to say beside its answer, to standard error."""
    for text in texts:
        echo(f"supermask: {text}", err=True)


INTERRUPTED = 130
"""What a shell reports for a command that Ctrl-C ended."""

_BadCommandLine: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for arguments that it cannot parse; the class has no public name."""


def run_command(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Carries out one command line; 0, 1 (the machine's fault, or a check that failed), 2 (the user's) or 130."""
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
            # What is left in the buffer has nowhere to go: Python would complain about it while it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            where = f" ({error.filename})" if error.filename else ""
            _print_error(f"the machine refused: {error.strerror or error}{where}.")
        return SystemFailure.exit_status


def _invoke(app: typer.Typer, arguments: list[str]) -> int:
    command = get_command(app)
    try:
        with command.make_context("supermask", arguments) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    except _BadCommandLine as error:
        raise UserError(_usage_message(error)) from error
    return 0


def _usage_message(error: Exception) -> str:
    """A command line that cannot be parsed: what is wrong, what may have been meant, where to read on."""
    context = getattr(error, "ctx", None)
    message: str = error.format_message()  # type: ignore[attr-defined]
    message = message.replace("Value error, ", "").rstrip(".")
    unknown = getattr(error, "option_name", None)
    if context is not None and unknown and message.startswith("No such option"):
        options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]
        message = f"No such option {unknown}{_setting_hint(unknown) or did_you_mean(unknown, options)}"
    path = context.command_path if context is not None else "supermask"
    return f"{message}{'' if message.endswith('?') else '.'} See `{path} --help`."


def _setting_hint(option: str) -> str:
    """For `--scale` and the like: settings are written without dashes."""
    from supermask.study.loading import STUDY_KEYS

    key = option.lstrip("-").partition(".")[0]
    if key in ("scale", *STUDY_KEYS):
        return f"; settings of a study are written without dashes: {option.lstrip('-')}=VALUE"
    return ""


def _print_error(message: str) -> None:
    typer.echo(f"supermask: {message}", err=True)
