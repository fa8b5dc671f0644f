"""Tickets on the command line: pack, inspect, measure. Heavy modules are imported by what needs them.

Masks on the command line: looked at, by themselves and against each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import echo

from supermask.cli.app import StoreOption, app, print_warnings

if TYPE_CHECKING:
    from supermask.api.tickets import TicketInspection
    from supermask.export.tickets import Ticket

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
    store: StoreOption = None,
) -> None:
    """A run as one file: masks, weights (or the seed that gives them), facts and certificate, all under one hash.

    Example: `supermask pack 3f9c01ab ticket.safetensors`
    """
    from supermask.api import tickets

    ticket, path = tickets.pack(run_id, file, weights, force, store)
    echo(f"{path}  {path.stat().st_size:,} bytes: {_ticket_line(ticket)}")


@app.command("inspect")
def inspect(file: TicketFile) -> None:
    """What is in a ticket file, and its promises checked again from the file alone. Exit status 1 if one is broken.

    Example: `supermask inspect ticket.safetensors`
    """
    from supermask.api import tickets

    inspection = tickets.inspect_ticket(file)
    echo("\n".join(_print_facts(inspection)) + "\n")
    echo(_print_layers(inspection.ticket))
    for check in inspection.checks:
        echo(f"{check.status:12} {check.promise}{f': {check.why}' if check.why else ''}")
    if not inspection.passed:
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
    from supermask.api import tickets

    ticket, found = tickets.evaluate_ticket(file, dataset, device)
    name = dataset or ticket.dataset
    data = {
        True: "the same data as the run's",
        False: "OTHER data than the run's",
        None: "whether as the run's: unknown",
    }
    echo(f"data      {name}, {found.images:,} test images; {data[found.same_data]}")
    echo(f"measured  {found.accuracy!r} ({found.correct:,} of {found.images:,} right)")
    if found.stored is None:
        echo("stored    none: of this network no accuracy is known")
        return
    echo(f"stored    {found.stored!r} ({sanitize(found.stored_source)})")
    apart = abs(found.correct - round(found.stored * found.images))
    echo("the same" if found.accuracy == found.stored else f"they DIFFER, by {apart:,} images")


def _ticket_line(ticket: Ticket) -> str:
    """Network, data, seed, level, and how much is kept."""
    from supermask.core.masks import count_kept, density
    from supermask.export.tickets.model import get_fact

    of = f"{ticket.network} on {ticket.dataset}" if ticket.network else "a network that has no name here"
    seed = "" if ticket.seed is None else f", seed {sanitize(ticket.seed)}"
    level = get_fact(ticket, int, "run", "level")
    at = "" if level is None else f", level {sanitize(level)}"
    weights = sum(mask.numel() for mask in ticket.masks.values())
    kept = sum(count_kept(ticket.masks).values())
    return f"{of}{seed}{at}, {kept:,} of {weights:,} weights ({density(ticket.masks):.2%})"


def _print_facts(inspection: TicketInspection) -> list[str]:
    from supermask.export.tickets.checks import stored_accuracy
    from supermask.export.tickets.model import get_fact

    ticket, sizes = inspection.ticket, inspection.bytes
    lines = {"ticket": _ticket_line(ticket)}
    made = [get_fact(ticket, str, "run", key) for key in ("criterion", "mask1", "mask0", "schedule")]
    rates = get_fact(ticket, dict, "run", "prune_rates") or {}
    if any(made):
        told = ", ".join(f"{kind} {rate}" for kind, rate in rates.items())
        lines["made by"] = sanitize(f"{', '.join(map(str, made))}; prune rates {told}")
    if run := get_fact(ticket, str, "run", "id"):
        lines["run"] = sanitize(f"{run}, packed by supermask {get_fact(ticket, str, 'supermask')}")
    if data := get_fact(ticket, str, "run", "data", "fingerprint"):
        lines["data"] = sanitize(f"{data[:16]}  {get_fact(ticket, str, 'run', 'data', 'note')}".strip())
    if which := get_fact(ticket, str, "weights"):
        lines["weights"] = sanitize({"start": "those that training starts from"}.get(which, which))
    accuracy = stored_accuracy(ticket)
    lines["accuracy"] = sanitize(f"{accuracy[0]!r} on the test set ({accuracy[1]})") if accuracy else "not known"
    parts = ", ".join(f"{part} {size:,}" for part, size in sizes.items())
    lines["bytes"] = f"{sum(sizes.values()):,}: {parts}"
    return [f"{name:9} {text}" for name, text in lines.items()]


def _print_layers(ticket: Ticket) -> str:
    from supermask.core.masks import count_kept
    from supermask.core.text import format_table
    from supermask.export.tickets.format import choose_frozen_encoding, choose_weight_encoding

    rows = []
    for name, count in count_kept(ticket.masks).items():
        mask = ticket.masks[name]
        shape = "x".join(map(str, mask.shape))
        share = f"{count / mask.numel():.2%}"
        how = (choose_weight_encoding(name, mask, ticket.weights), choose_frozen_encoding(name, mask, ticket.frozen))
        rows.append((sanitize(name), shape, mask.numel(), count, share, *(word.replace("_", " ") for word in how)))
    return format_table(("tensor", "shape", "weights", "kept", "density", "kept weights", "pruned weights"), rows)


def sanitize(value: object) -> str:
    """Of a file that anybody may have written: one line, no control characters, not too long."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:300])


@app.command()
def masks(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_FILE...",
            help="Runs of the store, by id or its beginning, and ticket files: up to 64.",
        ),
    ],
    store: StoreOption = None,
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
    from supermask.api import masks as api_masks

    looked = api_masks.analyze_masks(names, store, out, only)
    echo(looked.text)
    for drawn, paths in looked.saved:
        suffixes = ",".join(path.suffix[1:] for path in paths)
        echo(f"{paths[0].with_suffix('')}.{{{suffixes}}}\n  {drawn.caption}\n")
    echo(f"{looked.table}\n  A row for every mask and layer.")
    print_warnings(looked.notes)
