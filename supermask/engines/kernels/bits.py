"""Bits, bytes and the processor's cache, for kernels that compute in `Lanes`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from supermask.engines.kernels.lanes import INTEGERS, LANES, VECTOR, index, lanes, shuffled

BOOL = ir.IntType(1)
WORD = ir.IntType(64)


@intrinsic
def chosen(typing: Any, bits: Any, values: Any) -> Any:
    """`values` in the lanes whose bit is set, +0 (never -0 or NaN) in the others. Bit 0 is lane 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        mask = builder.bitcast(given[0], ir.VectorType(BOOL, LANES))
        return builder.select(mask, given[1], ir.Constant(VECTOR, [0.0] * LANES))

    return lanes(types.uint64, lanes), code


@intrinsic
def lit(typing: Any, values: Any) -> Any:
    """A word with bit i set where lane i is > 0."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        above = builder.fcmp_ordered(">", given[0], ir.Constant(VECTOR, [0.0] * LANES))
        return builder.bitcast(above, WORD)

    return types.uint64(lanes), code


@intrinsic
def lowest(typing: Any, word: Any) -> Any:
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
def eight_bytes(typing: Any, array: Any, offset: Any) -> Any:
    """The 8 bytes from `array[offset]` on as one number: 0 exactly if all of them are."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        return builder.load(builder.bitcast(builder.gep(data, [given[1]]), WORD.as_pointer()), align=1)

    return types.uint64(array, types.intp), code


@intrinsic
def byte_of_words(typing: Any, words: Any, number: Any) -> Any:
    """Byte `number` (0 is the lowest) of each of the `LANES` words in `words`, uint64 `(LANES,)`, as floats."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.VectorType(WORD, LANES)
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        shift = builder.shl(given[1], ir.Constant(WORD, 3))
        undefined = ir.Constant(kind, ir.Undefined)
        shifts = shuffled(builder, builder.insert_element(undefined, shift, index(0)), undefined, [0] * LANES)
        moved = builder.lshr(builder.load(builder.bitcast(data, kind.as_pointer()), align=8), shifts)
        low = builder.and_(builder.trunc(moved, INTEGERS), ir.Constant(INTEGERS, [255] * LANES))
        return builder.sitofp(low, VECTOR)

    return lanes(words, types.int64), code
