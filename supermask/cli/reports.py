"""The report on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import echo

from supermask.cli.app import StoreFolder, app, studies_and_settings, warn


@app.command()
def report(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDY... KEY=VALUE",
            help="Shipped studies' names or paths to .yaml files; and settings that replace those of all of them.",
            show_default=False,
        ),
    ] = None,
    store: StoreFolder = None,
    out: Annotated[Path, typer.Option(help="File to write to.")] = Path("report.html"),
) -> None:
    """One HTML file that says what runs mean: claims, figures, tables, and how it was made. It needs no network.

    Example: `supermask report mask-criteria mask-1-actions scale=digits --out report.html`
    """
    from supermask import report_commands
    from supermask.report.words import lead

    studies, settings = studies_and_settings(words)
    made = report_commands.gathered(studies, settings, store, out)
    written = report_commands.write(made, out)
    echo(f"{written}  {written.stat().st_size / 1e6:.1f} MB: {lead(made)}")
    for text in made.notices:
        echo(text)
    warn(made.making.damaged)
