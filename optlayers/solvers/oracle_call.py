"""An oracle, be it Python or compiled by numba, as an address that kernels can call."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, final
from weakref import WeakKeyDictionary

import numba
import numpy as np
from numba import types
from numba.np.unsafe.ndarray import to_fixed_tuple

from optlayers.oracle import CompiledOracle
from optlayers.polytope import Polytope
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels.batches import per_instance
from optlayers.solvers.kernels.oracles import CONSTANT, SCORES, THETA, as_pointer
from optlayers.standard_form import StandardForm

__all__ = ["Call", "OracleCall", "Rows"]

RAISED, WRONG_SHAPE, FIRST_COMPLAINT = 2, 3, 16
"""What compiled oracles can complain of, and the first number for those of Python."""


class Call(NamedTuple):
    """An oracle as the kernels see it; see :mod:`optlayers.solvers.kernels.oracles`."""

    address: np.ndarray
    source: np.ndarray
    place: np.ndarray
    shapes: np.ndarray


class Rows(NamedTuple):
    """Rows and bounds that structures are checked against, for entries of the whole structure."""

    column: np.ndarray
    """``(size,)`` the column of every entry, -1 for the fixed ones."""
    fixed: np.ndarray
    start: np.ndarray
    row: np.ndarray
    equalities: np.ndarray
    loose: np.ndarray
    """Rows that cannot be checked, since unscored auxiliary columns enter them."""
    matrix: np.ndarray
    rhs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of(cls, form: StandardForm, instances: Instances) -> Rows:
        """The rows of a batch; where neither parameters nor forbidden parts enter, those of all batches."""
        rows = _rows.get(form)
        if rows is None:
            rows = _rows.setdefault(form, cls._of_form(form))
        varies = not (form.matrix_is_constant and form.rhs.is_constant and form.bounds_are_constant)
        if instances.forbidden is None and not varies:
            return rows
        return rows._replace(
            matrix=rows.matrix if instances.matrix is None else per_instance(instances.matrix),
            rhs=per_instance(instances.rhs),
            lower=per_instance(instances.lower),
            upper=per_instance(instances.upper),
        )

    @classmethod
    def _of_form(cls, form: StandardForm) -> Rows:
        """The rows that hold for parameters of 0."""
        column = np.full(form.size, -1, dtype=np.int64)
        column[form.kept] = np.arange(form.scored)
        numbers = (form.matrix.data, form.rhs.constant, form.lower.constant, form.upper.constant)
        loose = np.zeros(form.rows, dtype=np.bool_)
        loose[form.matrix.indices[form.matrix.indptr[form.scored] : form.matrix.indptr[form.unslacked]]] = True
        return cls(
            column,
            np.array(form.fixed),
            np.array(form.matrix.indptr, dtype=np.int32),
            np.array(form.matrix.indices, dtype=np.int32),
            np.array([form.equalities]),
            loose,
            *(np.array(one)[None] for one in numbers),
        )


_rows: WeakKeyDictionary[StandardForm, Rows] = WeakKeyDictionary()


@final
class OracleCall:
    """The oracle of a declaration behind an address, with what it complained of.

    A function compiled by numba is entered without the interpreter; any other one through a callback, which takes the
    interpreter's lock. Both see the same arguments.
    """

    def __init__(self, function: Callable[..., Any], polytope: Polytope) -> None:
        self.function = function
        self.name = getattr(function, "__name__", repr(function))
        constants = [np.ascontiguousarray(c) for c in getattr(function, "constants", ())]
        shapes = [polytope.shape, *(tuple(v.shape) for v in polytope.scored)]
        self.outputs = len(shapes)
        places = np.cumsum([0] + [int(np.prod(s, dtype=int)) for s in shapes]).tolist()
        parameters = [tuple(p.shape) for p in polytope.parameters]
        theta = np.cumsum([0] + [int(np.prod(s, dtype=int)) for s in parameters]).tolist()
        arguments = [(SCORES, place, s) for place, s in zip(places[:-1], shapes, strict=True)]
        arguments += [(THETA, place, s) for place, s in zip(theta[:-1], parameters, strict=True)]
        arguments += [(CONSTANT, c.ctypes.data, c.shape) for c in constants]
        dtypes = ["f8"] * (len(shapes) + len(parameters)) + [c.dtype.str[1:] for c in constants]
        dimensions = tuple(len(s) for _, _, s in arguments)
        body = function.function if isinstance(function, CompiledOracle) else function
        compiled = isinstance(body, numba.core.registry.CPUDispatcher)
        self._shapes, self._arguments, self._constants = shapes, arguments, constants
        self._complaints: dict[int, str] = {}
        self._numbers = itertools.count(FIRST_COMPLAINT)
        if compiled:
            self._entry = _compiled_entry(body, dimensions, tuple(dtypes), self.outputs)
            address = self._entry.address
        else:
            self._entry = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(self._enter)
            address = ctypes.cast(self._entry, ctypes.c_void_p).value
        self.compiled = compiled
        self.call = Call(
            np.array([address], dtype=np.int64),
            np.array([source for source, _, _ in arguments], dtype=np.int64),
            np.array([place for _, place, _ in arguments], dtype=np.int64),
            np.array([length for _, _, s in arguments for length in s], dtype=np.int64),
        )

    def complaint(self, code: int) -> str:
        """What is wrong with an answer, from the number that the kernel got; every number is asked for once."""
        if code == RAISED:
            return f"oracle {self.name} raised an exception; call it with the scores of this instance to see which"
        if code == WRONG_SHAPE:
            return f"oracle {self.name} returned another shape than that of the structure, {self._shapes[0]}"
        return f"oracle {self.name} {self._complaints.pop(code, 'failed')}"

    def _enter(self, addresses: int, _: int, out: int) -> int:
        """The callback for Python oracles; an exception must not leave it."""
        try:
            table = _array(addresses, np.int64, (len(self._arguments),))
            sources = zip(table.tolist(), self._arguments, strict=True)
            given = [_array(place, np.float64, shape).copy() for place, (kind, _, shape) in sources if kind != CONSTANT]
            answer = self.function(*given)
            parts = answer if self.outputs > 1 else (answer,)
            _array(out, np.float64, (sum(int(np.prod(s, dtype=int)) for s in self._shapes),))[:] = self._flat(parts)
        except Exception as error:  # whatever a user's function raises belongs to this instance
            return self._complain(f"raised {type(error).__name__}: {error}")
        return 0

    def _flat(self, parts: Sequence[Any]) -> np.ndarray:
        if len(parts) != self.outputs:
            raise ValueError(f"it returned {len(parts)} arrays, but {self.outputs} are scored")
        flat = []
        for part, shape in zip(parts, self._shapes, strict=True):
            array = np.asarray(part)
            if array.shape != shape:
                raise ValueError(f"it returned shape {array.shape}, but the polytope has shape {shape}")
            if array.dtype != np.float64:
                raise TypeError(f"it returned dtype {array.dtype}; structures are float64")
            flat.append(array.reshape(-1))
        return np.concatenate(flat)

    def _complain(self, what: str) -> int:
        number = next(self._numbers)
        self._complaints[number] = what
        return number


def _array(address: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The memory at an address as an array."""
    count = int(np.prod(shape, dtype=int))
    memory = (np.ctypeslib.as_ctypes_type(dtype) * count).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)


@cache
def _compiled_entry(function: Any, dimensions: tuple[int, ...], dtypes: tuple[str, ...], outputs: int) -> Any:
    """A C function around an oracle of numba, for arguments with so many dimensions; shapes come with every call."""
    call = _last(function)
    offset = sum(dimensions)
    for position in reversed(range(len(dimensions))):
        offset -= dimensions[position]
        call = _with_argument(call, position, offset, dimensions[position], np.dtype(dtypes[position]))
    write = _done
    for position in reversed(range(outputs)):
        write = _with_part(write, position, sum(dimensions[:position]), dimensions[position], outputs == 1)

    @numba.cfunc(types.int64(types.int64, types.int64, types.int64))
    def entry(addresses, shapes, out):  # type: ignore[no-untyped-def]
        table = numba.carray(as_pointer(addresses), (1,), np.int64)
        sizes = numba.carray(as_pointer(shapes), (1,), np.int64)
        try:
            return write(call(table, sizes), sizes, out)
        except Exception:
            return RAISED

    for signature in function.nopython_signatures:
        _check_returned(function, signature.return_type, outputs, dimensions)
    return entry


def _check_returned(function: Any, returned: Any, outputs: int, dimensions: tuple[int, ...]) -> None:
    """Compiled functions have one return type, so what is wrong with it is known before anything is asked."""
    parts = (returned,) if outputs == 1 else tuple(returned) if isinstance(returned, types.BaseTuple) else ()
    fits = len(parts) == outputs and all(
        isinstance(part, types.Array) and part.dtype == types.float64 and part.ndim == expected
        for part, expected in zip(parts, dimensions, strict=False)
    )
    if not fits:
        wanted = ", ".join(f"a float64 array of {d} dimensions" for d in dimensions[:outputs])
        raise TypeError(f"oracle {function.__name__} returns {returned}; it must return {wanted}")


def _last(function: Any) -> Any:
    @numba.njit
    def call(_addresses, _shapes, *arrays):  # type: ignore[no-untyped-def]
        return function(*arrays)

    return call


def _with_argument(then: Any, position: int, offset: int, dimensions: int, dtype: np.dtype) -> Any:
    """Read one more argument from the tables. Numba has no loop over arrays of different dimensions, so they nest."""

    @numba.njit
    def call(addresses, shapes, *arrays):  # type: ignore[no-untyped-def]
        shape = numba.carray(as_pointer(shapes.ctypes.data + 8 * offset), (dimensions,), np.int64)
        array = numba.carray(as_pointer(addresses[position]), to_fixed_tuple(shape, dimensions), dtype)
        return then(addresses, shapes, *arrays, array)

    return call


@numba.njit
def _done(_value, _shapes, _out):  # type: ignore[no-untyped-def]
    return 0


def _with_part(then: Any, position: int, offset: int, dimensions: int, alone: bool) -> Any:
    """Write one of the returned arrays, after its shape was compared, and go on behind it."""
    pick = _whole if alone else _picker(position)

    @numba.njit
    def write(value, shapes, out):  # type: ignore[no-untyped-def]
        part = pick(value)
        for axis in range(dimensions):
            if part.shape[axis] != shapes[offset + axis]:
                return WRONG_SHAPE
        room = numba.carray(as_pointer(out), (part.size,), np.float64)
        # room[...] = part says the same, but numba then compiles a message about shapes for four seconds.
        for entry, number in enumerate(part.flat):
            room[entry] = number
        return then(value, shapes, out + 8 * part.size)

    return write


@numba.njit
def _whole(value):  # type: ignore[no-untyped-def]
    return value


def _picker(position: int) -> Any:
    @numba.njit
    def pick(value):  # type: ignore[no-untyped-def]
        return value[position]

    return pick
