"""Which engine trains a run, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from supermask.errors import UserError
from supermask.learned import Learning
from supermask.networks import Architecture, Conv, Dense, Pool
from supermask.study.yaml_tree import shown

ENGINES = ("auto", "sparse", "stacked", "reference")
FAST = ("bernoulli", "rounded")
"""Methods by which the sparse engine learns masks."""

Precision = Literal["float32", "tf32", "bfloat16"]
"""Of the stacked engine's products."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Choice:
    """An engine and the reason, for the run's record."""

    engine: str
    why: str


def choose(asked: str, layers: Architecture, device: str, learning: Learning | None = None) -> Choice:
    """`auto` is the sparse engine on a CPU and the stacked one on a GPU, where they can train the network (or learn its
    mask), else the reference.

    Raises UserError if an engine is asked for and cannot.
    """
    if asked == "reference":
        return Choice("reference", "it was asked for")
    engine = ("sparse" if device == "cpu" else "stacked") if asked == "auto" else asked
    assert engine in ("sparse", "stacked"), engine
    obstacle = _obstacle(engine, layers, device, learning)
    if asked == engine:
        if obstacle:
            raise UserError(f"the {engine} engine {obstacle}: use --engine auto or --engine reference.")
        return Choice(engine, "it was asked for")
    if obstacle:
        return Choice("reference", f"auto: the {engine} engine {obstacle}")
    if engine == "stacked":
        return Choice("stacked", "auto: a GPU trains many runs at once")
    if learning is not None:
        return Choice("sparse", "auto: it learns masks of fully connected layers faster")
    return Choice("sparse", "auto: its cost falls with the mask")


def check_precision(given: str, device: str) -> Precision:
    """The precision of this name. Raises UserError for one that does not exist, or that the device does not have."""
    for known in PRECISIONS:
        if known == given and (known != "tf32" or device == "cuda"):
            return known
    if given in PRECISIONS:
        raise UserError(f"tf32 is a number format of GPUs: on {device} allowed are float32 and bfloat16.")
    raise UserError(f"{shown(given)} is not a precision. Allowed: {', '.join(PRECISIONS)}.")


def _obstacle(engine: str, layers: Architecture, device: str, learning: Learning | None) -> str:
    """What keeps the engine from training this; nothing if it can."""
    if engine == "sparse" and device != "cpu":
        return f"trains on the CPU alone, not on {device}"
    if not all(isinstance(layer, Conv | Pool | Dense) for layer in layers):
        return "trains networks of convolutions, poolings and fully connected layers alone"
    if engine == "sparse" and learning is not None and not all(isinstance(layer, Dense) for layer in layers):
        return "learns masks of fully connected layers alone"
    if engine == "sparse" and learning is not None and learning.method not in FAST:
        return f"learns masks by {' and '.join(FAST)} alone"
    return ""
