"""Constraints that a function returns are built when they are first asked for, and are constraints like others."""

import copy
import pickle
import threading

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol


def counted(*, scored: bool = False) -> tuple[ol.Polytope, list[int]]:
    """A simplex whose entries are at most ``cap``, and how often its constraints were built."""
    x, calls = cp.Variable(3, nonneg=True), []

    def declare() -> list[cp.Constraint]:
        calls.append(1)
        return [cp.sum(x) == 1, x <= cp.Parameter(name="cap"), x <= y]

    y = cp.Variable(3, name="y", bounds=[0, 1])
    return ol.Polytope(x, declare, scored=[y] if scored else []), calls


def test_nothing_is_built_before_it_is_asked_for_and_nothing_twice():
    polytope, calls = counted(scored=True)
    assert polytope.shape == (3,)
    assert repr(polytope) == "Polytope(shape=(3,), constraints when asked for)"
    assert copy.deepcopy(polytope) is polytope
    assert not calls
    assert polytope.constraints is polytope.constraints
    assert [p.name() for p in polytope.parameters] == ["cap"]
    assert len(polytope.variables) == 2
    assert repr(polytope) == "Polytope(shape=(3,), constraints=3, parameters=['cap'])"
    assert len(calls) == 1


def test_answers_are_those_of_a_list():
    x = cp.Variable(3, nonneg=True)
    listed = ol.Polytope(x, [cp.sum(x) == 1, x <= cp.Parameter(name="cap")])
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    found, expected = (
        ol.OptLayer(polytope, ol.SparseMAP())(scores, cap=torch.tensor(0.6)) for polytope in (counted()[0], listed)
    )
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_a_pickle_has_the_constraints_and_makes_no_second_variable():
    polytope, calls = counted()
    loaded = pickle.loads(pickle.dumps(polytope))
    assert len(calls) == 1
    assert loaded.constraints[0].variables()[0].id == loaded.variable.id
    assert cp.Variable().id not in {v.id for v in loaded.variables}
    scores = torch.tensor([1.0, 0.0, 0.5])
    answers = [ol.OptLayer(p, ol.Pipeline())(scores, cap=torch.tensor(0.7)) for p in (polytope, loaded)]
    torch.testing.assert_close(*answers)


def test_threads_get_the_same_constraints():
    started = threading.Barrier(4)
    x = cp.Variable(3)

    def declare() -> list[cp.Constraint]:
        started.wait(timeout=10)  # all are here at once
        return [cp.sum(x) == 1, x >= cp.Variable(3, nonneg=True)]

    polytope, found = ol.Polytope(x, declare), []
    threads = [threading.Thread(target=lambda: found.append(polytope.constraints)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(constraints is found[0] for constraints in found)


def test_what_the_function_returns_is_checked_when_it_is_called():
    x, stranger = cp.Variable(3), cp.Variable(2, name="stranger")
    single = ol.Polytope(x, lambda: x >= 0)
    with pytest.raises(TypeError, match=r"got a single one: put it in \[ \]"):
        _ = single.constraints
    with pytest.raises(TypeError, match="constraint 1 is True of type bool"):
        _ = ol.Polytope(x, lambda: [x >= 0, 2 > 1]).constraints
    with pytest.raises(ValueError, match=r"scored\[0\] \(stranger\) is no auxiliary variable"):
        _ = ol.Polytope(x, lambda: [x >= 0], scored=[stranger]).constraints
    with pytest.raises(TypeError, match=r"scored\[0\] must be a cvxpy Variable, but got ndarray"):
        ol.Polytope(x, lambda: [x >= 0], scored=[np.zeros(2)])
