"""The live page on the command line."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import echo

from supermask.cli.app import StoreFolder, app


@app.command()
def serve(
    store: StoreFolder = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of this machine, 127.0.0.1; 0 takes any that is free.")
    ] = 8080,
    import_criteria: Annotated[
        bool,
        typer.Option(
            "--import-criteria", help="Import criteria of your own that the store's studies name (runs their code)."
        ),
    ] = False,
) -> None:
    """The report and every run of a store as a page that follows it, for a browser on this machine. Ctrl-C ends it.

    Example: `supermask serve --store supermask-store`
    """
    from supermask.serve.server import serve

    serve(store, port, import_criteria, say=lambda url: echo(f"{url}  (Ctrl-C ends it)"))
