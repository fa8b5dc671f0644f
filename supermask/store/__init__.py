"""The store: a folder a run, written once, atomically, and checked before anything in it is believed."""

from supermask.store.store import Damaged, Entry, Store

__all__ = ["Damaged", "Entry", "Store"]
