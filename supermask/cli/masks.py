"""Masks on the command line: looked at, by themselves and against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import echo

from supermask.cli.app import StoreFolder, app, warn


@app.command()
def masks(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_FILE...",
            help="Runs of the store, by id or its beginning, and ticket files: up to 64.",
        ),
    ],
    store: StoreFolder = None,
    out: Annotated[Path, typer.Option(help="Folder to write to; it is made where it is missing.")] = Path("figures"),
    only: Annotated[
        str | None,
        typer.Option(
            help="What to draw: some of overlap,density,plane,distribution,pixels, separated by commas [default: all].",
            show_default=False,
        ),
    ] = None,
) -> None:
    """What masks look like: density, signs, dead units, overlap against chance; and figures of all of it.

    Example: `supermask masks 3f9c01ab 77d0c2e1 --only overlap,plane --out figures`
    """
    from supermask import looking

    looked = looking.look(names, store, out, only)
    echo(looked.text)
    for drawn, paths in looked.saved:
        suffixes = ",".join(path.suffix[1:] for path in paths)
        echo(f"{paths[0].with_suffix('')}.{{{suffixes}}}\n  {drawn.caption}\n")
    echo(f"{looked.table}\n  A row for every mask and layer.")
    warn(looked.notes)
