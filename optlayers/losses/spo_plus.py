"""SPO+, the surrogate of the regret."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from optlayers.common.modes import outside_graphs
from optlayers.common.tensors import check_finite
from optlayers.losses.base import AbstractLoss
from optlayers.losses.call import Check
from optlayers.losses.known import best_completed
from optlayers.losses.known import given as given_point
from optlayers.losses.prediction import Contrast, Prediction, best_vertices
from optlayers.losses.question import Question
from optlayers.losses.targets import check_target, check_true_scores

__all__ = ["SPOPlusLoss"]


@final
class SPOPlusLoss(AbstractLoss):
    r"""A convex upper bound of the regret of deciding by predicted scores ŝ when the true ones are s.

    .. math:: \max_{z \in P} \langle 2 \hat s - s, z \rangle - \langle 2 \hat s - s, z^* \rangle,
              \qquad z^* = \operatorname{argmax}_{z \in P} \langle s, z \rangle

    The gradient of ŝ is :math:`2 (\hat z(2 \hat s - s) - z^*)`. The paper minimizes costs c = −s, ĉ = −ŝ, and its loss
    :math:`\max_z \langle c - 2 \hat c, z \rangle + 2 \langle \hat c, z^*\rangle - \langle c, z^* \rangle` becomes
    this one by those two signs. It is 0 at ŝ = s. Where either of the scores is ``-inf``, the part is forbidden.

    Parameters
    ----------
    polytope : a :class:`Polytope`, a compiled one, or a :class:`Family`, for which a call takes ``sizes=``.
    reduction : ``"mean"`` or ``"sum"`` over instances, or ``"none"`` for one loss per instance, ``(*batch,)``.
    validate : whether ``decisions=`` that are no points of the polytope are refused.
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.

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

    differentiates_parameters = False
    knows_auxiliary_scores = True
    name_of_scores = "predicted"

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
        given: dict[str, tuple[Any, Check]] = {"true_scores": (true_scores, check_true_scores)}
        if decisions is not None:
            given["decisions"] = (decisions, check_target)
        return self.reduced(self.losses(predicted, sizes, parameters, given), predicted)

    def check(self, question: Question) -> None:
        """Refuse true scores and decisions that cannot be what they are called."""
        truth, decisions = question.given["true_scores"], question.given.get("decisions")
        if truth.numel() and not bool(truth.amax() < torch.inf):  # NaN is not
            shaped = truth.reshape(*question.share.batch, *question.share.entries.shape)
            check_finite(shaped, len(question.share.batch), question.share.positions(), "true_scores")
        if decisions is None:
            return
        if decisions.dtype == torch.bool:
            raise TypeError("decisions must be structures, but got a boolean mask; pass decisions.float()")
        self.check_structure(question, "decisions")

    def contrast(self, question: Question) -> Contrast:
        """The best vertex of twice the predicted less the true scores, and that of the true ones."""
        truth, decisions = question.given["true_scores"], question.given.get("decisions")
        entries, predicted, forbidden = question.share.entries, question.scores, question.forbidden
        if truth.numel() and bool(truth.amin() == -torch.inf):
            hidden = truth == -torch.inf
            hidden = torch.nn.functional.pad(hidden, (0, entries.size - entries.structure_size))
            forbidden = hidden if forbidden is None else forbidden | hidden
            truth = truth.masked_fill(truth == -torch.inf, 0.0)
        # Auxiliary variables score the same for predictions and truth.
        auxiliary = predicted[:, entries.structure_size :]
        known = torch.cat([truth, auxiliary.detach()], dim=1) if entries.auxiliaries else truth
        # The lowest number of float64, which masks may hold, has no double.
        doubled = torch.nan_to_num(2.0 * predicted - known)
        if forbidden is not None:
            doubled, known = (scores.masked_fill(forbidden, 0.0) for scores in (doubled, known))
        found = question.ask(best_vertices, doubled, forbidden)
        if decisions is None:
            best = question.ask(best_vertices, known, forbidden).solution
            worth = (doubled.detach() * best.value).sum(dim=1)
            return Contrast(found, Prediction(best, worth), factor=2.0)
        if entries.auxiliaries:
            structure = self.completable(question, decisions, "decisions")
            barred = replace(question, packed=replace(question.packed, forbidden=forbidden))
            return Contrast(found, best_completed(barred, doubled, structure, best_vertices, "decisions"), factor=2.0)
        return Contrast(found, given_point(question, doubled, decisions, 0.0), factor=2.0)
