"""The regret of decisions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from optlayers.compiled import CompiledPolytope
from optlayers.layer import OptLayer
from optlayers.losses.question import dot, finite, question_of, true_values
from optlayers.polytope import Family, Polytope
from optlayers.rules.pipeline import Pipeline

__all__ = ["regret"]


@torch.no_grad()
def regret(
    polytope: Polytope | CompiledPolytope | Family | OptLayer,
    predicted: Float[Tensor, "*batch_and_shape"],
    true_scores: Float[Tensor, "*batch_and_shape"],
    *,
    normalized: bool = False,
    sizes: Any = None,
    **parameters: Any,
) -> Float[Tensor, "*batch"] | Float[Tensor, ""]:
    r"""What is lost by deciding for predicted scores ŝ: :math:`\langle s, \hat z(s) \rangle - \langle s, \hat z(\hat s)
    \rangle`.

    A metric, without a gradient: :class:`SPOPlusLoss` bounds it from above and has one. A decision for a part whose
    true score is ``-inf`` has infinite regret.

    Parameters
    ----------
    polytope : what is decided on. A layer, or a compiled polytope, is not compiled again in every call; the rule of the
        layer counts for nothing.
    predicted, true_scores : ``(*batch, *shape)``.
    normalized : the sum of regrets over the batch divided by the sum of the absolute optimal values
        :math:`|\langle s, \hat z(s) \rangle|`, one number.
    sizes, parameters : see :meth:`optlayers.OptLayer.forward`. Scores of auxiliary variables are taken as known: they
        count in the decision and in what it is worth.

    Returns
    -------
    ``(*batch,)``, or a number when normalized, in the dtype of the predicted scores.

    Raises
    ------
    SolveError, TypeError, ValueError : see :meth:`optlayers.OptLayer.forward`. ValueError when all optimal values are 0
        and the regret is to be normalized by them.

    References
    ----------
    Elmachtoub and Grigas (2022), Smart "predict, then optimize", Management Science. Mandi et al. (2024),
    Decision-focused learning: foundations, state of the art, benchmark and future opportunities, JAIR.

    Examples
    --------
    >>> import torch
    >>> from polytopes import simplex
    >>> two_ways = OptLayer(simplex(2), Pipeline())
    >>> regret(two_ways, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[5.0, 2.0], [5.0, 2.0]]))
    tensor([3., 0.])
    """
    layer = polytope.with_rule(Pipeline()) if isinstance(polytope, OptLayer) else OptLayer(polytope, Pipeline())
    question = question_of(layer, predicted, sizes, parameters, "predicted")
    guess = question.double(predicted, "predicted")
    truth = true_values(question, true_scores, predicted)
    best = question.ask(layer, truth)
    decided = question.ask(layer, guess)
    missed = best.structure - decided.structure
    # A product of 0 and -inf is nothing; that of -1 and -inf is all there is to lose.
    losses = dot(torch.where(missed == 0, 0.0, truth), missed, question.batch)
    for name, known in question.auxiliary.items():
        losses = losses + dot(finite(known), best.auxiliary[name] - decided.auxiliary[name], question.batch)
    if not normalized:
        return losses.to(predicted.dtype)
    scale = question.product(truth, best).abs().sum()
    if float(scale) == 0.0:
        raise ValueError("the optimal values of the batch sum to 0: there is nothing to normalize the regret by")
    return (losses.sum() / scale).to(predicted.dtype)
