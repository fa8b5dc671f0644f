"""The report over the studies of a store, made again when their runs have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supermask.serve.shelf import Shelf
from supermask.serve.studies import KnownStudy


class LiveReport:
    """The parts of the report, by their ids."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.sections: dict[str, str] = {}
        self.plots: dict[str, dict[str, Any]] = {}

    def update(self, known: Sequence[KnownStudy]) -> None:
        """Begins to make it again, where runs have changed."""

    def revisions(self) -> dict[str, dict[str, str]]:
        """Of each part, what changes with its content."""
        return {"sections": {}, "plots": {}}
