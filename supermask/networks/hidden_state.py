"""State that modules hold outside their `state_dict`, which no run can store, rewind or resume.

Numbers, texts, None, tensors, arrays, and lists, tuples and dicts of these, in the attributes of every module; buffers
that are not persistent; and the tensors of modules that are not registered, such as those of a plain list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HiddenState = dict[str, Any]
"""Dotted name of an attribute -> copy of its value."""

MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
RECURRENT_ATTRIBUTES = frozenset({"_flat_weights", "_flat_weights_names", "_flat_weight_refs", "_all_weights"})
"""Names under which recurrent layers list their own parameters once more."""
MAX_DEPTH = 8
"""Nesting of lists and dicts; deeper values, such as cycles, are not compared."""


class _Opaque:
    """A value that is not compared."""


_OPAQUE = _Opaque()


def hidden_state(module: nn.Module) -> HiddenState:
    """Return a copy of the state that the module and its parts hold outside the `state_dict`."""
    registered = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    registered |= {id(part) for part in module.modules()}
    state = {}
    for prefix, layer in module.named_modules():
        ignored = MODULE_ATTRIBUTES | (RECURRENT_ATTRIBUTES if isinstance(layer, nn.RNNBase) else frozenset())
        values = {key: value for key, value in vars(layer).items() if key not in ignored}
        values |= layer._buffers
        for key, value in values.items():
            copied = _copy(value, registered)
            if copied is not _OPAQUE:
                state[f"{prefix}.{key}" if prefix else key] = copied
    return state


def _copy(value: Any, registered: set[int], depth: int = 0) -> Any:
    if id(value) in registered or depth > MAX_DEPTH:
        return _OPAQUE
    if isinstance(value, Tensor):
        # One with a history is computed from parameters, for example by the hook of weight norm.
        return _copy_tensor(value.detach()) if value.grad_fn is None else _OPAQUE
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.tolist()
    if isinstance(value, np.ndarray):
        return np.array(value)
    if value is None or isinstance(value, (bool, int, float, complex, str, np.generic)):
        return value
    if isinstance(value, nn.Module):
        value = dict(value.state_dict(keep_vars=True))
    if isinstance(value, Mapping):
        return {key: _copy(item, registered, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [_copy(item, registered, depth + 1) for item in value]
    return _OPAQUE


def _copy_tensor(tensor: Tensor) -> Any:
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        # The dense tensor may be too large.
        return [tensor.indices().clone(), tensor.values().clone()]
    is_comparable = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)
    return tensor.clone() if is_comparable else _OPAQUE


def is_equal(a: Any, b: Any) -> bool:
    """Compare two values of hidden states. NaN equals NaN; what cannot be compared equals everything of its kind."""
    if (isinstance(a, Tensor) and isinstance(b, Tensor)) or (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        equal: Any = (a == b) | ((a != a) & (b != b))
        return bool(equal.all())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(is_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if type(a) is not type(b):
        return False
    return bool(a == b) or (a != a and b != b)


def is_changed_by_passes(name: str, start: Any, first: Any, second: Any) -> bool:
    """Return True if forward passes change an attribute. `first`, `second`: its values after two rounds of passes.

    Public numbers, tensors and lists may not change at all. Of other attributes, what was there at the start may change
    in the first round, as the size of a cache does. None, and what was not there, may become anything.
    """
    is_public = not name.rpartition(".")[2].startswith("_")
    if is_public and isinstance(start, (int, float, Tensor, list)) and not is_equal(start, first):
        return True
    return _keeps_changing(start, first, second)


def _keeps_changing(start: Any, first: Any, second: Any) -> bool:
    if start is None or start is _OPAQUE:
        return False
    if isinstance(start, dict) and isinstance(first, dict) and isinstance(second, dict):
        return any(_keeps_changing(value, first.get(key), second.get(key)) for key, value in start.items())
    if isinstance(start, list) and isinstance(first, list) and isinstance(second, list):
        pairs = zip(start, first, second, strict=False)
        return len(first) != len(second) or any(_keeps_changing(*values) for values in pairs)
    return not is_equal(first, second)
