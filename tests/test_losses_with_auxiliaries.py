"""Losses over polytopes whose auxiliary variables have scores: by enumeration, by cvxpy, by finite differences."""

import itertools
from dataclasses import dataclass
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import bits, paths

import optlayers as ol
import polytopes


@dataclass(frozen=True)
class Lifted:
    """A polytope, the name of its scored auxiliary variable, and its vertices as pairs of structure and auxiliary."""

    name: str
    polytope: ol.Polytope
    auxiliary: str
    structures: torch.Tensor
    values: torch.Tensor

    def __repr__(self):
        return self.name

    def totals(self, scores, further):
        """What every vertex scores, ``(batch, vertices)``."""
        return scores.flatten(1) @ self.structures.flatten(1).T + further.flatten(1) @ self.values.flatten(1).T

    def agree(self, targets):
        """Which vertices have the structure of the target, ``(batch, vertices)``."""
        return (self.structures[None] == targets[:, None]).flatten(2).all(2)

    def draw(self, count, seed=0, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        shapes = self.structures.shape[1:], self.values.shape[1:]
        return [scale * torch.randn(count, *shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def targets(self, count, seed=1):
        return self.structures[np.random.default_rng(seed).integers(len(self.structures), size=count)]


def pairs_of(x):
    return np.array([a * b for a, b in itertools.pairwise(x)])


def pairwise_bits(size):
    """Bits with a score for every two neighbours that are both on: any bit of a structure may be off in another."""
    x, v = cp.Variable(size, bounds=[0, 1]), cp.Variable(size - 1, nonneg=True, name="pair")
    return ol.Polytope(x, [v <= x[:-1], v <= x[1:], v >= x[:-1] + x[1:] - 1], scored=[v])


def hidden_states():
    """One of three labels, by way of one of two states of each: a target leaves two completions."""
    x, v = cp.Variable(3), cp.Variable((3, 2), nonneg=True, name="state")
    return ol.Polytope(x, [x == cp.sum(v, axis=1), cp.sum(v) == 1], scored=[v])


def lifted(name, polytope, auxiliary, pairs):
    structures, values = (torch.tensor(np.array(part)) for part in zip(*pairs, strict=True))
    return Lifted(name, polytope, auxiliary, structures, values)


PRECISE = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
CHAIN = polytopes.linear_chain(3, 2)
EDGES = [(edges.sum(1), edges) for edges in paths(3, 2)]
STATES = [(np.eye(3)[i], np.eye(6)[2 * i + j].reshape(3, 2)) for i in range(3) for j in range(2)]
BITS = [(x, pairs_of(x)) for x in bits(4)]
ENTRIES = [
    lifted("chain", CHAIN, "transition", EDGES),
    lifted("chain by rows", CHAIN.without_oracle(), "transition", EDGES),
    lifted("neighbours", pairwise_bits(4), "pair", BITS),
    lifted("hidden states", hidden_states(), "state", STATES),
]
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=repr)
each_loss = pytest.mark.parametrize(
    "loss", [ol.StructuredPerceptronLoss, ol.CRFLoss, ol.StructuredHingeLoss, ol.SparseMAPLoss]
)


def gradients(loss, scores, further, target, **named):
    leaves = scores.clone().requires_grad_(), further.clone().requires_grad_()
    value = loss(leaves[0], target, **dict.fromkeys(named.pop("names"), leaves[1]), **named)
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)


def restricted(values, allowed):
    return values.masked_fill(~allowed, -torch.inf)


def weights_of(loss, values):
    """What the loss maximizes by, and the weight of every vertex in its gradient."""
    if loss is ol.CRFLoss:
        return values.logsumexp(1), values.softmax(1)
    best = values.max(1)
    return best.values, torch.nn.functional.one_hot(best.indices, values.shape[1]).to(values)


@pytest.mark.many(4)
@each_entry
@pytest.mark.parametrize("masked", [False, True], ids=["structures", "masks"])
@pytest.mark.parametrize("loss", [ol.StructuredPerceptronLoss, ol.CRFLoss, ol.StructuredHingeLoss])
def test_values_and_gradients_equal_enumeration(entry, loss, masked):
    made = loss(entry.polytope, reduction="none")
    for scale in (1.0, 30.0):
        (scores, further), target = entry.draw(8, scale=scale), entry.targets(8)
        allowed = entry.agree(target)
        costs = (entry.structures[None] - target[:, None]).abs().flatten(2).sum(2)
        if masked:
            target = (target != 0) | (entry.draw(8, seed=2)[0] > 0.5)
            beyond = ((entry.structures[None] != 0) & ~target[:, None]).flatten(2)
            allowed, costs = ~beyond.any(2), beyond.sum(2)
        values = entry.totals(scores, further)
        if loss is ol.StructuredHingeLoss:
            values = values + costs
        found, weights = weights_of(loss, values)
        known, of_known = weights_of(loss, restricted(values, allowed))
        value, slope, further_slope = gradients(made, scores, further, target, names=[entry.auxiliary])
        assert (value - (found - known)).abs().max() <= 1e-8 * scale
        difference = weights - of_known
        assert (slope - torch.tensordot(difference, entry.structures, 1)).abs().max() <= 1e-7
        assert (further_slope - torch.tensordot(difference, entry.values, 1)).abs().max() <= 1e-7
        assert further_slope.abs().max() > 0.1


@each_entry
def test_the_sparsemap_loss_is_its_definition(entry):
    """Against cvxpy, for all targets: the maximum with a regularized structure, less that over the target alone."""
    loss = ol.SparseMAPLoss(entry.polytope, reduction="none")
    scores, further = entry.draw(3, seed=3)
    targets = entry.targets(3, seed=4)
    found = loss(scores, targets, **{entry.auxiliary: further})
    x, v = entry.polytope.variable, entry.polytope.scored[0]
    for k in range(3):
        gain = cp.sum(cp.multiply(scores[k].numpy(), x)) + cp.sum(cp.multiply(further[k].numpy(), v))
        values = []
        for more in ([], [x == targets[k].numpy()]):
            problem = cp.Problem(cp.Maximize(gain - 0.5 * cp.sum_squares(x)), [*entry.polytope.constraints, *more])
            values.append(problem.solve(solver=cp.CLARABEL, canon_backend=cp.SCIPY_CANON_BACKEND, **PRECISE))
        assert abs(found[k] - (values[0] - values[1])) <= 1e-7


@pytest.mark.many(2)
@each_entry
@each_loss
def test_finite_differences_by_both_scores(entry, loss):
    made = loss(entry.polytope, reduction="none")
    leaves = [leaf.requires_grad_() for leaf in entry.draw(2, seed=5)]
    target = entry.targets(2, seed=6)
    assert torch.autograd.gradcheck(lambda s, t: made(s, target, **{entry.auxiliary: t}), leaves, eps=1e-6, atol=1e-5)


@each_entry
def test_perturbed_losses_by_the_noise_that_they_draw(entry):
    made = ol.PerturbedFenchelYoungLoss(entry.polytope, samples=5, scale=2.0, reduction="none")
    (scores, further), target = entry.draw(3, seed=7), entry.targets(3, seed=8)
    generator = torch.Generator().manual_seed(9)
    value, slope, further_slope = gradients(made, scores, further, target, generator=generator, names=[entry.auxiliary])
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(9)))
    sizes = [part[0].numel() for part in (scores, further)]
    noise = ol.Gaussian().draw((5, 3, sum(sizes)), torch.Generator().manual_seed(seed), torch.device("cpu"))
    of_scores, of_further = noise.split(sizes, dim=2)
    many = (5, *scores.shape), (5, *further.shape)
    values = entry.totals(
        (scores + 2.0 * of_scores.reshape(many[0])).flatten(0, 1),
        (further + 2.0 * of_further.reshape(many[1])).flatten(0, 1),
    )
    found, weights = weights_of(None, values)
    known, of_known = weights_of(None, restricted(values, entry.agree(target).repeat(5, 1)))
    difference = (weights - of_known).reshape(5, 3, -1).mean(0)
    assert (value - (found - known).reshape(5, 3).mean(0)).abs().max() <= 1e-8
    assert (slope - torch.tensordot(difference, entry.structures, 1)).abs().max() <= 1e-8
    assert (further_slope - torch.tensordot(difference, entry.values, 1)).abs().max() <= 1e-8


@each_entry
def test_spo_plus_and_regret_with_known_auxiliary_scores(entry):
    loss = ol.SPOPlusLoss(entry.polytope, reduction="none")
    (predicted, known), truth = entry.draw(8, seed=10), entry.draw(8, seed=11)[0]
    guessed, true = entry.totals(predicted, known), entry.totals(truth, known)
    doubled, best = entry.totals(2.0 * predicted - truth, known), true.argmax(1)
    expected = doubled.amax(1) - doubled.gather(1, best[:, None])[:, 0]
    leaf = predicted.clone().requires_grad_()
    for decisions in (None, entry.structures[best]):
        value = loss(leaf, truth, decisions=decisions, **{entry.auxiliary: known})
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        assert (value - expected).abs().max() <= 1e-8
        assert (slope - 2.0 * (entry.structures[doubled.argmax(1)] - entry.structures[best])).abs().max() <= 1e-8
    regrets = true.amax(1) - true.gather(1, guessed.argmax(1)[:, None])[:, 0]
    found = ol.regret(entry.polytope, predicted, truth, **{entry.auxiliary: known})
    assert (found - regrets).abs().max() <= 1e-8 and regrets.max() > 0.1
    whole = ol.regret(entry.polytope, predicted, truth, normalized=True, **{entry.auxiliary: known})
    assert abs(whole - regrets.sum() / true.amax(1).abs().sum()) <= 1e-9


LOSSES = {
    "perceptron": ol.StructuredPerceptronLoss,
    "crf": ol.CRFLoss,
    "hinge": ol.StructuredHingeLoss,
    "sparsemap": ol.SparseMAPLoss,
    "perturbed": partial(ol.PerturbedFenchelYoungLoss, samples=3),
}


@pytest.mark.many(2)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_tags_of_mixed_length_are_those_of_each_alone(name, shared):
    """With transitions of its own for every sentence, or one set for all; what stands in the padding does not count."""
    made, lengths = LOSSES[name], [4, 0, 2, 1, 2]
    loss = made(ol.Family(partial(polytopes.linear_chain, states=3)), reduction="none")
    generator = torch.Generator().manual_seed(12)
    scores = torch.randn(5, 5, 3, generator=generator, dtype=torch.float64)
    further = torch.randn(*([5] if not shared else []), 5, 3, 3, generator=generator, dtype=torch.float64)
    further[..., 4:, :, :] = torch.nan  # no sentence is that long
    target = torch.nn.functional.one_hot(torch.randint(3, (5, 5), generator=generator), 3).double()
    for k, length in enumerate(lengths):
        target[k, length:] = 0.0
    drawn = {"generator": torch.Generator().manual_seed(0)} if name == "perturbed" else {}
    value, slope, further_slope = gradients(loss, scores, further, target, sizes=lengths, names=["transition"], **drawn)
    expected = torch.zeros_like(further)
    for k, length in enumerate(lengths):
        assert (slope[k, length:] == 0).all()
        if length == 0:
            assert value[k] == 0
            continue
        if name == "perturbed":
            continue  # sees other noise
        alone = made(polytopes.linear_chain(length, 3), reduction="none")
        mine = further[:length] if shared else further[k, :length]
        one, its, further_its = gradients(alone, scores[k, :length], mine, target[k, :length], names=["transition"])
        assert (one - value[k]).abs() <= 1e-9 and (its - slope[k, :length]).abs().max() <= 1e-9
        (expected if shared else expected[k])[:length] += further_its
    if name != "perturbed":
        assert (further_slope - expected).abs().max() <= 1e-9
    assert further_slope.isfinite().all() and further_slope.abs().max() > 0.1


def test_batches_of_nothing_have_no_loss():
    loss = ol.CRFLoss(ol.Family(partial(polytopes.linear_chain, states=3)), reduction="none")
    transition = torch.zeros(4, 3, 3, requires_grad=True)
    nothing = torch.zeros(2, 4, 3, requires_grad=True)
    assert loss(nothing, torch.zeros(2, 4, 3), sizes=[0, 0], transition=transition).tolist() == [0.0, 0.0]
    value = loss(nothing.detach(), torch.zeros(2, 4, 3), sizes=[0, 0], transition=transition)
    value.sum().backward()
    assert (transition.grad == 0).all()
    alone = ol.CRFLoss(CHAIN, reduction="none")
    empty = torch.zeros(0, 3, 2, requires_grad=True)
    assert alone(empty, torch.zeros(0, 3, 2), transition=torch.zeros(3, 2, 2)).shape == (0,)


@each_loss
def test_transitions_given_once_collect_the_gradients_of_all(loss):
    made, entry = loss(CHAIN), ENTRIES[0]
    (scores, further), target = entry.draw(6, seed=13), entry.targets(6, seed=14)
    value, slope, shared = gradients(made, scores, further[0], target, names=["transition"])
    each = further[:1].expand(6, -1, -1, -1).contiguous()
    expected, its, own = gradients(made, scores, each, target, names=["transition"])
    assert torch.equal(value, expected) and torch.equal(slope, its)
    assert (shared - own.sum(0)).abs().max() <= 1e-12


@each_loss
def test_float32_scores_give_float32_gradients(loss):
    entry = ENTRIES[0]
    (scores, further), target = entry.draw(6, seed=15), entry.targets(6, seed=16)
    exact = gradients(loss(CHAIN), scores, further, target, names=["transition"])
    coarse = gradients(loss(CHAIN), scores.float(), further.float(), target.float(), names=["transition"])
    for mine, theirs in zip(coarse, exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs.float(), atol=1e-5, rtol=1e-5)


@each_loss
def test_forbidden_transitions_are_forbidden_in_losses(loss):
    entry = ENTRIES[0]
    scores, further = entry.draw(2, seed=17)
    further[:, 1, 0, 1] = -torch.inf  # from state 0 to 1 on the way to step 1
    stays = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).expand(2, 3, 2)
    value, _, slope = gradients(loss(CHAIN), scores, further, stays, names=["transition"])
    assert value.isfinite() and (slope[:, 1, 0, 1] == 0).all() and slope.abs().max() > 0.1
    goes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    target = torch.stack([stays[0], goes])
    with pytest.raises(ol.SolveError, match="instance 1 is INFEASIBLE: no structure of the polytope is the target"):
        loss(CHAIN)(scores, target, transition=further)


@pytest.mark.parametrize("loss", [ol.CRFLoss, ol.SparseMAPLoss])
def test_second_derivatives_of_structures_alone_and_a_clear_error_for_the_rest(loss):
    entry = ENTRIES[0]
    made, target = loss(CHAIN, reduction="none"), entry.targets(2, seed=18)
    scores, further = (leaf.requires_grad_() for leaf in entry.draw(2, seed=19))

    def slope(s, t):
        return torch.autograd.grad(made(s, target, transition=t).sum(), s, create_graph=True)[0]

    assert torch.autograd.gradcheck(slope, (scores, further), eps=1e-6, atol=1e-5)
    if loss is ol.CRFLoss:  # marginals have a derivative, those of transitions too
        assert torch.autograd.gradgradcheck(
            lambda s, t: made(s, target, transition=t), (scores, further), eps=1e-6, atol=1e-5
        )
        return
    (of_further,) = torch.autograd.grad(made(scores, target, transition=further).sum(), further, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives by way of the gradient of transition"):
        torch.autograd.grad(of_further.square().sum(), scores)


def test_a_decision_has_second_derivatives_of_0():
    entry = ENTRIES[0]
    made, target = ol.StructuredPerceptronLoss(CHAIN), entry.targets(2, seed=20)
    leaves = [leaf.requires_grad_() for leaf in entry.draw(2, seed=21)]
    value = made(leaves[0], target, transition=leaves[1])
    first = torch.autograd.grad(value, leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), leaves, allow_unused=True)
    assert all(g is None or (g == 0).all() for g in second)


def test_what_is_given_wrongly_is_named():
    loss, entry = ol.CRFLoss(CHAIN), ENTRIES[0]
    (scores, further), target = entry.draw(2), entry.targets(2)
    with pytest.raises(TypeError, match=r"scores of transition are missing: give transition=, of shape \(3, 2, 2\)"):
        loss(scores, target)
    with pytest.raises(ValueError, match=r"transition has shape \(2, 2\), but it is declared with shape \(3, 2, 2\)"):
        loss(scores, target, transition=further[0, 0])
    with pytest.raises(ValueError, match=r"target must have parts of 0 and 1, .* of instance 0 is 0\.5; the loss of"):
        loss(scores, torch.full((2, 3, 2), 0.5), transition=further)
    with pytest.raises(ValueError, match=r"target of instance 0 .* is not in the polytope: its distance from it is"):
        loss(scores, torch.ones(2, 3, 2), transition=further)
    with pytest.raises(ol.SolveError, match="no structure of the polytope is the target"):
        ol.CRFLoss(CHAIN, validate=False)(scores, torch.zeros(2, 3, 2), transition=further)
    wrong = further.clone()
    wrong[1, 2, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"transition hold nan at batch index 1, entry \[2, 0, 1\]"):
        loss(scores, target, transition=wrong)
    with pytest.raises(ValueError, match="scores of transition are taken as known"):
        ol.SPOPlusLoss(CHAIN)(scores, scores, transition=further.requires_grad_())
    once = further[0].detach().clone()
    once[1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"transition hold nan at batch index \(\), entry \[1, 0, 1\] \(1 such"):
        loss(scores, target, transition=once)
    decided = ol.SPOPlusLoss(CHAIN, validate=False)
    with pytest.raises(ValueError, match="decisions must have parts of 0 and 1"):
        decided(scores, scores, decisions=torch.full((2, 3, 2), 0.5), transition=further.detach())
    with pytest.raises(ol.SolveError, match="no structure of the polytope is the decisions"):
        decided(scores, scores, decisions=torch.zeros(2, 3, 2), transition=further.detach())
    tags = ol.CRFLoss(ol.Family(partial(polytopes.linear_chain, states=2)))
    with pytest.raises(TypeError, match="scores of transition are missing"):
        tags(scores, target, sizes=[3, 3])
    with pytest.raises(ValueError, match=r"size 3 needs transition of shape \(3, 2, 2\) per"):
        tags(scores, target, sizes=[3, 3], transition=torch.zeros(2, 2, 2))


def counts_of_labels(most=None):
    """How many of two tokens have each of two labels: a part may be 2, and the mean of (2, 0) and (0, 2) is (1, 1)."""
    x, v = cp.Variable(2), cp.Variable((2, 2), nonneg=True, name="label")
    limits = [] if most is None else [x <= most]
    return ol.Polytope(x, [x == cp.sum(v, axis=0), cp.sum(v, axis=1) == 1, *limits], scored=[v])


@pytest.mark.parametrize("name", LOSSES)
def test_where_parts_exceed_1_means_of_others_are_not_taken_for_the_target(name):
    loss, one = LOSSES[name](counts_of_labels()), torch.ones(2, dtype=torch.float64)
    labels = torch.eye(2, dtype=torch.float64)
    what = "the Hamming cost is for parts between 0 and" if name == "hinge" else "for polytopes whose parts are at most"
    with pytest.raises(ValueError, match=rf"{what} 1, but part \[0\] .* as large as 2"):
        loss(torch.zeros(2, dtype=torch.float64), one, label=labels)
    if name != "hinge":  # which counts parts of 0 and 1
        assert loss(torch.zeros(2, dtype=torch.float64), one > 0, label=labels).abs() <= 1e-12  # a mask of everything


@pytest.mark.parametrize("name", LOSSES)
def test_how_far_parts_reach_may_depend_on_parameters(name):
    most = cp.Parameter(name="most", nonneg=True)
    loss = LOSSES[name](counts_of_labels(most), reduction="none")
    one, scores = torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    labels = torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Of parts of at most 1 there are (1, 1) alone, so that the prediction is the target.
    assert loss(scores, one, label=labels, most=torch.tensor(1.0)).abs().max() <= 1e-9
    limits = torch.tensor([1.0, 1.0, 1.5])
    polytope = loss.layer.compiled().polytope
    if name in ("crf", "perturbed"):  # the losses of means
        with pytest.raises(ValueError, match=r"part \[0\] of instance 2 can be as large as 1.5"):
            loss(scores, one, label=labels, most=limits)
    elif name != "hinge":  # others are right where they find the target, be there farther parts or not
        x, v = polytope.variable, polytope.scored[0]
        gain = cp.sum(cp.multiply(labels.numpy(), v)) - (0.5 * cp.sum_squares(x) if name == "sparsemap" else 0.0)
        most.value = 1.5
        best, known = (
            cp.Problem(cp.Maximize(gain), [*polytope.constraints, *more]).solve(solver=cp.CLARABEL)
            for more in ([], [x == 1])
        )
        assert abs(loss(scores, one, label=labels, most=limits)[2] - (best - known)) <= 1e-6
    with pytest.raises(ol.SolveError, match=r"instance 0 is INFEASIBLE: no structure of the polytope is the target"):
        LOSSES[name](counts_of_labels(most), validate=False)(scores, 0.0 * one, label=labels, most=limits.clamp(max=1))


def test_auxiliary_variables_may_gain_much():
    """Up to 1e7 for every part that is missing: the bonus of a part must be more."""
    x, v = cp.Variable(2, bounds=[0, 1]), cp.Variable(name="rest", bounds=[0, 1e7])
    polytope = ol.Polytope(x, [v <= 1e7 * (2 - cp.sum(x))], scored=[v])
    scores, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    found = ol.StructuredPerceptronLoss(polytope)(scores, one, rest=torch.tensor(1.0, dtype=torch.float64))
    assert abs(found - 1e7) <= 1e-2


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_two_auxiliary_variables_of_which_one_is_a_number(batch):
    """Against linear programs of cvxpy, as the relaxation of these pairs has fractional vertices."""
    x, pair, most = (
        cp.Variable(3, bounds=[0, 1]),
        cp.Variable((3, 3), nonneg=True, name="pair"),
        cp.Variable(name="most"),
    )
    rows, columns = cp.reshape(x, (3, 1), order="C"), cp.reshape(x, (1, 3), order="C")
    ones = np.ones((1, 3))
    constraints = [pair <= rows @ ones, pair <= ones.T @ columns, pair >= rows @ ones + ones.T @ columns - 1]
    polytope = ol.Polytope(x, [*constraints, most >= x, most <= 2, most >= 0], scored=[pair, most])
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(*batch, 3, generator=generator, dtype=torch.float64)
    pairs = torch.randn(*batch, 3, 3, generator=generator, dtype=torch.float64)
    price = -torch.rand(batch, generator=generator, dtype=torch.float64)
    target = torch.randint(2, (*batch, 3), generator=generator).double()
    loss = ol.StructuredPerceptronLoss(polytope, reduction="none")(scores, target, pair=pairs, most=price)
    assert loss.shape == batch
    for index in np.ndindex(*batch):
        gain = scores[index].numpy() @ x + cp.sum(cp.multiply(pairs[index].numpy(), pair)) + price[index].item() * most
        best, known = (
            cp.Problem(cp.Maximize(gain), [*polytope.constraints, *more]).solve(solver=cp.HIGHS)
            for more in ([], [x == target[index].numpy()])
        )
        assert abs(loss[index] - (best - known)) <= 1e-7


@pytest.mark.parametrize("name", [*LOSSES, "spo"])
def test_a_structure_may_be_a_single_number(name):
    x, v = cp.Variable(bounds=[0, 1]), cp.Variable(name="extra", bounds=[0, 1])
    plain = ol.Polytope(x, [x >= 0])
    latent = ol.Polytope(x, [v <= x], scored=[v])
    scores = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    for polytope, more in ((plain, {}), (latent, {"extra": torch.zeros(3, dtype=torch.float64)})):
        if name == "spo":
            value = ol.SPOPlusLoss(polytope, reduction="none")(scores, -scores.detach(), decisions=target, **more)
        else:
            value = LOSSES[name](polytope, reduction="none")(scores, target, **more)
        assert value.shape == (3,)
        assert torch.autograd.grad(value.sum(), scores)[0].shape == (3,)
        if name == "perceptron":
            assert torch.equal(value.detach(), torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("name", [*LOSSES, "spo"])
def test_losses_break_the_graph_of_torch_compile(name):
    entry = ENTRIES[0]
    (scores, further), target = entry.draw(2, seed=22), entry.targets(2, seed=23)
    if name == "spo":
        made, arguments, leaves = ol.SPOPlusLoss(CHAIN), (scores.flip(0),), [scores.clone().requires_grad_(), further]
    else:
        made, arguments, leaves = (
            LOSSES[name](CHAIN),
            (target,),
            [s.clone().requires_grad_() for s in (scores, further)],
        )
    found = []
    for call in (made, torch.compile(made, backend="eager")):
        torch.manual_seed(0)
        value = call(leaves[0], *arguments, transition=leaves[1])
        found.append((value.detach(), *torch.autograd.grad(value, [leaf for leaf in leaves if leaf.requires_grad])))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


def test_a_family_may_have_sizes_without_auxiliary_variables():
    loss = ol.StructuredPerceptronLoss(ol.Family(pairwise_bits), reduction="none")
    scores = torch.tensor([[1.0, -1.0, 1.0], [-2.0, 0.0, 0.0]], dtype=torch.float64)
    pairs = torch.tensor([[0.5, 0.5], [7.0, 7.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    value = loss(scores, target, sizes=[3, 1], pair=pairs)
    # Of the first 101 is worth 2, and 111 as much with its pairs; of the second nothing is worth 2 more than -2.
    assert value.tolist() == [0.0, 2.0]
    value.sum().backward()
    assert (pairs.grad[1] == 0).all()


def test_targets_may_be_off_by_rounding_and_losses_stay_out_of_transforms():
    entry = ENTRIES[0]
    (scores, further), target = entry.draw(2, seed=24), entry.targets(2, seed=25)
    expected = ol.CRFLoss(CHAIN)(scores, target, transition=further)
    assert torch.equal(ol.CRFLoss(CHAIN)(scores, target * (1 - 1e-9), transition=further), expected)
    with pytest.raises(NotImplementedError, match="losses cannot be transformed by"):
        torch.func.grad(ol.SparseMAPLoss(polytopes.simplex(3)))(torch.zeros(3), torch.eye(3)[0])


def test_names_that_losses_take_themselves_are_refused():
    x = cp.Variable(2, bounds=[0, 1])
    for name in ("cost", "target", "decisions"):
        v = cp.Variable(name=name, bounds=[0, 1])
        made = ol.StructuredPerceptronLoss(ol.Polytope(x, [v <= x[0]], scored=[v]))
        with pytest.raises(TypeError, match=f"the polytope declares {name}, which is an argument of losses"):
            made(torch.zeros(2), torch.zeros(2))
    for name in ("scores", "sizes", "generator", "objective"):
        v = cp.Variable(name=name, bounds=[0, 1])
        with pytest.raises(ValueError, match=rf"the name '{name}' of scored\[0\] is taken by an argument"):
            ol.Polytope(x, [v <= x[0]], scored=[v])
    v, w = cp.Variable(name="w", bounds=[0, 1]), cp.Variable(name="w", bounds=[0, 1])
    with pytest.raises(ValueError, match="two scored variables are named 'w'"):
        ol.Polytope(x, [v <= x[0], w <= x[1]], scored=[v, w])
    v = cp.Variable(name="two words", bounds=[0, 1])
    with pytest.raises(ValueError, match=r"'two words' of .* cannot be a keyword argument"):
        ol.Polytope(x, [v <= x[0]], scored=[v])


def test_a_target_outside_the_polytope_is_found_out_without_validation():
    """The first two parts need the third; without it only nothing is left, which no bonus turns into the target."""
    x, v = cp.Variable(3, bounds=[0, 1]), cp.Variable(name="gain", bounds=[0, 1])
    polytope = ol.Polytope(x, [x[0] + x[1] <= 2 * x[2], v <= x[2]], scored=[v])
    for loss in (ol.StructuredPerceptronLoss, ol.SparseMAPLoss):
        made = loss(polytope, validate=False)
        with pytest.raises(ValueError, match=r"no bonus up to .* leads to the target of the instance"):
            made(torch.zeros(3), torch.tensor([1.0, 1.0, 0.0]), gain=torch.tensor(1.0))
