"""The Python API behind the commands on tickets: one function a command; it returns data and prints nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supermask.carrying_out import DEVICES, check_choice, check_device
from supermask.commands import existing_store
from supermask.datasets import DATASETS, load
from supermask.tickets.checks import Check, checks
from supermask.tickets.evaluate import Evaluation, check_fit, evaluate
from supermask.tickets.files import check_target, load_ticket, save_ticket, stored_bytes
from supermask.tickets.model import Ticket
from supermask.tickets.packing import Which, pack_run


@dataclass(frozen=True)
class Inspection:
    """What is in a ticket file, how many bytes each part of it takes, and whether it keeps its promises."""

    ticket: Ticket
    bytes: dict[str, int]
    """Of `masks`, `weights`, `others` and `header`."""
    checks: list[Check]

    @property
    def held(self) -> bool:
        """True if no promise is broken."""
        return not any(check.verdict == "BROKEN" for check in self.checks)


def pack(
    run_id: str, file: Path, weights: Which = "auto", force: bool = False, store: Path | None = None
) -> tuple[Ticket, Path]:
    """Writes the ticket of a run, named by its id or the beginning of it; a file that is there only with `force`."""
    check_target(file, force)
    ticket = pack_run(existing_store(store), run_id, weights)
    return ticket, save_ticket(ticket, file, force)


def inspect(file: Path) -> Inspection:
    """Reads a ticket and checks its promises again, from the file alone."""
    ticket = load_ticket(file)
    return Inspection(ticket, stored_bytes(ticket), checks(ticket))


def evaluate_file(file: Path, dataset: str | None = None, device: str = "cpu") -> tuple[Ticket, Evaluation]:
    """Measures a ticket's test accuracy now, on a data set (default: the one it was made for)."""
    check_choice("a device", device, DEVICES)
    if dataset is not None:
        check_choice("a data set", dataset, tuple(DATASETS))
    ticket = load_ticket(file)
    name = dataset or ticket.dataset or ""
    check_fit(ticket, name)  # before anything is read
    check_device(device)
    return ticket, evaluate(ticket, load(name), device)
