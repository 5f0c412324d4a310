"""Messages call entries of variables by the names that these have."""

import pickle

import cvxpy as cp
import pytest
import torch

import optlayers as ol


def message(attempt):
    with pytest.raises((ValueError, ol.SolveError)) as caught:
        attempt()
    return str(caught.value)


def scored(*shape, **attributes):
    """A variable with a name of its own and one without, and what messages call them."""
    return [(cp.Variable(shape, name="x", **attributes), "x"), (cp.Variable(shape, **attributes), "variable")]


def test_entries_of_the_scored_variable():
    for x, called in scored(3):
        told = message(lambda x=x: ol.compile_polytope(ol.Polytope(x, [x >= 2, x <= 1])))
        assert told.startswith(f"the polytope is empty: {called}[0] must be >= 2 by constraint 0")
        told = message(lambda x=x: ol.compile_polytope(ol.Polytope(x, [x <= 1])))
        assert told.startswith(f"the declaration is unbounded: {called}[0] can move without limit")
        told = message(lambda x=x: ol.compile_polytope(ol.Polytope(x, [cp.norm(x[:2]) <= 1])))
        assert told.startswith(f"the declaration is unbounded: {called}[2] can move without limit")
    for x, called in scored():
        told = message(lambda x=x: ol.compile_polytope(ol.Polytope(x, [x >= 2])))
        assert told.startswith(f"the declaration is unbounded: {called} can move without limit")


def test_copies_of_variables_without_a_name():
    """A relaxation, and what comes out of a pickle, have variables whose numbers are not those in their names."""
    x = cp.Variable(3, integer=True)
    for polytope in (ol.Polytope(x, [x >= 0]).relaxed(), pickle.loads(pickle.dumps(ol.Polytope(x, [x >= 0])))):
        assert "variable[0] can move without limit" in message(lambda p=polytope: ol.compile_polytope(p))


def test_instances_that_fail():
    low = cp.Parameter((2, 2), name="low")
    for z, called in scored(2, 2):
        compiled = ol.compile_polytope(ol.Polytope(z, [z >= low, z <= 1]))
        lower = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        told = message(lambda c=compiled, at=lower: c.maximize(torch.zeros(2, 2), low=at).check())
        assert (
            f"the instance is INFEASIBLE: {called}[1, 0] must be >= 2" in told and "(parameters involved: low)" in told
        )
        fixed = ol.compile_polytope(ol.Polytope(z, [z >= 0, z <= 1, z[0, 1] == 1]))
        hidden = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
        assert f"{called}[0, 1] is forbidden by its score" in message(lambda c=fixed, s=hidden: c.maximize(s).check())


AUXILIARY = {
    "a name": (cp.Variable((2, 3), name="flow"), "flow[1, 2]"),
    "no name": (cp.Variable((2, 3)), "an auxiliary variable"),
    "an attribute": (cp.Variable((2, 3), name="flow", nonneg=True), "flow[1, 2]"),
    "integers": (cp.Variable((2, 3), name="trips", integer=True), "trips[1, 2]"),
    "symmetric": (cp.Variable((3, 3), name="both", symmetric=True), "an entry of both"),
    "a number": (cp.Variable(name="most"), "most"),
}


@pytest.mark.parametrize("case", AUXILIARY)
def test_entries_of_auxiliary_variables(case):
    x, (other, called) = cp.Variable(3, name="x"), AUXILIARY[case]
    entry = other[1, 2] if other.ndim else other
    beside = ol.Polytope(x, [x >= 0, x <= cp.sum(other), other >= 2, entry <= 1])
    assert message(lambda: ol.compile_polytope(beside)).startswith(f"the polytope is empty: {called} must be >= 2")
    low = cp.Parameter(name="low")
    bounded = [x >= 0, x <= cp.sum(other), other <= 1, entry >= low]
    if case in ("a name", "no name", "a number"):
        compiled = ol.compile_polytope(ol.Polytope(x, bounded))
        told = message(lambda: compiled.project(torch.zeros(3), low=2.0).check())
        assert f"the instance is INFEASIBLE: {called} must be >= 2" in told


def test_integers_without_a_limit():
    x, trips = cp.Variable(3, name="x", boolean=True), cp.Variable(3, name="trips", integer=True)
    polytope = ol.Polytope(x, [x <= trips, cp.sum(x) <= 2])
    told = message(lambda: ol.compile_polytope(polytope, maximizer=ol.Diagram()).maximize(torch.ones(3)).check())
    assert "trips[0] is an integer without a limit" in told


def test_variables_as_a_whole():
    x, strange = cp.Variable(3, name="x"), cp.Variable(2)
    told = message(lambda: ol.compile_polytope(ol.Polytope(cp.Variable(3), [strange >= 0])))
    assert told == (
        "no constraint mentions the scored variable; the constraints mention a variable of shape (2,) without a name"
    )
    told = message(lambda: ol.Polytope(x, [x >= 0], scored=[strange]))
    assert told.startswith("scored[0] (a variable of shape (2,) without a name) is no auxiliary variable")
    told = message(lambda: ol.FenchelYoungLoss(ol.Polytope(x, [x >= 0, x <= 1]), cp.sum_squares(strange)))
    assert (
        "mentions a variable of shape (2,) without a name, which no constraint" in told and "variables are x (" in told
    )


def test_masks_of_a_log_partition_function():
    x = cp.Variable((2, 2), nonneg=True, name="pairs")
    nested = ol.Polytope(x, [cp.sum(x) == 1], log_partition=lambda s: torch.logsumexp(torch.logsumexp(s, -1), -1))
    with pytest.raises(AssertionError, match=r"where pairs\[0, :\] is forbidden: its gradient is NaN"):
        ol.testing.check_log_partition(nested)


def test_a_report_writes_lines_that_can_be_pasted():
    for name, called in (("x", "x"), ("the parts", "x"), ("share", "share"), (None, "x")):
        x = cp.Variable(3, name=name)
        found = ol.report(ol.Polytope(x, [x >= 0, cp.sum(x) == 1]))
        assert f"{called}[0] + {called}[1] + {called}[2]" in str(found)
