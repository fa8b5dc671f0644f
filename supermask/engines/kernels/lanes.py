"""Sixty-four float32 numbers as one value inside a compiled kernel: what a processor's vector registers hold.

`Lanes` is a numba type of our own, an LLVM vector: 4 registers of AVX-512, 8 of AVX2, 16 of SSE or NEON. A kernel that
sums in a `Lanes` variable sums in registers, and reads like the formula:

    total = splat(bias[j])
    for k in range(first[j], first[j + 1]):
        total = fma(weight[k], load(x, source[k] * LANES), total)
    store(y, j * LANES, total)

`fma` rounds once, on every machine, and nothing is reordered but inside `dot` and `dot4`, in a fixed order: equal
inputs give equal bits. Offsets count floats; arrays are one-dimensional, C-contiguous float32. Nothing checks bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

LANES = 64
"""Numbers in a `Lanes`: enough for an AVX-512 core to hide the latency of its multiply-adds; FC's batch of 60 fits."""

ALIGNMENT = 64
"""Bytes: a register's width. A load that crosses a cache line takes twice as long."""

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
INTEGERS = ir.VectorType(ir.IntType(32), LANES)


def aligned(size: int) -> NDArray[np.float32]:
    """float32 zeros `(size,)` that begin on a cache line."""
    raw = np.zeros(size * 4 + ALIGNMENT, dtype=np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + size * 4].view(np.float32)


def padded(length: int) -> int:
    """The next multiple of `LANES`."""
    return -(-length // LANES) * LANES


class _Lanes(types.Type):
    """numba's name for an LLVM vector of `LANES` floats."""

    def __init__(self) -> None:
        super().__init__(name=f"lanes{LANES}")


lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


@intrinsic
def at(typing: Any, array: Any, place: Any) -> Any:
    """array[place] without Python's meaning of a negative place, which costs an instruction or two a product."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        return builder.load(builder.gep(data, [given[1]]))

    return array.dtype(array, types.intp), code


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """The `LANES` numbers from `array[offset]` on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, given), align=4)

    return lanes(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, offset: Any, values: Any) -> Any:
    """Writes `values` to `array` from `offset` on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[2], _pointer(context, builder, signature, given), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


@intrinsic
def splat(typing: Any, number: Any) -> Any:
    """One number in every lane."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _splat(builder, given[0])

    return lanes(types.float32), code


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once; `a` is a number or lanes."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first = given[0] if signature.args[0] == lanes else _splat(builder, given[0])
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        return builder.call(fused, [first, given[1], given[2]])

    return lanes(lanes if a == lanes else types.float32, lanes, lanes), code


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return lanes(lanes, lanes), lambda context, builder, signature, given: builder.fadd(*given)


@intrinsic
def subtract(typing: Any, a: Any, b: Any) -> Any:
    """a - b."""
    return lanes(lanes, lanes), lambda context, builder, signature, given: builder.fsub(*given)


@intrinsic
def multiply(typing: Any, a: Any, b: Any) -> Any:
    """a * b."""
    return lanes(lanes, lanes), lambda context, builder, signature, given: builder.fmul(*given)


@intrinsic
def divide(typing: Any, a: Any, b: Any) -> Any:
    """a / b."""
    return lanes(lanes, lanes), lambda context, builder, signature, given: builder.fdiv(*given)


@intrinsic
def inverse_root_guess(typing: Any, a: Any) -> Any:
    """1 / sqrt(a) to 3.5%, from the exponent's bits: where Newton's iteration begins. Finite at 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        halved = builder.lshr(builder.bitcast(given[0], INTEGERS), ir.Constant(INTEGERS, [1] * LANES))
        return builder.bitcast(builder.sub(ir.Constant(INTEGERS, [0x5F3759DF] * LANES), halved), VECTOR)

    return lanes(lanes), code


@intrinsic
def positive(typing: Any, values: Any, where: Any) -> Any:
    """`values` where `where` > 0 or NaN, else +0: ReLU is positive(x, x), and positive(dL/dy, y) its derivative.

    A ReLU that swallowed NaN, as PyTorch's does not, would hide that a training has diverged.
    """

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_unordered(">", given[1], zero), given[0], zero)

    return lanes(lanes, lanes), code


@intrinsic
def dot(typing: Any, a: Any, b: Any) -> Any:
    """The sum of a * b over the lanes, in a fixed order."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        part = _folded_product(builder, given[0], given[1])
        while part.type.count > 1:
            half = part.type.count // 2
            part = builder.fadd(part_of(builder, part, 0, half), part_of(builder, part, half, half))
        return builder.extract_element(part, index(0))

    return types.float32(lanes, lanes), code


@intrinsic
def dot4(typing: Any, a: Any, b0: Any, b1: Any, b2: Any, b3: Any, array: Any, offset: Any) -> Any:
    """Writes dot(a, b0), ..., dot(a, b3) to `array` from `offset` on: the last additions of the four are shared.

    The same bits as `dot` gives.
    """

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        parts = [_folded_product(builder, given[0], b) for b in given[1:5]]
        # 16 partial sums each. Halves are added as dot does, those of two, then of all four, in one register.
        first, second = (_sums(builder, parts[i], parts[i + 1], EIGHTS) for i in (0, 2))
        quads = _sums(builder, first, second, FOURS)
        for swapped in (TWOS, ONES):
            quads = builder.fadd(quads, shuffled(builder, quads, quads, swapped))
        four = shuffled(builder, quads, quads, [0, 4, 8, 12])
        place = builder.gep(context.make_array(signature.args[5])(context, builder, given[5]).data, [given[6]])
        builder.store(four, builder.bitcast(place, four.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(lanes, lanes, lanes, lanes, lanes, array, types.intp), code


def _folded_product(builder: Any, a: Any, b: Any) -> Any:
    """a * b with its quarters added, by multiply-adds: 16 partial sums."""
    quarter = LANES // 4
    kind = ir.VectorType(FLOAT, quarter)
    name = f"llvm.fma.v{quarter}f32"
    fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    total = builder.fmul(part_of(builder, a, 0, quarter), part_of(builder, b, 0, quarter))
    for first in range(quarter, LANES, quarter):
        total = builder.call(fused, [part_of(builder, a, first, quarter), part_of(builder, b, first, quarter), total])
    return total


EIGHTS = [*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)]
FOURS = [i for i in range(32) if i % 8 < 4], [i for i in range(32) if i % 8 >= 4]
TWOS, ONES = [i ^ 2 for i in range(16)], [i ^ 1 for i in range(16)]


def _sums(builder: Any, a: Any, b: Any, halves: Any) -> Any:
    """The two halves of each group of a, then of b, added."""
    return builder.fadd(shuffled(builder, a, b, halves[0]), shuffled(builder, a, b, halves[1]))


def part_of(builder: Any, vector: Any, first: int, length: int) -> Any:
    return shuffled(builder, vector, ir.Constant(vector.type, ir.Undefined), range(first, first + length))


def shuffled(builder: Any, a: Any, b: Any, places: Any) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places)))


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(VECTOR, ir.Undefined)
    return shuffled(builder, builder.insert_element(undefined, number, index(0)), undefined, [0] * LANES)


def index(place: int) -> Any:
    return ir.Constant(ir.IntType(32), place)


def _pointer(context: Any, builder: Any, signature: Any, given: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, given[0]).data
    return builder.bitcast(builder.gep(data, [given[1]]), VECTOR.as_pointer())
