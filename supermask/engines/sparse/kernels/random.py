"""Vectorized sigmoid and counter-based uniform numbers, identical in every engine.

Weight number j of a layer (C order of the kernel) has the uniform number mix(mix(j + k0) xor k1) >> 8, over 2^24, where
(k0, k1) are the keys of the forward pass: as `core.learned_masks.uniform_samples`.
Source: Zhou et al. 2019, Sec. 5 (a new mask in every forward pass).
"""

from __future__ import annotations

from math import factorial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from supermask.engines.sparse.kernels.simd import FLOAT, INTEGERS, VECTOR, VECTOR_WIDTH, index, vec64

LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693145751953125, 1.428606820309417e-06
"""ln 2 in two parts: the first has so few bits that its product with a whole number is exact."""

ROUND_MAGIC = 12582912.0
"""1.5 * 2^23: added to a small float32, it leaves the nearest whole number in the last bits."""

SIGMOID_CLIP = 87.0
"""Largest exponent that is used: exp(87) is still a float32."""


@intrinsic
def sigmoid(typing: Any, x: Any) -> Any:
    """Return 1 / (1 + exp(-x)), with a relative error of about 2e-7; NaN stays NaN.

    exp(y) = 2^n exp(r) with n = round(y / ln 2) and |r| <= ln(2) / 2, exp(r) by its Taylor polynomial of degree 7.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        y = builder.fneg(args[0])
        # Ordered comparisons are false for NaN, which therefore is not clipped.
        for bound, comparison in ((SIGMOID_CLIP, ">"), (-SIGMOID_CLIP, "<")):
            y = builder.select(builder.fcmp_ordered(comparison, y, _floats(bound)), _floats(bound), y)
        shifted = _fma(builder, y, _floats(LOG2_E), _floats(ROUND_MAGIC))
        n = builder.fsub(shifted, _floats(ROUND_MAGIC))
        r = _fma(builder, n, _floats(-LN2_HIGH), y)
        r = _fma(builder, n, _floats(-LN2_LOW), r)
        power = _floats(1 / factorial(7))
        for degree in range(6, -1, -1):
            power = _fma(builder, power, r, _floats(1 / factorial(degree)))
        # 2^n: n is in the last bits of `shifted`; added to the bits of the exponent, which begin at bit 23.
        exponent = builder.shl(builder.bitcast(shifted, INTEGERS), _integers(23))
        power = builder.bitcast(builder.add(builder.bitcast(power, INTEGERS), exponent), VECTOR)
        return builder.fdiv(_floats(1.0), builder.fadd(power, _floats(1.0)))

    return vec64(vec64), codegen


@intrinsic
def hash_uniform(typing: Any, key0: Any, key1: Any, first: Any, step: Any) -> Any:
    """Return uniform numbers in [0, 1), multiples of 2^-24, of the weights number first, first + step, ..."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word_type = ir.IntType(32)
        key0, key1, first, step = (builder.trunc(a, word_type) if a.type.width > 32 else a for a in args)
        offsets = builder.mul(_splat(builder, step), ir.Constant(INTEGERS, list(range(VECTOR_WIDTH))))
        words = builder.add(offsets, _splat(builder, builder.add(first, key0)))
        words = _mix(builder, builder.xor(_mix(builder, words), _splat(builder, key1)))
        return builder.fmul(builder.uitofp(builder.lshr(words, _integers(8)), VECTOR), _floats(2.0**-24))

    return vec64(types.uint32, types.uint32, types.intp, types.intp), codegen


@intrinsic
def select_less(typing: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """Return `then` where a < b, else `otherwise` (also where a or b is NaN)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return vec64(vec64, vec64, vec64, vec64), codegen


def _mix(builder: Any, words: Any) -> Any:
    """Return a bijection of 32-bit words in which every input bit changes about half of the output bits."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        words = builder.mul(builder.xor(words, builder.lshr(words, _integers(shift))), _integers(factor))
    return builder.xor(words, builder.lshr(words, _integers(15)))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    function_type = ir.FunctionType(VECTOR, [VECTOR] * 3)
    fused = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{VECTOR_WIDTH}f32")
    return builder.call(fused, [a, b, c])


def _floats(number: float) -> Any:
    return ir.Constant(VECTOR, [ir.Constant(FLOAT, number)] * VECTOR_WIDTH)


def _integers(number: int) -> Any:
    return ir.Constant(INTEGERS, [number] * VECTOR_WIDTH)


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(INTEGERS, ir.Undefined)
    vector = builder.insert_element(undefined, number, index(0))
    return builder.shuffle_vector(vector, undefined, ir.Constant(INTEGERS, [0] * VECTOR_WIDTH))
