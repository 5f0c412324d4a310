"""Agreement with other libraries: the peers of the benchmarks, and what is made for one structure, at larger sizes."""

from functools import partial

import decisions
import entmax
import peers
import pytest
import small_calls
import torch
import torch_struct
from drawing import draw
from problems import Problem

import optlayers as ol
import polytopes

SMALL = [
    Problem("simplex", (5,), partial(polytopes.simplex, 5), 3),
    Problem("matching", (4,), partial(polytopes.matching, 4), 3),
    Problem("sequence", (3, 3), partial(polytopes.sequence, 3, 3), 3),
    Problem("2-subset", (5,), partial(polytopes.subset, 5), 3, {"budget": 2.0}),
    Problem("arborescence", (3,), partial(polytopes.arborescence, 3), 3),
]
CLOSE = {"cvxpylayers": 2e-2, "Moreau": 1e-4, "Moreau, interior": 1e-3}
"""How far answers of peers may be from ours at their own tolerances; 1e-6 where there is nothing else."""


@pytest.mark.parametrize(
    ("ours", "peer", "problem"),
    [
        pytest.param(every[0], peer, problem, id=f"{peer.name}, {problem.name}")
        for every in (peers.PROJECTORS, peers.MAXIMIZERS)
        for peer in every[1:]
        for problem in SMALL
        if peer.applies(problem)
    ],
)
def test_peers_of_the_benchmarks_solve_our_problems(ours, peer, problem):
    pytest.importorskip(peer.module)
    scores = draw(problem.batch, *problem.polytope.shape)
    found = peer.prepare(problem)(scores)
    tolerance = CLOSE.get(peer.name, 1e-6)
    assert (found - ours.prepare(problem)(scores)).abs().max() <= tolerance
    assert problem.residual(found) <= tolerance


@pytest.mark.parametrize("problem", decisions.DECISIONS, ids=lambda problem: problem.kind)
@pytest.mark.parametrize("processes", [1, 2])
def test_losses_of_pyepo_are_ours(problem, processes):
    pytest.importorskip("ortools")
    pytest.importorskip("pyepo")
    costs = problem.draw(torch.Generator().manual_seed(0)).requires_grad_()
    weights = problem.draw(torch.Generator().manual_seed(1))
    mine = decisions.ours(problem, noise=decisions.TheirNoise())(costs)
    theirs = decisions.pyepo(problem, processes=processes, same_noise=True)(costs)
    assert (mine - theirs).abs().max() <= 1e-5  # PyEPO rounds some numbers to float32
    gradients = [torch.autograd.grad(value, costs, weights)[0] for value in (mine, theirs)]
    assert gradients[0].abs().max() > 0.05 and (gradients[0] - gradients[1]).abs().max() <= 1e-8


def test_arcs_of_grids_are_those_of_pyepo():
    models = pytest.importorskip("pyepo.model.ort")
    pytest.importorskip("ortools")
    assert models.shortestPathModel((4, 3)).arcs == [tuple(arc) for arc in polytopes.grid_arcs(4, 3).tolist()]


def test_the_solver_of_small_calls_answers_for_the_layer():
    scores, layer = draw(4, 5), ol.OptLayer(polytopes.simplex(5), ol.SparseMAP())
    point = small_calls.solver_alone(layer.compiled(), scores.numpy())().point
    assert (torch.from_numpy(point) - layer(scores)).abs().max() <= 1e-12


def test_functions_that_are_entered_are_those_of_the_package():
    assert small_calls.entered(lambda: entmax.sparsemax(draw(4, 5))) == small_calls.Way(0, 0, 0)
    one = small_calls.entered(ol.SparseMAP)
    assert one.depth == one.modules == one.functions == 0  # made by dataclass, outside of any file
    way = small_calls.entered(lambda: ol.compile_polytope(polytopes.simplex(2)))
    assert way.functions > way.modules >= 2 and way.depth >= 2


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("projector", [None, ol.ActiveSet(), ol.InteriorPoint()], ids=repr)
def test_projections_onto_the_simplex_are_sparsemax(projector, scale):
    scores, weights = (scale * draw(40, 50)).requires_grad_(), draw(40, 50, seed=1)
    mine = ol.OptLayer(polytopes.simplex(50), ol.SparseMAP(), projector=projector)(scores)
    theirs = entmax.sparsemax(scores, dim=1)
    assert (mine - theirs).abs().max() <= 1e-10 * max(1.0, scale)
    gradients = [torch.autograd.grad((value * weights).sum(), scores)[0] for value in (mine, theirs)]
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-10


@pytest.mark.filterwarnings("ignore::UserWarning:torch_struct")
def test_marginals_of_chains_are_those_of_torch_struct():
    edges = draw(8, 20, 10, 10)
    edges[:, 0] = 0.0
    marginals = ol.OptLayer(polytopes.sequence(20, 10), ol.StructuredAttention())(edges)
    theirs = torch_struct.LinearChainCRF(edges[:, 1:].mT.contiguous()).marginals.mT
    assert (marginals[:, 1:] - theirs).abs().max() <= 1e-10
    states = ol.OptLayer(polytopes.linear_chain(20, 10), ol.StructuredAttention())(
        draw(8, 20, 10) * 0, transition=edges
    )
    assert (states[:, 1:] - theirs.sum(2)).abs().max() <= 1e-10


@pytest.mark.filterwarnings("ignore::UserWarning:torch_struct")
@pytest.mark.parametrize("lengths", [[20] * 8, [20, 13, 7, 2, 19, 3, 11, 20]], ids=["all as long", "mixed"])
def test_the_likelihood_of_tags_is_that_of_torch_struct(lengths):
    """With learned transitions, by values and both gradients."""
    emissions, learned = draw(8, 20, 10).requires_grad_(), draw(10, 10, seed=1).requires_grad_()
    tags = torch.randint(10, (8, 20), generator=torch.Generator().manual_seed(2))
    gold = torch.nn.functional.one_hot(tags, 10).double()
    for k, length in enumerate(lengths):
        gold[k, length:] = 0.0
    loss = ol.CRFLoss(ol.Family(lambda steps: polytopes.linear_chain(steps, 10)), reduction="none")
    edges = polytopes.edge_scores(torch.zeros(20, 10, dtype=torch.float64), learned)
    mine = loss(emissions, gold, sizes=lengths, transition=edges)
    potentials = emissions[:, 1:, :, None] + learned.T
    potentials = torch.cat([potentials[:, :1] + emissions[:, :1, None, :], potentials[:, 1:]], dim=1)
    model = torch_struct.LinearChainCRF(potentials, lengths=torch.tensor(lengths))
    theirs = -model.log_prob(model.struct.to_parts(tags, 10, lengths=torch.tensor(lengths)).double())
    assert (mine - theirs).abs().max() <= 1e-9
    of_mine, of_theirs = (torch.autograd.grad(value.sum(), (emissions, learned)) for value in (mine, theirs))
    for one, other in zip(of_mine, of_theirs, strict=True):
        assert (one - other).abs().max() <= 1e-9


@pytest.mark.filterwarnings("ignore::UserWarning:torch_struct")
@pytest.mark.parametrize(
    ("polytope", "model", "tolerance"),
    [
        # torch-struct adds 1e-5 to the weight of every arc.
        (polytopes.arborescence(20), torch_struct.NonProjectiveDependencyCRF, 1e-4),
        (polytopes.projective_tree(20), torch_struct.DependencyCRF, 1e-10),
    ],
    ids=["arborescence", "projective tree"],
)
def test_marginals_of_trees_are_those_of_torch_struct(polytope, model, tolerance):
    scores = draw(6, 21, 21)
    mine = ol.OptLayer(polytope, ol.StructuredAttention())(scores)
    root = torch.eye(20, dtype=torch.bool)  # arcs from the root are on the diagonal there
    arcs = torch.where(root, scores[:, :1, 1:], scores[:, 1:, 1:]).requires_grad_()
    theirs = model(arcs, multiroot=False).marginals.detach()
    assert (mine[:, 0, 1:] - theirs.diagonal(dim1=1, dim2=2)).abs().max() <= tolerance
    assert (mine[:, 1:, 1:] - theirs.masked_fill(root, 0.0)).abs().max() <= tolerance
