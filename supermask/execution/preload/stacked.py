"""Preloads the stacked engine."""

from supermask.engines import stacked

__all__ = ["stacked"]
