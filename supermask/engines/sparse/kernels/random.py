"""Chance in lanes: sigmoids, and coins that do not depend on who throws them.

The coins are those of `learned.coins`: weight number j of a layer has mix(mix(j + k0) xor k1) >> 8, over 2^24.
Source: paper.md section 6 (a fresh mask in every forward pass).
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
"""exp(87) is still a float32."""


@intrinsic
def sigmoid(typing: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), to about 2e-7 of it; NaN stays NaN."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        y = builder.fneg(given[0])
        for bound, beyond in ((SIGMOID_CLIP, ">"), (-SIGMOID_CLIP, "<")):
            y = builder.select(builder.fcmp_ordered(beyond, y, _all(bound)), _all(bound), y)
        shifted = _fma(builder, y, _all(LOG2_E), _all(ROUND_MAGIC))
        whole = builder.fsub(shifted, _all(ROUND_MAGIC))
        rest = _fma(builder, whole, _all(-LN2_HIGH), y)
        rest = _fma(builder, whole, _all(-LN2_LOW), rest)
        power = _all(1 / factorial(7))
        for n in range(6, -1, -1):
            power = _fma(builder, power, rest, _all(1 / factorial(n)))
        exponent = builder.shl(builder.bitcast(shifted, INTEGERS), _words(23))
        power = builder.bitcast(builder.add(builder.bitcast(power, INTEGERS), exponent), VECTOR)
        return builder.fdiv(_all(1.0), builder.fadd(power, _all(1.0)))

    return vec64(vec64), code


@intrinsic
def hash_uniform(typing: Any, key0: Any, key1: Any, first: Any, step: Any) -> Any:
    """Uniform numbers in [0, 1) of the weights number first, first + step, first + 2 step, ..."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word = ir.IntType(32)
        key0, key1, first, step = (builder.trunc(g, word) if g.type.width > 32 else g for g in given)
        places = builder.mul(_spread(builder, step), ir.Constant(INTEGERS, list(range(VECTOR_WIDTH))))
        words = builder.add(places, _spread(builder, builder.add(first, key0)))
        words = _mixed(builder, builder.xor(_mixed(builder, words), _spread(builder, key1)))
        return builder.fmul(builder.uitofp(builder.lshr(words, _words(8)), VECTOR), _all(2.0**-24))

    return vec64(types.uint32, types.uint32, types.intp, types.intp), code


@intrinsic
def select_less(typing: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """`then` where a < b, else `otherwise`."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", given[0], given[1]), given[2], given[3])

    return vec64(vec64, vec64, vec64, vec64), code


def _mixed(builder: Any, words: Any) -> Any:
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        words = builder.mul(builder.xor(words, builder.lshr(words, _words(shift))), _words(factor))
    return builder.xor(words, builder.lshr(words, _words(15)))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{VECTOR_WIDTH}f32"), [a, b, c])


def _all(number: float) -> Any:
    return ir.Constant(VECTOR, [ir.Constant(FLOAT, number)] * VECTOR_WIDTH)


def _words(number: int) -> Any:
    return ir.Constant(INTEGERS, [number] * VECTOR_WIDTH)


def _spread(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(INTEGERS, ir.Undefined)
    first = builder.insert_element(undefined, number, index(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(INTEGERS, [0] * VECTOR_WIDTH))
