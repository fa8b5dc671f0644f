"""What the store holds of a run: outcome -> facts and arrays, and back.

A start is never stored, it is made again from its parent (`lineage`); of the weights at a point only the kept values
are, in C order of each tensor; masks are one bit a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.certificate import Certificate
from supermask.learned import Learning, hard_masks, signs
from supermask.masks import kept, pack, unpack
from supermask.runs import Run
from supermask.store.entry import Facts, Tensors, content_hash
from supermask.types import Curve, Maskable, Masks, Outcome, Point, Start, State

if TYPE_CHECKING:
    from torch import Tensor


def pack_outcome(
    run: Run, start: Start, outcome: Outcome, certificate: Certificate, about: dict[str, Any]
) -> tuple[Facts, Tensors, Tensors]:
    """(facts, tensors, weights) for the store; `about` says how the run came to be: environment, data, seconds."""
    status = outcome.status if certificate.held or outcome.status == "diverged" else "certificate_failed"
    masks = start.masks
    if run.learning is not None and outcome.status == "finished":
        masks = hard_masks(run.learning, selected(outcome).logits)
    facts = {
        "id": run.id,
        **run.to_data(),
        "status": status,
        "metrics": _json_numbers(_metrics(outcome)),
        "kept": kept(masks),
        "weights": sum(mask.numel() for mask in start.masks.values()),
        "first_iteration": start.first_iteration,
        "start_content": start_content(start),
        "certificate": certificate.to_data(),
        **about,
    }
    tensors = {f"mask/{name}": pack(mask) for name, mask in masks.items()} if run.parent or run.learning else {}
    for column, values in vars(outcome.curve).items():
        tensors[f"curve/{column}"] = np.array(values, dtype=np.int64 if column == "iterations" else np.float64)
    if outcome.status == "diverged":
        return facts, tensors, {}
    tensors |= {f"other/{name}": tensor.numpy() for name, tensor in outcome.end.others.items()}
    if outcome.supermask:
        facts["supermask"] = _json_numbers(outcome.supermask)
    return facts, tensors, stored_weights(run, start, outcome)


def _metrics(outcome: Outcome) -> dict[str, int | float | None]:
    return outcome.metrics | (supermask_metrics(outcome.supermask) if outcome.supermask else {})


def supermask_metrics(judged: Mapping[str, Any]) -> dict[str, float]:
    """Of a learned mask what was measured from what is stored (`engines.report`): every number can be had again."""
    selected, final = judged["selected"], judged["final"]
    return {
        "early_stop_test_accuracy": selected["mean"],
        "early_stop_test_loss": selected["loss"],
        "final_test_accuracy": final["mean"],
        "final_test_loss": final["loss"],
        "test_accuracy_std": selected["std"],
        "thresholded_test_accuracy": judged["thresholded"],
        "expected_test_accuracy": judged["expected"],
        "expected_density": judged["ones_in_all"],
    }


def stored_weights(run: Run, start: Start, outcome: Outcome) -> Tensors:
    """What a training leaves behind that cannot be made again: kept weights, or the logits of a mask."""
    if run.learning is not None:
        return _logits("logit", selected(outcome)) | _logits("final_logit", outcome.end)
    # What is not trained ends as it starts.
    return kept_values(outcome.end, start.masks) if run.trains else {}


def selected(outcome: Outcome) -> State:
    """Of a training that learned a mask: its logits at the lowest validation loss. These are the supermask."""
    return outcome.points["lowest_validation_loss"]


def _logits(kind: str, state: State) -> Tensors:
    return {f"{kind}/{name}": logits.numpy() for name, logits in state.logits.items()}


def unpack_logits(stored: Tensors, start: Start, kind: str = "logit") -> State:
    """The start with the logits that were learned from it: the supermask's, or under `final_logit` those of the end.

    Raises ValueError if what is stored does not fit the network.
    """
    logits = {}
    for name, own in start.weights.items():
        values = stored.get(f"{kind}/{name}")
        if values is None or values.shape != tuple(own.shape) or values.dtype != np.float32:
            raise ValueError(f"it does not hold one float32 logit for each weight of {name}")
        logits[name] = own.new_tensor(values)
    return State(start.weights, start.others, logits)


def inverted(state: State, learning: Learning) -> State:
    """With the weights that the mask inverts, if its method does."""
    return replace(state, weights={n: w * signs(learning, state.logits[n]) for n, w in state.weights.items()})


def kept_values(state: State, masks: Masks) -> Tensors:
    """`kept/<tensor>` -> the kept weights, one-dimensional, in C order."""
    return {f"kept/{name}": state.weights[name][mask].numpy() for name, mask in masks.items()}


def pack_point(state: State, masks: Masks) -> Tensors:
    """A point of the trajectory for the store."""
    others: Tensors = {f"other/{name}": tensor.numpy() for name, tensor in state.others.items()}
    return kept_values(state, masks) | others


def unpack_state(stored: Tensors, start: Start) -> State:
    """The network at a stored point: kept values as stored, frozen values as the run started with.

    Raises ValueError if what is stored does not fit the start's masks.
    """
    weights = {}
    for name, mask in start.masks.items():
        values = stored.get(f"kept/{name}")
        if values is None or values.shape != (int(mask.sum()),) or values.dtype != np.float32:
            raise ValueError(f"it does not hold one float32 value for each kept weight of {name}")
        weights[name] = start.weights[name].clone()
        weights[name][mask] = weights[name].new_tensor(values)
    return State(weights, _others(stored))


def gradient_base(start: Start) -> Start:
    """What a stored gradient is unpacked onto: 0 at the weights that do not train."""
    return replace(start, weights={name: tensor.new_zeros(tensor.shape) for name, tensor in start.weights.items()})


def unpack_masks(stored: Tensors, maskables: Mapping[str, Maskable]) -> Masks:
    """The masks of a stored run that has a parent. Raises ValueError if they are not those of such a network."""
    import torch

    missing = [name for name in maskables if f"mask/{name}" not in stored]
    if missing:
        raise ValueError(f"it has no mask for {missing[0]}")
    return {name: torch.from_numpy(unpack(stored[f"mask/{name}"], m.shape)) for name, m in maskables.items()}


def unpack_curve(stored: Tensors) -> Curve:
    """The curve of a stored run."""
    return Curve(**{column: stored[f"curve/{column}"].tolist() for column in vars(Curve())})


def _others(stored: Tensors) -> dict[str, Tensor]:
    import torch

    others = {name.removeprefix("other/"): array for name, array in stored.items() if name.startswith("other/")}
    return {name: torch.from_numpy(array.copy()) for name, array in others.items()}


def point_name(point: Point) -> str:
    """What a point is called in the store: `iteration_100`, `lowest_validation_loss`, `gradient`."""
    return f"iteration_{point}" if isinstance(point, int) else point


def start_content(start: Start) -> str:
    """SHA-256 over every tensor of a start: what a start that is made again has to match, bit for bit."""
    tensors = {f"weight/{n}": w.numpy() for n, w in start.weights.items()}
    tensors |= {f"mask/{n}": pack(m) for n, m in start.masks.items()}
    tensors |= {f"logit/{n}": m.numpy() for n, m in start.logits.items()}
    return content_hash(tensors | {f"other/{n}": t.numpy() for n, t in start.others.items()})


def _json_numbers(value: Any) -> Any:
    """Plain data with None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _json_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_json_numbers(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
