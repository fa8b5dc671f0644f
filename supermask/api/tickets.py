"""The Python API behind the commands on tickets: one function a command; it returns data and prints nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supermask.api.runs import open_store
from supermask.core.errors import check_one_of
from supermask.datasets import DATASETS, load
from supermask.execution.run import DEVICES, check_device
from supermask.export.tickets.checks import Check, Evaluation, check_fit, checks, evaluate
from supermask.export.tickets.files import check_output_path, load_ticket, save_ticket, size_by_part
from supermask.export.tickets.model import Ticket
from supermask.export.tickets.packing import WeightsToPack, pack_run


@dataclass(frozen=True)
class TicketInspection:
    """What is in a ticket file, how many bytes each part of it takes, and whether it keeps its promises."""

    ticket: Ticket
    bytes: dict[str, int]
    """Of `masks`, `weights`, `others` and `header`."""
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """True if no promise is broken."""
        return not any(check.status == "BROKEN" for check in self.checks)


def pack(
    run_id: str, file: Path, weights: WeightsToPack = "auto", force: bool = False, store: Path | None = None
) -> tuple[Ticket, Path]:
    """Writes the ticket of a run, named by its id or the beginning of it; a file that is there only with `force`."""
    check_output_path(file, force)
    ticket = pack_run(open_store(store), run_id, weights)
    return ticket, save_ticket(ticket, file, force)


def inspect_ticket(file: Path) -> TicketInspection:
    """Reads a ticket and checks its promises again, from the file alone."""
    ticket = load_ticket(file)
    return TicketInspection(ticket, size_by_part(ticket), checks(ticket))


def evaluate_ticket(file: Path, dataset: str | None = None, device: str = "cpu") -> tuple[Ticket, Evaluation]:
    """Measures a ticket's test accuracy now, on a data set (default: the one it was made for)."""
    check_one_of("a device", device, DEVICES)
    if dataset is not None:
        check_one_of("a data set", dataset, tuple(DATASETS))
    ticket = load_ticket(file)
    name = dataset or ticket.dataset or ""
    check_fit(ticket, name)  # before anything is read
    check_device(device)
    return ticket, evaluate(ticket, load(name), device)
