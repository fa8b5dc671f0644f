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

from supermask.core.certificate import Certificate
from supermask.core.learned_masks import MaskLearning, inversion_signs, threshold_masks
from supermask.core.masks import count_kept, pack, unpack
from supermask.core.types import (
    InitialState,
    LearningCurve,
    Masks,
    NetworkState,
    PrunableTensor,
    Snapshot,
    TrainingResult,
)
from supermask.store.files.entry import RunFacts, Tensors, content_hash
from supermask.study.run import Run

if TYPE_CHECKING:
    from torch import Tensor


def encode_result(
    run: Run, start: InitialState, outcome: TrainingResult, certificate: Certificate, about: dict[str, Any]
) -> tuple[RunFacts, Tensors, Tensors]:
    """(facts, tensors, weights) for the store; `about` says how the run came to be: environment, data, seconds."""
    status = outcome.status if certificate.passed or outcome.status == "diverged" else "certificate_failed"
    masks = start.masks
    if run.learning is not None and outcome.status == "finished":
        masks = threshold_masks(run.learning, best_mask_state(outcome).logits)
    facts = {
        "id": run.id,
        **run.to_data(),
        "status": status,
        "metrics": _replace_non_finite(_metrics(outcome)),
        "kept": count_kept(masks),
        "weights": sum(mask.numel() for mask in start.masks.values()),
        "first_iteration": start.first_iteration,
        "start_content": state_hash(start),
        "certificate": certificate.to_data(),
        **about,
    }
    tensors = {f"mask/{name}": pack(mask) for name, mask in masks.items()} if run.parent or run.learning else {}
    for column, values in vars(outcome.curve).items():
        tensors[f"curve/{column}"] = np.array(values, dtype=np.int64 if column == "iterations" else np.float64)
    if outcome.status == "diverged":
        return facts, tensors, {}
    tensors |= {f"other/{name}": tensor.numpy() for name, tensor in outcome.end.unmasked.items()}
    if outcome.supermask:
        facts["supermask"] = _replace_non_finite(outcome.supermask)
    return facts, tensors, weights_to_store(run, start, outcome)


def _metrics(outcome: TrainingResult) -> dict[str, int | float | None]:
    return outcome.metrics | (supermask_metrics(outcome.supermask) if outcome.supermask else {})


def supermask_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Of a learned mask what was measured from what is stored (`engines.report`): every number can be had again."""
    selected, final = evaluation["selected"], evaluation["final"]
    return {
        "early_stop_test_accuracy": selected["mean"],
        "early_stop_test_loss": selected["loss"],
        "final_test_accuracy": final["mean"],
        "final_test_loss": final["loss"],
        "test_accuracy_std": selected["std"],
        "thresholded_test_accuracy": evaluation["thresholded"],
        "expected_test_accuracy": evaluation["expected"],
        "expected_density": evaluation["ones_in_all"],
    }


def weights_to_store(run: Run, start: InitialState, outcome: TrainingResult) -> Tensors:
    """What a training leaves behind that cannot be made again: kept weights, or the logits of a mask."""
    if run.learning is not None:
        return _logits("logit", best_mask_state(outcome)) | _logits("final_logit", outcome.end)
    # What is not trained ends as it starts.
    return kept_weights(outcome.end, start.masks) if run.is_trained else {}


def best_mask_state(outcome: TrainingResult) -> NetworkState:
    """Of a training that learned a mask: its logits at the lowest validation loss. These are the supermask."""
    return outcome.points["lowest_validation_loss"]


def _logits(kind: str, state: NetworkState) -> Tensors:
    return {f"{kind}/{name}": logits.numpy() for name, logits in state.logits.items()}


def decode_logits(stored: Tensors, start: InitialState, kind: str = "logit") -> NetworkState:
    """The start with the logits that were learned from it: the supermask's, or under `final_logit` those of the end.

    Raises ValueError if what is stored does not fit the network.
    """
    logits = {}
    for name, own in start.weights.items():
        values = stored.get(f"{kind}/{name}")
        if values is None or values.shape != tuple(own.shape) or values.dtype != np.float32:
            raise ValueError(f"it does not hold one float32 logit for each weight of {name}")
        logits[name] = own.new_tensor(values)
    return NetworkState(start.weights, start.unmasked, logits)


def apply_inversion(state: NetworkState, learning: MaskLearning) -> NetworkState:
    """With the weights that the mask inverts, if its method does."""
    return replace(state, weights={n: w * inversion_signs(learning, state.logits[n]) for n, w in state.weights.items()})


def kept_weights(state: NetworkState, masks: Masks) -> Tensors:
    """`kept/<tensor>` -> the kept weights, one-dimensional, in C order."""
    return {f"kept/{name}": state.weights[name][mask].numpy() for name, mask in masks.items()}


def encode_snapshot(state: NetworkState, masks: Masks) -> Tensors:
    """A point of the trajectory for the store."""
    others: Tensors = {f"other/{name}": tensor.numpy() for name, tensor in state.unmasked.items()}
    return kept_weights(state, masks) | others


def decode_state(stored: Tensors, start: InitialState) -> NetworkState:
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
    return NetworkState(weights, _others(stored))


def zero_weights(start: InitialState) -> InitialState:
    """What a stored gradient is unpacked onto: 0 at the weights that do not train."""
    return replace(start, weights={name: tensor.new_zeros(tensor.shape) for name, tensor in start.weights.items()})


def decode_masks(stored: Tensors, maskables: Mapping[str, PrunableTensor]) -> Masks:
    """The masks of a stored run that has a parent. Raises ValueError if they are not those of such a network."""
    import torch

    missing = [name for name in maskables if f"mask/{name}" not in stored]
    if missing:
        raise ValueError(f"it has no mask for {missing[0]}")
    return {name: torch.from_numpy(unpack(stored[f"mask/{name}"], m.shape)) for name, m in maskables.items()}


def decode_curve(stored: Tensors) -> LearningCurve:
    """The curve of a stored run."""
    return LearningCurve(**{column: stored[f"curve/{column}"].tolist() for column in vars(LearningCurve())})


def _others(stored: Tensors) -> dict[str, Tensor]:
    import torch

    others = {name.removeprefix("other/"): array for name, array in stored.items() if name.startswith("other/")}
    return {name: torch.from_numpy(array.copy()) for name, array in others.items()}


def snapshot_name(point: Snapshot) -> str:
    """What a point is called in the store: `iteration_100`, `lowest_validation_loss`, `gradient`."""
    return f"iteration_{point}" if isinstance(point, int) else point


def state_hash(start: InitialState) -> str:
    """SHA-256 over every tensor of a start: what a start that is made again has to match, bit for bit."""
    tensors = {f"weight/{n}": w.numpy() for n, w in start.weights.items()}
    tensors |= {f"mask/{n}": pack(m) for n, m in start.masks.items()}
    tensors |= {f"logit/{n}": m.numpy() for n, m in start.logits.items()}
    return content_hash(tensors | {f"other/{n}": t.numpy() for n, t in start.unmasked.items()})


def _replace_non_finite(value: Any) -> Any:
    """Plain data with None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_replace_non_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
