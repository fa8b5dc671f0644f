"""Which engine trains a run, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from supermask.core.errors import UserError, quote
from supermask.core.learned_masks import MaskLearning
from supermask.networks.sequential import Architecture, Conv, Dense, Pool

ENGINES = ("auto", "sparse", "stacked", "reference")
SPARSE_MASK_METHODS = ("bernoulli", "rounded")
"""Methods by which the sparse engine learns masks."""

Precision = Literal["float32", "tf32", "bfloat16"]
"""Of the stacked engine's products."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class EngineChoice:
    """An engine and the reason, for the run's record."""

    engine: str
    reason: str


def select_engine(asked: str, layers: Architecture, device: str, learning: MaskLearning | None = None) -> EngineChoice:
    """`auto` is the sparse engine on a CPU and the stacked one on a GPU, where they can train the network (or learn its
    mask), else the reference.

    Raises UserError if an engine is asked for and cannot.
    """
    if asked == "reference":
        return EngineChoice("reference", "it was asked for")
    engine = ("sparse" if device == "cpu" else "stacked") if asked == "auto" else asked
    assert engine in ("sparse", "stacked"), engine
    obstacle = _unsupported_reason(engine, layers, device, learning)
    if asked == engine:
        if obstacle:
            raise UserError(f"the {engine} engine {obstacle}: use --engine auto or --engine reference.")
        return EngineChoice(engine, "it was asked for")
    if obstacle:
        return EngineChoice("reference", f"auto: the {engine} engine {obstacle}")
    if engine == "stacked":
        return EngineChoice("stacked", "auto: a GPU trains many runs at once")
    if learning is not None:
        return EngineChoice("sparse", "auto: it learns masks of fully connected layers faster")
    return EngineChoice("sparse", "auto: its cost falls with the mask")


def validate_precision(given: str, device: str) -> Precision:
    """The precision of this name. Raises UserError for one that does not exist, or that the device does not have."""
    for known in PRECISIONS:
        if known == given and (known != "tf32" or device == "cuda"):
            return known
    if given in PRECISIONS:
        raise UserError(f"tf32 is a number format of GPUs: on {device} allowed are float32 and bfloat16.")
    raise UserError(f"{quote(given)} is not a precision. Allowed: {', '.join(PRECISIONS)}.")


def _unsupported_reason(engine: str, layers: Architecture, device: str, learning: MaskLearning | None) -> str:
    """What keeps the engine from training this; nothing if it can."""
    if engine == "sparse" and device != "cpu":
        return f"trains on the CPU alone, not on {device}"
    if not all(isinstance(layer, Conv | Pool | Dense) for layer in layers):
        return "trains networks of convolutions, poolings and fully connected layers alone"
    if engine == "sparse" and learning is not None and not all(isinstance(layer, Dense) for layer in layers):
        return "learns masks of fully connected layers alone"
    if engine == "sparse" and learning is not None and learning.method not in SPARSE_MASK_METHODS:
        return f"learns masks by {' and '.join(SPARSE_MASK_METHODS)} alone"
    return ""
