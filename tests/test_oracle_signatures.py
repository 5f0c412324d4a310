"""Oracles and membership functions as users write them: signatures, defaults, any number of arguments, any array."""

import functools
import re

import cvxpy as cp
import numba
import numpy as np
import pytest
import torch

import optlayers as ol

SCORES = torch.tensor([[0.0, 2.0, 1.0, 0.0], [5.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
BEST = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
X, K = cp.Variable(4), cp.Parameter(name="k")


def best(s):
    x = np.zeros(4)
    x[np.argmax(s)] = 1.0
    return x


def with_default(s, first=0):
    x = np.zeros(4)
    x[first + np.argmax(s[first:])] = 1.0
    return x


def any_number(*given):
    x = np.zeros(4)
    x[np.argmax(given[0])] = 1.0
    return x


def and_more(s, *more):
    x = np.zeros(4)
    x[np.argmax(s)] = 1.0
    return x


def up_to(s, k):
    x = np.zeros(4)
    x[np.argmax(s)] = min(1.0, k[()])
    return x


def among(s, places):
    x = np.zeros(4)
    x[places[np.argmax(s[places])]] = 1.0
    return x


class Callable:
    def __call__(self, s):
        return best(s)

    def method(self, s):
        return best(s)


def declared(oracle, membership=None, *, parameter=False):
    hidden = cp.Variable(4, nonneg=True)
    rows = [X >= 0, cp.sum(X) == 1] if membership is None else [hidden == X, cp.sum(hidden) == 1]
    return ol.Polytope(X, [*rows, X <= K] if parameter else rows, oracle=oracle, membership=membership)


WORKS = {
    "as it is": lambda: numba.njit(best),
    "declared": lambda: numba.njit("float64[::1](float64[::1])")(best),
    "declared for any strides": lambda: numba.njit("float64[:](float64[:])")(best),
    "declared twice": lambda: numba.njit(["float64[:](float32[:])", "float64[:](float64[:])"])(best),
    "default": lambda: numba.njit(with_default),
    "any number": lambda: numba.njit(any_number),
    "one and more": lambda: numba.njit(and_more),
    "constants": lambda: ol.CompiledOracle(numba.njit(among), [np.arange(4)]),
    "constants, declared": lambda: ol.CompiledOracle(
        numba.njit("float64[::1](float64[::1], int64[::1])")(among), [np.arange(4)]
    ),
    "constants, any number": lambda: ol.CompiledOracle(numba.njit(and_more), [np.arange(4), np.ones(2)]),
    "part of numba's": lambda: functools.partial(numba.njit(with_default), first=0),
    "part": lambda: functools.partial(with_default, first=0),
    "callable": Callable,
    "method": lambda: Callable().method,
    "Python, default": lambda: with_default,
    "Python, any number": lambda: any_number,
    "list": lambda: lambda s: best(s).tolist(),
    "tuple": lambda: lambda s: tuple(best(s)),
    "strided": lambda: lambda s: np.repeat(best(s), 2)[::2],
    "tensor": lambda: lambda s: torch.from_numpy(best(s)),
    "numba, strided": lambda: numba.njit(lambda s: np.repeat(s == s.max(), 2)[::2] * 1.0),
}


def read_only(s):
    x = best(s)
    x.setflags(write=False)
    return x


@pytest.mark.many(3)
@pytest.mark.parametrize("what", WORKS)
def test_oracles_that_work(what):
    compiled = ol.compile_polytope(declared(WORKS[what]()), projector=ol.ActiveSet())
    assert torch.equal(compiled.maximize(SCORES).check().value, BEST)
    assert torch.equal(compiled.project(SCORES[1:]).check().value, BEST[1:])


def test_answers_may_be_read_only_or_in_any_order():
    assert torch.equal(ol.compile_polytope(declared(read_only)).maximize(SCORES).check().value, BEST)
    x = cp.Variable((2, 3))
    scores = torch.tensor([[0.0, 1, 0], [0, 0, 3]], dtype=torch.float64)
    for oracle in (
        lambda s: np.asfortranarray((s == s.max()).astype(float)),
        numba.njit(lambda s: np.where(s.max() == s.T, 1.0, 0.0).T),
    ):
        polytope = ol.Polytope(x, [x >= 0, cp.sum(x) == 1], oracle=oracle)
        assert ol.compile_polytope(polytope).maximize(scores).check().value.nonzero().tolist() == [[1, 2]]


def test_parameters_come_behind_scores():
    for oracle in (numba.njit(up_to), numba.njit("float64[::1](float64[::1], Array(float64, 0, 'C'))")(up_to), up_to):
        found = ol.compile_polytope(declared(oracle, parameter=True)).maximize(SCORES, k=1.0).check()
        assert torch.equal(found.value, BEST)


REFUSED = {
    "another dtype": (
        lambda: numba.njit("float32[:](float32[:])")(lambda s: s),
        "for (array(float32, 1d, A)) alone, but is given (scores: array(float64, 1d, C)): leave the signature out",
    ),
    "other dimensions": (
        lambda: numba.njit("float64[:,:](float64[:,:])")(lambda s: s),
        "was compiled for (array(float64, 2d, A)) alone",
    ),
    "too few": (
        lambda: numba.njit(lambda: np.zeros(4)),
        "takes (), but is given (scores): too many positional arguments",
    ),
    "too many": (
        lambda: numba.njit(lambda s, k: s),
        "takes (s, k), but is given (scores): missing a required argument: 'k'",
    ),
    "a constant too many": (
        lambda: ol.CompiledOracle(numba.njit(best), [np.arange(4)]),
        "takes (s), but is given (scores, constant 0)",
    ),
    "what numba cannot compile": (
        lambda: numba.njit(lambda s: s.no_such_thing),
        "numba cannot compile oracle <lambda> for (scores: array(float64, 1d, C))",
    ),
    "float32 returned": (
        lambda: numba.njit(lambda s: np.zeros(4, np.float32)),
        "returns array(float32, 1d, C); it must return a float64 array of 1 dimensions",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_oracles_that_are_refused_when_they_are_compiled(what):
    oracle, message = REFUSED[what]
    with pytest.raises(TypeError, match=re.escape(message)):
        ol.compile_polytope(declared(oracle()))


def test_a_number_that_is_declared_as_one_is_said():
    scalar = numba.njit("float64[::1](float64[::1], float64)")(lambda s, k: s)
    with pytest.raises(
        TypeError, match=re.escape("k: array(float64, 0d, C)): leave the signature out of numba.njit, or")
    ):
        ol.compile_polytope(declared(scalar, parameter=True))
    with pytest.raises(TypeError, match=re.escape("oracle best takes (s), but is given (scores, k)")):
        ol.compile_polytope(declared(numba.njit(best), parameter=True))


def far(z):
    return abs(z.sum() - 1.0)


def far_by(z, tolerance=0.0):
    return max(abs(z.sum() - 1.0) - tolerance, 0.0)


def far_of_any(*given):
    return abs(given[0].sum() - 1.0)


def far_and_writes(z):
    z[0] += z[1:].sum()
    return abs(z[0] - 1.0)


MEMBERSHIP = {
    "as it is": lambda: numba.njit(far),
    "declared": lambda: numba.njit("float64(float64[::1])")(far),
    "declared for any strides": lambda: numba.njit("float64(float64[:])")(far),
    "default": lambda: numba.njit(far_by),
    "any number": lambda: numba.njit(far_of_any),
    "declared, writes": lambda: numba.njit("float64(float64[::1])")(far_and_writes),
    "Python": lambda: far,
    "Python, writes": lambda: far_and_writes,
    "Python, float32": lambda: lambda z: np.float32(far(z)),
    "part": lambda: functools.partial(far_by, tolerance=0.0),
}


@pytest.mark.many(2)
@pytest.mark.parametrize("what", MEMBERSHIP)
def test_membership_functions_that_work(what):
    membership = MEMBERSHIP[what]()
    right, wrong = (declared(numba.njit(f), membership) for f in (best, lambda s: 2.0 * (s == s.max())))
    found = ol.compile_polytope(right).maximize(SCORES).check()
    assert torch.equal(found.value, BEST)
    assert (
        "it misses one by 1, by membership function" in ol.compile_polytope(wrong).maximize(SCORES).failures[0].reason
    )


def test_membership_functions_that_are_refused():
    for function, message in (
        (
            numba.njit(lambda z: 0),
            "membership function <lambda> returns Literal[int](0); it must return a float64 number",
        ),
        (numba.njit(lambda: 0.0), "membership function <lambda> takes (), but is given (structure): too many"),
        (numba.njit("float64(float32[:])")(lambda z: 0.0), "but is given (structure: readonly array(float64, 1d, C))"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            ol.compile_polytope(declared(numba.njit(best), function))
    none = ol.compile_polytope(declared(best, lambda z: None)).maximize(SCORES)
    assert "membership function <lambda> raised TypeError: it returned None" in none.failures[0].reason


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s: best(s).astype(np.float32), "it returned dtype float32; structures are float64"),
        (lambda s: [0, 1, 0, 0], "it returned dtype int64; structures are float64"),
        (lambda s: best(s) > 0, "it returned dtype bool"),
        (lambda s: [[1.0], [1.0, 2.0]], "it returned list, which is no array of numbers of shape (4,)"),
        (lambda s: (best(s), 1.0), "it returned tuple, which is no array of numbers of shape (4,)"),
    ],
)
def test_other_answers_of_python_are_said(answer, message):
    assert message in ol.compile_polytope(declared(answer)).maximize(SCORES).failures[0].reason


def test_several_arrays_are_a_tuple():
    extra = cp.Variable(4, name="extra")
    for answer, message in ((None, "it returned NoneType; it must return 2 arrays"), ((best,), "it returned 1 arrays")):
        polytope = ol.Polytope(X, [X >= 0, cp.sum(X) == 1, extra == X], oracle=lambda s, e, a=answer: a, scored=[extra])
        assert message in ol.compile_polytope(polytope).maximize(SCORES, extra=SCORES).failures[0].reason
