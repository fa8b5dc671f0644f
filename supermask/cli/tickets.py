"""Tickets on the command line: pack, inspect, measure. Heavy modules are imported by what needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import echo

from supermask.cli.app import StoreFolder, app

if TYPE_CHECKING:
    from supermask.ticket_commands import Inspection
    from supermask.tickets import Ticket

TicketFile = Annotated[Path, typer.Argument(metavar="FILE", help="A ticket file.")]


@app.command()
def pack(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run's id, or the beginning of it.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, such as ticket.safetensors.")],
    weights: Annotated[
        Literal["auto", "final", "start"],
        typer.Option(help="The trained weights, or those that training started from; auto: final, where trained."),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    store: StoreFolder = None,
) -> None:
    """A run as one file: masks, weights (or the seed that gives them), facts and certificate, all under one hash.

    Example: `supermask pack 3f9c01ab ticket.safetensors`
    """
    from supermask import ticket_commands

    ticket, path = ticket_commands.pack(run_id, file, weights, force, store)
    echo(f"{path}  {path.stat().st_size:,} bytes: {_told(ticket)}")


@app.command("inspect")
def inspect_file(file: TicketFile) -> None:
    """What is in a ticket file, and its promises checked again from the file alone. Exit status 1 if one is broken.

    Example: `supermask inspect ticket.safetensors`
    """
    from supermask import ticket_commands

    inspection = ticket_commands.inspect(file)
    echo("\n".join(_facts(inspection)) + "\n")
    echo(_layers(inspection.ticket))
    for check in inspection.checks:
        echo(f"{check.verdict:12} {check.promise}{f': {check.why}' if check.why else ''}")
    if not inspection.held:
        raise typer.Exit(1)


@app.command("eval")
def evaluate(
    file: TicketFile,
    dataset: Annotated[
        str | None,
        typer.Option(help="Data set to measure on [default: the one it was made for].", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for one GPU.")] = "cpu",
) -> None:
    """The test accuracy of the network in a ticket file, measured now, beside the one stored in it.

    Example: `supermask eval ticket.safetensors --dataset mnist`
    """
    from supermask import ticket_commands

    ticket, found = ticket_commands.evaluate_file(file, dataset, device)
    name = dataset or ticket.dataset
    data = {
        True: "the same data as the run's",
        False: "OTHER data than the run's",
        None: "whether as the run's: unknown",
    }
    echo(f"data      {name}, {found.images:,} test images; {data[found.same_data]}")
    echo(f"measured  {found.accuracy!r} ({found.right:,} of {found.images:,} right)")
    if found.stored is None:
        echo("stored    none: of this network no accuracy is known")
        return
    echo(f"stored    {found.stored!r} ({_printable(found.of)})")
    apart = abs(found.right - round(found.stored * found.images))
    echo("the same" if found.accuracy == found.stored else f"they DIFFER, by {apart:,} images")


def _told(ticket: Ticket) -> str:
    """Network, data, seed, level, and how much is kept."""
    from supermask.masks import density, kept
    from supermask.tickets.model import fact

    of = f"{ticket.network} on {ticket.dataset}" if ticket.network else "a network that has no name here"
    seed = "" if ticket.seed is None else f", seed {_printable(ticket.seed)}"
    level = fact(ticket, int, "run", "level")
    at = "" if level is None else f", level {_printable(level)}"
    weights = sum(mask.numel() for mask in ticket.masks.values())
    return f"{of}{seed}{at}, {sum(kept(ticket.masks).values()):,} of {weights:,} weights ({density(ticket.masks):.2%})"


def _facts(inspection: Inspection) -> list[str]:
    from supermask.tickets.evaluate import stored_accuracy
    from supermask.tickets.model import fact

    ticket, sizes = inspection.ticket, inspection.bytes
    lines = {"ticket": _told(ticket)}
    made = [fact(ticket, str, "run", key) for key in ("criterion", "mask1", "mask0", "schedule")]
    rates = fact(ticket, dict, "run", "prune_rates") or {}
    if any(made):
        told = ", ".join(f"{kind} {rate}" for kind, rate in rates.items())
        lines["made by"] = _printable(f"{', '.join(map(str, made))}; prune rates {told}")
    if run := fact(ticket, str, "run", "id"):
        lines["run"] = _printable(f"{run}, packed by supermask {fact(ticket, str, 'supermask')}")
    if data := fact(ticket, str, "run", "data", "fingerprint"):
        lines["data"] = _printable(f"{data[:16]}  {fact(ticket, str, 'run', 'data', 'note')}".strip())
    if which := fact(ticket, str, "weights"):
        lines["weights"] = _printable({"start": "those that training starts from"}.get(which, which))
    accuracy = stored_accuracy(ticket)
    lines["accuracy"] = _printable(f"{accuracy[0]!r} on the test set ({accuracy[1]})") if accuracy else "not known"
    parts = ", ".join(f"{part} {size:,}" for part, size in sizes.items())
    lines["bytes"] = f"{sum(sizes.values()):,}: {parts}"
    return [f"{name:9} {text}" for name, text in lines.items()]


def _layers(ticket: Ticket) -> str:
    from supermask.masks import kept
    from supermask.text_table import text_table
    from supermask.tickets.encoding import frozen_as, kept_as

    rows = []
    for name, count in kept(ticket.masks).items():
        mask = ticket.masks[name]
        shape = "x".join(map(str, mask.shape))
        share = f"{count / mask.numel():.2%}"
        how = (kept_as(name, mask, ticket.weights), frozen_as(name, mask, ticket.frozen))
        rows.append((_printable(name), shape, mask.numel(), count, share, *(word.replace("_", " ") for word in how)))
    return text_table(("tensor", "shape", "weights", "kept", "density", "kept weights", "pruned weights"), rows)


def _printable(value: object) -> str:
    """Of a file that anybody may have written: one line, no control characters, not too long."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:300])
