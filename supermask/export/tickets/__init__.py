"""Ticket files: masks and weights of one network in one file, for any PyTorch module."""

from supermask.export.tickets.files import load_ticket, save_ticket
from supermask.export.tickets.folders import save_ticket_folder
from supermask.export.tickets.holding import hold
from supermask.export.tickets.model import Ticket
from supermask.export.tickets.packing import pack_run

__all__ = ["Ticket", "hold", "load_ticket", "pack_run", "save_ticket", "save_ticket_folder"]
