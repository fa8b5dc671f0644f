"""The store: a folder a run, written once, atomically, and checked before anything in it is believed."""

from supermask.store.files.store import CorruptEntry, Entry, Store

__all__ = ["CorruptEntry", "Entry", "Store"]
