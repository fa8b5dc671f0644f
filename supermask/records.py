"""What the store holds of a run: outcome -> facts and arrays, and back.

A start is never stored, it is made again from its parent (`lineage`); of the weights at a point only the kept values
are, in C order of each tensor; masks are one bit a weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.certificate import Certificate
from supermask.entry import Facts, Tensors, content_hash
from supermask.masks import kept, pack, unpack
from supermask.run import Run
from supermask.types import Curve, Maskable, Masks, Outcome, Point, Start, State

if TYPE_CHECKING:
    from torch import Tensor


def pack_outcome(
    run: Run, start: Start, outcome: Outcome, certificate: Certificate, about: dict[str, Any]
) -> tuple[Facts, Tensors, Tensors]:
    """(facts, tensors, weights) for the store; `about` says how the run came to be: environment, data, seconds."""
    status = outcome.status if certificate.held or outcome.status == "diverged" else "certificate_failed"
    facts = {
        "id": run.id,
        **run.to_data(),
        "status": status,
        "metrics": {key: _json_number(value) for key, value in outcome.metrics.items()},
        "kept": kept(start.masks),
        "weights": sum(mask.numel() for mask in start.masks.values()),
        "first_iteration": start.first_iteration,
        "start_content": start_content(start),
        "certificate": certificate.to_data(),
        **about,
    }
    tensors = {f"mask/{name}": pack(mask) for name, mask in start.masks.items()} if run.parent else {}
    for column, values in vars(outcome.curve).items():
        tensors[f"curve/{column}"] = np.array(values, dtype=np.int64 if column == "iterations" else np.float64)
    if outcome.status == "diverged":
        return facts, tensors, {}
    tensors |= {f"other/{name}": tensor.numpy() for name, tensor in outcome.end.others.items()}
    return facts, tensors, kept_values(outcome.end, start.masks)


def kept_values(state: State, masks: Masks) -> Tensors:
    """`kept/<tensor>` -> the kept weights, one-dimensional, in C order."""
    return {f"kept/{name}": state.weights[name][mask].numpy() for name, mask in masks.items()}


def pack_point(state: State, masks: Masks) -> Tensors:
    """A point of the trajectory for the store."""
    others: Tensors = {f"other/{name}": tensor.numpy() for name, tensor in state.others.items()}
    return kept_values(state, masks) | others


def unpack_state(stored: Tensors, start: Start) -> State:
    """The network at a stored point: kept values as stored, frozen values as the run started with."""
    weights = {}
    for name, mask in start.masks.items():
        values = start.weights[name].clone()
        values[mask] = values.new_tensor(stored[f"kept/{name}"])
        weights[name] = values
    return State(weights, _others(stored))


def unpack_masks(stored: Tensors, maskables: dict[str, Maskable]) -> Masks:
    """The masks of a stored run that has a parent."""
    import torch

    return {name: torch.from_numpy(unpack(stored[f"mask/{name}"], m.shape)) for name, m in maskables.items()}


def unpack_curve(stored: Tensors) -> Curve:
    """The curve of a stored run."""
    return Curve(**{column: stored[f"curve/{column}"].tolist() for column in vars(Curve())})


def _others(stored: Tensors) -> dict[str, Tensor]:
    import torch

    return {name.removeprefix("other/"): torch.from_numpy(a.copy()) for name, a in stored.items() if name.startswith("other/")}


def point_name(point: Point) -> str:
    """What a point is called in the store: `iteration_100`, `lowest_validation_loss`, `gradient`."""
    return f"iteration_{point}" if isinstance(point, int) else point


def start_content(start: Start) -> str:
    """SHA-256 over every tensor of a start: what a start that is made again has to match, bit for bit."""
    tensors = {f"weight/{n}": w.numpy() for n, w in start.weights.items()}
    tensors |= {f"mask/{n}": pack(m) for n, m in start.masks.items()}
    return content_hash(tensors | {f"other/{n}": t.numpy() for n, t in start.others.items()})


def _json_number(value: float | int | None) -> float | int | None:
    return None if value is None or not math.isfinite(value) else value
