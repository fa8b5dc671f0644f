"""Sixteen float32 numbers as one value inside a compiled kernel: the same pixel of sixteen images.

A `Line` is one register of AVX-512, two of AVX2, and one cache line in memory, so that no load of one ever crosses a
cache line. Like `lanes`: `fma` rounds once, sums have a fixed order, offsets count floats, nothing checks bounds.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from supermask.engines.sparse.kernels.simd import FLOAT, VECTOR_WIDTH, extract_part, shuffle, vec64

VEC16_WIDTH = 16
"""Images side by side in a `Line`."""

VEC16 = ir.VectorType(FLOAT, VEC16_WIDTH)
CODE = ir.IntType(8)
CODES = ir.VectorType(CODE, VEC16_WIDTH)
NOTHING = ir.Constant(VEC16, [0.0] * VEC16_WIDTH)


class Vec16Type(types.Type):
    """numba's name for an LLVM vector of `IMAGES` floats."""

    def __init__(self) -> None:
        super().__init__(name=f"line{VEC16_WIDTH}")


vec16 = Vec16Type()


@register_model(Vec16Type)
class Vec16Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VEC16)


@intrinsic
def zeros16(typing: Any) -> Any:
    """Zeros."""
    return vec16(), lambda context, builder, signature, given: NOTHING


@intrinsic
def load16(typing: Any, array: Any, offset: Any) -> Any:
    """The `IMAGES` numbers from `array[offset]` on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _load(builder, _place(context, builder, signature, given, 0))

    return vec16(array, types.intp), code


@intrinsic
def store16(typing: Any, array: Any, offset: Any, values: Any) -> Any:
    """Writes `values` to `array` from `offset` on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _store(builder, given[2], _place(context, builder, signature, given, 0))
        return context.get_dummy_value()

    return types.void(array, types.intp, vec16), code


@intrinsic
def fma16(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return vec16(vec16, vec16, vec16), lambda context, builder, signature, given: _fma(builder, *given)


@intrinsic
def add16(typing: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return vec16(vec16, vec16), lambda context, builder, signature, given: builder.fadd(*given)


@intrinsic
def subtract16(typing: Any, a: Any, b: Any) -> Any:
    """a - b."""
    return vec16(vec16, vec16), lambda context, builder, signature, given: builder.fsub(*given)


@intrinsic
def accumulate_products(typing: Any, sums: Any, place: Any, a: Any, b: Any, x: Any, first: Any, second: Any) -> Any:
    """Adds to the line of `sums` at `place`: a * x[first:] + b * x[second:], the lanes' lines one after another."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        target = _place(context, builder, signature, given, 0)
        total = _load(builder, target)
        data = context.make_array(signature.args[4])(context, builder, given[4]).data
        for factor, begin in ((given[2], given[5]), (given[3], given[6])):
            for part in range(0, VECTOR_WIDTH, VEC16_WIDTH):
                offset = builder.add(begin, ir.Constant(begin.type, part))
                place = builder.bitcast(builder.gep(data, [offset]), VEC16.as_pointer())
                total = _fma(builder, extract_part(builder, factor, part, VEC16_WIDTH), _load(builder, place), total)
        _store(builder, total, target)
        return context.get_dummy_value()

    return types.void(sums, types.intp, vec64, vec64, x, types.intp, types.intp), code


@intrinsic
def accumulate_sums(
    typing: Any, array: Any, offset: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any
) -> Any:
    """Adds the sums of eight lines to the eight numbers from `array[offset]` on; the additions are shared."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        rows = [builder.fadd(extract_part(builder, v, 0, 8), extract_part(builder, v, 8, 8)) for v in given[2:]]
        # A row holds the partial sums of one line, then of two, four, eight: pairs are added side by side.
        while len(rows) > 1:
            pairs = zip(rows[::2], rows[1::2], strict=True)
            rows = [_pairs_added(builder, low, high) for low, high in pairs]
        kind = rows[0].type.as_pointer()
        place = builder.bitcast(_place(context, builder, signature, given, 0, cast=False), kind)
        builder.store(builder.fadd(builder.load(place, align=4), rows[0]), place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, *(vec16,) * 8), code


@intrinsic
def store_max(typing: Any, x: Any, a: Any, b: Any, c: Any, d: Any, out: Any, place: Any, codes: Any, mark: Any) -> Any:
    """The largest of four lines of `x` to `out[place:]`, and which one it was (0 to 3, the first of equals) to `codes`.

    A NaN is larger than anything, as in PyTorch.
    """

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        values = [_load(builder, builder.bitcast(builder.gep(data, [o]), VEC16.as_pointer())) for o in given[1:5]]
        largest, which = values[0], ir.Constant(CODES, [0] * VEC16_WIDTH)
        for number, value in enumerate(values[1:], start=1):
            nan = builder.fcmp_unordered("uno", value, value)
            wins = builder.or_(builder.fcmp_ordered(">", value, largest), nan)
            largest = builder.select(wins, value, largest)
            which = builder.select(wins, ir.Constant(CODES, [number] * VEC16_WIDTH), which)
        _store(builder, largest, _place(context, builder, signature, given, 5))
        _store_codes(context, builder, signature, given, 7, which)
        return context.get_dummy_value()

    offset = types.intp
    return types.void(x, offset, offset, offset, offset, out, offset, codes, offset), code


@intrinsic
def store_max_grad(typing: Any, values: Any, codes: Any, mark: Any, a: Any, b: Any, c: Any, d: Any, out: Any) -> Any:
    """The way back for gradients: `values` to that of four places of `out` which its code names, +0 to the others."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        marks = context.make_array(signature.args[1])(context, builder, given[1]).data
        which = builder.load(builder.bitcast(builder.gep(marks, [given[2]]), CODES.as_pointer()), align=1)
        data = context.make_array(signature.args[7])(context, builder, given[7]).data
        for number, offset in enumerate(given[3:7]):
            here = builder.icmp_unsigned("==", which, ir.Constant(CODES, [number] * VEC16_WIDTH))
            place = builder.bitcast(builder.gep(data, [offset]), VEC16.as_pointer())
            _store(builder, builder.select(here, given[0], NOTHING), place)
        return context.get_dummy_value()

    offset = types.intp
    return types.void(vec16, codes, offset, offset, offset, offset, offset, out), code


def _pairs_added(builder: Any, low: Any, high: Any) -> Any:
    length = low.type.count
    even = shuffle(builder, low, high, range(0, 2 * length, 2))
    odd = shuffle(builder, low, high, range(1, 2 * length, 2))
    return builder.fadd(even, odd)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(VEC16, [VEC16] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{VEC16_WIDTH}f32"), [a, b, c])


def _load(builder: Any, place: Any) -> Any:
    return builder.load(place, align=4)


def _store(builder: Any, values: Any, place: Any) -> None:
    builder.store(values, place, align=4)


def _store_codes(context: Any, builder: Any, signature: Any, given: Any, argument: int, values: Any) -> None:
    data = context.make_array(signature.args[argument])(context, builder, given[argument]).data
    place = builder.bitcast(builder.gep(data, [given[argument + 1]]), CODES.as_pointer())
    builder.store(values, place, align=1)


def _place(context: Any, builder: Any, signature: Any, given: Any, argument: int, cast: bool = True) -> Any:
    """The address that an array and the offset after it, as arguments of an intrinsic, stand for."""
    data = context.make_array(signature.args[argument])(context, builder, given[argument]).data
    place = builder.gep(data, [given[argument + 1]])
    is_float = cast and signature.args[argument].dtype == types.float32 and signature.return_type != types.float32
    return builder.bitcast(place, VEC16.as_pointer()) if is_float else place
