"""Marginals and their derivative, by log-partition functions and by enumeration of vertices."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE

import optlayers as ol
import polytopes
from optlayers.rules.base import AbstractVertexRule
from optlayers.vertices import enumeration

each_structure = pytest.mark.parametrize("entry", CATALOGUE, ids=repr)


def scores_for(shape, count, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_enumeration(entry, scores):
    """Softmax over all structures, differentiable by torch itself."""
    vertices = torch.tensor(entry.vertices.reshape(len(entry.vertices), -1))
    usable = torch.where(torch.isneginf(scores), 0.0, scores).flatten(1)
    values = usable @ vertices.T
    uses = (torch.isneginf(scores).flatten(1).double() @ (vertices != 0).double().T) > 0
    return (torch.softmax(values.masked_fill(uses, -torch.inf), 1) @ vertices).reshape(scores.shape)


@pytest.mark.many(10)
@each_structure
@pytest.mark.parametrize("summed", [True, False], ids=["formula", "enumerated"])
def test_marginals_and_gradients_equal_those_over_all_structures(entry, summed):
    polytope = entry.polytope
    if not summed:
        polytope = ol.Polytope(polytope.variable, polytope.constraints, oracle=polytope.oracle)
    layer = ol.OptLayer(polytope, ol.StructuredAttention())
    scores, direction = scores_for(polytope.shape, 12).requires_grad_(), scores_for(polytope.shape, 12, seed=1)
    found, expected = layer(scores, **entry.parameters), by_enumeration(entry, scores)
    assert (found - expected).abs().max() <= 1e-10
    gradients = [torch.autograd.grad((value * direction).sum(), scores)[0] for value in (found, expected)]
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-9


@pytest.mark.many(5)
@each_structure
def test_marginals_of_forbidden_parts_and_of_large_scores(entry):
    layer = ol.OptLayer(entry.polytope, ol.StructuredAttention(), on_failure="nan")
    generator = torch.Generator().manual_seed(2)
    scores = scores_for(entry.polytope.shape, 12, seed=3)
    masked = scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.15, -torch.inf).requires_grad_()
    found, expected = layer(masked, **entry.parameters), by_enumeration(entry, masked.detach())
    possible = ~expected.flatten(1).isnan().any(1)
    assert torch.equal(~found.flatten(1).isnan().any(1), possible)
    assert ((found - expected)[possible].abs() <= 1e-10).all()
    found[possible].square().sum().backward()
    assert torch.isfinite(masked.grad).all() and (masked.grad[torch.isneginf(masked.detach())] == 0).all()
    large = 1000.0 * scores
    assert (layer(large, **entry.parameters) - by_enumeration(entry, large)).abs().max() <= 1e-8


def test_structured_attention_on_the_simplex_is_softmax():
    scores = scores_for((7,), 5)
    layer = ol.OptLayer(polytopes.simplex(7), ol.StructuredAttention())
    assert (layer(scores) - torch.softmax(scores, 1)).abs().max() <= 1e-15


def test_hard_decides_and_learns_through_marginals():
    hard = ol.OptLayer(polytopes.arborescence(5), ol.Hard(ol.StructuredAttention()))
    soft = ol.OptLayer(polytopes.arborescence(5), ol.StructuredAttention())
    scores, direction = scores_for((6, 6), 4).requires_grad_(), scores_for((6, 6), 4, seed=5)
    value = hard(scores)
    assert torch.equal(value, ol.OptLayer(polytopes.arborescence(5), ol.Pipeline())(scores))
    gradients = [torch.autograd.grad((v * direction).sum(), scores)[0] for v in (value, soft(scores))]
    assert torch.equal(*gradients) and gradients[0].abs().max() > 1e-3


class LogSum(torch.autograd.Function):
    """A log sum whose derivative is the result of an operation that keeps it for its own derivative."""

    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return torch.logsumexp(scores, 1)

    @staticmethod
    def backward(ctx, grad):
        (scores,) = ctx.saved_tensors
        return torch.exp(torch.log_softmax(scores, 1) + torch.log(grad)[:, None])


def test_the_sum_is_taken_once_for_marginals_and_their_gradients():
    x, asked = cp.Variable(4, nonneg=True), []

    def counted(scores):
        asked.append(len(scores))
        return LogSum.apply(scores)

    polytope = ol.Polytope(x, [cp.sum(x) == 1], log_partition=counted)
    scores, direction = scores_for((4,), 3).requires_grad_(), scores_for((4,), 3, seed=1)
    expected = torch.autograd.grad((torch.softmax(scores, 1) * direction).sum(), scores)[0]
    for rule in (ol.StructuredAttention(), ol.Hard(ol.StructuredAttention())):
        asked.clear()
        value = ol.OptLayer(polytope, rule)(scores)
        with torch.no_grad():
            value.zero_()  # the caller's, and no part of what backward needs
        for _ in range(2):
            found = torch.autograd.grad(value, scores, direction, retain_graph=True)[0]
            assert (found - expected).abs().max() <= 1e-14
        assert len(asked) == (2 if isinstance(rule, ol.Hard) else 1)


def test_graphs_of_marginals_are_kept_only_where_a_gradient_may_be_asked_for():
    recorded = []

    class Listening(AbstractVertexRule):
        def forward(self, polytope, scores, context):
            recorded.append(context.needs_gradient)
            return super().forward(polytope, scores, context)

        def backward(self, polytope, saved, grad, context):
            raise NotImplementedError

    layer = ol.OptLayer(polytopes.simplex(3), Listening())
    layer(torch.zeros(2, 3))
    layer(torch.zeros(2, 3, requires_grad=True))
    assert recorded == [False, True]
    bound = ol.compile_polytope(polytopes.simplex(3)).bind({}, None, 2)
    scores, rule = scores_for((3,), 2), ol.StructuredAttention()
    alone, later = ol.Context(), ol.Context(needs_gradient=True)
    _, (graph, kept) = rule.forward(bound, scores, alone)
    assert graph is None and kept is scores
    _, saved = rule.forward(bound, scores, later)
    assert saved[0].requires_grad
    again = rule.backward(bound, (None, scores), scores, alone).scores
    assert torch.equal(again, rule.backward(bound, saved, scores, later).scores)


def test_mixed_lengths_and_dtypes():
    layer = ol.OptLayer(ol.Family(polytopes.arborescence), ol.StructuredAttention())
    scores = scores_for((6, 6), 3).float().requires_grad_()
    value = layer(scores, sizes=[5, 1, 3])
    assert value.dtype == torch.float32 and value[1, 0, 1] == 1 and value[2, 4:].abs().max() == 0
    alone = ol.OptLayer(polytopes.arborescence(3), ol.StructuredAttention())(scores[2, :4, :4])
    assert (alone - value[2, :4, :4]).abs().max() <= 1e-6
    value.square().sum().backward()
    assert (scores.grad[1] == 0).all()


def test_vertices_that_are_not_0_or_1_are_enumerated_by_hulls():
    x = cp.Variable(2)
    pentagon = np.array([[0.0, 0.0], [2.0, 0.0], [3.0, 1.5], [1.0, 3.0], [-1.0, 1.0]])
    weight = cp.Variable(5, nonneg=True)
    polytope = ol.Polytope(x, [cp.sum(weight) == 1, x == pentagon.T @ weight])
    found = ol.compile_polytope(polytope).vertices().numpy()
    assert {tuple(v) for v in found.round(9)} == {tuple(v) for v in pentagon}
    square = ol.compile_polytope(ol.Polytope(x, [x >= -1, x <= 2])).vertices().numpy()
    assert sorted(map(tuple, square)) == [(-1, -1), (-1, 2), (2, -1), (2, 2)]
    segment = ol.compile_polytope(ol.Polytope(x, [x[0] == x[1], x >= 0, x <= 3])).vertices().numpy()
    assert sorted(map(tuple, segment)) == [(0, 0), (3, 3)]
    ranking = ol.compile_polytope(polytopes.permutahedron(4)).vertices().numpy()
    assert len(ranking) == 24 and {tuple(sorted(v)) for v in ranking} == {(1, 2, 3, 4)}


def test_whole_and_fractional_vertices_together_are_all_found():
    x, weight = cp.Variable(2), cp.Variable(3, nonneg=True)
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    polytope = ol.Polytope(x, [cp.sum(weight) == 1, x == corners.T @ weight])
    scores = torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    expected = torch.softmax(scores @ torch.tensor(corners).T, 1) @ torch.tensor(corners)
    assert (ol.OptLayer(polytope, ol.StructuredAttention())(scores) - expected).abs().max() <= 1e-9
    # The odd cycle: a triangle in which no two neighbours are chosen, and the point of halves.
    y = cp.Variable(3)
    cycle = ol.Polytope(y, [y >= 0, y[0] + y[1] <= 1, y[1] + y[2] <= 1, y[0] + y[2] <= 1])
    found = ol.compile_polytope(cycle).vertices().numpy()
    assert {tuple(v) for v in found} == {(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0.5)}


def test_vertices_of_parameters_are_enumerated_for_each_of_their_values():
    x, k = cp.Variable(5), cp.Parameter(name="k")
    layer = ol.OptLayer(ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == k]), ol.StructuredAttention(), on_failure="nan")
    scores, counts = scores_for((5,), 4), torch.tensor([2.0, 0.0, 2.0, 9.0])
    found = layer(scores, k=counts)
    expected = ol.OptLayer(polytopes.subset(5), ol.StructuredAttention())(scores[:3], budget=counts[:3])
    assert (found[:3] - expected).abs().max() <= 1e-12 and found[3].isnan().all()


def test_too_many_vertices_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(enumeration, "VERTEX_LIMIT", 100)
    layer = ol.OptLayer(polytopes.matching(5), ol.StructuredAttention())
    with pytest.raises(ValueError, match=r"more than 100, too many to enumerate; declare the polytope with log_part"):
        layer(torch.zeros(5, 5))
    assert ol.OptLayer(polytopes.matching(4), ol.StructuredAttention())(torch.zeros(4, 4)).eq(0.25).all()
    wide = cp.Variable(12)
    layer = ol.OptLayer(ol.Polytope(wide, [wide >= 0, wide <= 2, cp.sum(wide) <= 3]), ol.StructuredAttention())
    with pytest.raises(ValueError, match="not 0/1 and have more than 8 dimensions"):
        layer(torch.zeros(12))


def test_wrong_log_partitions_are_said():
    x = cp.Variable(3, nonneg=True)

    def layer(function):
        return ol.OptLayer(ol.Polytope(x, [cp.sum(x) == 1], log_partition=function), ol.StructuredAttention())

    with pytest.raises(ValueError, match=r"log_partition returned shape \(\) .* must return \(2,\), a number per"):
        layer(lambda s: torch.logsumexp(s.reshape(-1), 0))(torch.zeros(2, 3))
    with pytest.raises(ol.SolveError, match="instance 1 is INACCURATE: the marginals of log_partition leave the polyt"):
        layer(lambda s: 2.0 * torch.logsumexp(s, 1))(torch.zeros(2, 3))
