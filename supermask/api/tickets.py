"""Functions of the commands on tickets: pack, inspect, eval. They return data and print nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supermask.api.runs import open_store
from supermask.core.environment import expand_path
from supermask.core.errors import check_one_of
from supermask.datasets import DATASETS
from supermask.datasets.locators import is_locator
from supermask.execution.run import DEVICES, check_device
from supermask.export.tickets.checks import Check, Evaluation, check_fit, checks, evaluate
from supermask.export.tickets.files import check_output_path, load_ticket, save_ticket, size_by_part
from supermask.export.tickets.model import Ticket, get_fact
from supermask.export.tickets.packing import WeightsToPack, pack_run
from supermask.study.user_data import check_source, load_data


@dataclass(frozen=True)
class TicketInspection:
    """Content of a ticket file: the ticket, the bytes of its parts, and the checks of its promises."""

    ticket: Ticket
    bytes: dict[str, int]
    """Part (`masks`, `weights`, `others`, `header`) -> bytes."""
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return not any(check.status == "BROKEN" for check in self.checks)


def pack(
    run_id: str,
    file: str | Path,
    weights: WeightsToPack = "auto",
    force: bool = False,
    store: str | Path | None = None,
) -> tuple[Ticket, Path]:
    """Write the ticket of a run, given its id or a unique prefix. `force`: replace an existing file."""
    file = expand_path(file)
    check_output_path(file, force)
    ticket = pack_run(open_store(store), run_id, weights)
    return ticket, save_ticket(ticket, file, force)


def inspect_ticket(file: str | Path) -> TicketInspection:
    """Read a ticket and check its promises from the file alone."""
    ticket = load_ticket(expand_path(file))
    return TicketInspection(ticket, size_by_part(ticket), checks(ticket))


def evaluate_ticket(file: str | Path, dataset: str | None = None, device: str = "cpu") -> tuple[Ticket, Evaluation]:
    """Measure the test accuracy of a ticket on a dataset (default: the dataset of its run)."""
    check_one_of("a device", device, DEVICES)
    ticket = load_ticket(expand_path(file))
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
