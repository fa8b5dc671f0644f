"""The application that commands are added to, and what they have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import echo

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


Study = Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study's name, or a path to a .yaml file.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that replace the study's, such as scale=digits 'seeds=[0,1]' train.lr=1e-3.",
        show_default=False,
    ),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Folder of the store [default: $SUPERMASK_STORE or ./supermask-store].", show_default=False
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes, one thread each [default: one a core].", show_default=False),
]


SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def studies_and_settings(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Of the words of a command: names and files of studies, and settings (`KEY=VALUE`) for all of them."""
    settings = [word for word in words or [] if SETTING.match(word) and not word.endswith((".yaml", ".yml"))]
    return [word for word in words or [] if word not in settings], settings


def warn(texts: Sequence[str]) -> None:
    """What a command has to say beside its answer, to standard error."""
    for text in texts:
        echo(f"supermask: {text}", err=True)
