"""Dual points for answers that come without: those of the constraints, where these describe the polytope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.bound.base import theta_of
from optlayers.common.caches import cached_property
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.standard import DeclarationError
from optlayers.solution import AbstractEvidence, AbstractFunction, Status
from optlayers.solvers.base import AbstractSolver

__all__ = ["DualPoints", "NoPrices"]

SAME = 1e-6
"""Values that differ by less, next to the terms that they are sums of, are the same."""


@final
class NoPrices(ValueError):
    """The constraints do not describe the polytope."""


class _OfConstraints(NamedTuple):
    """What the constraints say of some instances, and why others have no dual point."""

    instances: Int64[np.ndarray, " some"]
    evidence: AbstractEvidence | None
    good: Bool[np.ndarray, " some"]
    reasons: Mapping[int, str]
    places: Int64[np.ndarray, " others"]
    """Where the parameters of the constraints are in θ."""


@final
@dataclass(eq=False)
class DualPoints:
    """The instances of a batch whose answers have no dual point, as those of an oracle; the constraints are asked for
    one when a gradient of parameters is.

    The best point of the constraints must be worth as much as the answer. Where it is, and both optimal values have a
    gradient, that is one: the value of a polytope around another is never less.
    """

    prepared: AbstractPrepared
    theta: Float64[np.ndarray, "batch parameters"]
    forbidden: Bool[np.ndarray, "batch size"] | None
    precision: Float64[np.ndarray, " parameters"]
    scores: Float64[np.ndarray, "batch size"]
    answers: Float64[np.ndarray, "batch size"]
    certified: Bool[np.ndarray, " batch"]
    projects: bool

    def value_gradient(self, ok: Bool[np.ndarray, " batch"]) -> Float64[np.ndarray, "batch parameters"]:
        """The gradient of optimal values with respect to θ; 0 for instances that are not ``ok``, or have none.

        Raises
        ------
        NoPrices : where the constraints do not describe the polytope.
        """
        found, theta = self._of_constraints, np.zeros(self.theta.shape)
        if found.evidence is not None:
            good = found.good & ok[found.instances]
            mine = found.evidence.value_gradient(torch.from_numpy(good)).numpy()
            theta[found.instances[:, None], found.places] = mine
        return theta

    def pulled_back(
        self, direction: Float64[np.ndarray, "batch size"], ok: Bool[np.ndarray, " batch"]
    ) -> Float64[np.ndarray, "batch parameters"]:
        """The gradient of θ for a direction of nearest points; NaN for instances that are ``ok`` and have none."""
        found, theta = self._of_constraints_if_any, np.where(ok[:, None], np.nan, np.zeros(self.theta.shape))
        if found is not None and found.evidence is not None:
            good, some = found.good & ok[found.instances], direction[found.instances]
            _, of_theta, right = found.evidence.tangent(torch.from_numpy(some), torch.from_numpy(good))
            known, mine = right.numpy(), np.zeros((len(some), theta.shape[1]))
            mine[:, found.places] = of_theta().numpy()
            theta[found.instances[known]] = mine[known]
        return theta

    def function(
        self,
        scores: Float64[Tensor, "batch size"],
        theta: Float64[Tensor, "batch parameters"],
        failed: Callable[[Bool[Tensor, " batch"]], None],
    ) -> AbstractFunction | None:
        """Nearest points as functions of scores and θ, where the constraints tell for all instances."""
        found = self._of_constraints_if_any
        if found is None or found.evidence is None or len(found.instances) < len(self.scores) or not found.good.all():
            return None
        return found.evidence.function(scores, theta[:, found.places], failed)

    @property
    def reasons(self) -> Mapping[int, str]:
        """Why instances with an answer have no gradient."""
        return self._of_constraints.reasons

    @property
    def solver(self) -> AbstractSolver:
        """Who answered."""
        return self.prepared.projector if self.projects else self.prepared.maximizer

    @property
    def _of_constraints_if_any(self) -> _OfConstraints | None:
        """None where the constraints do not describe the polytope."""
        try:
            return self._of_constraints
        except NoPrices:
            return None

    @cached_property
    def _of_constraints(self) -> _OfConstraints:
        """The answers of the constraints to instances that have one."""
        other = self._by_rows()
        places = theta_of(self.prepared.projection_form.parameters, other.projection_form.parameters)
        index = np.flatnonzero(self.certified)
        if not len(index):
            return _OfConstraints(index, None, np.zeros(0, dtype=bool), {}, places)
        forbidden = None if self.forbidden is None else torch.from_numpy(self.forbidden[index])
        theta = torch.from_numpy(np.ascontiguousarray(self.theta[index][:, places]))
        bound = other.bind_on_host(theta, forbidden, self.precision[places])
        scores = torch.from_numpy(self.scores[index])
        solution = bound.project(scores) if self.projects else bound.maximize(scores)
        best = solution.value.numpy()
        theirs, terms = self._worth(index, best)
        mine, others = self._worth(index, self.answers[index])
        solved = solution.status.numpy() == Status.OPTIMAL
        with np.errstate(invalid="ignore"):  # failed instances hold NaN
            good = solved & (np.abs(theirs - mine) <= SAME * np.maximum(terms, others))
        reasons = {}
        for k in np.flatnonzero(~good).tolist():
            if solved[k]:
                reasons[int(index[k])] = (
                    f"its parameters have no gradient: the best point of the constraints is worth {theirs[k]:.9g}, the "
                    f"answer of {self.solver!r} {mine[k]:.9g}, and these are not the values of one polytope"
                )
            else:
                status = Status(int(solution.status[k]))
                reason = solution.reasons.get(k, status.meaning)
                reasons[int(index[k])] = (
                    f"its parameters have no gradient, as the constraints have no dual point: {reason}"
                )
        return _OfConstraints(index, solution.evidence, good, reasons, places)

    def _worth(
        self, index: Int64[np.ndarray, " some"], points: Float64[np.ndarray, "some size"]
    ) -> tuple[Float64[np.ndarray, " some"], Float64[np.ndarray, " some"]]:
        """What points are worth for the scores, and the size of the terms of that."""
        terms = self.scores[index] * points
        if self.projects:
            structure = points[:, : self.prepared.entries.structure_size]
            terms = np.concatenate([terms, -0.5 * structure**2], axis=1)
        return terms.sum(axis=1), np.abs(terms).sum(axis=1)

    def _by_rows(self) -> AbstractPrepared:
        """The polytope by its constraints."""
        prepared, needs = self.prepared, "gradients of parameters need prices of constraints"
        polytope, relaxation = prepared.polytope, "learn from that relaxation, or detach the parameters"
        if not prepared.polyhedral:
            raise NoPrices(
                f"{needs}, and {self.solver!r} gives none over a set that is not polyhedral: leave the solver out, or "
                "detach the parameters"
            )
        if polytope.separate is not None:
            raise NoPrices(
                f"{needs}, and separate= brings constraints that have none: declare the polytope without it and "
                f"{relaxation}"
            )
        if prepared.over_integer_points:
            raise NoPrices(
                f'{needs}, and those of integer points have none, for the best of these jumps: say rows="exact" where '
                "the constraints describe the hull of the integer points for all values of the parameters, compile "
                f"polytope.relaxed() and {relaxation}"
            )
        if prepared.rows_are == "relaxation":
            raise NoPrices(
                f'{needs}, and those of this polytope are a relaxation, as rows="relaxation" says: declare those that '
                f"are missing, compile polytope.without_oracle() and {relaxation}"
            )
        try:
            other = prepared.by_rows
        except DeclarationError as error:
            raise NoPrices(
                f"{needs}, and those of this declaration are no polytope without {self.solver!r}: {error}"
            ) from None
        assert other is not None
        return other
