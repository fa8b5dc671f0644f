"""Functions of the commands on tickets: pack, push, inspect, eval, and of the group `tickets`.

They return data and print nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supermask.api.runs import open_store
from supermask.core.environment import expand_path
from supermask.core.errors import UserError, check_one_of
from supermask.datasets import DATASETS
from supermask.datasets.locators import is_locator
from supermask.execution.run import DEVICES, check_device
from supermask.export.tickets.checks import Check, Evaluation, check_fit, check_ticket, evaluate
from supermask.export.tickets.files import check_output_path, load_ticket, save_ticket, size_by_part
from supermask.export.tickets.folders import check_output_folder, save_ticket_folder
from supermask.export.tickets.model import Ticket, get_fact
from supermask.export.tickets.packing import WeightsToPack, pack_run
from supermask.export.tickets.registry import BuildSummary, PackedWeights, build_registry
from supermask.export.tickets.search import select_tickets
from supermask.store.location import output_path
from supermask.study.user_data import check_source, load_data

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation


@dataclass(frozen=True)
class TicketInspection:
    """Content of a ticket file: the ticket, the bytes of its parts, and its checks."""

    ticket: Ticket
    bytes: dict[str, int]
    """Part (`masks`, `weights`, `others`, `header`) -> bytes."""
    checks: list[Check]

    def __repr__(self) -> str:
        checks = "\n".join(f"{check.status}: {check.name}" for check in self.checks)
        return f"{self.ticket!r}, {sum(self.bytes.values()):,} bytes\n{checks}"

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return not any(check.status == "BROKEN" for check in self.checks)


def pack(
    run_id: str,
    file: str | Path | None = None,
    weights: WeightsToPack = "auto",
    force: bool = False,
    store: str | Path | None = None,
    to_folder: str | Path | None = None,
) -> tuple[Ticket, Path]:
    """Write the ticket of a run, given its id or a unique prefix, to `file` or into `to_folder`.

    `to_folder`: a folder for `ticket.safetensors`, `config.json` and the model card `README.md`. `force`: replace
    existing files. Returns the ticket, and the path of the file or folder.
    """
    if (file is None) == (to_folder is None):
        raise UserError("a ticket goes to a file or into a folder: give FILE, or --to-folder DIR (to_folder=DIR).")
    if to_folder is not None:
        folder = output_path(to_folder)
        check_output_folder(folder, force)
        ticket = pack_run(open_store(store), run_id, weights)
        return ticket, save_ticket_folder(ticket, folder, force)
    assert file is not None
    path = output_path(file)
    check_output_path(path, force)
    ticket = pack_run(open_store(store), run_id, weights)
    return ticket, save_ticket(ticket, path, force)


def push(folder: str | Path, repo_id: str, private: bool = False, message: str | None = None) -> str:
    """Upload a folder of `pack(..., to_folder=)` to the repository `owner/name` of the Hub; return its address.

    Needs the extra `hub`, and a token that may write (`hf auth login`, or HF_TOKEN). The repository is created if it is
    missing; `private` then hides it. Raises UserError, SystemFailure.
    """
    from supermask.export.tickets.hub import push_ticket

    return push_ticket(expand_path(folder), repo_id, private, message)


def inspect_ticket(file: str | Path) -> TicketInspection:
    """Read a ticket (file, folder or repository of the Hub) and check it from the file alone."""
    ticket = load_ticket(file)
    return TicketInspection(ticket, size_by_part(ticket), check_ticket(ticket))


def evaluate_ticket(file: str | Path, dataset: str | None = None, device: str = "cpu") -> tuple[Ticket, Evaluation]:
    """Measure the test accuracy of a ticket on a dataset (default: the dataset of its run)."""
    check_one_of("a device", device, DEVICES)
    ticket = load_ticket(file)
    if dataset is not None and not is_locator(dataset):
        check_one_of("a dataset", dataset, tuple(DATASETS))
    if dataset in DATASETS or dataset is None:
        # First: reading the data takes seconds.
        check_fit(ticket, DATASETS[dataset] if dataset else ticket.spec if ticket.dataset else None)
    check_device(device)
    if dataset is None:
        # A ticket may come from anybody: a function that it names is called only if its source is the run's.
        check_source(str(ticket.dataset), get_fact(ticket, str, "run", "data_source"))
    return ticket, evaluate(ticket, load_data(dataset or str(ticket.dataset)), device)


def build_tickets(
    out: str | Path,
    store: str | Path | None = None,
    weights: PackedWeights = "start",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BuildSummary:
    """Pack every finished run of a store into the folder `out`, with an index that `find_tickets` reads.

    `weights`: `start` (the ticket that training starts from; where the seed determines the values, only masks are
    stored) or `final` (the trained network). Learned masks are always `final`, untrained networks `start`.
    Building again adds the runs that are new. `on_progress(done, total)` is called before each run.
    Raises UserError, SystemFailure.
    """
    return build_registry(open_store(store), output_path(out), weights, on_progress)


def find_tickets(folder: str | Path, where: str | None = None) -> DuckDBPyRelation:
    """Return the tickets of a folder of `build_tickets` for which a condition is true, the most accurate first.

    A DuckDB relation with one row per ticket, as `supermask.table`; `file` is the path, for `load_ticket`. `where` is
    one boolean expression over the columns, such as `criterion = 'large_final' and density < 0.05`; anything else is
    refused. Raises UserError.
    """
    return select_tickets(expand_path(folder), where)
