"""The structured hinge loss."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from optlayers.compiled import CompiledPolytope
from optlayers.inputs import check_dense
from optlayers.losses.base import AbstractLoss, Reduction
from optlayers.losses.cube import WHOLE
from optlayers.losses.known import best_admitted, best_completed
from optlayers.losses.prediction import Prediction, between, decide, scored
from optlayers.losses.question import Lifted, Question, dot, per_instance
from optlayers.losses.targets import Target, of_instance, read_target
from optlayers.modes import outside_graphs
from optlayers.polytope import Family, Polytope
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector

__all__ = ["StructuredHingeLoss"]


@final
class StructuredHingeLoss(AbstractLoss):
    r"""How much better a structure scores than the target, with its cost on top.

    .. math:: \max_{z \in P} \big(\langle s, z \rangle + \operatorname{cost}(z, y)\big) - \langle s, y \rangle

    It is 0 when the target scores better than every structure by the cost of that structure at least. The gradient is
    :math:`\hat z - y` for the best z with its cost. All costs here are linear in z, so that the best z is that of other
    scores; the loss bounds the cost of the decision :math:`\hat z(s)` from above.

    The Hamming cost :math:`\sum_p |y_p - z_p|` is :math:`\sum_p y_p + (1 - 2 y_p) z_p` in the unit cube, for y or z of
    0 and 1. Against a mask of admissible parts it counts the parts of z that are not admissible. A polytope that leaves
    the unit cube is refused: each part is tried once per polytope (with ``validate=True``; where the declaration has
    parameters, and anyway, targets and best vertices are looked at). In the cube, targets of 0 and 1 are taken for any
    polytope, and mixtures where the best vertices are 0/1.

    A cost of your own is linear: ``loss(scores, target, cost=c)`` has cost :math:`\langle c, z - y \rangle`, on any
    polytope.

    Parameters
    ----------
    polytope, reduction, validate, maximizer, projector : see :class:`AbstractLoss`.
    cost : ``"hamming"``, which a call may replace by ``cost=``; None for calls that all bring their own.

    References
    ----------
    Taskar, Guestrin and Koller (2003), Max-margin Markov networks, NIPS. Tsochantaridis, Joachims, Hofmann and Altun
    (2005), Large margin methods for structured and interdependent output variables, JMLR.

    Examples
    --------
    >>> import torch
    >>> from polytopes import simplex
    >>> scores = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
    >>> loss = StructuredHingeLoss(simplex(3))(scores, torch.tensor([1, 0, 0]))
    >>> loss.item(), torch.autograd.grad(loss, scores)[0].tolist()
    (1.0, [-1.0, 1.0, 0.0])
    """

    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family,
        *,
        cost: Literal["hamming"] | None = "hamming",
        reduction: Reduction = "mean",
        validate: bool = True,
        maximizer: AbstractMaximizer | None = None,
        projector: AbstractProjector | None = None,
    ) -> None:
        if cost not in ("hamming", None):
            raise ValueError(
                f'cost is "hamming" or None, but got {cost!r}; a linear cost is given with the target: '
                "loss(scores, target, cost=c)"
            )
        super().__init__(polytope, reduction=reduction, validate=validate, maximizer=maximizer, projector=projector)
        self.cost = cost

    @outside_graphs
    def forward(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        target: Tensor,
        *,
        cost: Float[Tensor, "*batch_and_shape"] | None = None,
        sizes: Any = None,
        **parameters: Any,
    ) -> Tensor:
        """The loss of scores against a target, with the Hamming cost or ``cost``, ``(*batch, *shape)`` or ``shape``.

        The other arguments and the errors are those of :meth:`AbstractFenchelYoungLoss.forward`.

        Raises
        ------
        TypeError, ValueError : a cost that is missing, not finite or of a wrong shape, or that is given with a mask;
            Hamming costs where structures are not 0/1.
        """
        question = self.question(scores, sizes, parameters)
        double = question.double(scores)
        against = read_target(question, target, double)
        slope = self._slope(question, against, cost, double)
        self.check_membership(question, against)
        augmented = double + slope
        found = decide(self.layer, question, augmented)
        if cost is None:
            _refuse_outside(question, found, against)
        predict = partial(decide, self.layer, question)
        if against.structure is None:
            known = best_admitted(augmented, against, predict)
        elif question.auxiliary:
            structure = self.completable(question, against.structure)
            known = best_completed(question, augmented, structure, predict)
        else:
            y = against.structure
            known = scored(question, augmented, Lifted(y))
            if cost is None:  # the linear form charges a fractional y itself
                known = replace(known, value=known.value - 2.0 * dot(y, 1.0 - y, question.batch))
        return self.reduced(between(question, augmented, found, known), scores)

    def _slope(self, question: Question, target: Target, cost: Tensor | None, scores: Tensor) -> Tensor:
        """The cost as a linear form, without its constant."""
        if cost is not None:
            return _given(question, target, cost, scores)
        if self.cost is None:
            raise TypeError("this loss has no cost of its own: call loss(scores, target, cost=c)")
        leaves = self._cube.leaves(question, below=True) if self.validate else ""
        if leaves:
            raise ValueError(f"the Hamming cost is for parts between 0 and 1, but {leaves}; {ADVICE}")
        if target.structure is not None:
            return 1.0 - 2.0 * target.structure
        assert target.admissible is not None
        return (~target.admissible).to(scores.dtype)


ADVICE = "give a linear cost with the target: loss(scores, target, cost=c)"


def _given(question: Question, target: Target, cost: Tensor, scores: Tensor) -> Float64[Tensor, "*batch_and_shape"]:
    if target.structure is None:
        raise TypeError(
            "a linear cost <c, z - y> needs a target structure y, but the target is a mask; leave out cost= for the "
            "number of parts that are not admissible"
        )
    if not isinstance(cost, Tensor) or cost.is_complex() or cost.dtype == torch.bool:
        raise TypeError(f"cost must be a tensor of real numbers, but got {getattr(cost, 'dtype', type(cost).__name__)}")
    check_dense(cost, "cost")
    shape = scores.shape[len(question.batch) :]
    if cost.shape not in (scores.shape, shape):
        raise ValueError(
            f"cost has shape {tuple(cost.shape)}: give {tuple(shape)} for all instances or {tuple(scores.shape)} for "
            "each its own"
        )
    if cost.requires_grad and torch.is_grad_enabled():
        raise ValueError("losses have no gradient for costs, but cost requires one; pass cost.detach()")
    whole = cost.to(scores.device, torch.float64).expand(scores.shape)
    if question.inside is not None:
        whole = whole.masked_fill(~question.inside, 0.0)
    bad = ~torch.isfinite(whole)
    if bool(bad.any()):
        where = tuple(torch.nonzero(bad)[0].tolist())
        head = len(question.batch)
        raise ValueError(
            f"cost must be finite, but entry {list(where[head:])} {of_instance(where[:head])} is {whole[where].item()}"
        )
    return whole


def _refuse_outside(question: Question, found: Prediction, target: Target) -> None:
    """What the linear form of the Hamming cost needs of targets and best vertices."""
    vertex = found.structure.detach()
    points = [("a best vertex", vertex)]
    if target.structure is not None:
        points.append(("the target", target.structure))
        fractional = per_instance((target.structure != 0) & (target.structure != 1), question.batch).any(-1)
        near = per_instance((vertex - vertex.round()).abs(), question.batch).amax(-1) <= WHOLE
        if bool((fractional & ~near).any()):
            where = tuple(torch.nonzero(fractional & ~near)[0].tolist())
            raise ValueError(
                f"the Hamming cost is linear where target or structures are 0/1, but both are fractional "
                f"{of_instance(where)}; {ADVICE}"
            )
    for what, values in points:
        bad = (values > 1 + WHOLE) | (values < -WHOLE)
        if bool(bad.any()):
            where = tuple(torch.nonzero(bad)[0].tolist())
            head = len(question.batch)
            raise ValueError(
                f"the Hamming cost is for parts between 0 and 1, but entry {list(where[head:])} of {what} "
                f"{of_instance(where[:head])} is {values[where].item():g}; {ADVICE}"
            )
