"""SIMD vectors of 64 float32 numbers for compiled kernels: loads, stores, arithmetic, sums, bit masks.

`vec64` is a numba type of this project, an LLVM vector: 4 registers of AVX-512, 8 of AVX2, 16 of SSE or NEON. A kernel
that sums in a `vec64` variable sums in registers, and reads like the formula:

    total = splat(bias[j])
    for k in range(first[j], first[j + 1]):
        total = fma(weight[k], load(x, source[k] * VECTOR_WIDTH), total)
    store(y, j * VECTOR_WIDTH, total)

`fma` rounds once, on every machine. Nothing is reordered except inside `dot` and `dot4`, in a fixed order, so equal
inputs give bit-identical results.

Every function that takes `(array, offset)` counts the offset in elements; arrays are one-dimensional, C-contiguous
and, unless a docstring says otherwise, float32. Nothing checks bounds. In the code generators below, `args` are the
LLVM values of the call's arguments.
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
"""Floats in a `vec64`: enough for an AVX-512 core to hide the latency of its multiply-adds; FC's batch of 60 fits."""

ALIGNMENT = 64
"""Bytes: the width of a register and of a cache line. A load that crosses a cache line takes twice as long."""

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, VECTOR_WIDTH)
INTEGERS = ir.VectorType(ir.IntType(32), VECTOR_WIDTH)
BOOL = ir.IntType(1)
WORD = ir.IntType(64)


def aligned_zeros(size: int) -> NDArray[np.float32]:
    """Return float32 zeros `(size,)` that begin on a cache line."""
    raw = np.zeros(size * 4 + ALIGNMENT, dtype=np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + size * 4].view(np.float32)


def round_up(length: int) -> int:
    """Return the smallest multiple of `VECTOR_WIDTH` that is at least `length`."""
    return -(-length // VECTOR_WIDTH) * VECTOR_WIDTH


class Vec64Type(types.Type):
    """numba's type of an LLVM vector of `VECTOR_WIDTH` floats."""

    def __init__(self) -> None:
        super().__init__(name=f"lanes{VECTOR_WIDTH}")


vec64 = Vec64Type()


@register_model(Vec64Type)
class Vec64Model(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, VECTOR)


# --- loads, stores, arithmetic ---


@intrinsic
def load_scalar(typing: Any, array: Any, position: Any) -> Any:
    """Return array[position]. A negative position is not Python's: the check would cost an instruction per product."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), codegen


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Return the `VECTOR_WIDTH` floats of `array` from `offset` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # align=4: offsets are multiples of 4 bytes only. Aligned addresses are as fast without the promise.
        return builder.load(_vector_pointer(context, builder, signature, args), align=4)

    return vec64(array, types.intp), codegen


@intrinsic
def store(typing: Any, array: Any, offset: Any, values: Any) -> Any:
    """Write `values` to `array` from `offset` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _vector_pointer(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vec64), codegen


@intrinsic
def splat(typing: Any, number: Any) -> Any:
    """Return a vector with one number in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return vec64(types.float32), codegen


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once; `a` is a number or a vector."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        factor = args[0] if signature.args[0] == vec64 else _splat(builder, args[0])
        function_type = ir.FunctionType(VECTOR, [VECTOR] * 3)
        # LLVM's fma intrinsic, never its fmuladd: that one may round twice where a machine has no FMA.
        fused = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{VECTOR_WIDTH}f32")
        return builder.call(fused, [factor, args[1], args[2]])

    return vec64(vec64 if a == vec64 else types.float32, vec64, vec64), codegen


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """Return a + b."""
    return vec64(vec64, vec64), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def subtract(typing: Any, a: Any, b: Any) -> Any:
    """Return a - b."""
    return vec64(vec64, vec64), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def multiply(typing: Any, a: Any, b: Any) -> Any:
    """Return a * b."""
    return vec64(vec64, vec64), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def divide(typing: Any, a: Any, b: Any) -> Any:
    """Return a / b."""
    return vec64(vec64, vec64), lambda context, builder, signature, args: builder.fdiv(*args)


@intrinsic
def rsqrt_estimate(typing: Any, a: Any) -> Any:
    """Return 1 / sqrt(a) to 3.5%, from the exponent's bits: the first value of Newton's iteration. Finite at 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        halved = builder.lshr(builder.bitcast(args[0], INTEGERS), ir.Constant(INTEGERS, [1] * VECTOR_WIDTH))
        return builder.bitcast(builder.sub(ir.Constant(INTEGERS, [0x5F3759DF] * VECTOR_WIDTH), halved), VECTOR)

    return vec64(vec64), codegen


@intrinsic
def relu_where(typing: Any, values: Any, where: Any) -> Any:
    """Return `values` where `where` > 0 or NaN, else +0.

    ReLU is `relu_where(x, x)`; the gradient at its input is `relu_where(dL/dy, y)`. NaN passes, as in PyTorch: a ReLU
    that cleared NaN would hide that a run has diverged.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(VECTOR, [0.0] * VECTOR_WIDTH)
        return builder.select(builder.fcmp_unordered(">", args[1], zero), args[0], zero)

    return vec64(vec64, vec64), codegen


# --- sums over lanes ---


@intrinsic
def dot(typing: Any, a: Any, b: Any) -> Any:
    """Return the sum of a * b over the lanes, in a fixed order: quarters, then halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        partial_sums = _folded_product(builder, args[0], args[1])
        while partial_sums.type.count > 1:
            half = partial_sums.type.count // 2
            partial_sums = builder.fadd(
                extract_part(builder, partial_sums, 0, half), extract_part(builder, partial_sums, half, half)
            )
        return builder.extract_element(partial_sums, index(0))

    return types.float32(vec64, vec64), codegen


@intrinsic
def dot4(typing: Any, a: Any, b0: Any, b1: Any, b2: Any, b3: Any, array: Any, offset: Any) -> Any:
    """Write dot(a, b0), ..., dot(a, b3) to `array` from `offset` on. Bit-identical to `dot`.

    The last additions of the four sums share registers.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        products = [_folded_product(builder, args[0], b) for b in args[1:5]]
        # 16 partial sums per dot product. Halves are added in the order of `dot`: first of two dot products in one
        # register, then of all four.
        first, second = (_add_halves(builder, products[i], products[i + 1], EIGHTS) for i in (0, 2))
        quads = _add_halves(builder, first, second, FOURS)
        for swap in (TWOS, ONES):
            quads = builder.fadd(quads, shuffle(builder, quads, quads, swap))
        sums = shuffle(builder, quads, quads, [0, 4, 8, 12])
        pointer = builder.gep(context.make_array(signature.args[5])(context, builder, args[5]).data, [args[6]])
        builder.store(sums, builder.bitcast(pointer, sums.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(vec64, vec64, vec64, vec64, vec64, array, types.intp), codegen


def _folded_product(builder: Any, a: Any, b: Any) -> Any:
    """Return a * b with its quarters added by multiply-adds: 16 partial sums."""
    quarter = VECTOR_WIDTH // 4
    vector_type = ir.VectorType(FLOAT, quarter)
    name = f"llvm.fma.v{quarter}f32"
    fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector_type, [vector_type] * 3), name)
    total = builder.fmul(extract_part(builder, a, 0, quarter), extract_part(builder, b, 0, quarter))
    for first in range(quarter, VECTOR_WIDTH, quarter):
        total = builder.call(
            fused, [extract_part(builder, a, first, quarter), extract_part(builder, b, first, quarter), total]
        )
    return total


EIGHTS = [*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)]
"""Lanes of the lower and of the upper half of two vectors of 16."""
FOURS = [i for i in range(32) if i % 8 < 4], [i for i in range(32) if i % 8 >= 4]
"""Lanes of the lower and of the upper half of each group of 8."""
TWOS, ONES = [i ^ 2 for i in range(16)], [i ^ 1 for i in range(16)]
"""Lanes of 16 with the halves of each group of 4, and of 2, exchanged."""


def _add_halves(builder: Any, a: Any, b: Any, halves: Any) -> Any:
    """Return the sums of the two halves of each group of lanes, of a and then of b."""
    return builder.fadd(shuffle(builder, a, b, halves[0]), shuffle(builder, a, b, halves[1]))


def extract_part(builder: Any, vector: Any, first: int, length: int) -> Any:
    """Return the lanes `first` to `first + length - 1` as a shorter vector."""
    return shuffle(builder, vector, ir.Constant(vector.type, ir.Undefined), range(first, first + length))


def shuffle(builder: Any, a: Any, b: Any, lanes: Any) -> Any:
    """Return the chosen lanes of a and b; lanes of b are numbered after those of a."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(VECTOR, ir.Undefined)
    return shuffle(builder, builder.insert_element(undefined, number, index(0)), undefined, [0] * VECTOR_WIDTH)


def index(lane: int) -> Any:
    """Return the LLVM constant that numbers a lane."""
    return ir.Constant(ir.IntType(32), lane)


def _vector_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of the vector at (array, offset), the first two arguments of an intrinsic."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), VECTOR.as_pointer())


# --- bits, bytes, cache ---


@intrinsic
def select_lanes(typing: Any, bits: Any, values: Any) -> Any:
    """Return `values` in the lanes whose bit is set, +0 (never -0 or NaN) in the others. Bit 0 is lane 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = builder.bitcast(args[0], ir.VectorType(BOOL, VECTOR_WIDTH))
        return builder.select(mask, args[1], ir.Constant(VECTOR, [0.0] * VECTOR_WIDTH))

    return vec64(types.uint64, vec64), codegen


@intrinsic
def nonzero_mask(typing: Any, values: Any) -> Any:
    """Return a uint64 with bit i set where lane i is > 0. Pixels are never negative, so > 0 means nonzero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        positive = builder.fcmp_ordered(">", args[0], ir.Constant(VECTOR, [0.0] * VECTOR_WIDTH))
        return builder.bitcast(positive, WORD)

    return types.uint64(vec64), codegen


@intrinsic
def count_trailing_zeros(typing: Any, word: Any) -> Any:
    """Return the number of the lowest set bit of a uint64 that is not 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # The 1 declares a zero word undefined, which saves the check for it.
        return builder.cttz(args[0], ir.Constant(BOOL, 1))

    return types.int64(types.uint64), codegen


@intrinsic
def prefetch(typing: Any, array: Any, offset: Any) -> Any:
    """Prefetch the cache line of `array[offset]` for reading. The array may have any type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(32)
        pointer = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, integer, integer, integer])
        llvm_prefetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        # Read access, keep in all levels of the cache, data cache.
        builder.call(llvm_prefetch, [pointer, integer(0), integer(3), integer(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def load_u64(typing: Any, array: Any, offset: Any) -> Any:
    """Return the 8 bytes of a uint8 array from `offset` on as a uint64: 0 exactly if all of them are 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.bitcast(builder.gep(data, [args[1]]), WORD.as_pointer()), align=1)

    return types.uint64(array, types.intp), codegen


@intrinsic
def extract_byte(typing: Any, words: Any, number: Any) -> Any:
    """Return byte `number` (0 is the lowest) of each word of `words`, uint64 `(VECTOR_WIDTH,)`, as floats."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector_type = ir.VectorType(WORD, VECTOR_WIDTH)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        bits = builder.shl(args[1], ir.Constant(WORD, 3))
        undefined = ir.Constant(vector_type, ir.Undefined)
        shifts = shuffle(builder, builder.insert_element(undefined, bits, index(0)), undefined, [0] * VECTOR_WIDTH)
        shifted = builder.lshr(builder.load(builder.bitcast(data, vector_type.as_pointer()), align=8), shifts)
        low = builder.and_(builder.trunc(shifted, INTEGERS), ir.Constant(INTEGERS, [255] * VECTOR_WIDTH))
        # Signed: its conversion is one instruction on AVX2, the unsigned one several; a byte is positive in both.
        return builder.sitofp(low, VECTOR)

    return vec64(words, types.int64), codegen
