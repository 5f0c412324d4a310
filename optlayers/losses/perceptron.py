"""The structured perceptron."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.losses.fenchel_young import AbstractFenchelYoungLoss
from optlayers.losses.prediction import Prediction, decide
from optlayers.losses.question import Question

__all__ = ["StructuredPerceptronLoss"]


@final
class StructuredPerceptronLoss(AbstractFenchelYoungLoss):
    r"""How much better the best structure scores than the target: :math:`\max_{z} \langle s, z \rangle - \langle s, y
    \rangle`.

    The gradient is :math:`\hat z(s) - y`; the loss is 0 when the target is a best structure, be it one of many. Second
    derivatives are 0. Arguments are those of :class:`AbstractLoss`, without a rule.

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

    def predict(self, question: Question, scores: Float64[Tensor, "*batch_and_shape"], draws: Any) -> Prediction:
        """The best vertices."""
        return decide(self.layer, question, scores)

    def regularizer(
        self, question: Question, structure: Float64[Tensor, "*batch_and_shape"]
    ) -> Float64[Tensor, "*batch"]:
        """Zero."""
        return torch.zeros(question.batch, dtype=structure.dtype, device=structure.device)
