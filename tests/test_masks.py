"""Finite masks are masks: the same answers and gradients as for -inf, where some structure does without the parts."""

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch
from catalogue import LOSSES, PLAIN

import optlayers as ol
import polytopes

LOWEST = {
    "float16": (torch.float16, torch.finfo(torch.float16).min),
    "bfloat16": (torch.bfloat16, torch.finfo(torch.bfloat16).min),
    "float32": (torch.float32, torch.finfo(torch.float32).min),
    "float64": (torch.float64, torch.finfo(torch.float64).min),
    "-1e9": (torch.float64, -1e9),
    "-1e11 in float32": (torch.float32, -1e11),
    "-1e15": (torch.float64, -1e15),
    "-1e32": (torch.float64, -1e32),
}
every_mask = pytest.mark.parametrize("mask", LOWEST)
POLYTOPES = {
    "simplex": polytopes.simplex(6),
    "matching": polytopes.matching(4),
    "rows of matching": polytopes.matching(4).without_oracle(),
    "partial matching": polytopes.partial_matching(3, 4).without_oracle(),
    "sequence": polytopes.sequence(4, 3),
    "rows of sequence": polytopes.sequence(4, 3).without_oracle(),
    "tree": polytopes.arborescence(4),
    "rows of tree": polytopes.arborescence(4).without_oracle(),
    "cube": polytopes.cube(5),
}
every_polytope = pytest.mark.parametrize("name", POLYTOPES)


def masked(polytope: ol.Polytope, mask: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with masks of a kind, and with -inf in their place; a structure without the masked parts remains."""
    dtype, low = LOWEST[mask]
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, *polytope.shape, generator=generator, dtype=torch.float64)
    kept = ol.compile_polytope(polytope).maximize(torch.randn(scores.shape, generator=generator).double()).value > 0.5
    hidden = (torch.rand(scores.shape, generator=generator) < 0.4) & ~kept
    scores = scores.to(dtype)
    return scores.masked_fill(hidden, low), scores.masked_fill(hidden, -torch.inf)


@pytest.mark.many(9)
@every_mask
@every_polytope
def test_answers_are_those_for_forbidden_parts(name, mask):
    finite, forbidden = masked(POLYTOPES[name], mask)
    compiled = ol.compile_polytope(POLYTOPES[name])
    for ask in (compiled.project, compiled.maximize):
        mine, theirs = ask(finite).check(), ask(forbidden).check()
        assert torch.equal(mine.value, theirs.value)


@pytest.mark.many(18)
@pytest.mark.parametrize("mask", ["float16", "float32", "-1e9"])
@pytest.mark.parametrize("rule", PLAIN, ids=repr)
@pytest.mark.parametrize("name", ["matching", "rows of tree", "sequence"])
def test_rules_give_the_gradients_for_forbidden_parts(name, rule, mask):
    polytope = POLYTOPES[name]
    if isinstance(rule, (ol.StructuredAttention, ol.SpigotCE, ol.SpigotEG)) and name == "rows of tree":
        pytest.skip("too many vertices to enumerate")
    found = []
    for scores in masked(polytope, mask):
        leaf = scores.clone().requires_grad_()
        generator = torch.Generator().manual_seed(3) if rule.draws else None
        value = ol.OptLayer(polytope, rule)(leaf, generator=generator)
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(4)).to(value)
        (value * weights).sum().backward()
        found.append((value, leaf.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.many(8)
@pytest.mark.parametrize("mask", ["float16", "bfloat16", "float32", "float64", "-1e15"])
@pytest.mark.parametrize("case", [case for case in LOSSES if case.knows_structures and not case.draws], ids=repr)
@pytest.mark.parametrize("name", ["matching", "sequence", "simplex"])
def test_losses_are_those_for_forbidden_parts(name, case, mask):
    polytope, found = POLYTOPES[name], []
    for scores in masked(polytope, mask):
        target = ol.compile_polytope(polytope).maximize(-masked(polytope, mask)[1].clamp(min=-100)).value
        target = ol.compile_polytope(polytope).maximize(scores.masked_fill(~torch.isfinite(scores), -torch.inf)).value
        leaf = scores.clone().requires_grad_()
        loss = case.make(polytope, reduction="none")(leaf, target)
        loss.sum().backward()
        found.append((loss, leaf.grad))
    assert torch.isfinite(found[0][0]).all()
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("low", [torch.finfo(torch.float32).min, -1e15, -1e9])
def test_a_part_that_no_structure_does_without_counts_as_the_number_that_it_is(low):
    """The second row and the third may only take masked parts."""
    scores = torch.tensor([[1.0, 0.0, -1.0], [low, low, low], [0.0, 1.0, 2.0]], dtype=torch.float64)
    for polytope in (polytopes.matching(3), polytopes.matching(3).without_oracle()):
        for rows in (scores[None], torch.stack([scores, torch.eye(3, dtype=torch.float64)])):
            compiled = ol.compile_polytope(polytope)
            best = compiled.maximize(rows)
            # Any structure uses exactly one of the three, so the others decide, unless they drown in it.
            expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
            if bool(best.ok[0]) and low == -1e9:
                assert torch.equal(best.value[0], expected)
            near = compiled.project(rows)
            if bool(near.ok[0]):
                assert (near.value[0].sum(0) - 1).abs().max() <= 1e-9 and (near.value[0].sum(1) - 1).abs().max() <= 1e-9


def test_scores_that_are_all_low_are_scores_of_that_size():
    scores = -1e12 * torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.5, 1.25]], dtype=torch.float64)
    compiled = ol.compile_polytope(polytopes.simplex(3))
    assert compiled.maximize(scores).check().value.argmax(1).tolist() == [1, 0]
    assert compiled.project(scores).check().value.argmax(1).tolist() == [1, 0]
    leaf = scores.clone().requires_grad_()
    ol.OptLayer(polytopes.simplex(3), ol.StraightThrough())(leaf).sum().backward()
    assert (leaf.grad == 1.0).all()


def test_masks_of_scored_auxiliary_variables():
    polytope = polytopes.linear_chain(4, 3)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, *polytope.shape, generator=generator, dtype=torch.float64)
    name = polytope.scored[0].name()
    further = torch.randn(3, *polytope.scored[0].shape, generator=generator, dtype=torch.float64)
    hidden = torch.zeros_like(further, dtype=torch.bool)
    hidden[:, 1, 0, 2] = True
    found = []
    for low in (torch.finfo(torch.float32).min, -torch.inf):
        for declared in (polytope, polytope.without_oracle()):
            compiled = ol.compile_polytope(declared)
            found.append(compiled.maximize(scores, **{name: further.masked_fill(hidden, low)}).check())
    assert all(torch.equal(found[0].value, other.value) for other in found[1:])


@pytest.mark.parametrize("given", [True, False], ids=["a generator", "torch's own"])
def test_a_mask_that_counts_as_a_number_does_not_change_what_is_drawn_for_others(given):
    """The second question of a batch meets the random numbers of the first one."""
    layer = ol.OptLayer(polytopes.simplex(4), ol.GumbelStraightThrough())
    ordinary = torch.zeros(40, 4, dtype=torch.float64)
    masked = ordinary.clone()
    masked[0] = torch.tensor([-1e9, -1e9, 0.0, 0.0])
    needed = ol.OptLayer(polytopes.subset(4), ol.GumbelStraightThrough())

    def draw(layer, scores, **parameters):
        torch.manual_seed(0)
        return layer(scores, generator=torch.Generator().manual_seed(0) if given else None, **parameters)

    assert torch.equal(draw(layer, masked)[1:], draw(layer, ordinary)[1:])
    three = torch.tensor(3.0)  # of four parts, of which two cannot be left out
    assert torch.equal(draw(needed, masked, budget=three)[1:], draw(needed, ordinary, budget=three)[1:])


def test_spo_plus_of_a_row_of_the_lowest_number():
    """Twice the lowest number of float64 is -inf, which would forbid what every structure needs."""
    low = float(torch.finfo(torch.float64).min)
    predicted = torch.tensor([[low, low], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = ol.SPOPlusLoss(polytopes.matching(2))
    same = loss(predicted, torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    other = loss(predicted, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    assert torch.isfinite(same) and torch.isfinite(other)
    assert torch.isfinite(torch.autograd.grad(other, predicted)[0]).all()


def bounded_by(atom: str) -> ol.Polytope:
    """Parts of at least 0 that are bounded by constraints with variables of their own."""
    x = cp.Variable(3, nonneg=True)
    rows = {
        "pos": [cp.sum(cp.pos(x)) <= 2],
        "pos of one": [x[0] <= 1, cp.sum(cp.pos(x[1:])) <= 2],
        "abs": [cp.sum(cp.abs(x)) <= 2],
        "norm1": [cp.norm1(x) <= 2],
        "max": [cp.max(x) <= 2, cp.sum(cp.pos(x)) <= 3],
        "sum_largest": [cp.sum_largest(x, 2) <= 2],
        "a chain": [x <= cp.Variable(3, nonneg=True), cp.sum(cp.pos(x)) + cp.max(x) <= 4],
    }
    return ol.Polytope(x, rows[atom])


@pytest.mark.parametrize("solver", [None, ol.Auto(), ol.Highs(), ol.InteriorPoint(), ol.Dense()], ids=repr)
@pytest.mark.parametrize("mask", [-1e8, -1e11, -1e15, -1e32, torch.finfo(torch.float64).min])
@pytest.mark.parametrize("atom", ["pos", "pos of one", "abs", "norm1", "max", "sum_largest", "a chain"])
def test_parts_of_little_harm_are_left_out_beside_masks(atom, mask, solver):
    """Every score is below 0, so nothing is best: next to a mask -0.2 is not rounding, through whatever rows."""
    scores = torch.tensor([[mask, -0.2, -1e-3], [-0.2, mask, -0.1], [-1.0, -0.2, mask]], dtype=torch.float64)
    solution = ol.compile_polytope(bounded_by(atom), maximizer=solver).maximize(scores)
    best = solution.value[solution.ok]
    torch.testing.assert_close(best, torch.zeros_like(best), atol=1e-7, rtol=0.0)
    assert solution.all_ok or isinstance(solver, ol.InteriorPoint | ol.Dense)


@pytest.mark.parametrize("least", [-1e-3, -0.2, -5.0])
@pytest.mark.parametrize("mask", [-1e9, -1e11, -1e15])
def test_auxiliary_columns_are_held_to_the_smallest_score(mask, least):
    """They have no score of their own to compare what is lost with."""
    x = cp.Variable((3, 3), diag=True)
    rows = [x >= 0, x[0, 0] == 1, cp.sum(cp.pos(x[2, :])) <= 1.984, 3 * x[1, 1] + 2 * x[2, 2] <= 5]
    scores = torch.full((3, 3), mask, dtype=torch.float64)
    scores[2, 2] = least
    solution = ol.compile_polytope(ol.Polytope(x, rows)).maximize(scores).check()
    assert solution.value.diagonal().tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("solver", [None, ol.Highs(), ol.InteriorPoint()], ids=repr)
def test_scores_whose_differences_are_no_numbers_come_to_an_end(solver):
    """HiGHS does not, with costs of NaN."""
    x = cp.Variable(5)
    polytope = ol.Polytope(
        x, [x >= -128, x <= 128, x @ np.array([0.0, -1.0, -1.0, 1.0, 1.0]) == -28, cp.sum(x) <= -152]
    )
    lowest = torch.finfo(torch.float64).min
    rows = [[0.3, lowest, 0.7, lowest, lowest], [lowest, -lowest, lowest, -lowest, 1.0]]
    scores = torch.tensor(rows, dtype=torch.float64)
    solution = ol.compile_polytope(polytope, maximizer=solver).maximize(scores)
    for k in np.flatnonzero(solution.ok.numpy()):
        unit = scores[k].numpy() / -lowest
        best = scipy.optimize.linprog(
            -unit,
            A_ub=np.ones((1, 5)),
            b_ub=[-152],
            A_eq=[[0.0, -1.0, -1.0, 1.0, 1.0]],
            b_eq=[-28],
            bounds=(-128, 128),
        )
        assert unit @ solution.value[k].numpy() == pytest.approx(-best.fun, rel=1e-9)
