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


def keeps_changing(start: Any, first: Any, second: Any) -> bool:
    """Return True if a value changed between `first` and `second`, which were read after two passes.

    Of lists and dicts, what was there at the start is compared.
    """
    if start is None or start is _OPAQUE:
        return False
    parts = _split(start, first, second)
    if parts is not None:
        return any(keeps_changing(*values) for values in parts)
    return not is_equal(first, second)


def accumulates(start: Any, used: Any, fresh: Any, again: Any) -> bool:
    """Return True if a value of a used module differs from those of two fresh ones, which are equal."""
    if start is None or start is _OPAQUE:
        return False
    parts = _split(start, used, fresh, again)
    if parts is not None:
        return any(accumulates(*values) for values in parts)
    return is_equal(fresh, again) and not is_equal(used, fresh)


def _split(start: Any, *later: Any) -> list[tuple[Any, ...]] | None:
    """Return the entries that `start` has, each with its later values; None if one of them is no list or dict."""
    if isinstance(start, dict) and all(isinstance(value, dict) for value in later):
        return [(value, *(values.get(key) for values in later)) for key, value in start.items()]
    if isinstance(start, list) and all(isinstance(value, list) for value in later):
        return list(zip(start, *later, strict=False))
    return None
