"""Tickets in Lightning's training loop: `pip install 'supermask[lightning]'`."""

from supermask.export.integrations.lightning import TicketCallback

__all__ = ["TicketCallback"]
