"""The SparseMAP loss."""

from __future__ import annotations

from typing import final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.polytope import BoundPolytope
from optlayers.losses.decoding import nearest_vertex
from optlayers.losses.fenchel_young import AbstractFenchelYoungLoss
from optlayers.losses.prediction import Prediction
from optlayers.rules.base import Context
from optlayers.rules.sparsemap import SparseMAP
from optlayers.solution import Solution

__all__ = ["SparseMAPLoss"]


@final
class SparseMAPLoss(AbstractFenchelYoungLoss):
    r"""The Fenchel-Young loss of :math:`\Omega = \tfrac12 \|\cdot\|^2` on the polytope.

    .. math:: \max_{z \in P} \big(\langle s, z \rangle - \tfrac12 \|z\|^2\big) + \tfrac12 \|y\|^2 - \langle s, y \rangle

    The gradient is :math:`\Pi_P(s) - y`, sparse, and the second derivative that of the projection. The loss is 0
    exactly when :math:`\Pi_P(s) = y`: when the target scores at least :math:`\langle y, y - y' \rangle` more than any
    other structure y', which is :math:`\tfrac12 \|y - y'\|^2` where all structures are equally long. On the simplex it
    is the sparsemax loss. The temperature is the scale of the scores.

    Parameters
    ----------
    polytope : a :class:`Polytope`, a compiled one, or a :class:`Family`, for which a call takes ``sizes=``.
    reduction : ``"mean"`` or ``"sum"`` over instances, or ``"none"`` for one loss per instance, ``(*batch,)``.
    validate : whether targets that are no points of the polytope are refused.
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.

    References
    ----------
    Niculae, Martins, Blondel and Cardie (2018), SparseMAP: differentiable sparse structured inference, ICML.
    Blondel, Martins and Niculae (2020), Learning with Fenchel-Young losses, JMLR.

    Examples
    --------
    >>> import torch
    >>> from polytopes import simplex
    >>> scores = torch.tensor([0.5, 0.0, 0.0], requires_grad=True)
    >>> loss = SparseMAPLoss(simplex(3))(scores, torch.tensor([1, 0, 0]))
    >>> round(loss.item(), 4), torch.autograd.grad(loss, scores)[0]
    (0.0833, tensor([-0.3333,  0.1667,  0.1667]))
    """

    rule = SparseMAP()

    def predict(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> Prediction:
        """The nearest points."""
        solution = polytope.project(scores)
        point = solution.value.detach()
        structure = polytope.structure(point)
        return Prediction(solution, (scores.detach() * point).sum(dim=1) - 0.5 * (structure * structure).sum(dim=1))

    def decoded(self, polytope: BoundPolytope, scores: Float64[Tensor, "batch size"]) -> Solution:
        """The vertices nearest to the scores."""
        return nearest_vertex(polytope, scores)

    def regularizer(self, structure: Float64[Tensor, "batch structure_size"]) -> Float64[Tensor, " batch"]:
        """Half of the squared norm."""
        return 0.5 * (structure * structure).sum(dim=1)
