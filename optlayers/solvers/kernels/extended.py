"""Sums of products in twice the precision of float64, as an unevaluated sum of two numbers.

Errors of a sum and of a product of two floats are floats themselves (Dekker, 1971; Knuth, TAOCP 2, 4.2.2); with a fused
multiplication and addition the latter is one instruction. Accumulated, they make a sum of products as exact as if it
were computed with 106 bits and rounded (Ogita, Rump and Oishi, Accurate sum and dot product, 2005).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from optlayers.solvers.kernels.lanes import part

__all__ = ["add_product", "two_sum"]


@intrinsic  # type: ignore[untyped-decorator]
def _fused(_: Any, first: Any, second: Any, third: Any) -> Any:
    """``first * second + third``, rounded once."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        double = ir.DoubleType()
        kind = ir.FunctionType(double, [double] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.f64")
        return builder.call(function, args)

    return types.float64(types.float64, types.float64, types.float64), generate


@part
def two_sum(first, second):  # type: ignore[no-untyped-def]
    """The rounded sum, and what rounding lost."""
    total = first + second
    other = total - first
    return total, (first - (total - other)) + (second - other)


@part
def add_product(high, low, first, second):  # type: ignore[no-untyped-def]
    """``high + low + first * second``, as two numbers again."""
    product = first * second
    lost = _fused(first, second, -product)
    total, rest = two_sum(high, product)
    return total, low + (rest + lost)
