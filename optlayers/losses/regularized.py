"""The Fenchel-Young loss of any regularizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, final

import cvxpy as cp
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.polytope import BoundPolytope
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.family import Family
from optlayers.losses.decoding import best_less
from optlayers.losses.fenchel_young import AbstractFenchelYoungLoss
from optlayers.losses.prediction import Contrast, Prediction
from optlayers.losses.question import Question
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.rules.base import Context
from optlayers.rules.regularized import Regularized
from optlayers.solution import Solution

__all__ = ["FenchelYoungLoss", "decodable", "of_parts", "regularized_points"]


@final
class FenchelYoungLoss(AbstractFenchelYoungLoss):
    r"""The Fenchel-Young loss of a regularizer on the polytope.

    .. math:: \max_{z \in P} \big(\langle s, z \rangle - \Omega(z)\big) + \Omega(y) - \langle s, y \rangle

    The gradient is the regularized point less the target, and the second derivative that of the point. It is 0 exactly
    when that point is the target: with entropies only in the limit, with :class:`Euclidean` and :class:`Tsallis` from a
    margin on. With :class:`Entropy` on the simplex it is the cross-entropy of softmax, on the cube of independent bits
    that of the logistic function; on other polytopes it is not :class:`CRFLoss`, whose entropy is that of structures.

    Parameters
    ----------
    polytope : a :class:`Polytope`, an already compiled one, or a :class:`Family` for batches of mixed length.
    regularizer : Ω: a value such as ``Entropy()``, or a convex expression of cvxpy over the variables that the polytope
        is declared with, where that is a quadratic program; ``decode`` needs a sum over parts.
    arguments : those of :class:`AbstractLoss`, by name.

    References
    ----------
    Blondel, Martins and Niculae (2020), Learning with Fenchel-Young losses, JMLR.

    Examples
    --------
    >>> import torch
    >>> from optlayers import Entropy
    >>> from polytopes import simplex
    >>> scores = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    >>> loss = FenchelYoungLoss(simplex(3), Entropy())(scores, torch.tensor([1, 0, 0]))
    >>> round(loss.item(), 4), torch.autograd.grad(loss, scores)[0]
    (0.5514, tensor([-0.4239,  0.2119,  0.2119]))
    """

    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family,
        regularizer: AbstractRegularizer | cp.Expression,
        **arguments: Any,
    ) -> None:
        self.rule = Regularized(regularizer)
        regularizer = self.rule.regularizer
        of_parts(regularizer)
        super().__init__(polytope, **arguments)
        self.omega = regularizer

    def predict(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> Prediction:
        """The regularized points."""
        return regularized_points(polytope, scores, self.omega)

    def contrast(self, question: Question) -> Contrast:
        """The regularized points and the target, whose Ω depends on a number of the regularizer, too."""
        contrast = super().contrast(question)
        if not self.omega.parameters or question.given["target"].dtype == torch.bool or question.has_auxiliaries:
            return contrast
        target = question.whole(question.given["target"])
        return replace(contrast, known=replace(contrast.known, gradients=partial(self._of_target, question, target)))

    def _of_target(self, question: Question, target: Float64[Tensor, "batch size"]) -> Mapping[str, Tensor]:
        polytope = BoundPolytope.of(question.share.compiled, question.packed, question.forbidden)
        return {name: -value for name, value in polytope.worth_gradient(target, self.omega).items()}

    def charge(self, question: Question, target: Float64[Tensor, "batch structure_size"]) -> Float64[Tensor, " batch"]:
        """Ω of the target."""
        polytope = BoundPolytope.of(question.share.compiled, question.packed, question.forbidden)
        worth = polytope.worth(question.whole(target), self.omega)
        unknown = torch.isnan(worth).nonzero()
        if len(unknown):
            k = int(unknown[0, 0])
            raise ValueError(f"{self.omega!r} has no value at the target {question.instance(k)}: it is no structure")
        outside = torch.isposinf(worth).nonzero()
        if len(outside):
            k, flat = outside[0].tolist()
            raise ValueError(
                f"{self.omega!r} is infinite at the target {question.instance(k)}, as entry {question.entry(flat)} of "
                f"it is {target[k, flat]:g}: targets lie where the regularizer is finite"
            )
        return worth.sum(dim=1)

    def decoded(self, polytope: BoundPolytope, scores: Float64[Tensor, "batch size"]) -> Solution:
        """The vertices v with the best ⟨s, v⟩ - Ω(v)."""
        decodable(self.omega)
        return best_less(polytope, scores, lambda points: polytope.worth(points, self.omega))


def regularized_points(
    polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
) -> Prediction:
    """Regularized points, and what they are worth."""
    solution = polytope.regularized(scores, regularizer)
    point = solution.value.detach()
    worth = polytope.worth(point, regularizer).sum(dim=1)
    return Prediction(solution, (scores.detach() * point).sum(dim=1) - worth)


def of_parts(regularizer: AbstractRegularizer) -> None:
    """Refuse a regularizer without a value at structures."""
    if regularizer.without_loss:
        raise ValueError(f"{regularizer!r} {regularizer.without_loss}")


def decodable(regularizer: AbstractRegularizer) -> None:
    """Refuse a regularizer whose value at structures is not known part by part."""
    if not regularizer.of_parts:
        raise ValueError(
            f"{regularizer!r} counts all variables together, and vertices that are best less such a number are not "
            "searched for: take best vertices, compile_polytope(polytope).maximize(scores)"
        )
