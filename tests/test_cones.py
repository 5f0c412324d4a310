"""Sets that are not polyhedral, with the solvers that the library chooses: by formulas, and by finite differences."""

import pickle

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import optlayers as ol

SIZES = [0.0, 1e-8, 1e-3, 1.0, 1e3, 1e8]


def drawn(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ball(size=4, **attributes):
    x, radius = cp.Variable(size), cp.Parameter(name="radius", **attributes)
    return ol.Polytope(x, [cp.norm(x) <= radius])


def cut_ball(size=4):
    x, radius = cp.Variable(size), cp.Parameter(name="radius")
    return ol.Polytope(x, [cp.norm(x) <= radius, x >= -0.2, cp.sum(x) <= 0.9])


def spectraplex(size=4):
    x = cp.Variable((size, size), symmetric=True)
    return ol.Polytope(x, [x >> 0, cp.trace(x) == 1])


def onto_ball(scores, radius):
    length = scores.norm(dim=-1, keepdim=True)
    return scores * torch.minimum(radius[..., None] / length.clamp_min(1e-300), torch.ones_like(length))


def onto_simplex(values):
    """Of sorted values, by the threshold that leaves a sum of 1."""
    falling = values.flip(-1)
    count = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype)
    threshold = (falling.cumsum(-1) - 1.0) / count
    last = (falling > threshold).sum(-1, keepdim=True) - 1
    return (values - threshold.gather(-1, last)).clamp_min(0.0)


def onto_spectraplex(scores):
    """The eigenvalues go to the simplex; a score counts half for each of two entries that are equal."""
    values, vectors = torch.linalg.eigh(0.5 * (scores + scores.mT))
    return (vectors * onto_simplex(values)[..., None, :]) @ vectors.mT


@pytest.mark.parametrize("scale", SIZES)
@pytest.mark.parametrize("radius", [0.0, 1e-9, 1.0, 1e6])
def test_balls_of_all_sizes(scale, radius):
    scores, radii = drawn(6, 4, scale=scale), torch.full((6,), radius, dtype=torch.float64)
    found = ol.compile_polytope(ball()).project(scores, radius=radii).check()
    torch.testing.assert_close(found.value, onto_ball(scores, radii), atol=1e-12 * max(1.0, radius), rtol=1e-9)
    assert found.word is None and (found.primal_residual <= 1e-9 * max(1.0, radius)).all()


@pytest.mark.parametrize("scale", SIZES)
def test_spectraplex(scale):
    scores = drawn(6, 4, 4, scale=scale)
    found = ol.compile_polytope(spectraplex()).project(scores).check()
    torch.testing.assert_close(found.value, onto_spectraplex(scores), atol=1e-10, rtol=0)


@pytest.mark.parametrize("where", ["ones", "two large", "a tie at the edge"])
def test_ties_of_eigenvalues(where):
    scores = {
        "ones": torch.eye(4, dtype=torch.float64),
        "two large": torch.diag(torch.tensor([2.0, 2.0, 0.0, -1.0], dtype=torch.float64)),
        "a tie at the edge": torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)),
    }[where]
    compiled = ol.compile_polytope(spectraplex())
    found = compiled.project(scores).check()
    torch.testing.assert_close(found.value, onto_spectraplex(scores), atol=1e-10, rtol=0)
    assert compiled.tangent(found, torch.ones(4, 4, dtype=torch.float64)).all_ok


def test_a_score_on_the_edge_has_a_derivative_of_one_side():
    compiled, edge = ol.compile_polytope(ball()), torch.tensor([0.6, 0.8, 0.0, 0.0], dtype=torch.float64)
    found, direction = compiled.project(edge, radius=1.0).check(), torch.ones(4, dtype=torch.float64)
    tangent = compiled.tangent(found, direction)
    inward = direction - edge * (edge @ direction)
    assert tangent.all_ok
    assert torch.allclose(tangent.scores, direction) or torch.allclose(tangent.scores, inward)


def test_gradients_of_balls_and_their_radius():
    layer = ol.OptLayer(ball(), ol.SparseMAP())
    scores, radius = drawn(8, 4).requires_grad_(), torch.linspace(0.3, 3.0, 8, dtype=torch.float64).requires_grad_()
    weight = drawn(8, 4, seed=1)
    found = torch.autograd.grad((layer(scores, radius=radius) * weight).sum(), (scores, radius))
    right = torch.autograd.grad((onto_ball(scores, radius) * weight).sum(), (scores, radius))
    for mine, formula in zip(found, right, strict=True):
        torch.testing.assert_close(mine, formula, atol=1e-10, rtol=0)


def test_gradients_of_the_spectraplex():
    layer, weight = ol.OptLayer(spectraplex(), ol.SparseMAP()), drawn(5, 4, 4, seed=1)
    scores = drawn(5, 4, 4).requires_grad_()
    (found,) = torch.autograd.grad((layer(scores) * weight).sum(), scores)
    (right,) = torch.autograd.grad((onto_spectraplex(scores) * weight).sum(), scores)
    torch.testing.assert_close(found, right, atol=1e-9, rtol=0)


def test_gradients_of_second_order_constraints_with_parameters_in_their_matrix():
    x = cp.Variable(4)
    matrix, offset = cp.Parameter((3, 4), name="matrix"), cp.Parameter(3, name="offset")
    layer = ol.OptLayer(ol.Polytope(x, [cp.norm(matrix @ x + offset) <= 1, x <= 2, x >= -2]), ol.SparseMAP())
    given = [drawn(3, 4), drawn(3, 3, 4, seed=1), drawn(3, 3, scale=0.2, seed=2)]
    leaves = [one.requires_grad_() for one in given]
    assert gradcheck(lambda s, a, b: layer(s, matrix=a, offset=b), leaves, atol=1e-5)


@pytest.mark.parametrize("weights", ["one", "each", "one parameter", "a parameter for each"])
def test_weights_of_squares(weights):
    scores, radius = drawn(3, 4).requires_grad_(), torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64).requires_grad_()
    number = cp.Parameter(4 if weights.endswith("each") else (), pos=True, name="number")
    given = torch.rand(3, *number.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    chosen = {"one": 2.0, "each": [1.0, 2.0, 3.0, 4.0]}.get(weights, number)
    layer = ol.OptLayer(cut_ball(), ol.Regularized(ol.Euclidean(chosen)))
    if chosen is not number:
        assert gradcheck(lambda s, r: layer(s, radius=r), (scores, radius), atol=1e-5)
        return
    assert gradcheck(lambda s, r, n: layer(s, radius=r, number=n), (scores, radius, given.requires_grad_()), atol=1e-5)


def test_weighted_squares_are_best_by_their_conditions():
    """On the ball, w z - s is a multiple of z, with a factor of at most 0, and 0 inside."""
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    scores, radii = drawn(20, 4, scale=3.0), torch.ones(20, dtype=torch.float64)
    layer = ol.OptLayer(ball(), ol.Regularized(ol.Euclidean(weights.tolist())))
    z = layer(scores, radius=radii)
    slope = weights * z - scores
    factor = (slope * z).sum(1) / z.square().sum(1)
    assert (factor <= 1e-9).all() and (z.norm(dim=1) <= 1 + 1e-9).all()
    torch.testing.assert_close(slope, factor[:, None] * z, atol=1e-9, rtol=0)
    assert (factor.abs()[z.norm(dim=1) < 0.999] <= 1e-9).all()


def test_declared_expressions():
    """With norms, whose cones are of the second order, and parameters."""
    polytope = cut_ball()
    x, root, price = polytope.variable, cp.Parameter((4, 4), name="root"), cp.Parameter(nonneg=True, name="price")
    omega = cp.sum_squares(root @ x) + price * cp.norm1(x) + 0.1 * cp.norm(x) + 0.05 * cp.sum_squares(x)
    layer = ol.OptLayer(polytope, ol.Regularized(omega))
    given = [drawn(3, 4), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), drawn(3, 4, 4, seed=1)]
    given.append(torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64))
    leaves = [one.requires_grad_() for one in given[:3]]
    assert gradcheck(lambda s, r, q: layer(s, radius=r, root=q, price=given[3]), leaves, atol=1e-5)
    values = layer(*given[:1], radius=given[1], root=given[2], price=given[3]).detach()
    for k in range(3):
        right = cp.Variable(4)
        squares = cp.sum_squares(given[2][k].detach().numpy() @ right) + 0.05 * cp.sum_squares(right)
        charged = squares + given[3][k].item() * cp.norm1(right) + 0.1 * cp.norm(right)
        limits = [cp.norm(right) <= given[1][k].item(), right >= -0.2, cp.sum(right) <= 0.9]
        cp.Problem(cp.Maximize(given[0][k].detach().numpy() @ right - charged), limits).solve(cp.CLARABEL)
        np.testing.assert_allclose(values[k].numpy(), right.value, atol=1e-4)


def test_the_entropy_of_a_ball_goes_to_exponential_cones():
    """Where the ball does not bind, parts are e^(s/T - 1) each; where it does, T (log z + 1) + λ z = s."""
    layer = ol.OptLayer(ball(), ol.Regularized(ol.Entropy(0.5)))
    scores = drawn(4, 4).abs().requires_grad_()
    wide = layer(scores, radius=torch.tensor(100.0, dtype=torch.float64))
    torch.testing.assert_close(wide, torch.exp(scores / 0.5 - 1.0), atol=1e-4, rtol=1e-4)
    radius = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    tight = layer(scores, radius=radius)
    factor = (scores - 0.5 * (tight.log() + 1.0)) / tight
    torch.testing.assert_close(factor, factor.mean(1, keepdim=True).expand_as(factor), atol=2e-2, rtol=1e-2)
    assert torch.autograd.grad(tight.square().sum(), radius)[0].item() == pytest.approx(4.0, abs=1e-3)


@pytest.mark.parametrize("regularizer", [ol.Tsallis(1.5), ol.Barrier(0.1)])
def test_other_regularizers_are_refused(regularizer):
    with pytest.raises(ol.DeclarationError, match=r"not polyhedral: there, .*Euclidean.*Entropy.*expressions of cvxpy"):
        ol.OptLayer(ball(), ol.Regularized(regularizer))
    with pytest.raises(ol.DeclarationError, match="not polyhedral: there"):
        ol.OptLayer(ball(), ol.CentralPath(0.1, hard=False))


def test_a_covariance_is_given_by_its_root():
    polytope, covariance = ball(), cp.Parameter((4, 4), PSD=True, name="covariance")
    with pytest.raises(ol.DeclarationError, match=r"not polyhedral: give a covariance by its root"):
        ol.OptLayer(polytope, ol.Regularized(cp.quad_form(polytope.variable, covariance)))


def test_best_values_have_gradients():
    """Of the ball r |s|, with the gradient r s / |s| and |s|; of the spectraplex the largest eigenvalue."""
    value = ol.OptimalValue(ball())
    scores, radius = drawn(5, 4).requires_grad_(), torch.linspace(0.5, 2.0, 5, dtype=torch.float64).requires_grad_()
    found = value(scores, radius=radius)
    torch.testing.assert_close(found, radius * scores.norm(dim=1), atol=1e-10, rtol=0)
    by_scores, by_radius = torch.autograd.grad(found.sum(), (scores, radius))
    unit = scores / scores.norm(dim=1, keepdim=True)
    torch.testing.assert_close(by_scores, radius[:, None] * unit, atol=1e-9, rtol=0)
    torch.testing.assert_close(by_radius, scores.norm(dim=1), atol=1e-9, rtol=0)
    matrices = drawn(5, 4, 4)
    largest = torch.linalg.eigvalsh(0.5 * (matrices + matrices.mT))[:, -1]
    torch.testing.assert_close(ol.OptimalValue(spectraplex())(matrices), largest, atol=1e-10, rtol=0)
    assert ol.OptimalValue(spectraplex())(torch.zeros(4, 4)).item() == 0.0


@pytest.mark.parametrize("omega", [None, ol.Euclidean(), ol.Euclidean([1.0, 2.0, 3.0, 4.0])])
def test_gradients_of_best_values(omega):
    value = ol.OptimalValue(cut_ball(), omega)
    leaves = drawn(3, 4).requires_grad_(), torch.tensor([0.4, 0.8, 2.0], dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda s, r: value(s, radius=r), leaves, atol=1e-5)


def test_losses():
    target, radius = torch.zeros(3, 4, dtype=torch.float64), torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    scores = drawn(3, 4).requires_grad_()
    by_name, general = ol.SparseMAPLoss(ball()), ol.FenchelYoungLoss(ball(), ol.Euclidean())
    loss = by_name(scores, target, radius=radius)
    (found,) = torch.autograd.grad(loss * 3.0, scores)
    torch.testing.assert_close(found, onto_ball(scores, radius).detach(), atol=1e-10, rtol=0)
    assert general(scores, target, radius=radius).item() == pytest.approx(loss.item(), abs=1e-12)
    weighted = ol.FenchelYoungLoss(ball(), ol.Euclidean([1.0, 2.0, 3.0, 4.0]))
    leaf = radius.clone().requires_grad_()
    assert gradcheck(lambda s, r: weighted(s, target, radius=r), (scores, leaf), atol=1e-5)
    with pytest.raises(ValueError, match="is not in the polytope: its distance"):
        by_name(scores, target + 1.0, radius=radius)


def test_infeasible_instances_are_named_and_the_others_solved():
    compiled, scores = ol.compile_polytope(ball()), drawn(4, 4)
    radii = torch.tensor([1.0, -1.0, 0.5, -1e-6], dtype=torch.float64)
    found = compiled.project(scores, radius=radii)
    assert found.status.tolist() == [0, 1, 0, 1]
    assert "constraint 0" in found.reasons[1] and "cannot hold together" in found.reasons[1]
    torch.testing.assert_close(found.value[[0, 2]], onto_ball(scores, radii)[[0, 2]], atol=1e-12, rtol=0)
    with pytest.raises(ol.SolveError, match=r"instance 1 is INFEASIBLE: constraint 0"):
        ol.OptLayer(ball(), ol.SparseMAP())(scores, radius=radii)
    layer, leaf = ol.OptLayer(ball(), ol.SparseMAP(), on_failure="nan"), scores.clone().requires_grad_()
    layer(leaf, radius=radii).nan_to_num().square().sum().backward()
    assert (leaf.grad[[1, 3]] == 0).all() and (leaf.grad[[0, 2]] != 0).any(dim=1).all()


def test_forbidden_parts():
    scores = torch.tensor([[3.0, 4.0, -torch.inf, 0.0], [-torch.inf, 0.1, 0.2, 0.3]], dtype=torch.float64)
    leaf = scores.clone().requires_grad_()
    value = ol.OptLayer(ball(), ol.SparseMAP())(leaf, radius=torch.tensor(1.0, dtype=torch.float64))
    right = torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.0, 0.1, 0.2, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(value, right, atol=1e-12, rtol=0)
    value[:, 1].sum().backward()
    assert leaf.grad[0, 2] == 0 and leaf.grad[1, 0] == 0 and leaf.grad[1, 1] == pytest.approx(1.0)


def test_empty_batches_and_single_precision():
    layer = ol.OptLayer(ball(), ol.SparseMAP())
    assert layer(torch.zeros(0, 4), radius=torch.zeros(0)).shape == (0, 4)
    scores = drawn(2, 3, 4).float().requires_grad_()
    value = layer(scores, radius=torch.tensor(0.5))
    assert value.dtype == torch.float32 and value.shape == (2, 3, 4)
    torch.testing.assert_close(value, onto_ball(scores, torch.full((2, 3), 0.5)), atol=1e-6, rtol=0)
    value.sum().backward()
    assert scores.grad.dtype == torch.float32


def test_an_answer_depends_on_its_instance_alone():
    compiled, scores = ol.compile_polytope(cut_ball()), drawn(16, 4, scale=2.0)
    radii = torch.linspace(0.25, 2.0, 16, dtype=torch.float64)
    together = compiled.project(scores, radius=radii).check().value
    alone = torch.stack([compiled.project(s, radius=r).value for s, r in zip(scores, radii, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)
    again = pickle.loads(pickle.dumps(compiled)).project(scores, radius=radii).value
    assert torch.equal(together, again)


def test_balls_that_rows_cut_are_nearest():
    """By a second opinion, which cvxpy hands the declaration."""
    scores, radii = drawn(12, 4, scale=2.0), torch.linspace(0.25, 2.0, 12, dtype=torch.float64)
    mine = ol.compile_polytope(cut_ball()).project(scores, radius=radii).check()
    other = ol.compile_polytope(cut_ball(), projector=ol.CvxpyLayers()).project(scores, radius=radii).check()
    torch.testing.assert_close(mine.value, other.value, atol=1e-5, rtol=0)


class Off(ol.AbstractProjector):
    """Answers of :class:`ConeNewton` whose points are wrong by a part in a thousand, in the ball or beside it."""

    polyhedral_only = False

    def __init__(self, factor):
        self.factor, self.right = factor, ol.ConeNewton()

    def prepare(self, form):
        return self.right.prepare(form)

    def project(self, state, instances):
        answer = self.right.project(state, instances)
        answer.cones.z *= self.factor
        answer.whole[:] *= self.factor
        return answer


@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_a_wrong_point_is_not_called_nearest(factor):
    found = ol.compile_polytope(ball(), projector=Off(factor)).project(drawn(8, 4, scale=3.0), radius=1.0)
    assert not found.ok.any()


def test_points_where_constraints_leave_no_inside_are_right_or_refused():
    """A plane that touches the ball: by the rounding of the root of 4 there is one point, none, or a small disc."""
    x, total = cp.Variable(4), cp.Parameter(name="total")
    compiled = ol.compile_polytope(ol.Polytope(x, [cp.norm(x) <= 1, cp.sum(x) == total]))
    found = compiled.project(drawn(3, 4), total=torch.tensor([2.0, 2.0 - 1e-9, 2.1], dtype=torch.float64))
    half = torch.full((4,), 0.5, dtype=torch.float64)
    assert not found.ok[2] and all(torch.allclose(v, half, atol=1e-3) for v in found.value[:2][found.ok[:2]])


def test_exponential_cones_go_to_cvxpylayers_and_explain_says_so():
    x = cp.Variable(3)
    exponential = ol.compile_polytope(ol.Polytope(x, [cp.sum(cp.exp(x)) <= 3, x >= -2]))
    scores = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(exponential.project(scores).check().value, scores, atol=1e-5, rtol=0)
    text = exponential.explain()
    assert "CvxpyLayers" in text and "needs ExpCone cones" in text
    assert "ConeNewton" in ol.compile_polytope(ball()).explain()
    assert "cones are those of norms" in ol.compile_polytope(ball()).explain()
    large = ol.compile_polytope(ball(700))
    assert isinstance(large.projector, ol.CvxpyLayers) and "more than 600" in large.explain()


def test_auto_may_be_named():
    compiled = ol.compile_polytope(ball(), projector=ol.Auto())
    assert isinstance(compiled.projector, ol.ConeNewton)
    with pytest.raises(ol.DeclarationError, match=r"leave projector= out, or name optlayers.ConeNewton\(\)"):
        ol.compile_polytope(ball(), projector=ol.Clarabel())


def test_there_are_no_vertices_and_no_second_derivatives():
    with pytest.raises(ValueError, match="not polyhedral and has no vertices; use a rule that only projects"):
        ol.OptLayer(ball(), ol.Pipeline())
    with pytest.raises(TypeError, match="maximize needs a polyhedral set"):
        ol.compile_polytope(ball()).maximize(torch.zeros(4), radius=1.0)
    one = torch.tensor(1.0, dtype=torch.float64)
    for rule, message in (
        (ol.SparseMAP(), "on polyhedral sets only"),
        (ol.Regularized(ol.Euclidean([1.0, 2.0, 3.0, 4.0])), "by a cone solver has no derivative"),
    ):
        leaf = drawn(4, scale=5.0).requires_grad_()
        (slope,) = torch.autograd.grad(ol.OptLayer(ball(), rule)(leaf, radius=one)[0], leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match=message):
            slope.sum().backward()


def test_families_of_balls():
    layer = ol.OptLayer(ol.Family(ball), ol.SparseMAP())
    scores, radius = drawn(3, 5, scale=3.0), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    value = layer(scores, sizes=[5, 3, 2], radius=radius)
    for k, size in enumerate([5, 3, 2]):
        torch.testing.assert_close(value[k, :size], onto_ball(scores[k, :size], radius[k]), atol=1e-10, rtol=0)
        assert (value[k, size:] == 0).all()
