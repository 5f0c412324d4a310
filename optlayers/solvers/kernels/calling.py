"""Oracles called from compiled code, through the address of a function.

An address says nothing of what is behind it, so kernels are compiled once for all oracles and come from numba's cache.
An oracle compiled by numba is entered by numba's own calling convention, in :func:`trampoline`, which is compiled once
for all oracles with arguments of the same dimensions; one in Python is a callback with the signature of a trampoline.
Either takes the address of the oracle, a table of the addresses of its arguments, their shapes one after the other,
and memory for the flat structure. It gives :data:`FOUND`, :data:`NOTHING` (no structure does without the forbidden
parts) or the number of a complaint. A membership function is called in the same way, and answers with a number.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.types.containers import BaseTuple, Tuple
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array, populate_array

from optlayers.solvers.kernels.lanes import jit, part, stay_apart

__all__ = [
    "FOUND",
    "FRACTIONAL",
    "MEMBERSHIP",
    "MISSED",
    "MIXED",
    "NOTHING",
    "NO_AMOUNT",
    "OF_MEMBERSHIP",
    "OUTSIDE",
    "RAISED",
    "UNSTEADY",
    "WRONG_SHAPE",
    "ask",
    "fill_scores",
    "kinds_of",
    "maximize",
    "missed",
    "new_workspace",
    "trampoline",
]

FOUND, NOTHING, RAISED, WRONG_SHAPE = 0, 1, 2, 3
OUTSIDE, FRACTIONAL, MISSED, UNSTEADY, NO_AMOUNT, MIXED = 4, 5, 6, 7, 8, 12
"""Answers that violate rows or bounds, are not integral, are no structure to the membership function, or are others
when asked for again; what a membership function says that is no amount: NaN, or a negative number; and points that are
no mixture of the structures that come with them."""
OF_MEMBERSHIP = 1 << 32
"""Added to the number of a complaint of the membership function."""
ORACLE, MEMBERSHIP = 0, 1
"""The functions of a call, and what is known of each: where it is entered, its own address, and where its arguments end
and its shapes begin."""
TRAMPOLINE, FUNCTION, END, SHAPES = 0, 1, 2, 3
UNUSED = 1e-7
"""An answer that is below this at a forbidden part does without it."""
SCORES, THETA, CONSTANT = 0, 1, 2
"""Where an argument comes from: the scores or the parameters of the instance, or an array that all share."""

_WORD = ir.IntType(64)
_NOWHERE = ir.IntType(8).as_pointer()


def kinds_of(arguments: tuple[types.Array, ...], returned: types.Type) -> types.TypeRef:
    """What a trampoline is compiled for. As an argument it takes no memory and says nothing at run time."""
    return types.TypeRef(Tuple((Tuple(arguments), returned)))


@intrinsic  # type: ignore[untyped-decorator]
def _as_pointer(_: Any, address: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _arguments(_: Any, table: Any, shapes: Any, kinds: Any) -> Any:
    """The arrays at the addresses of a table, with shapes from another one, in C order."""
    arrays = kinds.instance_type.types[0]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        addresses, lengths = (builder.inttoptr(value, _WORD.as_pointer()) for value in values[:2])

        def entry(of: Any, position: int) -> Any:
            return builder.load(builder.gep(of, [ir.Constant(_WORD, position)]))

        made, axes = [], 0
        for position, kind in enumerate(arrays.types):
            array = make_array(kind)(context, builder)
            shape = [entry(lengths, axes + axis) for axis in range(kind.ndim)]
            axes += kind.ndim
            size = ir.Constant(_WORD, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
            strides: list[Any] = []
            step = size
            for length in reversed(shape):
                strides.insert(0, step)
                step = builder.mul(step, length)
            data = builder.inttoptr(entry(addresses, position), array.data.type)
            populate_array(array, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
            made.append(array._getvalue())
        return context.make_tuple(builder, signature.return_type, made)

    return arrays(table, shapes, kinds), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call(_: Any, oracle: Any, arguments: Any, kinds: Any) -> Any:
    """Enter a function of numba by its address; a code, and what it returned."""
    returned = kinds.instance_type.types[1]
    both = Tuple((types.int64, returned))

    def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
        convention, kinds_given = context.call_conv, arguments.types
        function = convention.get_function_type(returned, kinds_given).as_pointer()
        given = cgutils.unpack_tuple(builder, values[1])
        status, result = convention.call_function(
            builder, builder.inttoptr(values[0], function), returned, kinds_given, given
        )
        code = builder.select(status.is_ok, ir.Constant(_WORD, FOUND), ir.Constant(_WORD, RAISED))
        result = builder.select(status.is_ok, result, context.get_constant_null(returned))
        return context.make_tuple(builder, both, (code, result))

    return both(oracle, arguments, kinds), generate


def _write(value, shapes, out):  # type: ignore[no-untyped-def]
    """Write an array, or one after the other of a tuple, after its shape was compared."""
    raise TypeError("for compiled code only")


@overload(_write)
def _overload_write(value, shapes, out):  # type: ignore[no-untyped-def]
    if isinstance(value, BaseTuple) and len(value) == 1:
        return lambda value, shapes, out: _write(value[0], shapes, out)  # type: ignore[no-untyped-call]
    if isinstance(value, BaseTuple):

        def several(value, shapes, out):  # type: ignore[no-untyped-def]
            code = _write(value[0], shapes, out)  # type: ignore[no-untyped-call]
            if code != FOUND:
                return code
            return _write(value[1:], shapes + 8 * value[0].ndim, out + 8 * value[0].size)  # type: ignore[no-untyped-call]

        return several
    if isinstance(value, types.Float):

        def number(value, shapes, out):  # type: ignore[no-untyped-def]
            numba.carray(_as_pointer(out), (1,), np.float64)[0] = value
            return FOUND

        return number

    def one(value, shapes, out):  # type: ignore[no-untyped-def]
        expected = numba.carray(_as_pointer(shapes), (value.ndim,), np.int64)
        for axis in range(value.ndim):
            if value.shape[axis] != expected[axis]:
                return WRONG_SHAPE
        structure = numba.carray(_as_pointer(out), (value.size,), np.float64)
        for position, number in enumerate(value.flat):
            structure[position] = number
        return FOUND

    return one


@jit
def trampoline(oracle, table, shapes, out, kinds):  # type: ignore[no-untyped-def]
    """Ask a compiled function whose arguments and answer are of these kinds."""
    code, value = _call(oracle, _arguments(table, shapes, kinds), kinds)
    if code != FOUND:
        return code
    return _write(value, shapes, out)  # type: ignore[no-untyped-call]


@intrinsic  # type: ignore[untyped-decorator]
def _enter(_: Any, function: Any, oracle: Any, table: Any, shapes: Any, out: Any) -> Any:
    """Call a trampoline by its address: numba's calling convention for ``int64(int64, int64, int64, int64, type)``."""

    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        parameters = [_WORD.as_pointer(), _NOWHERE.as_pointer(), *[_WORD] * 4, _NOWHERE]
        kind = ir.FunctionType(ir.IntType(32), parameters).as_pointer()
        code, exception = cgutils.alloca_once(builder, _WORD), cgutils.alloca_once(builder, _NOWHERE)
        nothing = ir.Constant(_NOWHERE, None)
        builder.store(ir.Constant(_WORD, RAISED), code)
        builder.call(builder.inttoptr(values[0], kind), [code, exception, *values[1:], nothing])
        return builder.load(code)

    return types.int64(*[types.int64] * 5), generate


@part
def ask(call, scores, theta, workspace, out):  # type: ignore[no-untyped-def]
    """One question to the oracle. ``workspace`` is what :func:`new_workspace` made; NaN everywhere is no structure.

    The oracle gets copies: one that writes to its arguments must not change those of the kernel.
    """
    stay_apart()
    given, addresses, _ = workspace
    forbids = 0
    for i in range(len(scores)):
        given[i] = scores[i]
        forbids += 1 if scores[i] == -np.inf else 0
    for i in range(len(theta)):
        given[len(scores) + i] = theta[i]
    oracle = call.functions[ORACLE]
    for position in range(oracle[END]):
        base = call.place[position]
        if call.source[position] == SCORES:
            base = given.ctypes.data + 8 * base
        elif call.source[position] == THETA:
            base = given.ctypes.data + 8 * (len(scores) + base)
        addresses[position] = base
    shapes = call.shapes.ctypes.data + 8 * oracle[SHAPES]
    code = _enter(oracle[TRAMPOLINE], oracle[FUNCTION], addresses.ctypes.data, shapes, out.ctypes.data)
    if code != FOUND:
        return code
    if forbids > 0:
        for i in range(len(out)):
            if scores[i] == -np.inf and abs(out[i]) <= UNUSED:
                out[i] = 0.0  # next to a score of -inf nothing else is small
    if len(out) == 0 or not np.isnan(out[0]):
        return FOUND
    missing = 0
    for i in range(len(out)):
        missing += 1 if np.isnan(out[i]) else 0
    return NOTHING if missing == len(out) else FOUND


@part
def new_workspace(call, scores, theta):  # type: ignore[no-untyped-def]
    """Room for the arguments of an oracle, for addresses of arguments, and for what a membership function says."""
    return np.empty(scores + theta), np.empty(len(call.source), np.int64), np.empty(1)


@part
def missed(call, theta, out, workspace):  # type: ignore[no-untyped-def]
    """Ask the membership function about a flat structure; a code, and by how much it misses being one.

    It gets the arrays themselves: it is compiled for arrays that it cannot write to.
    """
    stay_apart()
    _, addresses, said = workspace
    first = call.functions[ORACLE, END]
    for position in range(first, call.functions[MEMBERSHIP, END]):
        base = call.place[position]
        if call.source[position] == SCORES:
            base = out.ctypes.data + 8 * base
        elif call.source[position] == THETA:
            base = theta.ctypes.data + 8 * base
        addresses[position - first] = base
    code = _enter(
        call.functions[MEMBERSHIP, TRAMPOLINE],
        call.functions[MEMBERSHIP, FUNCTION],
        addresses.ctypes.data,
        call.shapes.ctypes.data + 8 * call.functions[MEMBERSHIP, SHAPES],
        said.ctypes.data,
    )
    if code == FOUND and not said[0] >= 0.0:
        code = NO_AMOUNT
    return code, said[0]


@part
def _answers_again(call, scores, theta, asking, code, point):  # type: ignore[no-untyped-def]
    """The code of an answer after the oracle was asked for it once more: the same bits have to come."""
    stay_apart()
    second = np.empty(len(point))
    again = ask(call, scores, theta, asking, second)
    if again not in (FOUND, NOTHING):
        return again
    first_bits, second_bits = point.view(np.int64), second.view(np.int64)
    same = again == code
    for i in range(len(first_bits)):
        same = same and first_bits[i] == second_bits[i]
    return code if same else UNSTEADY


@part
def fill_scores(rows, k, scores, forbidden, out):  # type: ignore[no-untyped-def]
    """The scores of instance ``k`` for every entry of the structure: 0 where it is fixed, -inf where forbidden."""
    stay_apart()
    for i in range(len(out)):
        j = rows.column[i]
        out[i] = 0.0 if j < 0 else scores[k, i]
        if j >= 0 and len(forbidden) and forbidden[k, j]:
            out[i] = -np.inf


@jit
def maximize(call, rows, scores, forbidden, theta, which, twice, point, code):  # type: ignore[no-untyped-def]
    """Ask for the instances ``which``, for ``twice`` once more; ``point`` ``(batch, size)`` gets flat structures."""
    full = np.empty(point.shape[1])
    asking = new_workspace(call, len(full), theta.shape[1])
    for k in which:
        fill_scores(rows, k, scores, forbidden, full)
        code[k] = ask(call, full, theta[k], asking, point[k])
        if k == twice and code[k] in (FOUND, NOTHING):
            code[k] = _answers_again(call, full, theta[k], asking, code[k], point[k])
