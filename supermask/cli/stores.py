"""Stores on the command line: merging."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from supermask.cli.app import StoreOption, app
from supermask.cli.output import echo
from supermask.core.text_output import survive_lost_output


@app.command()
@survive_lost_output()
def merge(
    source: Annotated[Path, typer.Argument(metavar="OTHER", help="Store to copy from; it is not changed.")],
    store: StoreOption = None,
) -> None:
    """Copy every run of another store into this one. Nothing is overwritten; exit status 1 if results differ.

    A different result of a run that is here already goes to `conflicts/`, and `supermask verify` reports it. A damaged
    run here is set aside in `quarantine/`, and the undamaged one is copied. Exit status 1 also if a run is left out.

    Example: `supermask merge /mnt/cluster/supermask-store`
    """
    from supermask.api import runs

    counts = dict.fromkeys(_OUTCOMES, 0)
    for result in runs.merge(source, store):
        counts[result.outcome] += 1
        if result.reason:
            echo(f"{result.key} {result.outcome}: {result.reason}")
    shown = (f"{count:,} {_OUTCOMES[outcome]}" for outcome, count in counts.items() if count or outcome == "copied")
    echo(", ".join(shown))
    if counts["different"] or counts["damaged"] or counts["newer"]:
        raise typer.Exit(1)


_OUTCOMES = {
    "copied": "copied",
    "equal": "here already",
    "different": "DIFFERENT",
    "damaged": "DAMAGED and left out",
    "newer": "of a newer version and left out",
}
