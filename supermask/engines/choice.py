"""Which engine trains a run, and why."""

from __future__ import annotations

from dataclasses import dataclass

from supermask.errors import UserError
from supermask.learned import Learning
from supermask.networks import Architecture, Conv, Dense, Pool

ENGINES = ("auto", "sparse", "reference")
FAST = ("bernoulli", "rounded")
"""Methods by which the sparse engine learns masks."""


@dataclass(frozen=True)
class Choice:
    """An engine and the reason, for the run's record."""

    engine: str
    why: str


def choose(asked: str, layers: Architecture, device: str, learning: Learning | None = None) -> Choice:
    """`auto` is the sparse engine where it can train the network (or learn its mask), else the reference.

    Raises UserError if the sparse engine is asked for and cannot.
    """
    if asked == "reference":
        return Choice("reference", "it was asked for")
    obstacle = _obstacle(layers, device, learning)
    if asked == "sparse":
        if obstacle:
            raise UserError(f"the sparse engine {obstacle}: use --engine auto or --engine reference.")
        return Choice("sparse", "it was asked for")
    assert asked == "auto", asked
    if obstacle:
        return Choice("reference", f"auto: the sparse engine {obstacle}")
    if learning is not None:
        return Choice("sparse", "auto: it learns masks of fully connected layers faster")
    return Choice("sparse", "auto: its cost falls with the mask")


def _obstacle(layers: Architecture, device: str, learning: Learning | None) -> str:
    """What keeps the sparse engine from training this; nothing if it can."""
    if device != "cpu":
        return f"trains on the CPU alone, not on {device}"
    if not all(isinstance(layer, Conv | Pool | Dense) for layer in layers):
        return "trains networks of convolutions, poolings and fully connected layers alone"
    if learning is not None and not all(isinstance(layer, Dense) for layer in layers):
        return "learns masks of fully connected layers alone"
    if learning is not None and learning.method not in FAST:
        return f"learns masks by {' and '.join(FAST)} alone"
    return ""
