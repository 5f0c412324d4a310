"""Four instances at a time: a numba type for a vector of four float64, one number per instance.

Instances of one polytope share every index of every sparse loop, so a loop is run for :data:`LANES` instances at
once: where a scalar kernel would hold one number, these hold a vector register. An array of ``count`` such vectors
is a flat float64 array of length ``count * LANES``; vector ``i`` belongs to its entries ``LANES * i``, ….

Numba leaves loops of four steps scalar (LLVM unrolls them before it vectorizes), hence a type of our own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from optlayers.common.kernel_cache import cached_njit
from optlayers.solvers.kernels.compiler import KernelCompiler, PartCompiler
from optlayers.solvers.kernels.flat import ASKED_FIRST, member

__all__ = [
    "LANES",
    "absolute",
    "fill",
    "jit",
    "load",
    "maximum",
    "minimum",
    "nearest_whole",
    "pack",
    "part",
    "spread",
    "square_root",
    "stay_apart",
    "store",
    "where_less",
]

LANES = 4

# The GIL is released, so that a pool of plain threads runs kernels side by side. Divisions by zero give infinities.
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
jit = cached_njit(Path(__file__).parent, pipeline_class=KernelCompiler, **_OPTIONS)
# Called by kernels only, so it needs no door for Python.
part = cast(_Decorator, numba.njit(pipeline_class=PartCompiler, no_cpython_wrapper=True, **_OPTIONS))

_VECTOR = ir.VectorType(ir.DoubleType(), LANES)


class LanesType(types.Type):
    """A vector of LANES float64."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


_LANES = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, _VECTOR)


def _spread(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, everywhere)


def _define_operator(function: Any, instruction: str) -> None:
    """Vectors with vectors, and with numbers that are the same for all lanes."""

    class Template(AbstractTemplate):  # type: ignore[misc]
        metadata = ASKED_FIRST

        def generic(self, args: Any, kws: Any) -> Any:
            if not any(isinstance(kind, LanesType) for kind in args):
                return None
            return signature(_LANES, *(kind if isinstance(kind, LanesType) else types.float64 for kind in args))

    infer_global(function)(Template)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        operands = [a if isinstance(t, LanesType) else _spread(builder, a) for t, a in zip(sig.args, args, strict=True)]
        return getattr(builder, instruction)(*operands)

    for left, right in ((LanesType, LanesType), (LanesType, types.Float), (types.Float, LanesType)):
        lower_builtin(function, left, right)(lower)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_operator(_function, _instruction)


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any, width: int) -> Any:
    data = member(context, builder, kind, array, "data")
    return builder.gep(data, [builder.mul(index, ir.Constant(index.type, width))])


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Vector ``index`` of an array of vectors."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], args[0], args[1], LANES)
        return builder.load(builder.bitcast(address, _VECTOR.as_pointer()), align=8)

    return _LANES(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write vector ``index`` of an array of vectors."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], args[0], args[1], LANES)
        builder.store(args[2], builder.bitcast(address, _VECTOR.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, _LANES), generate


@intrinsic  # type: ignore[untyped-decorator]
def spread(typing_context: Any, value: Any) -> Any:
    """A vector that holds one number in all lanes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _spread(builder, args[0])

    return _LANES(types.float64), generate


@intrinsic  # type: ignore[untyped-decorator]
def pack(typing_context: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """A number for each lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = ir.Constant(_VECTOR, ir.Undefined)
        for lane, value in enumerate(args):
            vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
        return vector

    return _LANES(*[types.float64] * LANES), generate


def _selecting(comparison: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def select(typing_context: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[0], args[1])

        return _LANES(_LANES, _LANES), generate

    return select


minimum = _selecting("<")
maximum = _selecting(">")


@intrinsic  # type: ignore[untyped-decorator]
def where_less(typing_context: Any, left: Any, right: Any, then: Any, otherwise: Any) -> Any:
    """``then`` in lanes where ``left < right``, else ``otherwise``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return _LANES(_LANES, _LANES, _LANES, _LANES), generate


def _unary(name: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def apply(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(_VECTOR, [_VECTOR])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f64")
            return builder.call(function, [args[0]])

        return _LANES(_LANES), generate

    return apply


@intrinsic  # type: ignore[untyped-decorator]
def stay_apart(typing_context: Any) -> Any:
    """Said in a part: it is not copied into its callers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


absolute = _unary("fabs")
square_root = _unary("sqrt")


@intrinsic  # type: ignore[untyped-decorator]
def nearest_whole(typing_context: Any, value: Any) -> Any:
    """What ``np.round`` says of a number, which numba compiles for all numbers of digits."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.DoubleType(), [ir.DoubleType()])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f64"), [args[0]])

    return types.float64(types.float64), generate


@part
def fill(vectors, number):  # type: ignore[no-untyped-def]
    """Write one number to all vectors."""
    for e in range(len(vectors)):
        vectors[e] = number
