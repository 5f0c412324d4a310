"""What check_loss finds: losses that are wrong on purpose, each in one way."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

import optlayers as ol
from optlayers.testing import check_loss
from polytopes import cube, linear_chain, simplex, subset


class Sound(torch.nn.Module):
    """A loss that is made of another one, and may be spoiled."""

    def __init__(self, polytope, reduction="mean"):
        super().__init__()
        self.inner = ol.SparseMAPLoss(polytope, reduction="none")
        self.reduction = reduction

    def forward(self, scores, target, **named):
        return self.reduced(self.losses(scores, target, **named))

    def losses(self, scores, target, **named):
        return self.inner(scores, target, **named)

    def reduced(self, losses):
        return {"none": losses.clone, "sum": losses.sum, "mean": losses.mean}[self.reduction]()


class WrongSign(Sound):
    def losses(self, scores, target, **named):
        found = super().losses(scores, target, **named)
        return 2.0 * found.detach() - found


class WrongStructure(Sound):
    """The gradient is that of another target."""

    def losses(self, scores, target, **named):
        found, other = (super(WrongStructure, self).losses(scores, y, **named) for y in (target, target.roll(1, -1)))
        return found.detach() + other - other.detach()


class DoubleGradient(Sound):
    def losses(self, scores, target, **named):
        found = super().losses(scores, target, **named)
        return 2.0 * found - found.detach()


class NoGradient(Sound):
    def losses(self, scores, target, **named):
        return super().losses(scores, target, **named).detach()


class MeanForSum(Sound):
    def reduced(self, losses):
        return losses.mean() if self.reduction == "sum" else super().reduced(losses)


class SumForMean(Sound):
    def reduced(self, losses):
        return losses.sum() if self.reduction == "mean" else super().reduced(losses)


class AlwaysMean(Sound):
    def reduced(self, losses):
        return losses.mean()


class LooksAtOthers(Sound):
    def losses(self, scores, target, **named):
        found = super().losses(scores, target, **named)
        return found * (1.0 + 1e-3 * len(found)) if found.ndim else found


class LooksAtItsPlace(Sound):
    def losses(self, scores, target, **named):
        found = super().losses(scores, target, **named)
        return found * (1.0 + 1e-3 * torch.arange(found.numel()).reshape(found.shape))


class OneAtATime(Sound):
    """Gradients of each instance reach the next one."""

    def losses(self, scores, target, **named):
        found = super().losses(scores, target, **named)
        if found.ndim == 0 or len(found) < 2:
            return found
        return 0.5 * (found + found.roll(1)).detach() + 0.5 * (found + found.roll(1) - (found + found.roll(1)).detach())


class InDouble(Sound):
    def losses(self, scores, target, **named):
        return super().losses(scores, target, **named).double()


class Negative(Sound):
    def losses(self, scores, target, **named):
        return super().losses(scores, target, **named) - 0.5


class NeverZero(Sound):
    def losses(self, scores, target, **named):
        return super().losses(scores, target, **named) + 0.5


class Concave(Sound):
    def losses(self, scores, target, **named):
        return 1.0 - torch.exp(-super().losses(scores, target, **named))


class Writes(Sound):
    def losses(self, scores, target, **named):
        found = super().losses(scores, target, **named)
        scores.detach().mul_(1.01)
        return found


class WritesToTheTarget(Sound):
    def losses(self, scores, target, **named):
        found = super().losses(scores, target, **named)
        target.mul_(0.99)
        return found


class Hides(Sound):
    """An instance without a structure has no loss."""

    def losses(self, scores, target, **named):
        try:
            return super().losses(scores, target, **named)
        except ol.SolveError:
            return 0.0 * scores.flatten(1).sum(1)


class BlamesAnother(Sound):
    def losses(self, scores, target, **named):
        try:
            return super().losses(scores, target, **named)
        except ol.SolveError as error:
            wrong = [ol.Failure((0,), f.status, f.reason) for f in error.failures]
            raise ol.SolveError(wrong, error.batch) from None


class MovesForbidden(Sound):
    def losses(self, scores, target, **named):
        hidden = torch.isneginf(scores)
        if scores.requires_grad:
            scores = scores.clone()
            scores.register_hook(lambda gradient: gradient.masked_fill(hidden, 1.0))
        return super().losses(scores, target, **named)


class Counts(Sound):
    """It grows with every call."""

    def losses(self, scores, target, **named):
        self.calls = getattr(self, "calls", 0) + 1
        return super().losses(scores, target, **named) * (1.0 + 1e-2 * self.calls)


class NotPickled(Sound):
    def __init__(self, polytope, reduction="mean"):
        super().__init__(polytope, reduction)
        self.scale = lambda losses: losses

    def losses(self, scores, target, **named):
        return self.scale(super().losses(scores, target, **named))


class ForgetsItself(Sound):
    """What it learned is lost when it is copied."""

    def __init__(self, polytope, reduction="mean"):
        super().__init__(polytope, reduction)
        self.scale = 2.0

    def __getstate__(self):
        return self.__dict__ | {"scale": 1.0}

    def losses(self, scores, target, **named):
        return self.scale * super().losses(scores, target, **named)


class CountsPadding(Sound):
    def losses(self, scores, target, *, sizes=None, **named):
        found = super().losses(scores, target, sizes=sizes, **named)
        return found if sizes is None else found + (sizes == 0).to(found)


class OfTheMean(torch.autograd.Function):
    """Every instance gets the mean of what comes back."""

    @staticmethod
    def forward(ctx, losses):
        return losses.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.mean().expand_as(grad)


class ForgetsWeights(Sound):
    """In a sum with weights, all instances have the same one."""

    def losses(self, scores, target, **named):
        return OfTheMean.apply(super().losses(scores, target, **named))


class HidesInTraining(Sound):
    """An instance without a structure has no loss where somebody waits for a gradient."""

    def losses(self, scores, target, **named):
        try:
            return super().losses(scores, target, **named)
        except ol.SolveError:
            if not scores.requires_grad:
                raise
            return 0.0 * scores.flatten(1).sum(1)


class ForbiddenIsZero(Sound):
    """A forbidden part has a score of 0, and no gradient."""

    def losses(self, scores, target, **named):
        return super().losses(torch.where(torch.isneginf(scores), 0.0, scores), target, **named)


class MeanOfRows(Sound):
    """Of a batch of two dimensions, the mean over the first."""

    def losses(self, scores, target, **named):
        found = super().losses(scores, target, **named)
        return found.mean(0) if found.ndim == 2 else found


WRONG = {
    WrongSign: "its gradient says that it grows by",
    WrongStructure: "its gradient says that it grows by",
    DoubleGradient: "its gradient says that it grows by",
    NoGradient: "has no gradient for scores that require one",
    MeanForSum: "with reduction='sum' beside that of its losses gives other losses",
    SumForMean: "with reduction='mean' beside that of its losses gives other losses",
    AlwaysMean: r'with reduction="none" has shape \(\), not \(4,\)',
    LooksAtOthers: "instance 2 in another batch, gives other losses",
    LooksAtItsPlace: "instance 2 in another batch, gives other losses",
    OneAtATime: "its gradient says that it grows by|in another batch, gives other",
    InDouble: "has losses of torch.float64 for scores of float32",
    Negative: "but a loss that is never below 0",
    NeverZero: "where the target wins by as much as one likes; it must be 0",
    Concave: "below its tangent",
    Writes: "writes to the scores that it is given",
    WritesToTheTarget: "writes to the target that it is given",
    Hides: "hides that an instance is infeasible: no SolveError is raised",
    BlamesAnother: r"SolveError names \[\(0,\)\], but \[\(1,\)\] is infeasible",
    MovesForbidden: "gives a forbidden part a gradient",
    Counts: "gives other losses|its gradient says",
    NotPickled: "cannot be pickled, so models that have it cannot be saved",
    ForgetsItself: "copied, gives other losses",
    CountsPadding: "of an instance of size 0, gives other losses",
    ForgetsWeights: "in a sum with weights, gives other gradients",
    HidesInTraining: "hides that an instance is infeasible: no SolveError is raised",
    ForbiddenIsZero: "where a part is forbidden that has a score of -10000 else, gives other losses",
    MeanOfRows: "of a batch of two dimensions, has losses of shape",
}


def test_a_sound_loss_keeps_the_contract():
    check_loss(Sound, simplex(3))
    check_loss(Concave, simplex(3), convex=False, zero=True)
    check_loss(NeverZero, simplex(3), zero=False)
    check_loss(Negative, simplex(3), nonnegative=False, zero=False)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_loss_is_found(wrong):
    with pytest.raises(AssertionError, match=f"{wrong.__name__}.*({WRONG[wrong]})"):
        check_loss(wrong, simplex(3))


def test_a_loss_over_single_polytopes_alone():
    class OfOne(Sound):
        def losses(self, scores, target, *, sizes=None, **named):
            if sizes is not None:
                raise TypeError("no families")
            return super().losses(scores, target, **named)

    with (
        pytest.raises(TypeError, match="no families"),
        pytest.warns(UserWarning, match="has not pickled the loss, for"),
    ):
        check_loss(OfOne, _without_pickling())
    with pytest.warns(UserWarning, match="has not pickled the loss, for oracle <lambda> cannot be pickled"):
        check_loss(OfOne, _without_pickling(), families=False)


def _without_pickling():
    declared = simplex(3)
    return ol.Polytope(declared.variable, declared.constraints, oracle=lambda scores: declared.oracle(scores))


def test_parameters_and_scores_of_auxiliary_variables_are_passed_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_loss(ol.CRFLoss, subset(4), budget=2.0)
        check_loss(ol.StructuredPerceptronLoss, linear_chain(2, 2))


class KnowsTransitions(Sound):
    """Scores of transitions get no gradient."""

    def losses(self, scores, target, *, transition, **named):
        found = super().losses(scores, target, transition=transition.detach(), **named)
        return found + 0.0 * transition.sum()


def test_gradients_of_auxiliary_variables_are_looked_at():
    with pytest.raises(
        AssertionError, match=r"KnowsTransitions, by the scores of transition, instance .* says that it"
    ):
        check_loss(KnowsTransitions, linear_chain(2, 2))


def test_losses_that_draw_meet_the_same_numbers():
    noisy = partial(ol.PerturbedFenchelYoungLoss, samples=2)
    check_loss(noisy, cube(2), nonnegative=False, zero=False)
    with pytest.raises(AssertionError, match=r"PerturbedFenchelYoungLoss is -.*, but a loss that is never below 0"):
        check_loss(noisy, cube(2), zero=False)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match='target is "structures" or "scores", but got \'masks\''):
        check_loss(Sound, simplex(3), target="masks")
    with pytest.raises(ValueError, match="at least 2 samples, but got 1"):
        check_loss(Sound, simplex(3), samples=1)


class Own(ol.AbstractFenchelYoungLoss):
    """SparseMAPLoss, written out, to be spoiled."""

    rule = ol.SparseMAP()

    def predict(self, polytope, scores, context):
        solution = polytope.project(scores)
        return ol.Prediction(solution, self.value(polytope, scores.detach(), solution.value.detach()))

    def value(self, polytope, scores, points):
        return (scores * points).sum(dim=1) - 0.5 * polytope.structure(points).square().sum(dim=1)

    def regularizer(self, structure):
        return 0.5 * structure.square().sum(dim=1)


class HidesItsSolves(Own):
    """An instance that has no projection has the loss of another point."""

    def predict(self, polytope, scores, context):
        solution = polytope.project(scores)
        polytope.failed.clear()
        points = solution.value.detach().nan_to_num()
        found = replace(solution, value=points, status=torch.zeros_like(solution.status), reasons={})
        return ol.Prediction(found, self.value(polytope, scores.detach(), points))


class HidesItsSolvesInTraining(Sound):
    """It does so where somebody waits for a gradient."""

    def __init__(self, polytope, reduction="mean"):
        super().__init__(polytope, reduction)
        self.hiding = HidesItsSolves(polytope, reduction="none")

    def losses(self, scores, target, **named):
        return self.hiding(scores, target, **named) if scores.requires_grad else self.inner(scores, target, **named)


class AnotherEnvelope(Own):
    """Gradients of parameters are those of best vertices."""

    def predict(self, polytope, scores, context):
        return replace(super().predict(polytope, scores, context), behind=polytope.maximize(scores.detach()))


class HalfCurved(Own):
    """Half of the second derivative is lost."""

    def predict(self, polytope, scores, context):
        return super().predict(polytope, 0.5 * scores + 0.5 * scores.detach(), context)


def test_a_loss_that_hides_failed_solves_is_found():
    check_loss(Own, simplex(3))
    with pytest.raises(AssertionError, match="HidesItsSolves hides that project failed for an instance: no SolveError"):
        check_loss(HidesItsSolves, simplex(3))
    with pytest.raises(AssertionError, match="HidesItsSolvesInTraining hides that"):
        check_loss(HidesItsSolvesInTraining, simplex(3))


def test_gradients_of_parameters_are_held_to_finite_differences():
    check_loss(Own, subset(4), budget=1.5)
    with pytest.raises(
        AssertionError, match=r"AnotherEnvelope, by the parameter budget, instance .: its gradient says"
    ):
        check_loss(AnotherEnvelope, subset(4), budget=1.5)


@pytest.mark.parametrize(
    ("polytope", "parameters"), [(simplex(3), {}), (subset(4), {"budget": 1.5})], ids=["simplex", "subset"]
)
def test_second_derivatives_are_held_to_differences_of_slopes(polytope, parameters):
    with pytest.raises(AssertionError, match=r"HalfCurved, instance .: its second derivative says that a slope grows"):
        check_loss(HalfCurved, polytope, **parameters)
