"""The structured perceptron."""

from __future__ import annotations

from typing import final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.losses.fenchel_young import AbstractFenchelYoungLoss
from optlayers.losses.prediction import Prediction, best_vertices
from optlayers.rules.base import Context

__all__ = ["StructuredPerceptronLoss"]


@final
class StructuredPerceptronLoss(AbstractFenchelYoungLoss):
    r"""How much better the best structure scores than the target: :math:`\max_{z} \langle s, z \rangle - \langle s, y
    \rangle`.

    The gradient is :math:`\hat z(s) - y`; the loss is 0 when the target is a best structure, be it one of many. Second
    derivatives are 0.

    Parameters
    ----------
    polytope : a :class:`Polytope`, a compiled one, or a :class:`Family`, for which a call takes ``sizes=``.
    reduction : ``"mean"`` or ``"sum"`` over instances, or ``"none"`` for one loss per instance, ``(*batch,)``.
    validate : whether targets that are no points of the polytope are refused.
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.

    References
    ----------
    Collins (2002), Discriminative training methods for hidden Markov models, EMNLP.

    Examples
    --------
    >>> import torch
    >>> from polytopes import simplex
    >>> scores = torch.tensor([2.0, 3.0, 0.0], requires_grad=True)
    >>> loss = StructuredPerceptronLoss(simplex(3))(scores, torch.tensor([1, 0, 0]))
    >>> loss.item(), torch.autograd.grad(loss, scores)[0].tolist()
    (1.0, [-1.0, 1.0, 0.0])
    """

    def predict(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> Prediction:
        """The best vertices."""
        return best_vertices(polytope, scores, context)
