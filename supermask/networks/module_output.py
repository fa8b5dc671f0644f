"""Logits of a module's output, and errors in the code of a user's module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from supermask.core.errors import UserError, quote
from supermask.networks.network import translate_errors


def extract_logits(output: Any, name: str = "") -> Tensor:
    """Return the logits of a module's output: the output itself, or its entry or attribute `logits`.

    Raises UserError for other outputs.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    kind = type(output).__name__
    if isinstance(output, (tuple, list)):
        parts = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in output)
        kind = f"{kind} of {len(output)} ({parts})"
    raise UserError(
        f"network {quote(name)}: its forward pass returns a {kind}: return the logits alone, or name them 'logits' in "
        "a dict."
    )


def compute_logits(
    forward: Callable[[Tensor], Any], images: Tensor, classes: int, name: str, is_training: bool
) -> Tensor:
    """Return the logits `(batch, classes)` of a user's module; `forward` is the module, or calls it.

    `is_training`: mode of the module, for messages. Raises UserError for errors in its code, and for another output.
    """
    mode = "training" if is_training else "evaluation"
    count = "1 image" if len(images) == 1 else f"{len(images)} images"
    with translate_errors(name, f"its forward pass of {count} of shape {tuple(images.shape[1:])} in {mode} mode"):
        logits = extract_logits(forward(images), name)
    if tuple(logits.shape) != (len(images), classes):
        raise UserError(
            f"network {quote(name)} gives an output of shape {tuple(logits.shape)} for images of shape "
            f"{tuple(images.shape)}; it needs (batch, classes) = ({len(images)}, {classes}) in {mode} mode."
        )
    return logits


def probe_loss(logits: Tensor) -> Tensor:
    """Return a loss in which every logit has its own weight: a constant one has no gradient through a softmax."""
    return torch.nn.functional.cross_entropy(logits, torch.zeros_like(logits).softmax(1))
