"""Encoding of a run for the store: training result -> facts and arrays, and back.

An initial state is never stored: it is replayed from its parent (`replay.py`). Of a network only the kept weights are
stored, in C order of each tensor; masks take one bit per weight.

Tensor keys: `mask/<tensor>` uint8, packed bits; `kept/<tensor>` float32 (kept,); `logit/<tensor>` and
`final_logit/<tensor>` float32, the tensor's shape, with `logit_other/<tensor>` and `final_logit_other/<tensor>` if
that tensor changed; `other/<tensor>` biases and buffers; `curve/<column>` (entries,);
`initial/<tensor>` the dense network of the seed, in runs without a parent of a network that only user code can build.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.core.certificate import Certificate
from supermask.core.invariants import bitwise_equal
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
from supermask.networks.network import Network
from supermask.store.files.entry import RunFacts, Tensors, content_hash
from supermask.study.networks import run_network
from supermask.study.run import Run

if TYPE_CHECKING:
    from torch import Tensor


def encode_result(
    run: Run,
    start: InitialState,
    outcome: TrainingResult,
    certificate: Certificate,
    provenance: dict[str, Any],
    dense: InitialState | None = None,
) -> tuple[RunFacts, Tensors, Tensors]:
    """Return (facts, tensors, weights) for `Store.commit`. `provenance`: environment, engine, data, seconds.

    `dense`: the dense network of the seed, to be stored because only user code can make it again; None otherwise.
    """
    # A diverged run may break its certificate: NaN weights are not bit-identical to frozen ones. Its status says so.
    status = outcome.status if certificate.passed or outcome.status == "diverged" else "certificate_failed"
    masks = start.masks
    if run.learning is not None and outcome.status == "finished":
        masks = threshold_masks(run.learning, best_mask_state(outcome).logits, start.masks)
    facts = {
        "id": run.id,
        **run.to_data(),
        **({} if run.data_spec is None else {"data_spec": run.data_spec.to_data()}),
        "status": status,
        "metrics": _replace_non_finite(_metrics(outcome)),
        "kept": count_kept(masks),
        "weights": sum(mask.numel() for mask in start.masks.values()),
        "first_iteration": start.first_iteration,
        "start_content": state_hash(start),
        "certificate": certificate.to_data(),
        **provenance,
    }
    if run.network_facts is not None:
        facts["network_facts"] = run.network_facts.to_data()
    # The mask of a dense network is all ones and is not stored.
    tensors = {f"mask/{name}": pack(mask) for name, mask in masks.items()} if run.parent or run.learning else {}
    if dense is not None:
        tensors |= {f"initial/{name}": t.numpy() for name, t in {**dense.weights, **dense.unmasked}.items()}
    for column, values in vars(outcome.curve).items():
        # float64 in tensors, not JSON: NaN and every last bit are preserved.
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
    """Return the metrics of a learned mask from its evaluation.

    All of them are measured from stored logits and the seed, so `remeasure` reproduces them exactly.
    """
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
    """Return the result of training that cannot be replayed: kept weights, or the logits of a mask."""
    if run.learning is not None:
        return _logits("logit", best_mask_state(outcome), start) | _logits("final_logit", outcome.end, start)
    # An untrained network ends as it starts, and its start is replayed.
    return kept_weights(outcome.end, start.masks) if run.is_trained else {}


def best_mask_state(outcome: TrainingResult) -> NetworkState:
    """Return the network at the lowest validation loss of a run that learned a mask: its logits are the supermask."""
    return outcome.snapshots["lowest_validation_loss"]


def _logits(kind: str, state: NetworkState, start: InitialState) -> Tensors:
    """Return the logits, and the unmasked tensors that changed: running statistics, trained biases."""
    changed = {n: t for n, t in state.unmasked.items() if not bitwise_equal(t.numpy(), start.unmasked[n].numpy())}
    others = {f"{kind}_other/{name}": tensor.numpy() for name, tensor in changed.items()}
    return {f"{kind}/{name}": logits.numpy() for name, logits in state.logits.items()} | others


def decode_logits(stored: Tensors, start: InitialState, kind: str = "logit") -> NetworkState:
    """Return the initial state with learned logits: `logit` for the supermask, `final_logit` for the end of training.

    Unmasked tensors are those of that point too. Raises ValueError if the stored tensors do not fit the network.
    """
    import torch

    logits = {}
    for name, initial in start.logits.items():
        values = stored.get(f"{kind}/{name}")
        if values is None or values.shape != tuple(initial.shape) or values.dtype != np.float32:
            raise ValueError(f"it does not hold one float32 logit for each weight of {name}")
        logits[name] = initial.new_tensor(values)
    unmasked = dict(start.unmasked)
    for name, tensor in start.unmasked.items():
        values = stored.get(f"{kind}_other/{name}")
        if values is not None:
            if values.shape != tuple(tensor.shape) or values.dtype != tensor.numpy().dtype:
                raise ValueError(f"its values of {name} do not fit the network")
            unmasked[name] = torch.from_numpy(values.copy())
    return NetworkState(start.weights, unmasked, logits)


def apply_inversion(state: NetworkState, learning: MaskLearning) -> NetworkState:
    """Return the state with inverted weights where a signed mask inverts them; otherwise unchanged."""
    inverted = {n: state.weights[n] * inversion_signs(learning, m) for n, m in state.logits.items()}
    return replace(state, weights={**state.weights, **inverted})


def kept_weights(state: NetworkState, masks: Masks) -> Tensors:
    """Return `kept/<tensor>` -> kept weights, shape (kept,), in C order."""
    return {f"kept/{name}": state.weights[name][mask].numpy() for name, mask in masks.items()}


def encode_snapshot(state: NetworkState, masks: Masks) -> Tensors:
    """Return a snapshot's tensors for the store: kept weights, biases and buffers."""
    unmasked: Tensors = {f"other/{name}": tensor.numpy() for name, tensor in state.unmasked.items()}
    return kept_weights(state, masks) | unmasked


def decode_state(stored: Tensors, start: InitialState) -> NetworkState:
    """Return the network at a stored snapshot: kept weights as stored, frozen weights from the initial state.

    Raises ValueError if the stored weights do not fit the masks.
    """
    weights = {}
    for name, mask in start.masks.items():
        values = stored.get(f"kept/{name}")
        if values is None or values.shape != (int(mask.sum()),) or values.dtype != np.float32:
            raise ValueError(f"it does not hold one float32 value for each kept weight of {name}")
        # A copy: the frozen weights come from the start, which is cached and shared.
        weights[name] = start.weights[name].clone()
        weights[name][mask] = weights[name].new_tensor(values)
    return NetworkState(weights, _decode_unmasked(stored))


def zero_weights(start: InitialState) -> InitialState:
    """Return the initial state with zero weights: a stored gradient is decoded onto it, 0 where a weight is frozen."""
    return replace(start, weights={name: tensor.new_zeros(tensor.shape) for name, tensor in start.weights.items()})


def decode_masks(stored: Tensors, prunable: Mapping[str, PrunableTensor]) -> Masks:
    """Return the masks of a stored run that has a parent. Raises ValueError if they do not fit the network."""
    import torch

    missing = [name for name in prunable if f"mask/{name}" not in stored]
    if missing:
        raise ValueError(f"it has no mask for {missing[0]}")
    return {name: torch.from_numpy(unpack(stored[f"mask/{name}"], m.shape)) for name, m in prunable.items()}


def decode_dense(stored: Tensors, network: Network) -> InitialState:
    """Return the stored dense network of a seed. Raises ValueError if it does not fit the network's facts."""
    import torch

    assert network.facts is not None
    shapes = {name: (tensor.shape, "float32") for name, tensor in network.tensors.items()}
    shapes |= {tensor.name: (tensor.shape, tensor.dtype) for tensor in network.facts.unmasked}
    values = {}
    for name, (shape, dtype) in shapes.items():
        array = stored.get(f"initial/{name}")
        if array is None or array.shape != shape or array.dtype != np.dtype(dtype):
            raise ValueError(f"it does not hold the initial values of {name}")
        values[name] = torch.from_numpy(array.copy())
    weights = {name: values.pop(name) for name in network.tensors}
    return InitialState(weights, {n: torch.ones(w.shape, dtype=torch.bool) for n, w in weights.items()}, values)


def decode_curve(stored: Tensors) -> LearningCurve:
    """Return the learning curve of a stored run. Raises ValueError unless it has every column, of one length."""
    columns = {column: stored.get(f"curve/{column}") for column in vars(LearningCurve())}
    for column, values in columns.items():
        dtype = np.int64 if column == "iterations" else np.float64
        if values is None or values.dtype != dtype or values.ndim != 1:
            raise ValueError(f"it has no column {column} of {np.dtype(dtype)} in its learning curve")
    decoded = {column: values.tolist() for column, values in columns.items() if values is not None}
    if len({len(values) for values in decoded.values()}) != 1:
        raise ValueError("the columns of its learning curve have different lengths")
    return LearningCurve(**decoded)


def check_tensors(facts: RunFacts, tensors: Tensors) -> None:
    """Check the form of a run's curve and masks, without torch. Raises ValueError.

    Every reader of the store relies on it, as on `documents.check_facts`. Weights and logits are checked where they are
    decoded onto an initial state.
    """
    decode_curve(tensors)
    if facts["parent"] is None and "learning" not in facts:
        return
    for name, tensor in run_network(Run.from_data(facts)).tensors.items():
        packed = tensors.get(f"mask/{name}")
        if packed is None:
            raise ValueError(f"it has no mask for {name}")
        if packed.dtype != np.uint8 or packed.shape != ((tensor.size + 7) // 8,):
            raise ValueError(f"its mask for {name} does not have one bit per weight")


def _decode_unmasked(stored: Tensors) -> dict[str, Tensor]:
    import torch

    arrays = {name.removeprefix("other/"): array for name, array in stored.items() if name.startswith("other/")}
    # Copies: the caller may train the tensors in place, and the arrays may be cached.
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def snapshot_name(point: Snapshot) -> str:
    """Return the name of a snapshot in the store: `iteration_100`, `lowest_validation_loss`, `gradient`."""
    return f"iteration_{point}" if isinstance(point, int) else point


def state_hash(start: InitialState) -> str:
    """Return the SHA-256 over every tensor of an initial state; a replayed one has to match it bit for bit."""
    tensors = {f"weight/{n}": w.numpy() for n, w in start.weights.items()}
    tensors |= {f"mask/{n}": pack(m) for n, m in start.masks.items()}
    tensors |= {f"logit/{n}": m.numpy() for n, m in start.logits.items()}
    return content_hash(tensors | {f"other/{n}": t.numpy() for n, t in start.unmasked.items()})


def _replace_non_finite(value: Any) -> Any:
    """Return plain data with None for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
