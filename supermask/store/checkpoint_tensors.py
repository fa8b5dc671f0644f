"""Form of a checkpoint's tensors, checked against the training that is to be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supermask.core.errors import quote
from supermask.core.recipe import Recipe
from supermask.core.types import InitialState
from supermask.store.files.entry import Tensors


def check_checkpoint(facts: Mapping[str, Any], tensors: Tensors, start: InitialState, recipe: Recipe) -> None:
    """Check that a checkpoint's tensors fit a training: names, shapes, types and counts. Raises ValueError.

    Checked before the engine loads any of it: a training that failed in the middle of loading could not restart from
    its initial state.

    `facts`: the checkpoint's facts `engine`. `start`, `recipe`: of the training to be resumed.
    """
    trained = {f"logits.{name}": t for name, t in start.logits.items()}
    state = {**start.weights, **start.unmasked, **trained}
    expected = {name: (tuple(t.shape), t.numpy().dtype) for name, t in state.items()}
    parts: dict[str, dict[str, Any]] = {"state": {}, "optimizer": {}, "point": {}, "curve": {}}
    for key, array in tensors.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise ValueError(f"it holds an unknown tensor {quote(key)}")
        parts[part][name] = array
    _check_tensors("state", parts["state"], expected, expected.keys())
    points: dict[str, dict[str, Any]] = {}
    for key, array in parts["point"].items():
        point, _, name = key.partition("/")
        points.setdefault(point, {})[name] = array
    for point, arrays in points.items():
        # A gradient has only the prunable tensors; every other snapshot is a whole network.
        names = start.weights.keys() if point == "gradient" else expected.keys()
        _check_tensors(f"snapshot {quote(point)}", arrays, expected, names)
        if not (point.isdecimal() or point in ("gradient", "lowest_validation_loss")):
            raise ValueError(f"it holds an unknown snapshot {quote(point)}")
    _check_optimizer(parts["optimizer"], expected, start, recipe)
    _check_progress(facts, parts["curve"], points, start, recipe)


def _check_tensors(what: str, arrays: Mapping[str, Any], expected: Mapping[str, Any], names: Any) -> None:
    if arrays.keys() != set(names):
        raise ValueError(f"its {what} does not hold the tensors of the network")
    for name, array in arrays.items():
        if (array.shape, array.dtype) != expected[name]:
            raise ValueError(f"its {what} holds {quote(name)} with another shape or type")


def _check_optimizer(
    arrays: Mapping[str, Any], expected: Mapping[str, Any], start: InitialState, recipe: Recipe
) -> None:
    keys: set[str] = {"exp_avg", "exp_avg_sq"} if recipe.optimizer in ("adam", "adamw") else set()
    if recipe.optimizer == "sgd" and recipe.momentum:
        keys = {"momentum_buffer"}
    states: dict[str, set[str]] = {}
    for key, array in arrays.items():
        name, _, moment = key.rpartition("/")
        is_step_count = moment == "step" and "exp_avg" in keys
        if name not in expected or not (is_step_count or moment in keys):
            raise ValueError(f"its optimizer state {quote(key)} is not of the network")
        if array.shape != (() if is_step_count else expected[name][0]):
            raise ValueError(f"its optimizer state {quote(key)} does not fit the network")
        if not is_step_count:
            states.setdefault(name, set()).add(moment)
    # Of a learned mask only logits train, under the names of their weights. Buffers such as running means have no
    # optimizer state. Neither have parameters that a module holds fixed, or that no logit depends on.
    biases = [name.removesuffix("weight") + "bias" for name in start.weights]
    biases = [] if start.logits else [name for name in biases if name in start.unmasked]
    if any(states.get(name, set()) != keys for name in [*(start.logits or start.weights), *biases, *states]):
        raise ValueError("its optimizer state is incomplete")


def _check_progress(
    facts: Mapping[str, Any], curve: Mapping[str, Any], points: Mapping[str, Any], start: InitialState, recipe: Recipe
) -> None:
    columns = {"iterations", "training_loss", "validation_loss", "validation_accuracy"}
    lengths = {array.shape for array in curve.values()}
    if curve.keys() != columns or len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise ValueError("its curve is incomplete")
    iterations = curve["iterations"]
    is_ordered = iterations.dtype.kind == "i" and iterations.size > 0 and bool((iterations[1:] > iterations[:-1]).all())
    if not is_ordered or iterations[0] != start.first_iteration or iterations[-1] != facts["iteration"]:
        raise ValueError("its curve does not end where it was saved")
    if not facts["iteration"] <= recipe.iterations:
        raise ValueError("it was saved after the end of the training")
    best = facts["best"]
    if best is None or best >= iterations.size or "lowest_validation_loss" not in points:
        raise ValueError("its best iteration is missing")
