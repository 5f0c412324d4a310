"""The loss of a conditional random field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.losses.fenchel_young import AbstractFenchelYoungLoss
from optlayers.losses.prediction import Prediction, split_value, with_value
from optlayers.losses.question import Question
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.structured_attention import StructuredAttention
from optlayers.solution import Solution

__all__ = ["CRFLoss"]


@final
@dataclass(frozen=True)
class _Marginals(AbstractRule):
    """Structured attention that also gives log Z, as a second structure that holds it in its first part."""

    maximizes = False
    apart = 2

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The marginals and log Z."""
        _, total, solution = polytope.marginals(scores)
        return with_value(solution, total), (None, scores)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "two batch size"], context: Context
    ) -> Gradient:
        """The covariance applied to the gradient of the marginals; log Z is used without one."""
        return StructuredAttention().backward(polytope, saved, grad[0], context)


@final
class CRFLoss(AbstractFenchelYoungLoss):
    r"""The negative log-likelihood :math:`\log Z(s) - \langle s, y \rangle` of structures, :math:`p(z) \propto
    e^{\langle s, z \rangle}` over the vertices.

    The gradient is :math:`\mu(s) - y`, with the marginals μ of :class:`optlayers.StructuredAttention`, and the second
    derivative the covariance. Against a mask it is the negative log-probability that a structure has admissible parts
    alone; where auxiliary variables have scores, that of the target with any completion. A target that is a mixture of
    structures is met with the cross-entropy: the mean over the mixture, which is not 0 at its best. On the simplex it
    is the cross-entropy of a softmax. Arguments are those of :class:`AbstractLoss`, without a rule.

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

    rule = _Marginals()
    predicts_means = True

    def predict(self, question: Question, scores: Float64[Tensor, "*batch_and_shape"], draws: Any) -> Prediction:
        """The marginals."""
        return split_value(question, scores, question.ask(self.layer, scores))

    def regularizer(
        self, question: Question, structure: Float64[Tensor, "*batch_and_shape"]
    ) -> Float64[Tensor, "*batch"]:
        """Zero, which is right for vertices."""
        return torch.zeros(question.batch, dtype=structure.dtype, device=structure.device)
