"""What losses ask: the instances of one polytope, as flat numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

import torch
from jaxtyping import Bool, Float64, Shaped
from torch import Tensor

from optlayers.batch.entries import MASK, Packed
from optlayers.batch.masks import answered
from optlayers.batch.shares import Share
from optlayers.bound.host import HostPolytope
from optlayers.bound.polytope import BoundPolytope, failed_instances, first_failures
from optlayers.losses.prediction import Prediction
from optlayers.rules.base import Context
from optlayers.solution import Solution, SolveError

__all__ = ["Predict", "Question"]

Predict = Callable[[BoundPolytope, Float64[Tensor, "batch size"], Context], Prediction]


@final
@dataclass(frozen=True)
class Question:
    """The instances of one polytope in a call of a loss: scores, and what else was given, flat and in float64.

    Attributes
    ----------
    scores : ``(batch, size)``, finite, 0 for parts that are ``forbidden``; behind the structure the scores of auxiliary
        variables. With a graph where a derivative of higher order is asked for.
    given : other tensors of the call like the structure, ``(batch, structure_size)``, and the ``precision`` of the
        dtypes that they came in.
    """

    share: Share
    packed: Packed
    scores: Float64[Tensor, "batch size"]
    given: Mapping[str, Tensor] = field(default_factory=dict)
    precision: Mapping[str, float] = field(default_factory=dict)
    theta: Float64[Tensor, "batch parameters"] | None = None
    """The parameters, where they are to be differentiated."""
    generator: torch.Generator | None = None
    drawn_from: Tensor | None = None
    """The state of the generator: every question meets the same random numbers."""
    asked: list[BoundPolytope] = field(default_factory=list)
    """The polytopes that were asked with a graph; what fails later is in their records."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def forbidden(self) -> Bool[Tensor, "batch size"] | None:
        """Parts with a score of -inf."""
        return self.packed.forbidden

    @property
    def structure_size(self) -> int:
        """How many entries a structure has."""
        return self.share.entries.structure_size

    @property
    def has_auxiliaries(self) -> bool:
        """Whether auxiliary variables have scores."""
        return bool(self.share.entries.auxiliaries)

    @property
    def auxiliary_names(self) -> str:
        """The names of the auxiliary variables that have scores, for messages."""
        return ", ".join(spec.name for spec in self.share.entries.auxiliaries)

    def ask(
        self,
        predict: Predict,
        scores: Float64[Tensor, "batch size"],
        forbidden: Bool[Tensor, "batch size"] | None = None,
    ) -> Prediction:
        """A prediction for scores of these polytopes.

        Raises
        ------
        SolveError : for instances without a certified answer.
        """
        packed = replace_scores(self.packed, scores, forbidden)
        bind = partial(self._bind, packed)

        def ask(polytope: BoundPolytope, asked: Tensor) -> tuple[Solution, Prediction]:
            if self.generator is not None and self.drawn_from is not None:
                self.generator.set_state(self.drawn_from)
            prediction = predict(polytope, asked, Context(self.generator, needs_gradient=asked.requires_grad))
            return prediction.solution, prediction

        if packed.low:
            polytope, _, _, solution, prediction = answered(bind, packed, ask)
        else:
            polytope = bind(forbidden)
            solution, prediction = ask(polytope, scores)
        if polytope.failed or not solution.all_ok:
            self.refuse_failed([solution, *polytope.failed])
        return replace(prediction, gradients=partial(self._gradients, polytope, prediction))

    def _gradients(self, polytope: BoundPolytope, prediction: Prediction) -> Mapping[str, Tensor]:
        """The gradients of the values by parameters, by the envelope theorem; means over several solutions."""
        before, count = len(polytope.failed), len(prediction.value)
        if prediction.behind is None:
            found = polytope.value_gradient(prediction.solution)
        else:
            each = polytope.plain_value_gradient(prediction.behind)
            found = {name: value.reshape(-1, count, *value.shape[1:]).mean(dim=0) for name, value in each.items()}
        self.refuse_failed(polytope.failed[before:])
        return found

    def knows(self, structure: Float64[Tensor, "batch structure_size"]) -> bool:
        """Whether all structures are known to be in their polytopes, by what is declared of these."""
        if self.has_auxiliaries:
            return False
        numbers = BoundPolytope.of(self.share.compiled, self.packed, None).numbers
        return isinstance(numbers, HostPolytope) and numbers.holds(structure)

    def _bind(self, packed: Packed, forbidden: Tensor | None) -> BoundPolytope:
        polytope = BoundPolytope.of(self.share.compiled, packed, forbidden)
        if packed.scores.requires_grad or self.theta is not None:
            polytope = BoundPolytope(polytope.numbers, self.theta)
            self.asked.append(polytope)
        elif packed.scores is not self.packed.scores:  # nobody has looked at these
            polytope.finite = None
        return polytope

    def refuse_failed(self, solutions: list[Solution]) -> None:
        """Raise for the instances that failed in some of these solves."""
        solutions = [solution for solution in solutions if not solution.all_ok]
        if solutions:
            failures, bad = first_failures(solutions, len(self)), failed_instances(solutions, len(self))
            rows = torch.nonzero(bad).flatten().tolist()
            raise SolveError([self.share.told(failures[k], k) for k in rows], len(self))

    def whole(self, structure: Float64[Tensor, "batch structure_size"]) -> Float64[Tensor, "batch size"]:
        """Structures with 0 for auxiliary variables."""
        missing = self.scores.shape[1] - structure.shape[1]
        return torch.nn.functional.pad(structure, (0, missing)) if missing else structure

    def structure(self, point: Shaped[Tensor, "batch size"]) -> Shaped[Tensor, "batch structure_size"]:
        """Points without auxiliary variables."""
        return point if point.shape[1] == self.structure_size else point[:, : self.structure_size]

    def instance(self, k: int) -> str:
        """An instance in words."""
        index = self.share.index(k)
        if not index:
            return "of the instance"
        return f"of instance {index[0] if len(index) == 1 else index}"

    def entry(self, flat: int) -> list[int]:
        """An entry of the structure by its indices."""
        shape = self.share.entries.shape
        indices = []
        for length in reversed(shape):
            flat, index = divmod(flat, length)
            indices.append(index)
        return indices[::-1]


def replace_scores(
    packed: Packed, scores: Float64[Tensor, "batch size"], forbidden: Bool[Tensor, "batch size"] | None
) -> Packed:
    """Other scores for the same polytopes; parts may be forbidden by a mask, see :mod:`optlayers.batch.masks`."""
    limit = max(MASK, packed.lowest)
    low = bool(scores.numel()) and float(scores.detach().amin()) <= limit
    return Packed(scores, forbidden, packed.theta, packed.precision, low, packed.lowest)
