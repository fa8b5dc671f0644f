"""Integrations with other libraries, one module per library. They need the extra of that name.

    from supermask.integrations.lightning import TicketCallback

For plain PyTorch see `supermask.hold`. These modules only name what `supermask.export.integrations` defines.
"""
