"""An oracle and a membership function, be they Python or compiled by numba, as addresses that kernels can call."""

from __future__ import annotations

import ctypes
import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, final

import numba
import numpy as np
from numba import types
from numba.core.errors import NumbaError
from numba.np.numpy_support import from_dtype

from optlayers.compiled_oracle import CompiledOracle, name_of
from optlayers.polytope import Polytope
from optlayers.solution import Status
from optlayers.solvers.kernels.calling import (
    CONSTANT,
    FOUND,
    FRACTIONAL,
    MISSED,
    MIXED,
    NO_AMOUNT,
    NOTHING,
    OF_MEMBERSHIP,
    OUTSIDE,
    RAISED,
    SCORES,
    THETA,
    UNSTEADY,
    WRONG_SHAPE,
    kinds_of,
    trampoline,
)
from optlayers.solvers.pool import Pace
from optlayers.solvers.turns import Turns, turns_of

__all__ = ["ADVICE", "Addresses", "OracleCall"]

ADVICE = "see optlayers.testing.check_oracle"

FIRST_COMPLAINT = 16
"""The first number of what Python oracles complain of."""
_WORD, _ANYWHERE = ctypes.c_int64, ctypes.c_void_p
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(_WORD), _ANYWHERE, _WORD, _WORD, _WORD, _WORD, _ANYWHERE)
"""The signature of a trampoline; see :mod:`optlayers.solvers.kernels.calling`."""


class Addresses(NamedTuple):
    """An oracle, and perhaps a membership function, as kernels see them; see :mod:`optlayers.solvers.kernels.calling`.

    Arguments and shapes of the one stand in front of those of the other.
    """

    functions: np.ndarray
    """``(functions, 4)`` addresses, and where arguments end and shapes begin."""
    source: np.ndarray
    place: np.ndarray
    shapes: np.ndarray


@final
class OracleCall:
    """The oracle of a declaration, and its membership function if there is one, behind addresses.

    A ``serial`` one, and the membership function with it, is called by one thread at a time. Without a ``function``
    there is nothing to ask, but what others answer can be held to the membership function.
    """

    def __init__(self, function: Callable[..., Any] | None, polytope: Polytope, *, serial: bool = False) -> None:
        self.function = function
        self.serial = serial
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._polytope = polytope
        turns = turns_of(function) if serial and function is not None else None
        flat = getattr(function, "takes_flat", False)
        """Whether arrays come as two vectors: all that is scored, and all parameters."""
        shapes = [polytope.shape, *(tuple(v.shape) for v in polytope.scored)]
        places = np.cumsum([0] + [int(np.prod(s, dtype=int)) for s in shapes]).tolist()
        parameters = [tuple(p.shape) for p in polytope.parameters]
        theta = np.cumsum([0] + [int(np.prod(s, dtype=int)) for s in parameters]).tolist()
        arguments = [(SCORES, place, s) for place, s in zip(places[:-1], shapes, strict=True)]
        arguments += [(THETA, place, s) for place, s in zip(theta[:-1], parameters, strict=True)]
        names = [v.name() for v in polytope.scored] + [p.name() for p in polytope.parameters]
        self.oracle: _Function | None = None
        if function is not None and flat:
            whole = [(SCORES, 0, (places[-1],)), (THETA, 0, (theta[-1],))][: 2 if parameters else 1]
            self.oracle = _Function("oracle", function, whole, ["scores", "parameters"], [(places[-1],)], turns)
        elif function is not None:
            self.oracle = _Function("oracle", function, arguments, ["scores", *names], shapes, turns)
        self.membership: _Function | None = None
        if polytope.membership is not None:
            called = ["structure", *names]
            self.membership = _Function("membership function", polytope.membership, arguments, called, None, turns)
        self.call = _joined([self.oracle] if self.membership is None else [self.oracle, self.membership])

    def __str__(self) -> str:
        return "the solver" if self.oracle is None else str(self.oracle)

    def __reduce__(self) -> tuple[Callable[..., OracleCall], tuple[Callable[..., Any] | None, Polytope, bool]]:
        # Addresses hold in one process only.
        return _oracle_call, (self.function, self._polytope, self.serial)

    def spread(self, what: str, work: Callable[[np.ndarray], None], count: int) -> None:
        """Call ``work`` on pieces of a batch, in threads where that pays, unless the functions are for one at a time;
        ``what`` is done says how long it takes."""
        if self.serial:
            work(np.arange(count))
        else:
            self._paces[what].spread(work, count)

    def interrupt(self) -> None:
        """Raise what has interrupted a function (KeyboardInterrupt, say), now that compiled code has returned."""
        for one in (self.oracle, self.membership):
            if one is not None and one.interrupts:
                raise one.interrupts.pop()

    def explain(self, code: int, amount: float) -> tuple[Status, str]:
        """What is wrong with an answer, and with whose; every number of a complaint is asked for once.

        ``amount`` is by how much it is wrong, or what the membership function said.
        """
        if code == NOTHING:
            return Status.INFEASIBLE, f"{self} finds no structure without the forbidden parts"
        if code == OUTSIDE:
            return Status.INACCURATE, f"{self} left the polytope by {amount:.3g}; {ADVICE}"
        if code == FRACTIONAL:
            return Status.INACCURATE, (
                f"{self} returned an entry that is {amount:.3g} from an integer, but the declaration says "
                f"integral=True; {ADVICE}"
            )
        if code == MISSED:
            return Status.INACCURATE, (
                f"{self} returned no structure: it misses one by {amount:.3g}, by {self.membership}; {ADVICE}"
            )
        if code == MIXED:
            return Status.INACCURATE, "its answer is no mixture of the structures that come with it"
        if code == UNSTEADY:
            return Status.FAILED, f"{self} gave two different answers to the same scores; {ADVICE}"
        if code < OF_MEMBERSHIP or self.membership is None:
            return Status.FAILED, "the solver failed" if self.oracle is None else self.oracle.complaint(code)
        if code == OF_MEMBERSHIP + NO_AMOUNT:
            return Status.FAILED, (
                f"{self.membership} returned {amount:g} for the answer of {self}; it returns by how much an "
                "answer misses being a structure, 0 or more"
            )
        return Status.FAILED, self.membership.complaint(code - OF_MEMBERSHIP)


def _oracle_call(function: Callable[..., Any] | None, polytope: Polytope, serial: bool) -> OracleCall:
    return OracleCall(function, polytope, serial=serial)


def _joined(functions: Sequence[_Function | None]) -> Addresses:
    """Arguments and shapes of functions, one after the other; None has neither."""
    table: list[tuple[int, int, int, int]] = []
    arguments: list[tuple[int, int, tuple[int, ...]]] = []
    lengths: list[int] = []
    for one in functions:
        if one is None:
            table.append((0, 0, 0, 0))
            continue
        table.append((*one.addresses, len(arguments) + len(one.arguments), len(lengths)))
        arguments += one.arguments
        lengths += [length for _, _, shape in one.arguments for length in shape]
    return Addresses(
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
        names: Sequence[str],
        outputs: Sequence[tuple[int, ...]] | None,
        turns: Turns | None,
    ) -> None:
        self.name = name_of(function)
        self._role, self._function, self._outputs, self._turns = role, function, outputs, turns
        self._constants = [np.ascontiguousarray(c) for c in getattr(function, "constants", ())]
        self.arguments = [*arguments, *((CONSTANT, c.ctypes.data, c.shape) for c in self._constants)]
        self.interrupts: list[BaseException] = []
        self._complaints: dict[int, str] = {}
        self._numbers = itertools.count(FIRST_COMPLAINT)
        body = function.function if isinstance(function, CompiledOracle) else function
        if isinstance(body, numba.core.registry.CPUDispatcher) and turns is None:
            dtypes = ["f8"] * len(arguments) + [c.dtype.str[1:] for c in self._constants]
            kinds = tuple(
                types.Array(from_dtype(np.dtype(dtype)), len(shape), "C", readonly=outputs is None)
                for dtype, (_, _, shape) in zip(dtypes, self.arguments, strict=True)
            )
            given = [*names, *(f"constant {k}" for k in range(len(self._constants)))]
            self._compiled = _takes(str(self), body, kinds, given)
            self.addresses = _entered(str(self), self._compiled, kinds, None if outputs is None else len(outputs))
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

    def _enter(self, code: Any, _exception: Any, _oracle: Any, table: int, _shapes: Any, out: int, _kinds: Any) -> int:
        """The callback for Python functions; an address of 0 is None."""
        code[0] = self._answer(table, out)
        return 0

    def _answer(self, addresses: int, out: int) -> int:
        try:
            table = _array(addresses, np.int64, (len(self.arguments),))
            sources = zip(table.tolist(), self.arguments, strict=True)
            given = [_array(place, np.float64, shape).copy() for place, (kind, _, shape) in sources if kind != CONSTANT]
            with nullcontext() if self._turns is None else self._turns.taken():
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
        if not isinstance(parts, (tuple, list)):
            raise TypeError(f"it returned {type(parts).__name__}; it must return {len(self._outputs)} arrays")
        if len(parts) != len(self._outputs):
            raise ValueError(f"it returned {len(parts)} arrays, but {len(self._outputs)} are scored")
        flat = []
        for part, shape in zip(parts, self._outputs, strict=True):
            try:
                array = np.asarray(part)
            except ValueError:
                raise TypeError(
                    f"it returned {type(part).__name__}, which is no array of numbers of shape {shape}"
                ) from None
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


def _takes(name: str, function: Any, kinds: tuple[types.Array, ...], given: Sequence[str]) -> Any:
    """A function of numba that is compiled for arguments of these kinds, or comes from numba's cache.

    It is the one of the user, or one around it where that was compiled for a signature, or has arguments with defaults
    or any number of them.
    """
    parameters = inspect.signature(function.py_func).parameters.values()
    try:
        inspect.signature(function.py_func).bind(*kinds)
    except TypeError as error:
        taken = ", ".join(map(str, parameters))
        raise TypeError(f"{name} takes ({taken}), but is given ({', '.join(given)}): {error}") from None
    declared = [] if getattr(function, "_can_compile", True) else list(function.signatures)
    simple = len(parameters) == len(kinds) and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    try:
        if simple and not declared:
            function.compile(kinds)
            return function
        return _around(function, kinds)
    except NumbaError as error:
        shown = ", ".join(f"{one}: {kind}" for one, kind in zip(given, kinds, strict=True))
        if declared:
            signatures = " or ".join(f"({', '.join(map(str, signature))})" for signature in declared)
            raise TypeError(
                f"{name} was compiled for {signatures} alone, but is given ({shown}): leave the signature out of "
                "numba.njit, or declare these arrays (a number k is one of no dimension, k[()])"
            ) from error
        raise TypeError(f"numba cannot compile {name} for ({shown}): {error}") from error


def _around(function: Any, kinds: tuple[types.Array, ...]) -> Any:
    """A compiled function that calls another one; with copies where that wants to write to its arguments."""
    try:
        return _calling(function, kinds, "{}")
    except NumbaError:
        if all(kind.mutable for kind in kinds):
            raise
        return _calling(function, kinds, "{}.copy()")


def _calling(function: Any, kinds: tuple[types.Array, ...], shown: str) -> Any:
    names = [f"a{k}" for k in range(len(kinds))]
    namespace: dict[str, Any] = {"function": function}
    # Arguments that come one by one need names: numba gives a tuple to a function of any number of them.
    exec(f"def call({', '.join(names)}):\n    return function({', '.join(map(shown.format, names))})", namespace)
    call: Any = numba.njit(namespace["call"])
    call.compile(kinds)
    return call


def _entered(name: str, function: Any, kinds: tuple[types.Array, ...], outputs: int | None) -> tuple[int, int]:
    """The addresses of a trampoline and of a compiled function, after a look at what it returns."""
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
