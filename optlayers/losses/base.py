"""What losses share: how they are made, what they are held to, the reduction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from optlayers.autograd.differentiate import applied
from optlayers.bound.polytope import BoundPolytope
from optlayers.common.modes import is_differentiated, outside_graphs, transforms_active
from optlayers.common.tensors import check_scores
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.family import Family
from optlayers.layer import OptLayer
from optlayers.losses.call import Check, LossCall, LossPart, parts_of
from optlayers.losses.cube import Cube, exceeds
from optlayers.losses.decoding import Decoding
from optlayers.losses.known import in_whole_numbers, infeasible_because, not_one_of
from optlayers.losses.prediction import Contrast
from optlayers.losses.question import Question
from optlayers.losses.targets import check_membership, check_numbers
from optlayers.polytope import Polytope
from optlayers.rules.base import AbstractRule
from optlayers.rules.pipeline import Pipeline
from optlayers.solution import Solution
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector

__all__ = ["AbstractLoss", "Reduction"]

Reduction = Literal["mean", "sum", "none"]


class AbstractLoss(nn.Module, ABC):
    """A loss over structures of a polytope, one per instance, whose gradient is a difference of structures.

    Parameters
    ----------
    polytope : a :class:`Polytope`, an already compiled one, or a :class:`Family` for batches of mixed length.
    reduction : ``"mean"`` or ``"sum"`` over instances (the mean of an empty batch is NaN, as in torch), or ``"none"``
        for one loss per instance.
    validate : whether targets that are no points of the polytope are refused. They are held to the constraints, or to
        the ``membership`` function; where neither says all, it costs a best vertex per instance, and a projection for
        those batches that hold targets of other numbers than 0 and 1. Where auxiliary variables
        have scores, targets cost another prediction in any case, and a best vertex per part: once for a polytope, in
        every call where it has parameters and the loss predicts means (CRFLoss, PerturbedFenchelYoungLoss).
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.
    """

    rule: AbstractRule = Pipeline()
    """A rule that asks polytopes for the same as the loss: what it refuses to work with is refused here."""
    predicts_means: bool = False
    """Whether predictions are means of structures. One may be the target though none of these is, where parts exceed 1.
    """
    differentiates_parameters: bool = True
    """Whether parameters of the polytope get a gradient: that of the optimal value, by the envelope theorem."""
    knows_auxiliary_scores: bool = False
    """Whether scores of auxiliary variables are taken as known, and so have no gradient."""
    name_of_scores: str = "scores"

    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family,
        *,
        reduction: Reduction = "mean",
        validate: bool = True,
        maximizer: AbstractMaximizer | None = None,
        projector: AbstractProjector | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction is "mean", "sum" or "none", but got {reduction!r}')
        self.reduction: Reduction = reduction
        self.validate = validate
        self.layer = OptLayer(polytope, self.rule, maximizer=maximizer, projector=projector)
        self._cube = Cube()

    @abstractmethod
    def contrast(self, question: Question) -> Contrast:
        """What is found for some scores, and what is known of them."""

    def check(self, question: Question) -> None:
        """Refuse what was given with the scores, before anything is solved."""

    def losses(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        sizes: Any,
        parameters: Mapping[str, Any],
        given: Mapping[str, tuple[Any, Check]],
        generator: torch.Generator | None = None,
    ) -> Float64[Tensor, "*batch"]:
        """One loss per instance, from scores and what else is given for every part, each with what checks it."""
        if transforms_active():
            check_scores(scores, self.name_of_scores)
            raise NotImplementedError(
                "losses cannot be transformed by torch.func (vmap, grad, ...); use backward() or torch.autograd.grad, "
                "torch.autograd.forward_ad for forward mode, and give the loss the whole batch"
            )
        shares, tensors, parts = parts_of(self.layer, scores, sizes, parameters, given, self.name_of_scores)
        for part in parts:
            self._check_wishes(part, tensors)
        name = type(self).__name__
        call = LossCall(parts, shares, name, self.check, self.contrast, self.name_of_scores, generator)
        return applied(call, *tensors)

    def _check_wishes(self, part: LossPart, tensors: Sequence[Tensor]) -> None:
        """Refuse to be asked for gradients that this loss has not."""
        if part.waiting and not self.differentiates_parameters:
            name = part.waiting[0]
            raise ValueError(
                f"{type(self).__name__} has no gradient for parameters, but {name} requires one; pass {name}.detach(), "
                "take SparseMAPLoss or StructuredHingeLoss, or learn it through OptLayer with SparseMAP()"
            )
        if self.knows_auxiliary_scores:
            for spec, values in zip(part.share.entries.auxiliaries, tensors[part.share.named], strict=False):
                if is_differentiated(values):
                    raise ValueError(
                        f"the scores of {spec.name} are taken as known, the same for predicted and true scores, but "
                        f"they require a gradient; pass {spec.name}.detach(), or declare what is predicted as the "
                        "structure itself"
                    )

    @outside_graphs
    def decode(
        self, scores: Float[Tensor, "*batch_and_shape"], *, sizes: Any = None, **parameters: Any
    ) -> Float[Tensor, "*batch_and_shape"]:
        r"""Structures for scores that were learned by this loss.

        Of a Fenchel-Young loss with the regularizer Ω and without a margin they are those that it is smallest for,
        :math:`\operatorname{argmax}_v \langle s, v \rangle - \Omega(v)` over the vertices v; of the others the best
        vertices, which are what a margin and a regret are about. Where Ω is 0, that is the same. For
        :class:`SparseMAPLoss` it is the vertex nearest to the scores: of structures of 0 and 1 the best one for scores
        less 1/2, which has fewer parts than the best one for the scores where structures differ in their number of
        parts. For :class:`PerturbedFenchelYoungLoss` it is the best vertex for scores with the mean of the noise.

        Parameters
        ----------
        scores : ``(*batch, *shape)`` as for :class:`optlayers.OptLayer`; ``-inf`` forbids a part.
        sizes : for a family, the size of every instance.
        parameters : what the polytope declares, and the scores of auxiliary variables.

        Returns
        -------
        Structures in the shape, dtype and device of the scores, without a gradient; 0 in the padding of a family.

        Raises
        ------
        SolveError : an instance without a certified answer.
        ValueError : vertices that a loss with a regularizer cannot tell apart without a list of them all, and too many
            to list.
        """
        with torch.no_grad():
            return self.layer.with_rule(Decoding(self.decoded)).forward(scores, sizes=sizes, **parameters)

    def decoded(self, polytope: BoundPolytope, scores: Float64[Tensor, "batch size"]) -> Solution:
        """The structures of :meth:`decode`, for flat scores: the best vertices, unless a loss says otherwise."""
        return polytope.maximize(scores)

    def check_structure(self, question: Question, name: str) -> None:
        """Refuse structures that are not finite, have forbidden parts, or lie outside of the polytope."""
        structure = question.given[name]
        check_numbers(question, structure, name)
        if self.validate:
            check_membership(question, structure, question.precision[name], name)

    def completable(
        self, question: Question, structure: Float64[Tensor, "batch structure_size"], name: str = "target"
    ) -> Float64[Tensor, "batch structure_size"]:
        """A structure of whole numbers, where the completion that scores best is right; others are refused."""
        structure = in_whole_numbers(question, structure, name)
        reach = self._cube.leaves(question.share.compiled, below=False)
        if not reach and question.share.entries.parameters and self.predicts_means:
            with infeasible_because(not_one_of(name)):
                reach = exceeds(question, structure)
        if reach:
            raise ValueError(
                f"where auxiliary variables have scores ({question.auxiliary_names}), a {name} that is no mask is "
                f"for polytopes whose parts are at most 1, but {reach}"
            )
        return structure

    def reduced(self, losses: Float64[Tensor, "*batch"], like: Tensor) -> Float[Tensor, "*reduced"]:
        """One number, or one per instance, in the dtype of the scores."""
        if self.reduction == "mean":
            losses = losses.mean()
        elif self.reduction == "sum":
            losses = losses.sum()
        return losses if losses.dtype == like.dtype else losses.to(like.dtype)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, validate={self.validate}"
