"""SPO+, the surrogate of the regret."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from optlayers.losses.base import AbstractLoss
from optlayers.losses.known import best_completed
from optlayers.losses.prediction import Prediction, between, decide, scored
from optlayers.losses.question import Lifted, Question, finite, refuse_gradients_of_known, true_values
from optlayers.losses.targets import read_target
from optlayers.modes import outside_graphs

__all__ = ["SPOPlusLoss"]


@final
class SPOPlusLoss(AbstractLoss):
    r"""A convex upper bound of the regret of deciding by predicted scores ŝ when the true ones are s.

    .. math:: \max_{z \in P} \langle 2 \hat s - s, z \rangle - \langle 2 \hat s - s, z^* \rangle,
              \qquad z^* = \operatorname{argmax}_{z \in P} \langle s, z \rangle

    The gradient of ŝ is :math:`2 (\hat z(2 \hat s - s) - z^*)`. The paper minimizes costs c = −s, ĉ = −ŝ, and its loss
    :math:`\max_z \langle c - 2 \hat c, z \rangle + 2 \langle \hat c, z^*\rangle - \langle c, z^* \rangle` becomes
    this one by those two signs. It is 0 at ŝ = s. Where either of the scores is ``-inf``, the part is forbidden.

    Arguments are those of :class:`AbstractLoss`, without a rule.

    References
    ----------
    Elmachtoub and Grigas (2022), Smart "predict, then optimize", Management Science.

    Examples
    --------
    >>> import torch
    >>> from polytopes import simplex
    >>> predicted = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> loss = SPOPlusLoss(simplex(2))(predicted, torch.tensor([3.0, 2.0]))
    >>> loss.item(), torch.autograd.grad(loss, predicted)[0].tolist()
    (3.0, [-2.0, 2.0])
    """

    @outside_graphs
    def forward(
        self,
        predicted: Float[Tensor, "*batch_and_shape"],
        true_scores: Float[Tensor, "*batch_and_shape"],
        *,
        decisions: Tensor | None = None,
        sizes: Any = None,
        **parameters: Any,
    ) -> Tensor:
        """The loss of predicted scores.

        Parameters
        ----------
        predicted, true_scores : ``(*batch, *shape)``; the latter have no gradient.
        decisions : best structures of the true scores, where they are known. They are checked to lie in the polytope
            (which takes as long as finding them; ``validate=False`` trusts them), but not to be the best.
        sizes, parameters : see :meth:`AbstractFenchelYoungLoss.forward`. Scores of auxiliary variables are taken as
            known, the same ones for predictions and truth, and so have no gradient.

        Raises
        ------
        SolveError, TypeError, ValueError : see :meth:`AbstractFenchelYoungLoss.forward`.
        """
        question = self.question(predicted, sizes, parameters, "predicted")
        refuse_gradients_of_known(question)
        guess = question.double(predicted, "predicted")
        truth = true_values(question, true_scores, predicted)
        forbidden = (guess.detach() == -torch.inf) | (truth == -torch.inf)
        # The lowest number of float64, which masks may hold, has no double.
        doubled = torch.nan_to_num(2.0 * finite(guess) - finite(truth)).masked_fill(forbidden, -torch.inf)
        if decisions is None:
            best = question.ask(self.layer, truth.masked_fill(forbidden, -torch.inf))
            known = scored(question, doubled, replace(best, structure=best.structure.detach()))
        else:
            known = self._known(question, decisions, doubled)
        found = decide(self.layer, question, doubled)
        return self.reduced(between(question, doubled, found, known), predicted)

    def _known(self, question: Question, decisions: Tensor, scores: Tensor) -> Prediction:
        given = read_target(question, decisions, scores, "decisions")
        if given.structure is None:
            raise TypeError("decisions must be structures, but got a boolean mask; pass decisions.float()")
        self.check_membership(question, given, "decisions")
        if question.auxiliary:
            predict = partial(decide, self.layer, question)
            structure = self.completable(question, given.structure, "decisions")
            return best_completed(question, scores, structure, predict, "decisions")
        return scored(question, scores, Lifted(given.structure))
