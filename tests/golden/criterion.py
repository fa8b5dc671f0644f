"""A user's criterion in the golden store. Part of the identity of its run: never change this file."""

from __future__ import annotations

from typing import Any


def closest_to_one(layer: Any, rng: Any) -> Any:
    """Keep the weights whose final magnitude is closest to 1."""
    return -(layer.w_final.abs() - 1).abs()
