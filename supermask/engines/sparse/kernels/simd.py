"""Sixty-four float32 numbers as one value inside a compiled kernel: what a processor's vector registers hold.

`Lanes` is a numba type of our own, an LLVM vector: 4 registers of AVX-512, 8 of AVX2, 16 of SSE or NEON. A kernel that
sums in a `Lanes` variable sums in registers, and reads like the formula:

    total = splat(bias[j])
    for k in range(first[j], first[j + 1]):
        total = fma(weight[k], load(x, source[k] * LANES), total)
    store(y, j * LANES, total)

`fma` rounds once, on every machine, and nothing is reordered but inside `dot` and `dot4`, in a fixed order: equal
inputs give equal bits. Offsets count floats; arrays are one-dimensional, C-contiguous float32. Nothing checks bounds.

Bits, bytes and the processor's cache, for kernels that compute in `Lanes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

VECTOR_WIDTH = 64
"""Numbers in a `Lanes`: enough for an AVX-512 core to hide the latency of its multiply-adds; FC's batch of 60 fits."""

ALIGNMENT = 64
"""Bytes: a register's width. A load that crosses a cache line takes twice as long."""

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, VECTOR_WIDTH)
INTEGERS = ir.VectorType(ir.IntType(32), VECTOR_WIDTH)


def aligned_zeros(size: int) -> NDArray[np.float32]:
    """float32 zeros `(size,)` that begin on a cache line."""
    raw = np.zeros(size * 4 + ALIGNMENT, dtype=np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + size * 4].view(np.float32)


def round_up(length: int) -> int:
    """The next multiple of `LANES`."""
    return -(-length // VECTOR_WIDTH) * VECTOR_WIDTH


class Vec64Type(types.Type):
    """numba's name for an LLVM vector of `LANES` floats."""

    def __init__(self) -> None:
        super().__init__(name=f"lanes{VECTOR_WIDTH}")


vec64 = Vec64Type()


@register_model(Vec64Type)
class Vec64Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


@intrinsic
def load_scalar(typing: Any, array: Any, place: Any) -> Any:
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

    return vec64(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, offset: Any, values: Any) -> Any:
    """Writes `values` to `array` from `offset` on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[2], _pointer(context, builder, signature, given), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vec64), code


@intrinsic
def splat(typing: Any, number: Any) -> Any:
    """One number in every lane."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _splat(builder, given[0])

    return vec64(types.float32), code


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once; `a` is a number or lanes."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first = given[0] if signature.args[0] == vec64 else _splat(builder, given[0])
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{VECTOR_WIDTH}f32")
        return builder.call(fused, [first, given[1], given[2]])

    return vec64(vec64 if a == vec64 else types.float32, vec64, vec64), code


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return vec64(vec64, vec64), lambda context, builder, signature, given: builder.fadd(*given)


@intrinsic
def subtract(typing: Any, a: Any, b: Any) -> Any:
    """a - b."""
    return vec64(vec64, vec64), lambda context, builder, signature, given: builder.fsub(*given)


@intrinsic
def multiply(typing: Any, a: Any, b: Any) -> Any:
    """a * b."""
    return vec64(vec64, vec64), lambda context, builder, signature, given: builder.fmul(*given)


@intrinsic
def divide(typing: Any, a: Any, b: Any) -> Any:
    """a / b."""
    return vec64(vec64, vec64), lambda context, builder, signature, given: builder.fdiv(*given)


@intrinsic
def rsqrt_estimate(typing: Any, a: Any) -> Any:
    """1 / sqrt(a) to 3.5%, from the exponent's bits: where Newton's iteration begins. Finite at 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        halved = builder.lshr(builder.bitcast(given[0], INTEGERS), ir.Constant(INTEGERS, [1] * VECTOR_WIDTH))
        return builder.bitcast(builder.sub(ir.Constant(INTEGERS, [0x5F3759DF] * VECTOR_WIDTH), halved), VECTOR)

    return vec64(vec64), code


@intrinsic
def relu_where(typing: Any, values: Any, where: Any) -> Any:
    """`values` where `where` > 0 or NaN, else +0: ReLU is positive(x, x), and positive(dL/dy, y) its derivative.

    A ReLU that swallowed NaN, as PyTorch's does not, would hide that a training has diverged.
    """

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        zero = ir.Constant(VECTOR, [0.0] * VECTOR_WIDTH)
        return builder.select(builder.fcmp_unordered(">", given[1], zero), given[0], zero)

    return vec64(vec64, vec64), code


@intrinsic
def dot(typing: Any, a: Any, b: Any) -> Any:
    """The sum of a * b over the lanes, in a fixed order."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        part = _folded_product(builder, given[0], given[1])
        while part.type.count > 1:
            half = part.type.count // 2
            part = builder.fadd(extract_part(builder, part, 0, half), extract_part(builder, part, half, half))
        return builder.extract_element(part, index(0))

    return types.float32(vec64, vec64), code


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
            quads = builder.fadd(quads, shuffle(builder, quads, quads, swapped))
        four = shuffle(builder, quads, quads, [0, 4, 8, 12])
        place = builder.gep(context.make_array(signature.args[5])(context, builder, given[5]).data, [given[6]])
        builder.store(four, builder.bitcast(place, four.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(vec64, vec64, vec64, vec64, vec64, array, types.intp), code


def _folded_product(builder: Any, a: Any, b: Any) -> Any:
    """a * b with its quarters added, by multiply-adds: 16 partial sums."""
    quarter = VECTOR_WIDTH // 4
    kind = ir.VectorType(FLOAT, quarter)
    name = f"llvm.fma.v{quarter}f32"
    fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    total = builder.fmul(extract_part(builder, a, 0, quarter), extract_part(builder, b, 0, quarter))
    for first in range(quarter, VECTOR_WIDTH, quarter):
        total = builder.call(
            fused, [extract_part(builder, a, first, quarter), extract_part(builder, b, first, quarter), total]
        )
    return total


EIGHTS = [*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)]
FOURS = [i for i in range(32) if i % 8 < 4], [i for i in range(32) if i % 8 >= 4]
TWOS, ONES = [i ^ 2 for i in range(16)], [i ^ 1 for i in range(16)]


def _sums(builder: Any, a: Any, b: Any, halves: Any) -> Any:
    """The two halves of each group of a, then of b, added."""
    return builder.fadd(shuffle(builder, a, b, halves[0]), shuffle(builder, a, b, halves[1]))


def extract_part(builder: Any, vector: Any, first: int, length: int) -> Any:
    return shuffle(builder, vector, ir.Constant(vector.type, ir.Undefined), range(first, first + length))


def shuffle(builder: Any, a: Any, b: Any, places: Any) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places)))


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(VECTOR, ir.Undefined)
    return shuffle(builder, builder.insert_element(undefined, number, index(0)), undefined, [0] * VECTOR_WIDTH)


def index(place: int) -> Any:
    return ir.Constant(ir.IntType(32), place)


def _pointer(context: Any, builder: Any, signature: Any, given: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, given[0]).data
    return builder.bitcast(builder.gep(data, [given[1]]), VECTOR.as_pointer())


BOOL = ir.IntType(1)
WORD = ir.IntType(64)


@intrinsic
def select_lanes(typing: Any, bits: Any, values: Any) -> Any:
    """`values` in the lanes whose bit is set, +0 (never -0 or NaN) in the others. Bit 0 is lane 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        mask = builder.bitcast(given[0], ir.VectorType(BOOL, VECTOR_WIDTH))
        return builder.select(mask, given[1], ir.Constant(VECTOR, [0.0] * VECTOR_WIDTH))

    return vec64(types.uint64, vec64), code


@intrinsic
def nonzero_mask(typing: Any, values: Any) -> Any:
    """A word with bit i set where lane i is > 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        above = builder.fcmp_ordered(">", given[0], ir.Constant(VECTOR, [0.0] * VECTOR_WIDTH))
        return builder.bitcast(above, WORD)

    return types.uint64(vec64), code


@intrinsic
def count_trailing_zeros(typing: Any, word: Any) -> Any:
    """The number of the lowest set bit of a word that is not 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.cttz(given[0], ir.Constant(BOOL, 1))

    return types.int64(types.uint64), code


@intrinsic
def prefetch(typing: Any, array: Any, offset: Any) -> Any:
    """Asks for the cache line at `array[offset]`, which is needed soon."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        number = ir.IntType(32)
        place = builder.gep(context.make_array(signature.args[0])(context, builder, given[0]).data, [given[1]])
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(ask, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def load_u64(typing: Any, array: Any, offset: Any) -> Any:
    """The 8 bytes from `array[offset]` on as one number: 0 exactly if all of them are."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        return builder.load(builder.bitcast(builder.gep(data, [given[1]]), WORD.as_pointer()), align=1)

    return types.uint64(array, types.intp), code


@intrinsic
def extract_byte(typing: Any, words: Any, number: Any) -> Any:
    """Byte `number` (0 is the lowest) of each of the `LANES` words in `words`, uint64 `(LANES,)`, as floats."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.VectorType(WORD, VECTOR_WIDTH)
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        shift = builder.shl(given[1], ir.Constant(WORD, 3))
        undefined = ir.Constant(kind, ir.Undefined)
        shifts = shuffle(builder, builder.insert_element(undefined, shift, index(0)), undefined, [0] * VECTOR_WIDTH)
        moved = builder.lshr(builder.load(builder.bitcast(data, kind.as_pointer()), align=8), shifts)
        low = builder.and_(builder.trunc(moved, INTEGERS), ir.Constant(INTEGERS, [255] * VECTOR_WIDTH))
        return builder.sitofp(low, VECTOR)

    return vec64(words, types.int64), code
