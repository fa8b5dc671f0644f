"""Commands on tickets and masks: pack, push, inspect, eval, tickets build, tickets find, masks.

Heavy modules are imported inside the commands that need them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from supermask.cli.app import OutputFolderOption, RunIdArg, StoreOption, app, print_warnings
from supermask.cli.output import echo

if TYPE_CHECKING:
    from supermask.api.tickets import TicketInspection
    from supermask.export.tickets import Ticket

TicketFile = Annotated[
    str,
    typer.Argument(
        metavar="TICKET", help="A ticket file, a folder of `pack --to-folder`, or a repository of the Hub (owner/name)."
    ),
]


@app.command()
def pack(
    run_id: RunIdArg,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Output file, such as ticket.safetensors.", show_default=False),
    ] = None,
    to_folder: Annotated[
        Path | None,
        typer.Option(
            help="Instead of FILE: a folder for ticket.safetensors, config.json and a model card.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        Literal["auto", "final", "start"],
        typer.Option(
            help="Weights to store: final (trained) or start of training; auto: final if the run was trained."
        ),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    store: StoreOption = None,
) -> None:
    """Pack a run into one file: masks, weights (or the seed that generates them), facts, certificate, one checksum.

    Example: `supermask pack 3f9c01ab ticket.safetensors`, or with `--to-folder my-ticket` as a folder for the Hub
    """
    from supermask.api import tickets

    ticket, path = tickets.pack(run_id, file, weights, force, store, to_folder)
    size = sum(part.stat().st_size for part in path.iterdir()) if path.is_dir() else path.stat().st_size
    echo(f"{path}  {size:,} bytes: {_ticket_line(ticket)}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of `pack --to-folder`.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the Hub, created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Hide a repository that is created.")] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.", show_default=False)] = None,
) -> None:
    """Upload a ticket's folder to the Hugging Face Hub, after its checks. Needs the extra `hub` and a token.

    Example: `supermask push my-ticket me/fc-mnist-ticket`
    """
    from supermask.api import tickets

    echo(tickets.push(folder, repo_id, private, message))


@app.command("inspect")
def inspect(file: TicketFile) -> None:
    """Print the content of a ticket file and check it from the file alone. Exit status 1 if a check fails.

    Example: `supermask inspect ticket.safetensors`
    """
    from supermask.api import tickets

    inspection = tickets.inspect_ticket(file)
    echo("\n".join(_format_facts(inspection)) + "\n")
    echo(_format_layers(inspection.ticket))
    for check in inspection.checks:
        echo(f"{check.status:12} {check.name}{f': {check.why}' if check.why else ''}")
    if not inspection.passed:
        raise typer.Exit(1)


@app.command("eval")
def evaluate(
    file: TicketFile,
    dataset: Annotated[
        str | None,
        typer.Option(help="Dataset to measure on [default: the dataset of the run].", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for one GPU.")] = "cpu",
) -> None:
    """Measure the test accuracy of a ticket now, and compare it with the stored accuracy.

    Example: `supermask eval ticket.safetensors --dataset mnist`
    """
    from supermask.api import tickets

    ticket, evaluation = tickets.evaluate_ticket(file, dataset, device)
    name = dataset or ticket.dataset
    data = {
        True: "the same data as the run's",
        False: "OTHER data than the run's",
        None: "not known to be the same data as the run's",
    }
    echo(f"data      {name}, {evaluation.images:,} test images; {data[evaluation.same_data]}")
    echo(f"measured  {evaluation.accuracy:.2%} ({evaluation.correct:,} of {evaluation.images:,} correct)")
    if evaluation.stored is None:
        echo("stored    none: the ticket stores no accuracy of this network")
        return
    echo(f"stored    {evaluation.stored:.2%} ({_printable(evaluation.stored_source)})")
    difference = abs(evaluation.correct - round(evaluation.stored * evaluation.images))
    echo("the same" if evaluation.accuracy == evaluation.stored else f"they DIFFER, by {difference:,} images")


registry = typer.Typer(rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(registry, name="tickets", help="Folders of many tickets with an index: build one, search in it.")


@registry.command("build")
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder of the tickets and their index, created if missing.")],
    store: StoreOption = None,
    weights: Annotated[
        Literal["start", "final"],
        typer.Option(help="Weights to store: start of training (mostly only masks and seed), or final (trained)."),
    ] = "start",
) -> None:
    """Pack every finished run of a store into one folder with an index. Again: add the runs that are new.

    Example: `supermask tickets build --store supermask-store --out tickets`
    """
    from supermask.api import tickets
    from supermask.core.text import pluralize

    summary = tickets.build_tickets(out, store, weights, _report_progress)
    counts = f"{pluralize(summary.packed, 'ticket')} packed, {summary.known:,} here already"
    echo(f"{summary.folder}  {counts}; in the index {summary.bytes:,} bytes")
    left_out = [f"{pluralize(count, 'run')} without a ticket: {reason}" for reason, count in summary.left_out.items()]
    if others := summary.other_results:
        kept = "a ticket of another result is in the folder and is kept; remove it to pack that of this store"
        left_out.append(f"{pluralize(len(others), 'run')}: {kept} ({others[0]}{', ...' if len(others) > 1 else ''})")
    print_warnings([*left_out, *summary.damaged])


def _report_progress(done: int, total: int) -> None:
    """Print one line on standard error for every thousand runs."""
    if done and done % 1000 == 0:
        echo(f"supermask: {done:,} of {total:,} runs", err=True)


FIND_COLUMNS = ("id", "network", "dataset", "criterion", "mask1", "mask0", "seed", "level", "density", "accuracy")


@registry.command("find")
def find(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of `tickets build`.")],
    where: Annotated[
        str | None,
        typer.Argument(
            metavar="CONDITION",
            help='A condition over the columns, such as "level = 4 and density < 0.05" [default: all tickets].',
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Literal["text", "csv", "json", "paths"], typer.Option("--format", help="Output format; paths: files only.")
    ] = "text",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Print at most N tickets [default: all].", show_default=False)
    ] = None,
) -> None:
    """Find tickets by a condition over the index, the most accurate first. `--format csv` prints all columns.

    Example: `supermask tickets find tickets "criterion = 'large_final' and density < 0.05"`
    """
    from supermask.core.environment import expand_path
    from supermask.core.text import format_csv, format_table, json_line, pluralize
    from supermask.export.tickets.registry import INDEX_COLUMNS
    from supermask.export.tickets.search import find_rows

    rows = find_rows(expand_path(folder), where)
    shown = rows if limit is None else rows[:limit]
    if output == "paths":
        echo("".join(f"{row['file']}\n" for row in shown), nl=False)
    elif output == "csv":
        echo(format_csv(list(INDEX_COLUMNS), [[row[name] for name in INDEX_COLUMNS] for row in shown]), nl=False)
    elif output == "json":
        echo("[" + ",\n".join(json_line(row) for row in shown) + "]")
    else:
        cells = [[_cell(name, row[name]) for name in FIND_COLUMNS] for row in shown]
        echo(format_table(FIND_COLUMNS, cells) if cells else "")
        count = pluralize(len(rows), "ticket")
        echo(count if len(shown) == len(rows) else f"{len(shown):,} of {count}")


def _cell(column: str, value: object) -> str:
    if value is None:
        return "-"
    if column == "id":
        return str(value)[:12]
    return f"{value:.2%}" if isinstance(value, float) else _printable(value)


def _ticket_line(ticket: Ticket) -> str:
    """Return one line: network, dataset, seed, level, and kept weights."""
    from supermask.core.masks import count_kept, density
    from supermask.export.tickets.model import get_fact

    # The ticket of a user's network names none that supermask can build; the facts of its run have the import path.
    network, dataset = (
        (ticket.network, ticket.dataset)
        if ticket.network
        else (get_fact(ticket, str, "run", key) for key in ("network", "dataset"))
    )
    subject = _printable(f"{network} on {dataset}" if network else "a network without a known name")
    seed = "" if ticket.seed is None else f", seed {_printable(ticket.seed)}"
    level = get_fact(ticket, int, "run", "level")
    level_text = "" if level is None else f", level {_printable(level)}"
    weights = sum(mask.numel() for mask in ticket.masks.values())
    kept = sum(count_kept(ticket.masks).values())
    return f"{subject}{seed}{level_text}, {kept:,} of {weights:,} weights ({density(ticket.masks):.2%})"


def _format_facts(inspection: TicketInspection) -> list[str]:
    from supermask.export.tickets.checks import stored_accuracy
    from supermask.export.tickets.model import get_fact

    ticket, sizes = inspection.ticket, inspection.bytes
    lines = {"ticket": _ticket_line(ticket)}
    treatment = [get_fact(ticket, str, "run", key) for key in ("criterion", "mask1", "mask0", "schedule")]
    rates = get_fact(ticket, dict, "run", "prune_rates") or {}
    if any(treatment):
        rates_text = ", ".join(f"{kind} {rate}" for kind, rate in rates.items())
        lines["made by"] = _printable(f"{', '.join(map(str, treatment))}; prune rates {rates_text}")
    if run := get_fact(ticket, str, "run", "id"):
        lines["run"] = _printable(f"{run}, packed by supermask {get_fact(ticket, str, 'supermask')}")
    if data := get_fact(ticket, str, "run", "data", "fingerprint"):
        lines["data"] = _printable(f"{data[:16]}  {get_fact(ticket, str, 'run', 'data', 'note')}".strip())
    if snapshot := get_fact(ticket, str, "weights"):
        lines["weights"] = _printable({"start": "start of training"}.get(snapshot, snapshot))
    accuracy = stored_accuracy(ticket)
    lines["accuracy"] = _printable(f"{accuracy[0]:.2%} on the test set ({accuracy[1]})") if accuracy else "not known"
    parts = ", ".join(f"{part} {size:,}" for part, size in sizes.items())
    lines["bytes"] = f"{sum(sizes.values()):,}: {parts}"
    return [f"{name:9} {text}" for name, text in lines.items()]


def _format_layers(ticket: Ticket) -> str:
    from supermask.core.masks import count_kept
    from supermask.core.text import format_table
    from supermask.export.tickets.format import choose_frozen_encoding, choose_weight_encoding

    rows = []
    for name, count in count_kept(ticket.masks).items():
        mask = ticket.masks[name]
        shape = "x".join(map(str, mask.shape))
        share = f"{count / mask.numel():.2%}"
        encodings = (
            choose_weight_encoding(name, mask, ticket.weights),
            choose_frozen_encoding(name, mask, ticket.frozen),
        )
        rows.append(
            (_printable(name), shape, mask.numel(), count, share, *(name.replace("_", " ") for name in encodings))
        )
    return format_table(("tensor", "shape", "weights", "kept", "density", "kept weights", "pruned weights"), rows)


def _printable(value: object) -> str:
    """Return text of an untrusted file as one line of at most 300 printable characters."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:300])


@app.command()
def masks(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_FILE...",
            help="Ids of runs in the store (or unique prefixes) and ticket files: up to 64.",
        ),
    ],
    store: StoreOption = None,
    out: OutputFolderOption = Path("figures"),
    only: Annotated[
        str | None,
        typer.Option(
            help="Analyses, separated by commas: overlap,density,plane,distribution,pixels [default: all].",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Analyze masks: density, signs, dead units, overlap compared with chance; save figures and a table.

    Example: `supermask masks 3f9c01ab 77d0c2e1 --only overlap,plane --out figures`
    """
    from supermask.api import masks as api_masks

    analysis = api_masks.analyze_masks(names, store, out, only)
    echo(analysis.text)
    for rendered, paths in analysis.saved:
        suffixes = ",".join(path.suffix[1:] for path in paths)
        echo(f"{paths[0].with_suffix('')}.{{{suffixes}}}\n  {rendered.caption}\n")
    echo(f"{analysis.table}\n  One row per mask and layer.")
    print_warnings(analysis.notes)
