"""Command export-tracker: finished runs for TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from supermask.cli.app import (
    ScaleOption,
    StoreOption,
    add_scale,
    app,
    complete_studies_and_overrides,
    print_warnings,
    split_studies_and_overrides,
)
from supermask.cli.output import echo
from supermask.core.text_output import survive_lost_output

PROGRESS_SECONDS = 10.0
"""Seconds between two lines of progress if standard error is not a terminal."""


@app.command("export-tracker")
@survive_lost_output()
def export_tracker(
    tracker: Annotated[
        Literal["tensorboard", "wandb", "mlflow"],
        typer.Argument(metavar="TRACKER", help="tensorboard, wandb or mlflow; each needs the extra of the same name."),
    ],
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY|KEY=VALUE]...",
            help="Studies to export, and KEY=VALUE settings for all of them [default: every run of the store].",
            show_default=False,
            autocompletion=complete_studies_and_overrides,
        ),
    ] = None,
    scale: ScaleOption = None,
    store: StoreOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder [default: trackers/TRACKER].", show_default=False),
    ] = None,
) -> None:
    """Export finished runs to TensorBoard, Weights & Biases or MLflow, offline, with facts, metrics and curves.

    Example: `supermask export-tracker tensorboard mask-criteria scale=digits --out trackers/tensorboard`
    """
    from supermask.api.trackers import export_tracker
    from supermask.export.trackers import view_command

    names, overrides = split_studies_and_overrides(studies)
    overrides = add_scale(overrides, scale)
    with _progress() as show_progress:
        summary = export_tracker(tracker, names, overrides, store, out, show_progress)
    skipped = f", {summary.known:,} skipped because the folder has them" if summary.known else ""
    echo(f"{summary.sent:,} run{'' if summary.sent == 1 else 's'} sent{skipped}. Folder: {summary.folder}")
    if summary.left_out:
        echo(
            "not sent, because not finished: "
            + ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in summary.left_out.items())
        )
    echo(f"  {view_command(tracker, summary.folder)}")
    print_warnings(summary.damaged)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a live line on a terminal, else one line every ten seconds; both on standard error."""
    from rich.console import Console

    from supermask.core.text import format_duration

    console = Console(stderr=True)
    start = last_line = time.monotonic()
    with console.status("reading the store") as spinner:

        def show_progress(done: int, total: int) -> None:
            nonlocal last_line
            now = time.monotonic()
            left = f"  {format_duration((now - start) / done * (total - done))} left" if done else ""
            line = f"sending runs: {done:,}/{total:,}{left}"
            spinner.update(line)
            if not console.is_terminal and now - last_line >= PROGRESS_SECONDS:
                last_line = now
                echo(line, err=True)

        yield show_progress
