"""What the runs say, on the command line."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from typer import echo

from supermask.cli.app import StoreFolder, app, studies_and_settings, warn

StudiesAndSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STUDY|KEY=VALUE]...",
        help="Studies (shipped names or .yaml files; all that ship if none is given), and settings for all of them.",
        show_default=False,
    ),
]


@app.command()
def claims(
    words: StudiesAndSettings = None,
    store: StoreFolder = None,
    format: Annotated[Literal["text", "markdown", "csv", "json"], typer.Option(help="How to print them.")] = "text",
) -> None:
    """Whether the paper's claims hold in these runs, and those of a study file of your own.

    Supported, not supported, contradicted or not enough data; with n, effect, interval and corrected p.

    Example: `supermask claims scale=digits`
    """
    from supermask import commands, conclusions
    from supermask.claims.printing import claims_csv, claims_json, claims_markdown, claims_text, notices

    studies, settings = studies_and_settings(words)
    findings, damaged = conclusions.claims(studies, settings, commands.existing_store(store).root)
    write = {"text": claims_text, "markdown": claims_markdown, "csv": claims_csv, "json": claims_json}[format]
    said = notices(findings)
    if format in ("text", "markdown"):
        for text in said:
            echo(f"{text}\n")
    echo(write(findings), nl=False)
    # What a program reads holds nothing else.
    warn([*(said if format in ("csv", "json") else []), *damaged])
