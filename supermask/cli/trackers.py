"""Runs for others' trackers, on the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import echo

from supermask.cli.app import StoreOption, app, print_warnings, split_studies_and_overrides

PROGRESS_INTERVAL = 10.0
"""Seconds between two lines of progress where there is no terminal."""


@app.command("export-tracker")
def export_tracker(
    tracker: Annotated[
        Literal["tensorboard", "wandb", "mlflow"],
        typer.Argument(metavar="TRACKER", help="tensorboard, wandb or mlflow; each is an extra of the same name."),
    ],
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDY",
            help="Studies whose runs are sent, and KEY=VALUE settings of them all [default: every run of the store].",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to [default: trackers/TRACKER].", show_default=False),
    ] = None,
) -> None:
    """Finished runs for TensorBoard, Weights & Biases or MLflow, offline: facts, metrics and curves, each run once.

    Example: `supermask export-tracker tensorboard mask-criteria scale=digits --out trackers/tensorboard`
    """
    from supermask.api.trackers import export_tracker
    from supermask.export.trackers import view_command

    names, settings = split_studies_and_overrides(studies)
    with _progress() as listening:
        report = export_tracker(tracker, names, settings, store, out, listening)
    there = f", {report.known:,} were there already" if report.known else ""
    echo(f"{report.sent:,} run{'' if report.sent == 1 else 's'} sent{there}. Folder: {report.folder}")
    if report.left_out:
        echo(
            "not sent, because not finished: "
            + ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in report.left_out.items())
        )
    echo(f"  {view_command(tracker, report.folder)}")
    print_warnings(report.damaged)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A live line on a terminal, a line every ten seconds anywhere else; both on standard error."""
    from rich.console import Console

    from supermask.core.text import format_duration

    console = Console(stderr=True)
    began = said = time.monotonic()
    with console.status("looking at the store") as spinner:

        def listening(done: int, of: int) -> None:
            nonlocal said
            now = time.monotonic()
            left = f"  {format_duration((now - began) / done * (of - done))} left" if done else ""
            line = f"sending runs: {done:,}/{of:,}{left}"
            spinner.update(line)
            if not console.is_terminal and now - said >= PROGRESS_INTERVAL:
                said = now
                echo(line, err=True)

        yield listening
