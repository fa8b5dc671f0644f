"""Tickets as artefacts: one file that any PyTorch module can be given. The algorithm is in `supermask/ticket.py`."""

from supermask.export.tickets.files import load_ticket, save_ticket
from supermask.export.tickets.model import Ticket
from supermask.export.tickets.packing import pack_run

__all__ = ["Ticket", "load_ticket", "pack_run", "save_ticket"]
