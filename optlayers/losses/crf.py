"""The loss of a conditional random field."""

from __future__ import annotations

from typing import final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.losses.fenchel_young import AbstractFenchelYoungLoss
from optlayers.losses.prediction import Prediction
from optlayers.rules.base import Context
from optlayers.rules.structured_attention import StructuredAttention

__all__ = ["CRFLoss"]


@final
class CRFLoss(AbstractFenchelYoungLoss):
    r"""The negative log-likelihood :math:`\log Z(s) - \langle s, y \rangle` of structures, :math:`p(z) \propto
    e^{\langle s, z \rangle}` over the vertices.

    The gradient is :math:`\mu(s) - y`, with the marginals μ of :class:`optlayers.StructuredAttention`, and the second
    derivative the covariance. Against a mask it is the negative log-probability that a structure has admissible parts
    alone; where auxiliary variables have scores, that of the target with any completion. A target that is a mixture of
    structures is met with the cross-entropy: the mean over the mixture, which is not 0 at its best. On the simplex it
    is the cross-entropy of a softmax.

    Parameters
    ----------
    polytope : a :class:`Polytope`, a compiled one, or a :class:`Family`, for which a call takes ``sizes=``.
    reduction : ``"mean"`` or ``"sum"`` over instances, or ``"none"`` for one loss per instance, ``(*batch,)``.
    validate : whether targets that are no points of the polytope are refused.
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.

    References
    ----------
    Lafferty, McCallum and Pereira (2001), Conditional random fields, ICML.

    Examples
    --------
    >>> import torch
    >>> from polytopes import simplex
    >>> scores = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    >>> loss = CRFLoss(simplex(3))(scores, torch.tensor([1, 0, 0]))
    >>> round(loss.item(), 4), torch.autograd.grad(loss, scores)[0]
    (0.4076, tensor([-0.3348,  0.2447,  0.0900]))
    """

    rule = StructuredAttention()
    predicts_means = True
    differentiates_parameters = False

    def predict(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> Prediction:
        """The marginals and log Z."""
        _, total, solution = polytope.marginals(scores)
        return Prediction(solution, total, differentiates_auxiliary=True)
