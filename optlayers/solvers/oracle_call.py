"""An oracle, be it Python or compiled by numba, as an address that kernels can call."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final
from weakref import WeakKeyDictionary

import numba
import numpy as np
from numba import types
from numba.core.errors import NumbaError
from numba.np.numpy_support import from_dtype

from optlayers.oracle import CompiledOracle
from optlayers.polytope import Polytope
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels.batches import per_instance
from optlayers.solvers.kernels.oracles import (
    CONSTANT,
    FOUND,
    RAISED,
    SCORES,
    THETA,
    WRONG_SHAPE,
    kinds_of,
    trampoline,
)
from optlayers.standard_form import StandardForm

__all__ = ["Call", "OracleCall", "Rows"]

FIRST_COMPLAINT = 16
"""The first number of what Python oracles complain of."""
_WORD, _ANYWHERE = ctypes.c_int64, ctypes.c_void_p
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(_WORD), _ANYWHERE, _WORD, _WORD, _WORD, _WORD, _ANYWHERE)
"""The signature of a trampoline; see :mod:`optlayers.solvers.kernels.oracles`."""


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
    may_be_zero: np.ndarray
    """``(size,)`` entries that violate nothing of their own when they are 0, whatever the instance."""
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
        may_be_zero = form.fixed == 0.0
        if form.bounds_are_constant:
            may_be_zero[form.kept] = (numbers[2] <= 0.0)[: form.scored] & (numbers[3] >= 0.0)[: form.scored]
        else:
            may_be_zero[form.kept] = False
        return cls(
            column,
            np.array(form.fixed),
            may_be_zero,
            np.array(form.matrix.indptr, dtype=np.uint32),  # compiled code looks at signs of indices that have them
            np.array(form.matrix.indices, dtype=np.uint32),
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
        self._polytope = polytope
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
        self._shapes, self._arguments, self._constants = shapes, arguments, constants
        self._complaints: dict[int, str] = {}
        self._interrupts: list[BaseException] = []
        self._numbers = itertools.count(FIRST_COMPLAINT)
        if isinstance(body, numba.core.registry.CPUDispatcher):
            kinds = tuple(
                types.Array(from_dtype(np.dtype(dtype)), dimension, "C")
                for dtype, dimension in zip(dtypes, dimensions, strict=True)
            )
            addresses = _compiled(body, kinds, self.outputs)
        else:
            self._callback = _CALLBACK(self._enter)
            addresses = (ctypes.cast(self._callback, ctypes.c_void_p).value or 0, 0)
        self.call = Call(
            np.array(addresses, dtype=np.int64),
            np.array([source for source, _, _ in arguments], dtype=np.int64),
            np.array([place for _, place, _ in arguments], dtype=np.int64),
            np.array([length for _, _, s in arguments for length in s], dtype=np.int64),
        )

    def __reduce__(self) -> tuple[type[OracleCall], tuple[Callable[..., Any], Polytope]]:
        # Addresses hold in one process only.
        return OracleCall, (self.function, self._polytope)

    def interrupt(self) -> None:
        """Raise what has interrupted the oracle (KeyboardInterrupt, say), now that compiled code has returned."""
        if self._interrupts:
            raise self._interrupts.pop()

    def complaint(self, code: int) -> str:
        """What is wrong with an answer, from the number that the kernel got; every number is asked for once."""
        if code == RAISED:
            return f"oracle {self.name} raised an exception; call it with the scores of this instance to see which"
        if code == WRONG_SHAPE:
            return f"oracle {self.name} returned another shape than that of the structure, {self._shapes[0]}"
        return f"oracle {self.name} {self._complaints.pop(code, 'failed')}"

    def _enter(self, code: Any, _exception: int, _oracle: int, table: int, _shapes: int, out: int, _kinds: int) -> int:
        """The callback for Python oracles."""
        code[0] = self._answer(table, out)
        return 0

    def _answer(self, addresses: int, out: int) -> int:
        try:
            table = _array(addresses, np.int64, (len(self._arguments),))
            sources = zip(table.tolist(), self._arguments, strict=True)
            given = [_array(place, np.float64, shape).copy() for place, (kind, _, shape) in sources if kind != CONSTANT]
            answer = self.function(*given)
            parts = answer if self.outputs > 1 else (answer,)
            _array(out, np.float64, (sum(int(np.prod(s, dtype=int)) for s in self._shapes),))[:] = self._flat(parts)
        except Exception as error:  # whatever a user's function raises belongs to this instance
            return self._complain(f"raised {type(error).__name__}: {error}")
        except BaseException as error:  # Ctrl-C and the like cannot pass through compiled code; see interrupt()
            self._interrupts.append(error)
            return RAISED
        return FOUND

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


def _compiled(function: Any, kinds: tuple[types.Array, ...], outputs: int) -> tuple[int, int]:
    """The addresses of a trampoline and of the oracle, compiled for arguments of these kinds, or from numba's cache."""
    try:
        function.compile(kinds)
    except NumbaError as error:
        given = ", ".join(str(kind) for kind in kinds)
        raise TypeError(f"numba cannot compile oracle {function.__name__} for ({given}): {error}") from error
    compiled = function.overloads[kinds]
    returned = compiled.signature.return_type
    parts = (returned,) if outputs == 1 else tuple(returned) if isinstance(returned, types.BaseTuple) else ()
    fits = len(parts) == outputs and all(
        isinstance(part, types.Array) and part.dtype == types.float64 and part.ndim == expected.ndim
        for part, expected in zip(parts, kinds, strict=False)
    )
    if not fits:
        wanted = ", ".join(f"a float64 array of {kind.ndim} dimensions" for kind in kinds[:outputs])
        raise TypeError(f"oracle {function.__name__} returns {returned}; it must return {wanted}")
    signature = (types.int64, types.int64, types.int64, types.int64, kinds_of(kinds, returned))
    entry: Any = trampoline
    entry.compile(signature)
    return _address(entry.overloads[signature]), _address(compiled)


def _address(compiled: Any) -> int:
    """Of the function by numba's calling convention. It lives as long as its dispatcher, which never forgets one."""
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))
