"""Durable store of runs: one content-addressed folder per run, written once, atomically, checked on every read."""

from supermask.store.files.entry import CorruptEntry, Entry, NewerFormat
from supermask.store.run_store import Store

__all__ = ["CorruptEntry", "Entry", "NewerFormat", "Store"]
