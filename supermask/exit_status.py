"""From a command to an exit status: what a person did wrong, or the machine refused, is one message on stderr."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer
from typer.main import get_command

from supermask.errors import MachineError, UserError, did_you_mean

INTERRUPTED = 130
"""What a shell reports for a command that Ctrl-C ended."""

_BadCommandLine: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for arguments that it cannot parse; the class has no public name."""


def exit_status(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Carries out one command line; 0, 1 (the machine's fault, or a check that failed), 2 (the user's) or 130."""
    try:
        status = _carried_out(app, list(arguments) or ["--help"])
        sys.stdout.flush()
        return status
    except (UserError, MachineError) as error:
        _say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _say("interrupted.")
        return INTERRUPTED
    except OSError as error:
        with suppress(OSError):
            # What is left in the buffer has nowhere to go: Python would complain about it while it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            where = f" ({error.filename})" if error.filename else ""
            _say(f"the machine refused: {error.strerror or error}{where}.")
        return MachineError.exit_status


def _carried_out(app: typer.Typer, arguments: list[str]) -> int:
    command = get_command(app)
    try:
        with command.make_context("supermask", arguments) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    except _BadCommandLine as error:
        raise UserError(_told(error)) from error
    return 0


def _told(error: Exception) -> str:
    """A command line that cannot be parsed: what is wrong, what may have been meant, where to read on."""
    context = getattr(error, "ctx", None)
    message: str = error.format_message()  # type: ignore[attr-defined]
    message = message.replace("Value error, ", "").rstrip(".")
    unknown = getattr(error, "option_name", None)
    if context is not None and unknown and message.startswith("No such option"):
        options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]
        message = f"No such option {unknown}{_as_setting(unknown) or did_you_mean(unknown, options)}"
    path = context.command_path if context is not None else "supermask"
    return f"{message}{'' if message.endswith('?') else '.'} See `{path} --help`."


def _as_setting(option: str) -> str:
    """For `--scale` and the like: settings are written without dashes."""
    from supermask.study.loading import STUDY_KEYS

    key = option.lstrip("-").partition(".")[0]
    if key in ("scale", *STUDY_KEYS):
        return f"; settings of a study are written without dashes: {option.lstrip('-')}=VALUE"
    return ""


def _say(message: str) -> None:
    typer.echo(f"supermask: {message}", err=True)
