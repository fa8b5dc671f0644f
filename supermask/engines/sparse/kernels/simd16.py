"""SIMD vectors of 16 float32 numbers for compiled kernels: one pixel of 16 images.

A `vec16` is one register of AVX-512, two of AVX2, and one cache line in memory, so that no load of one ever crosses a
cache line. As in `simd`: `fma16` rounds once, sums have a fixed order, offsets count elements, nothing checks bounds;
`args` are the LLVM values of the call's arguments.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from supermask.engines.sparse.kernels.simd import FLOAT, VECTOR_WIDTH, extract_part, shuffle, vec64

VEC16_WIDTH = 16
"""Floats in a `vec16`: images side by side."""

VEC16 = ir.VectorType(FLOAT, VEC16_WIDTH)
CODE = ir.IntType(8)
CODES = ir.VectorType(CODE, VEC16_WIDTH)
"""Per image, the position of a maximum in its 2x2 window: 0 to 3, row by row."""
ZEROS = ir.Constant(VEC16, [0.0] * VEC16_WIDTH)


class Vec16Type(types.Type):
    """numba's type of an LLVM vector of `VEC16_WIDTH` floats."""

    def __init__(self) -> None:
        super().__init__(name=f"line{VEC16_WIDTH}")


vec16 = Vec16Type()


@register_model(Vec16Type)
class Vec16Model(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, VEC16)


@intrinsic
def zeros16(typing: Any) -> Any:
    """Return zeros."""
    return vec16(), lambda context, builder, signature, args: ZEROS


@intrinsic
def load16(typing: Any, array: Any, offset: Any) -> Any:
    """Return the `VEC16_WIDTH` floats of `array` from `offset` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, _pointer(context, builder, signature, args, 0))

    return vec16(array, types.intp), codegen


@intrinsic
def store16(typing: Any, array: Any, offset: Any, values: Any) -> Any:
    """Write `values` to `array` from `offset` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[2], _pointer(context, builder, signature, args, 0))
        return context.get_dummy_value()

    return types.void(array, types.intp, vec16), codegen


@intrinsic
def fma16(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once."""
    return vec16(vec16, vec16, vec16), lambda context, builder, signature, args: _fma(builder, *args)


@intrinsic
def add16(typing: Any, a: Any, b: Any) -> Any:
    """Return a + b."""
    return vec16(vec16, vec16), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def subtract16(typing: Any, a: Any, b: Any) -> Any:
    """Return a - b."""
    return vec16(vec16, vec16), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def accumulate_products(typing: Any, sums: Any, position: Any, a: Any, b: Any, x: Any, first: Any, second: Any) -> Any:
    """Add a * x[first:] + b * x[second:] to the vec16 of `sums` at `position`.

    a, b: vec64, four positions of 16 images. The products of all eight positions are added one after another, so one
    register holds the sum: the images stay apart, and are only added by `reduce_lines`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = _pointer(context, builder, signature, args, 0)
        total = _load(builder, target)
        data = context.make_array(signature.args[4])(context, builder, args[4]).data
        for factor, begin in ((args[2], args[5]), (args[3], args[6])):
            for part in range(0, VECTOR_WIDTH, VEC16_WIDTH):
                offset = builder.add(begin, ir.Constant(begin.type, part))
                pointer = builder.bitcast(builder.gep(data, [offset]), VEC16.as_pointer())
                total = _fma(builder, extract_part(builder, factor, part, VEC16_WIDTH), _load(builder, pointer), total)
        _store(builder, total, target)
        return context.get_dummy_value()

    return types.void(sums, types.intp, vec64, vec64, x, types.intp, types.intp), codegen


@intrinsic
def accumulate_sums(
    typing: Any, array: Any, offset: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any
) -> Any:
    """Add the sum of each of eight vec16 to the eight floats of `array` from `offset` on; additions are shared."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = [builder.fadd(extract_part(builder, v, 0, 8), extract_part(builder, v, 8, 8)) for v in args[2:]]
        # A row holds the partial sums of one vector, then of two, four, eight: neighboring lanes are added in pairs.
        while len(rows) > 1:
            pairs = zip(rows[::2], rows[1::2], strict=True)
            rows = [_add_neighbors(builder, low, high) for low, high in pairs]
        pointer_type = rows[0].type.as_pointer()
        pointer = builder.bitcast(_pointer(context, builder, signature, args, 0, cast=False), pointer_type)
        builder.store(builder.fadd(builder.load(pointer, align=4), rows[0]), pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, *(vec16,) * 8), codegen


@intrinsic
def store_max(
    typing: Any, x: Any, a: Any, b: Any, c: Any, d: Any, out: Any, out_at: Any, codes: Any, codes_at: Any
) -> Any:
    """Write the largest of the four vec16 of `x` at a, b, c, d to `out[out_at:]`, and its number to `codes`.

    Number 0 to 3 per image, the first of equal values. NaN is larger than anything, as in PyTorch.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        values = [_load(builder, builder.bitcast(builder.gep(data, [o]), VEC16.as_pointer())) for o in args[1:5]]
        largest, which = values[0], ir.Constant(CODES, [0] * VEC16_WIDTH)
        for number, value in enumerate(values[1:], start=1):
            # An ordered comparison with NaN is false, so NaN must win explicitly, and then no later value beats it.
            # A later NaN wins again: the position differs, the value does not.
            is_nan = builder.fcmp_unordered("uno", value, value)
            wins = builder.or_(builder.fcmp_ordered(">", value, largest), is_nan)
            largest = builder.select(wins, value, largest)
            which = builder.select(wins, ir.Constant(CODES, [number] * VEC16_WIDTH), which)
        _store(builder, largest, _pointer(context, builder, signature, args, 5))
        _store_codes(context, builder, signature, args, 7, which)
        return context.get_dummy_value()

    offset = types.intp
    return types.void(x, offset, offset, offset, offset, out, offset, codes, offset), codegen


@intrinsic
def store_max_grad(
    typing: Any, values: Any, codes: Any, codes_at: Any, a: Any, b: Any, c: Any, d: Any, out: Any
) -> Any:
    """Gradient of `store_max`: write `values` to that of the four places of `out` its code names, +0 to the others."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code_data = context.make_array(signature.args[1])(context, builder, args[1]).data
        which = builder.load(builder.bitcast(builder.gep(code_data, [args[2]]), CODES.as_pointer()), align=1)
        data = context.make_array(signature.args[7])(context, builder, args[7]).data
        for number, offset in enumerate(args[3:7]):
            is_maximum = builder.icmp_unsigned("==", which, ir.Constant(CODES, [number] * VEC16_WIDTH))
            pointer = builder.bitcast(builder.gep(data, [offset]), VEC16.as_pointer())
            _store(builder, builder.select(is_maximum, args[0], ZEROS), pointer)
        return context.get_dummy_value()

    offset = types.intp
    return types.void(vec16, codes, offset, offset, offset, offset, offset, out), codegen


def _add_neighbors(builder: Any, low: Any, high: Any) -> Any:
    """Return the sums of lanes 0 and 1, 2 and 3, ... of `low` and then of `high`."""
    length = low.type.count
    even = shuffle(builder, low, high, range(0, 2 * length, 2))
    odd = shuffle(builder, low, high, range(1, 2 * length, 2))
    return builder.fadd(even, odd)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    function_type = ir.FunctionType(VEC16, [VEC16] * 3)
    fused = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{VEC16_WIDTH}f32")
    return builder.call(fused, [a, b, c])


def _load(builder: Any, pointer: Any) -> Any:
    return builder.load(pointer, align=4)


def _store(builder: Any, values: Any, pointer: Any) -> None:
    builder.store(values, pointer, align=4)


def _store_codes(context: Any, builder: Any, signature: Any, args: Any, argument: int, values: Any) -> None:
    data = context.make_array(signature.args[argument])(context, builder, args[argument]).data
    pointer = builder.bitcast(builder.gep(data, [args[argument + 1]]), CODES.as_pointer())
    builder.store(values, pointer, align=1)


def _pointer(context: Any, builder: Any, signature: Any, args: Any, argument: int, cast: bool = True) -> Any:
    """Return the address at (array, offset): arguments `argument` and `argument + 1` of an intrinsic."""
    data = context.make_array(signature.args[argument])(context, builder, args[argument]).data
    pointer = builder.gep(data, [args[argument + 1]])
    # `accumulate_sums` writes eight floats, and casts the address itself.
    is_float = cast and signature.args[argument].dtype == types.float32 and signature.return_type != types.float32
    return builder.bitcast(pointer, VEC16.as_pointer()) if is_float else pointer
