"""The regret of decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from optlayers.batch.shares import Share
from optlayers.common.modes import transforms_active
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.family import Family
from optlayers.layer import OptLayer
from optlayers.losses.call import Check, LossPart, parts_of
from optlayers.losses.prediction import best_vertices
from optlayers.losses.question import Question
from optlayers.losses.targets import check_true_scores
from optlayers.polytope import Polytope
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
    if transforms_active():
        raise NotImplementedError(
            "regret is a metric and cannot be transformed by torch.func (vmap, grad, ...): give it the whole batch"
        )
    layer = polytope.with_rule(Pipeline()) if isinstance(polytope, OptLayer) else OptLayer(polytope, Pipeline())
    given: dict[str, tuple[Any, Check]] = {"true_scores": (true_scores, check_true_scores)}
    shares, tensors, parts = parts_of(layer, predicted, sizes, parameters, given, "predicted")

    def ask(part: LossPart) -> tuple[Share, Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
        return part.share, *_regret(part, part.share.tensors(tensors, shares.batch))

    found = shares.in_turn(parts, ask)
    lost = shares.numbers([(share, mine) for share, mine, _ in found], device=predicted.device)
    best = shares.numbers([(share, mine) for share, _, mine in found], device=predicted.device)
    if not normalized:
        return lost.to(predicted.dtype)
    scale = best.abs().sum()
    if float(scale) == 0.0:
        raise ValueError("the optimal values of the batch sum to 0: there is nothing to normalize the regret by")
    return (lost.sum() / scale).to(predicted.dtype)


def _regret(part: LossPart, tensors: Sequence[Tensor]) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """What is lost by instances of one polytope, and what could be had."""
    share, entries = part.share, part.share.entries
    guess = share.pack(tensors, "predicted")
    true_scores = part.given["true_scores"].reshape(*share.batch, *entries.shape)
    truth = share.pack([true_scores, *tensors[1:]], "true_scores")
    best, decided = (
        Question(share, packed, packed.scores).ask(best_vertices, packed.scores, packed.forbidden).solution.value
        for packed in (truth, guess)
    )
    # A product of 0 and -inf is nothing; that of -1 and -inf is all there is to lose.
    missed, known = best - decided, truth.scores
    if truth.forbidden is not None:
        known = known.masked_fill(truth.forbidden, -torch.inf)
        known[:, entries.structure_size :] = truth.scores[:, entries.structure_size :]
    lost = (torch.where(missed == 0, 0.0, known) * missed).sum(dim=1)
    return lost, (truth.scores * best).sum(dim=1)
