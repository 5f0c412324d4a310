"""An oracle and a membership function, be they Python or compiled by numba, as addresses that kernels can call."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import numba
import numpy as np
from numba import types
from numba.core.errors import NumbaError
from numba.np.numpy_support import from_dtype

from optlayers.caches import WeakCache
from optlayers.oracle import CompiledOracle
from optlayers.polytope import Polytope
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels.batches import per_instance
from optlayers.solvers.kernels.oracles import (
    CONSTANT,
    FOUND,
    NO_AMOUNT,
    OF_MEMBERSHIP,
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
    """An oracle, and perhaps a membership function, as kernels see them; see :mod:`optlayers.solvers.kernels.oracles`.

    Arguments and shapes of the one stand in front of those of the other.
    """

    functions: np.ndarray
    """``(functions, 4)`` addresses, and where arguments end and shapes begin."""
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
    integral: bool
    """Whether structures are declared to be integral."""

    @classmethod
    def of(cls, form: StandardForm, instances: Instances) -> Rows:
        """The rows of a batch; where neither parameters nor forbidden parts enter, those of all batches."""
        rows = _rows.get(form, cls._of_form)
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
            matrix=np.array(numbers[0])[None],
            rhs=np.array(numbers[1])[None],
            lower=np.array(numbers[2])[None],
            upper=np.array(numbers[3])[None],
            integral=form.polytope.integral,
        )


_rows: WeakCache[StandardForm, Rows] = WeakCache()


@final
class OracleCall:
    """The oracle of a declaration, and its membership function if there is one, behind addresses."""

    def __init__(self, function: Callable[..., Any], polytope: Polytope) -> None:
        self.function = function
        self._polytope = polytope
        shapes = [polytope.shape, *(tuple(v.shape) for v in polytope.scored)]
        places = np.cumsum([0] + [int(np.prod(s, dtype=int)) for s in shapes]).tolist()
        parameters = [tuple(p.shape) for p in polytope.parameters]
        theta = np.cumsum([0] + [int(np.prod(s, dtype=int)) for s in parameters]).tolist()
        arguments = [(SCORES, place, s) for place, s in zip(places[:-1], shapes, strict=True)]
        arguments += [(THETA, place, s) for place, s in zip(theta[:-1], parameters, strict=True)]
        self.oracle = _Function("oracle", function, arguments, shapes)
        self.membership: _Function | None = None
        if polytope.membership is not None:
            self.membership = _Function("membership function", polytope.membership, arguments, None)
        self.name = self.oracle.name
        self.call = _joined([self.oracle] if self.membership is None else [self.oracle, self.membership])

    def __reduce__(self) -> tuple[type[OracleCall], tuple[Callable[..., Any], Polytope]]:
        # Addresses hold in one process only.
        return OracleCall, (self.function, self._polytope)

    def interrupt(self) -> None:
        """Raise what has interrupted a function (KeyboardInterrupt, say), now that compiled code has returned."""
        for one in (self.oracle, self.membership):
            if one is not None and one.interrupts:
                raise one.interrupts.pop()

    def complaint(self, code: int, amount: float) -> str:
        """What is wrong with an answer, from the number that the kernel got; every number is asked for once.

        ``amount`` is what the membership function said, if it said something.
        """
        if code < OF_MEMBERSHIP or self.membership is None:
            return self.oracle.complaint(code)
        if code == OF_MEMBERSHIP + NO_AMOUNT:
            return (
                f"{self.membership} returned {amount:g} for the answer of {self.oracle}; it returns by how much an "
                "answer misses being a structure, 0 or more"
            )
        return self.membership.complaint(code - OF_MEMBERSHIP)


def _joined(functions: Sequence[_Function]) -> Call:
    """Arguments and shapes of functions, one after the other."""
    table: list[tuple[int, int, int, int]] = []
    arguments: list[tuple[int, int, tuple[int, ...]]] = []
    lengths: list[int] = []
    for one in functions:
        table.append((*one.addresses, len(arguments) + len(one.arguments), len(lengths)))
        arguments += one.arguments
        lengths += [length for _, _, shape in one.arguments for length in shape]
    return Call(
        np.array(table, dtype=np.int64),
        np.array([source for source, _, _ in arguments], dtype=np.int64),
        np.array([place for _, place, _ in arguments], dtype=np.int64),
        np.array(lengths, dtype=np.int64),
    )


@final
class _Function:
    """A function of a declaration behind addresses, with what it complained of.

    One compiled by numba is entered without the interpreter; any other one through a callback, which takes the
    interpreter's lock. Both see the same arguments. ``outputs`` are the shapes of what an oracle returns; None stands
    for a number, which a membership function returns: that one cannot write to its arguments when it is compiled.
    """

    def __init__(
        self,
        role: str,
        function: Callable[..., Any],
        arguments: Sequence[tuple[int, int, tuple[int, ...]]],
        outputs: Sequence[tuple[int, ...]] | None,
    ) -> None:
        self.name = getattr(function, "__name__", repr(function))
        self._role, self._function, self._outputs = role, function, outputs
        self._constants = [np.ascontiguousarray(c) for c in getattr(function, "constants", ())]
        self.arguments = [*arguments, *((CONSTANT, c.ctypes.data, c.shape) for c in self._constants)]
        self.interrupts: list[BaseException] = []
        self._complaints: dict[int, str] = {}
        self._numbers = itertools.count(FIRST_COMPLAINT)
        body = function.function if isinstance(function, CompiledOracle) else function
        if isinstance(body, numba.core.registry.CPUDispatcher):
            dtypes = ["f8"] * len(arguments) + [c.dtype.str[1:] for c in self._constants]
            kinds = tuple(
                types.Array(from_dtype(np.dtype(dtype)), len(shape), "C", readonly=outputs is None)
                for dtype, (_, _, shape) in zip(dtypes, self.arguments, strict=True)
            )
            self.addresses = _compiled(str(self), body, kinds, None if outputs is None else len(outputs))
        else:
            self._callback = _CALLBACK(self._enter)
            self.addresses = (ctypes.cast(self._callback, ctypes.c_void_p).value or 0, 0)

    def __str__(self) -> str:
        return f"{self._role} {self.name}"

    def complaint(self, code: int) -> str:
        """What is wrong with an answer, from the number that the kernel got; every number is asked for once."""
        if code == RAISED:
            given = "the scores" if self._outputs is not None else "the answer to the scores"
            return f"{self} raised an exception; call it with {given} of this instance to see which"
        if code == WRONG_SHAPE and self._outputs is not None:
            return f"{self} returned another shape than that of the structure, {self._outputs[0]}"
        return f"{self} {self._complaints.pop(code, 'failed')}"

    def _enter(self, code: Any, _exception: int, _oracle: int, table: int, _shapes: int, out: int, _kinds: int) -> int:
        """The callback for Python functions."""
        code[0] = self._answer(table, out)
        return 0

    def _answer(self, addresses: int, out: int) -> int:
        try:
            table = _array(addresses, np.int64, (len(self.arguments),))
            sources = zip(table.tolist(), self.arguments, strict=True)
            given = [_array(place, np.float64, shape).copy() for place, (kind, _, shape) in sources if kind != CONSTANT]
            flat = self._flat(self._function(*given))
            _array(out, np.float64, flat.shape)[:] = flat
        except Exception as error:  # whatever a user's function raises belongs to this instance
            return self._complain(f"raised {type(error).__name__}: {error}")
        except BaseException as error:  # Ctrl-C and the like cannot pass through compiled code; see interrupt()
            self.interrupts.append(error)
            return RAISED
        return FOUND

    def _flat(self, answer: Any) -> np.ndarray:
        if self._outputs is None:
            return _number(answer)
        parts = answer if len(self._outputs) > 1 else (answer,)
        if len(parts) != len(self._outputs):
            raise ValueError(f"it returned {len(parts)} arrays, but {len(self._outputs)} are scored")
        flat = []
        for part, shape in zip(parts, self._outputs, strict=True):
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


def _number(answer: Any) -> np.ndarray:
    """What a membership function returned, in an array of its own."""
    number = np.asarray(answer)
    if number.shape != () or number.dtype.kind not in "biuf":
        raise TypeError(f"it returned {answer!r}; it must return a number")
    return number.astype(np.float64).reshape(1)


def _array(address: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The memory at an address as an array."""
    count = int(np.prod(shape, dtype=int))
    memory = (np.ctypeslib.as_ctypes_type(dtype) * count).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)


def _compiled(name: str, function: Any, kinds: tuple[types.Array, ...], outputs: int | None) -> tuple[int, int]:
    """The addresses of a trampoline and of a function, compiled for arguments of these kinds, or from numba's cache."""
    try:
        function.compile(kinds)
    except NumbaError as error:
        given = ", ".join(str(kind) for kind in kinds)
        raise TypeError(f"numba cannot compile {name} for ({given}): {error}") from error
    compiled = function.overloads[kinds]
    returned = compiled.signature.return_type
    if outputs is None:
        fits, wanted = returned == types.float64, "a float64 number"
    else:
        parts = (returned,) if outputs == 1 else tuple(returned) if isinstance(returned, types.BaseTuple) else ()
        fits = len(parts) == outputs and all(
            isinstance(part, types.Array) and part.dtype == types.float64 and part.ndim == expected.ndim
            for part, expected in zip(parts, kinds, strict=False)
        )
        wanted = ", ".join(f"a float64 array of {kind.ndim} dimensions" for kind in kinds[:outputs])
    if not fits:
        raise TypeError(f"{name} returns {returned}; it must return {wanted}")
    signature = (types.int64, types.int64, types.int64, types.int64, kinds_of(kinds, returned))
    entry: Any = trampoline
    entry.compile(signature)
    return _address(entry.overloads[signature]), _address(compiled)


def _address(compiled: Any) -> int:
    """Of the function by numba's calling convention. It lives as long as its dispatcher, which never forgets one."""
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))
