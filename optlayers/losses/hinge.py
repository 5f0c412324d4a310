"""The structured hinge loss."""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from optlayers.common.modes import is_differentiated, outside_graphs
from optlayers.common.tensors import check_dense
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.family import Family
from optlayers.losses.base import AbstractLoss, Reduction
from optlayers.losses.call import Check
from optlayers.losses.cube import WHOLE
from optlayers.losses.known import best_admitted, best_completed, given
from optlayers.losses.prediction import Contrast, Prediction, best_vertices
from optlayers.losses.question import Question
from optlayers.losses.targets import check_target
from optlayers.polytope import Polytope
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
    polytope : a :class:`Polytope`, a compiled one, or a :class:`Family`, for which a call takes ``sizes=``.
    reduction : ``"mean"`` or ``"sum"`` over instances, or ``"none"`` for one loss per instance, ``(*batch,)``.
    validate : whether targets that are no points of the polytope are refused.
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.
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
        cost: Float[Tensor, "*shape_of_one_or_all"] | None = None,
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
        given: dict[str, tuple[Any, Check]] = {"target": (target, check_target)}
        if cost is not None:
            given["cost"] = (cost, check_cost)
        elif self.cost is None:
            raise TypeError("this loss has no cost of its own: call loss(scores, target, cost=c)")
        return self.reduced(self.losses(scores, sizes, parameters, given), scores)

    def check(self, question: Question) -> None:
        """Refuse costs that are no numbers or go with a mask, and what the Hamming cost is not for."""
        target, cost = question.given["target"], question.given.get("cost")
        if cost is not None:
            if target.dtype == torch.bool:
                raise TypeError(
                    "a linear cost <c, z - y> needs a target structure y, but the target is a mask; leave out cost= "
                    "for the number of parts that are not admissible"
                )
            bad = ~torch.isfinite(cost)
            if bool(bad.any()):
                k, entry = torch.nonzero(bad)[0].tolist()
                raise ValueError(
                    f"cost must be finite, but entry {question.entry(entry)} {question.instance(k)} is "
                    f"{cost[k, entry].item()}"
                )
        elif self.validate:
            leaves = self._cube.leaves(question.share.compiled, below=True)
            if leaves:
                raise ValueError(f"the Hamming cost is for parts between 0 and 1, but {leaves}; {ADVICE}")
        if target.dtype != torch.bool:
            self.check_structure(question, "target")

    def contrast(self, question: Question) -> Contrast:
        """The best vertex with its cost, and the target."""
        target, cost = question.given["target"], question.given.get("cost")
        admits = target.dtype == torch.bool
        slope = cost
        if slope is None:  # the Hamming cost as a linear form, without its constant
            slope = (~target).to(torch.float64) if admits else 1.0 - 2.0 * target
        scores = question.scores + question.whole(slope)
        if question.forbidden is not None:
            scores = scores.masked_fill(question.forbidden, 0.0)
        found = question.ask(best_vertices, scores, question.forbidden)
        if cost is None:
            _refuse_outside(question, found, None if admits else target)
        if admits:
            return Contrast(found, best_admitted(question, scores, target, best_vertices))
        if question.has_auxiliaries:
            return Contrast(found, best_completed(question, scores, self.completable(question, target), best_vertices))
        # The linear form charges a fractional y itself.
        charge = 2.0 * (target * (1.0 - target)).sum(dim=1) if cost is None else 0.0
        return Contrast(found, given(question, scores, target, charge))


ADVICE = "give a linear cost with the target: loss(scores, target, cost=c)"


def check_cost(cost: Any, scores: Tensor, batch: torch.Size, name: str) -> Tensor:
    """A linear cost ``(*batch, *shape)``, or ``shape`` for all instances."""
    if not isinstance(cost, Tensor) or cost.is_complex() or cost.dtype == torch.bool:
        raise TypeError(f"cost must be a tensor of real numbers, but got {getattr(cost, 'dtype', type(cost).__name__)}")
    check_dense(cost, name)
    shape = scores.shape[len(batch) :]
    if cost.shape not in (scores.shape, shape):
        raise ValueError(
            f"cost has shape {tuple(cost.shape)}: give {tuple(shape)} for all instances or {tuple(scores.shape)} for "
            "each its own"
        )
    if is_differentiated(cost):
        raise ValueError("losses have no gradient for costs, but cost requires one; pass cost.detach()")
    return cost.detach().expand(scores.shape)


def _refuse_outside(
    question: Question, found: Prediction, target: Float64[Tensor, "batch structure_size"] | None
) -> None:
    """What the linear form of the Hamming cost needs of targets and best vertices."""
    vertex = question.structure(found.solution.value.detach())
    points = [("a best vertex", vertex)]
    if target is not None:
        points.append(("the target", target))
        fractional = ((target != 0) & (target != 1)).any(dim=1)
        near = (vertex - vertex.round()).abs().amax(dim=1) <= WHOLE
        if bool((fractional & ~near).any()):
            k = int(torch.nonzero(fractional & ~near)[0, 0])
            raise ValueError(
                f"the Hamming cost is linear where target or structures are 0/1, but both are fractional "
                f"{question.instance(k)}; {ADVICE}"
            )
    for what, values in points:
        bad = (values > 1 + WHOLE) | (values < -WHOLE)
        if bool(bad.any()):
            k, entry = torch.nonzero(bad)[0].tolist()
            raise ValueError(
                f"the Hamming cost is for parts between 0 and 1, but entry {question.entry(entry)} of {what} "
                f"{question.instance(k)} is {values[k, entry].item():g}; {ADVICE}"
            )
