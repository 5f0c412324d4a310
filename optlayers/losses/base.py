"""What losses share: how they are made, what they are held to, the reduction."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Float, Float64
from torch import Tensor, nn

from optlayers.compiled import CompiledPolytope
from optlayers.layer import OptLayer
from optlayers.losses.cube import Cube
from optlayers.losses.known import in_whole_numbers, infeasible_because, not_one_of
from optlayers.losses.question import Question, question_of
from optlayers.losses.targets import Target, check_membership
from optlayers.polytope import Family, Polytope
from optlayers.rules.base import AbstractRule
from optlayers.rules.pipeline import Pipeline
from optlayers.rules.sparsemap import SparseMAP
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
    validate : whether targets that are no points of the polytope are refused. This costs a best vertex per instance,
        and a projection for those batches that hold targets of other numbers than 0 and 1. Where auxiliary variables
        have scores, targets cost another prediction in any case, and a best vertex per part: once for a polytope, in
        every call where it has parameters and the loss predicts means (CRFLoss, PerturbedFenchelYoungLoss).
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.
    """

    rule: AbstractRule = Pipeline()
    """What gives the structures of predictions; one that has hyperparameters is set before the rest."""
    predicts_means: bool = False
    """Whether predictions are means of structures. One may be the target though none of these is, where parts exceed 1.
    """

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
        polyhedral = projector is None or projector.polyhedral_only
        if self.layer.family is None:
            compiled = self.layer.compiled()
            polyhedral = compiled.has_vertices
            projector = compiled.projector
        self._nearest = self.layer.with_rule(SparseMAP())
        self._accuracy = 0.0 if projector is None else projector.accuracy
        self._best = self.layer.with_rule(Pipeline()) if polyhedral else None
        self._cube = Cube(self.layer if self._best is None else self._best)

    def question(self, scores: Tensor, sizes: Any, parameters: Mapping[str, Any], name: str = "scores") -> Question:
        """The polytopes of a batch of scores; what does not fit is refused."""
        return question_of(self.layer, scores, sizes, parameters, name)

    def check_membership(self, question: Question, target: Target, name: str = "target") -> None:
        """Refuse targets outside the polytope, where they are to be validated."""
        if self.validate:
            check_membership(question, self._best, self._nearest, target, self._accuracy, name)

    def completable(
        self, question: Question, structure: Float64[Tensor, "*batch_and_shape"], name: str = "target"
    ) -> Float64[Tensor, "*batch_and_shape"]:
        """A structure of whole numbers, in polytopes where :func:`best_completed` is right; others are refused."""
        structure = in_whole_numbers(question, structure, name)
        reach = self._cube.leaves(question, below=False)
        if not reach and question.parameters and self.predicts_means:
            with infeasible_because(not_one_of(name)):
                reach = self._cube.exceeds(question, structure)
        if reach:
            raise ValueError(
                f"where auxiliary variables have scores ({', '.join(question.auxiliary)}), a {name} that is no mask is "
                f"for polytopes whose parts are at most 1, but {reach}"
            )
        return structure

    def reduced(self, losses: Float64[Tensor, "*batch"], like: Tensor) -> Float[Tensor, "*batch"]:
        """One number, or one per instance, in the dtype of the scores."""
        if self.reduction == "mean":
            losses = losses.mean()
        elif self.reduction == "sum":
            losses = losses.sum()
        return losses.to(like.dtype)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, validate={self.validate}"
