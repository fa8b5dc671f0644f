"""Durable store of runs: one content-addressed folder per run, written once, atomically, checked on every read."""

from supermask.store.files.store import CorruptEntry, Entry, Store

__all__ = ["CorruptEntry", "Entry", "Store"]
