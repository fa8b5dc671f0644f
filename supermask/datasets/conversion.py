"""Conversion of a user's values to arrays: whatever it raises becomes one error that says what was given."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.core.errors import quote
from supermask.datasets.arrays import MakeError
from supermask.datasets.decoding import ImageRefused, convert_image


class ValueRefused(Exception):
    """A value that is not an array. The message is a predicate (`is None`); the caller names the value before it."""


def to_array(value: Any, what: str, allowed: str, make_error: MakeError) -> NDArray[Any]:
    """Return an array, a PyTorch tensor, an image of Pillow or a list of them as an array without Python objects.

    Images are uint8, (height, width) if they are grey, else (height, width, 3), as `images:FOLDER` reads them.
    Tensors of bfloat16 and smaller floats become float32. `what` names the value and `allowed` says what is expected,
    both for the message.
    Raises UserError for every other value, and if the conversion fails.
    """
    try:
        array = _convert(value)
        if array.dtype.hasobject:
            raise ValueRefused(_describe_objects(array))
    except (ValueRefused, ImageRefused) as refused:
        raise make_error(f"{what} {refused}; {allowed}") from refused
    except Exception as error:
        kind = type(value).__name__
        raise make_error(f"{what}, a {kind}, cannot be read as an array ({one_line(error)}); {allowed}") from error
    return array


def one_line(error: BaseException) -> str:
    """Return type and message of an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _convert(value: Any) -> NDArray[Any]:
    if _is_tensor(value):
        return _convert_tensor(value)
    if _is_pillow_image(value):
        # Mode F has floats, which the caller judges as those of an array; Pillow would cut them off to integers.
        return np.asarray(value) if value.mode == "F" else convert_image(value)
    if isinstance(value, list | tuple) and any(_is_array(item) for item in value):
        return _stack(value)
    if np.ma.is_masked(value):
        raise ValueRefused("has masked values; fill them, for example with .filled(0)")
    try:
        return np.asarray(value)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueRefused("has items of different lengths") from error


def _is_pillow_image(value: Any) -> bool:
    """Return whether the value is an image of Pillow."""
    pillow = sys.modules.get("PIL.Image")  # Whoever has an image has imported it.
    return pillow is not None and isinstance(value, pillow.Image)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value) or _is_pillow_image(value)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # Whoever has a tensor has imported it.
    return torch is not None and isinstance(value, torch.Tensor)


def _convert_tensor(tensor: Any) -> NDArray[Any]:
    import torch

    if tensor.layout is not torch.strided:
        raise ValueRefused("is a sparse tensor; give tensor.to_dense()")
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()  # NumPy has no bfloat16.
    array: NDArray[Any] = tensor.numpy(force=True)
    return array


def _stack(values: Sequence[Any]) -> NDArray[Any]:
    """Return arrays of one shape as one array. Raises ValueRefused for several shapes."""
    arrays = []
    for index, value in enumerate(values):
        try:
            arrays.append(_convert(value))
        except (ValueRefused, ImageRefused) as refused:
            raise ValueRefused(f"has an item that cannot be used: item {index} {refused}") from refused
        if arrays[-1].shape != arrays[0].shape:
            first, other = arrays[0].shape, arrays[-1].shape
            raise ValueRefused(
                f"has items of different shapes: item {index} has shape {other}, item 0 has {first}"
                f"{color_hint(first, other)}"
            )
    return np.asarray(arrays)


def color_hint(*shapes: tuple[int, ...]) -> str:
    """Return how to bring grey and color images together if two shapes differ in that alone, else an empty string."""
    grey, color = sorted(shapes, key=len)
    return "; convert all images of Pillow with .convert('RGB')" if (*grey, 3) == color else ""


def _describe_objects(array: NDArray[Any]) -> str:
    """Return a predicate that says which Python objects an array holds, and how to give them as numbers."""
    if array.size == 0:
        return "holds no values"
    example = next((item for item in array.flat if item is None or isinstance(item, str)), next(array.flat))
    if example is None:
        return "holds None" if array.ndim else "is None"
    if isinstance(example, str):
        return f"holds texts such as {quote(example)}"
    if isinstance(example, int | np.integer):
        if array.ndim == 0:
            return f"is {quote(int(example))}"
        return "holds integers as Python objects; give them as numbers, for example with .astype('int64')"
    if isinstance(example, np.ndarray) or _is_tensor(example):
        return "holds arrays as Python objects; give one array, for example numpy.stack(list(x))"
    kind = type(example).__name__
    return f"holds objects of type {kind}" if array.ndim else f"is of type {kind}, not an array"
