"""Adam and SGD written out for stacked tensors: every replica has its own learning rate and its own step count.

Shapes: R replicas, P numbers of one tensor of one replica (its elements, flattened), S training steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from types import FunctionType
from typing import Any, TypeVar, cast
from warnings import catch_warnings, simplefilter, warn

import numpy as np
import torch
from torch import Tensor

from supermask.core.recipe import Recipe
from supermask.engines.job import Array
from supermask.engines.optimizer_steps import optimizer_step_table
from supermask.engines.reference import encode_mask_bits

OptimizerStep = Callable[[Tensor, Tensor, Tensor | None, Sequence[Tensor], Tensor, Tensor], None]
"""(w, gradient, mask, moments, rate, second_moment_scale) -> None: moves w and the moments in place; may destroy the
gradient.

w, gradient, mask and each moment are (R, P); rate and second_moment_scale, the scalars of this step, are (R, 1). `mask`
is an `encode_gradient_mask`, None if no weight is pruned; the moments are those named by `optimizer_state_names`."""

SQRT_EPS = 1e-30
"""Added to Adam's v before the square root. It changes the root by at most 1e-15, and 1e-8 is added to that root. A
CPU's square root of 0, which v is wherever a weight is pruned, takes fifteen times as long as any other in PyTorch."""

MIN_TORCH_TO_COMPILE = (2, 11)
"""Older releases fail to compile while TF32 is set by `fp32_precision`: their compiler reads the older setting."""

ALIGNMENT = 16
"""Triton reads and writes 16 bytes per thread if it can prove that the number of elements is a multiple of this."""

MIN_FIXED_SIZE = 2**12
"""Smaller tensors share one compiled step: they are a small part of a network (0.4% of the weights of FC-300-100)."""

MAX_FIXED_SIZES = 16
"""Sizes for which the step is compiled separately, which takes seconds each: FC has 2, Conv6 7, ResNet-20 4."""

CHUNK = 2**14
"""Numbers moved at once on a CPU: 64 KiB per tensor, so that only the first of about ten passes misses the cache."""


def make_optimizer_step(recipe: Recipe, device: torch.device) -> OptimizerStep:
    """One step of the recipe's optimizer, as PyTorch computes it: weight decay, then the mask, then the move.

    Adam: m = 0.9 m + 0.1 g, v = 0.999 v + 0.001 g^2, w += rate m / (sqrt(v) second_moment_scale + 1e-8). SGD:
    m = momentum m + g, w += rate m. The scalars are those of `step_scalars`. A pruned weight has gradient +0, whatever
    was computed (NaN too), and keeps its bits: rate is negative, so it moves by -0, and w + -0 = w for every w,
    including -0.
    Source: Zhou et al. 2019, Table S1.
    """
    return _make_step(recipe.optimizer == "adam", recipe.momentum, recipe.weight_decay, device.type)[0]


def is_optimizer_compiled(recipe: Recipe, device: str) -> bool:
    """True if `make_optimizer_step` returns a compiled step."""
    device_type = torch.device(device).type
    return _make_step(recipe.optimizer == "adam", recipe.momentum, recipe.weight_decay, device_type)[1]


@lru_cache
def _make_step(is_adam: bool, momentum: float, decay: float, device_type: str) -> tuple[OptimizerStep, bool]:
    """The step, and True if it is compiled. Cached, so that the step that is reported is the one that trains."""

    def step(
        w: Tensor, g: Tensor, mask: Tensor | None, moments: Sequence[Tensor], rate: Tensor, second_moment_scale: Tensor
    ) -> None:
        # Compiled, the step reads the gradient and does not write it: 4 bytes less per weight.
        if decay:
            g = torch.add(g, w, alpha=decay)
        if mask is not None:
            # Not a product with the mask: NaN * 0 is NaN, and -1 * 0 is -0.
            if mask.dtype == torch.bool:
                g = g.masked_fill(mask, 0.0)
            else:
                g.view(torch.int32).bitwise_and_(mask)
        if is_adam:
            m, v = moments
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            root = v.add(SQRT_EPS).sqrt_().mul_(second_moment_scale).add_(1e-8)
            w.add_(torch.div(m, root, out=root).mul_(rate))
        elif momentum:
            (m,) = moments
            w.add_(m.mul_(momentum).add_(g) * rate)
        else:
            w.add_(g * rate)

    if device_type != "cuda":
        return (_in_chunks(step) if device_type == "cpu" else step), False
    # Compiled, the step is one pass over memory and not ten, which would cost more than the matrix products.
    moments = 2 if is_adam else 1 if momentum else 0
    compiled, obstacle = _try_to_compile(step, moments, device_type)
    if compiled is None:
        warn_of_obstacle("the optimizer", obstacle)
        return step, False
    return compiled, True


def _try_to_compile(step: OptimizerStep, moments: int, device_type: str) -> tuple[OptimizerStep | None, str]:
    """(the compiled step, ""), or (None, reason) if compilation does not work.

    The very step is compiled and run, with and without a mask, on small tensors: compilation is lazy, and it fails for
    many reasons (Triton needs a C compiler and Python's headers).
    """
    if obstacle := compile_obstacle():
        return None, obstacle
    compiled = compile_step(step)
    try:
        with catch_warnings(), torch.no_grad():
            # The advice to use TF32, given even where it was not asked for.
            simplefilter("ignore")
            for is_masked in (False, True):
                w, gradient, *state = (torch.ones(2, 3, device=device_type) for _ in range(2 + moments))
                mask = encode_gradient_mask(w > 0, device_type) if is_masked else None
                rate = torch.full((2, 1), -0.5, device=device_type)
                compiled(w, gradient, mask, state, rate, rate)
    except Exception as error:  # raised by Triton, PyTorch, the system, or the C compiler
        return None, first_line(error)
    return compiled, ""


def compile_obstacle() -> str:
    """Return why PyTorch compiles nothing here; empty if it may."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < MIN_TORCH_TO_COMPILE:
        return f"PyTorch {torch.__version__} is older than {'.'.join(map(str, MIN_TORCH_TO_COMPILE))}"
    return "Triton is not installed" if find_spec("triton") is None else ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@cache
def warn_of_obstacle(part: str, obstacle: str) -> None:
    """Warn once per process, part of a step (`the optimizer`) and reason."""
    warn(f"{part} of the stacked engine is not compiled ({obstacle}): steps are slower", stacklevel=2)


def compile_step(step: OptimizerStep, backend: str | Callable[..., Any] = "inductor") -> OptimizerStep:
    """The step compiled per size P of a large tensor, for any R, and once for all other sizes.

    A fixed P lets the compiler prove that the number of elements R * P is a multiple of 16, for any R: then it loads
    16 bytes at once, and divides by a constant to find a weight's replica. R is not fixed, because it changes whenever
    a stack is compacted or grows.
    """
    any_size = _compile(step, backend)
    fixed_sizes: dict[int, OptimizerStep] = {}

    def compiled(
        w: Tensor, g: Tensor, mask: Tensor | None, moments: Sequence[Tensor], rate: Tensor, second_moment_scale: Tensor
    ) -> None:
        # Not views: the shape of a view's base is part of what is compiled, and every layer has its own.
        w, g, mask, *moments = (t if t is None else t.data for t in (w, g, mask, *moments))  # type: ignore[assignment]
        numbers = w.shape[1]
        may_be_fixed = numbers >= MIN_FIXED_SIZE and numbers % ALIGNMENT == 0 and len(fixed_sizes) < MAX_FIXED_SIZES
        if may_be_fixed and numbers not in fixed_sizes:
            fixed_sizes[numbers] = _compile(step, backend)
        if numbers not in fixed_sizes:
            any_size(w, g, mask, moments, rate, second_moment_scale)
            return
        for tensor in (w, g, *moments, *(() if mask is None else (mask,))):
            torch._dynamo.mark_static(tensor, 1)
        fixed_sizes[numbers](w, g, mask, moments, rate, second_moment_scale)

    return compiled


def _compile(step: OptimizerStep, backend: str | Callable[..., Any]) -> OptimizerStep:
    """A compiled copy of the step. Sizes that are not marked as static may change without a compilation."""
    return torch.compile(copy_function(step), dynamic=True, backend=backend)


Function = TypeVar("Function", bound=Callable[..., Any])


def copy_function(function: Function) -> Function:
    """A copy with a code object of its own: Dynamo counts compilations per code object and gives up after 8."""
    assert isinstance(function, FunctionType)
    code, names = function.__code__.replace(), function.__globals__
    return cast("Function", FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__))


def _in_chunks(step: OptimizerStep) -> OptimizerStep:
    """The step on `CHUNK` numbers at a time."""

    def step_in_chunks(
        w: Tensor, g: Tensor, mask: Tensor | None, moments: Sequence[Tensor], rate: Tensor, second_moment_scale: Tensor
    ) -> None:
        replicas, numbers = w.shape
        rows_at_once = max(1, CHUNK // numbers)
        for first in range(0, replicas, rows_at_once):
            rows = slice(first, first + rows_at_once)
            for start in range(0, numbers, CHUNK):
                part = (rows, slice(start, start + CHUNK))
                mask_part = None if mask is None else mask[part]
                step(w[part], g[part], mask_part, [m[part] for m in moments], rate[rows], second_moment_scale[rows])

    return step_in_chunks


def encode_gradient_mask(mask: Tensor, device_type: str) -> Tensor:
    """A mask (True = kept) in the form that the optimizer step applies fastest; either form gives a gradient of +0.

    On a CPU int32, all bits set where a weight is kept: AND takes an eighth of the time of filling the places of a bool
    mask. Elsewhere bool, True where a weight is pruned: 1 byte per weight instead of 4.
    """
    return encode_mask_bits(mask) if device_type == "cpu" else ~mask


def step_scalars(
    recipes: Sequence[Recipe], optimizer_starts: Sequence[int], first_iterations: Sequence[int], steps: int
) -> Array:
    """`rate` and `second_moment_scale` of the next S steps of each replica, float32 (S, 2, R).

    Adam: rate = -lr / (1 - 0.9^t), second_moment_scale = 1 / sqrt(1 - 0.999^t), t = steps since `optimizer_starts`;
    SGD: rate = -lr. `optimizer_starts`: the mini-batch at which each replica's optimizer was new; `first_iterations`:
    each replica's next mini-batch.
    """
    # Cached: most replicas have one of few recipes and are at the same iteration.
    scalars = cache(lambda recipe, start, first: optimizer_step_table(recipe, start, first, first + steps))
    tables = [scalars(*settings) for settings in zip(recipes, optimizer_starts, first_iterations, strict=True)]
    return np.stack([np.stack([t[name] for t in tables], axis=1) for name in ("rate", "second")], axis=1)
