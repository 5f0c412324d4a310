"""What rules speak to: polytopes with the numbers of a batch filled in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.form.standard import ParameterSpec, StandardForm
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solution import Solution, all_of

__all__ = ["AbstractBoundPolytope", "Best", "Marginals", "Tangent", "by_name", "tangent_of", "theta_of"]

NO_REASONS: Mapping[int, str] = {}


@final
class Marginals(NamedTuple):
    """Marginals, the log-partition function that they are the gradient of, and the verdict on both.

    ``means`` have a graph where one was asked for; the value of the ``solution`` has none.
    """

    means: Float64[Tensor, "batch size"]
    total: Float64[Tensor, " batch"]
    solution: Solution


@final
class Best(NamedTuple):
    """The best vertices of every instance, best first, and the verdict on them.

    An instance that has fewer than others has ``counts`` of them, and zeros behind these.
    """

    structures: Float64[Tensor, "most batch size"]
    counts: Int64[Tensor, " batch"]
    solution: Solution


@final
@dataclass(frozen=True)
class Tangent:
    """A direction pulled back through a projection: gradients of the scores and of every parameter.

    ``ok`` ``(*batch,)`` says for which instances; the others have no certified projection, or constraints that are
    too nearly dependent to differentiate, and get 0. Gradients of parameters are worked out when they are looked at;
    they are NaN where parameters are at a kink and the pieces that meet there are not found.
    """

    scores: Tensor
    parameters: Mapping[str, Tensor]
    ok: Bool[Tensor, "*batch"]

    @property
    def all_ok(self) -> bool:
        """Whether every instance is right."""
        return all_of(self.ok)

    def theta(self) -> Float64[Tensor, "batch parameters"]:
        """The gradients of all parameters as one vector for each instance, of flat ones."""
        if isinstance(self.parameters, _OfParameters):
            return self.parameters.theta
        return self.scores.new_zeros(len(self.scores), 0)


def tangent_of(form: StandardForm, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
    """The derivative of a projection onto a polytope of this form, for directions on the device of the solution."""
    evidence = solution.evidence
    if evidence is None:
        raise ValueError("tangent takes a solution that project() returned, not one of maximize()")
    if evidence.form is not form and evidence.curvature is None:
        raise ValueError("tangent takes a solution of the same compiled polytope, but got one of another")
    scores, of_parameters, ok = evidence.tangent(direction, None if solution.all_ok else solution.ok.reshape(-1))
    return Tangent(scores, _OfParameters(form.parameters, of_parameters) if form.parameters else {}, ok)


@final
class _OfParameters(Mapping[str, Tensor]):
    """Gradients of parameters by their names, worked out when the first of them is looked at."""

    def __init__(self, specs: Sequence[ParameterSpec], work_out: Callable[[], Tensor]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._work_out: Callable[[], Tensor] | None = work_out
        self._theta = torch.zeros(0, 0, dtype=torch.float64, device="cpu")

    def __getitem__(self, name: str) -> Tensor:
        theta, spec = self.theta, self._specs[name]
        return theta[:, spec.span].contiguous().reshape(len(theta), *spec.shape)

    @property
    def theta(self) -> Float64[Tensor, "batch parameters"]:
        """All of them as one vector for each instance."""
        if self._work_out is not None:
            self._theta, self._work_out = self._work_out(), None
        return self._theta

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def by_name(parameters: Sequence[ParameterSpec], theta: Float64[Tensor, "batch parameters"]) -> dict[str, Tensor]:
    """The parameters, or their gradients, ``(batch, *shape)`` by their names."""
    return {spec.name: theta[:, spec.span].reshape(len(theta), *spec.shape) for spec in parameters}


def theta_of(parameters: Sequence[ParameterSpec], others: Sequence[ParameterSpec]) -> Int64[np.ndarray, " others"]:
    """The entries of θ that are the parameters of another polytope, by their names."""
    spans = {spec.name: np.arange(spec.start, spec.start + spec.size) for spec in parameters}
    return np.concatenate([np.zeros(0, dtype=np.int64), *(spans[spec.name] for spec in others)])


class AbstractBoundPolytope(ABC):
    """A compiled polytope with the parameters and the forbidden parts of a batch filled in.

    Everything is flat: scores and values are ``(batch, size)`` float64 in C order of the structure, all on one device.
    Parts that are forbidden stay forbidden in every question asked of it.
    """

    form: StandardForm
    """The standard form that projections are of."""

    @abstractmethod
    def maximize(self, scores: Float64[Tensor, "batch size"]) -> Solution:
        """A vertex per instance; see :meth:`optlayers.CompiledPolytope.maximize`."""

    @abstractmethod
    def project(
        self, scores: Float64[Tensor, "batch size"], starts: Float64[Tensor, "batch size"] | None = None
    ) -> Solution:
        """The nearest point per instance; see :meth:`optlayers.CompiledPolytope.project`.

        ``starts`` are vertices near the answers, if some are known: a solver may begin there, where they are near.
        """

    @abstractmethod
    def regularized(self, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer) -> Solution:
        r"""The point :math:`\operatorname{argmax}_{z \in P} \langle s, z \rangle - \Omega(z)` per instance; see
        :meth:`optlayers.CompiledPolytope.regularized`.
        """

    @abstractmethod
    def worth(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Float64[Tensor, "batch size"]:
        r"""What every part of some points contributes to :math:`\Omega`; auxiliary variables contribute 0. Where it is
        no sum over parts, all of it is said of the first one, NaN where it is not found."""

    @abstractmethod
    def slope(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Float64[Tensor, "batch size"]:
        r"""The gradient of :math:`\Omega` at points; 0 for auxiliary variables."""

    @abstractmethod
    def worth_gradient(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Mapping[str, Tensor]:
        r"""The gradient of :math:`\Omega` at points by every parameter, ``(batch, *shape)``: 0 for those that are not
        its number."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The declared parameters: name, shape and place in the vector θ of all of them."""

    @property
    @abstractmethod
    def movable(self) -> Bool[Tensor, "batch_or_1 size"]:
        """Parts whose scores can matter: neither forbidden nor fixed by the constraints, by themselves or next to
        forbidden parts. What parameters fix where nothing is forbidden is found as far as one row after the other
        tells. One row may serve all instances.
        """

    @property
    def binary(self) -> bool:
        """Whether the structures of all instances are known to be of 0 and 1."""
        return False

    @property
    def equally_long(self) -> bool:
        """Whether all structures are known to have the same sum of parts: a constant added to their scores then changes
        no decision."""
        return False

    @property
    @abstractmethod
    def polyhedral(self) -> bool:
        """Whether the set is polyhedral: projections are then piecewise affine in the scores."""

    @property
    @abstractmethod
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides and bounds alone: projections are then piecewise affine in them."""

    @abstractmethod
    def repeated(self, times: int) -> AbstractBoundPolytope:
        """The batch so many times, one after the other: a batch of ``times * batch`` instances."""

    @abstractmethod
    def relaxed(self, relaxation: Polytope) -> AbstractBoundPolytope:
        """Another polytope of the same shape, with the forbidden parts and the parameters of this batch."""

    @abstractmethod
    def structure(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """Flat scored vectors with 0 for the auxiliary variables that are scored besides the structure."""

    @abstractmethod
    def log_partition(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        """Log of the sum of ``exp <scores, v>`` over the vertices v; -inf where there are none, and NaN for instances
        that it cannot be worked out for. It is differentiable as often as the function of the declaration is; those of
        the catalogue to any order.

        By the function of the declaration, else by enumeration; ValueError where there are too many vertices.
        """

    @abstractmethod
    def marginals(self, scores: Float64[Tensor, "batch size"], *, differentiable: bool = False) -> Marginals:
        """The means of vertices under ``exp <scores, v>``: the gradient of :meth:`log_partition`, with a verdict.

        Where ``differentiable``, the means have a graph on ``scores``. An instance that the function of the declaration
        fails for has means of 0, and the message of the function for a reason.
        """

    @abstractmethod
    def sample(
        self, scores: Float64[Tensor, "batch size"], samples: int, generator: torch.Generator | None
    ) -> Solution:
        """Vertices v drawn exactly, with probabilities in proportion to ``exp <scores, v>``.

        The value is ``(samples, batch, size)``, the verdict of an instance that of :meth:`verdict`. Where the
        declaration has a log-partition function, vertices must be 0/1; else they are enumerated. ``generator`` None is
        torch's own. See :mod:`optlayers.sums.sampling`.
        """

    @abstractmethod
    def log_count(self) -> Marginals:
        """The log of the number of vertices, for ``total``, with a verdict; the means are those of all vertices alike.

        It is :meth:`log_partition` at scores of 0: -inf for none. Where auxiliary variables have scores, vertices are
        pairs of a structure and auxiliary values.
        """

    @abstractmethod
    def best(self, scores: Float64[Tensor, "batch size"], k: int) -> Best:
        """The k best structures, best first, or all of them where there are fewer. Those that score the same are in
        lexicographic order. See :mod:`optlayers.sums.best_structures` and :meth:`optlayers.Gibbs.top_k`.

        Raises
        ------
        ValueError : vertices that are not known to be 0/1, and too many to enumerate.
        """

    @abstractmethod
    def are_vertices(
        self, points: Float64[Tensor, "batch size"], tolerance: float, *, structures_alone: bool
    ) -> tuple[Bool[Tensor, " batch"], Solution]:
        """Which points are vertices without forbidden parts, and the verdict on what was asked for that.

        With ``structures_alone`` a point is looked at without the values of auxiliary variables: whether some vertex
        has this structure.

        Raises
        ------
        ValueError : vertices that are not known to be 0/1, and too many to enumerate.
        """

    @abstractmethod
    def completing(
        self, scores: Float64[Tensor, "batch size"], structures: Float64[Tensor, "batch size"]
    ) -> tuple[AbstractBoundPolytope, Float64[Tensor, " batch"]]:
        """Polytopes of those vertices alone that have a given 0/1 structure, whatever their auxiliary values are.

        They are meant for :meth:`log_partition` and :meth:`marginals` at ``scores`` to which the second result, a
        number per instance, is added for every part of the structure, and taken off the total again. Vertices that
        have a part less weigh nothing then.
        """

    @abstractmethod
    def support(self) -> list[Float64[Tensor, "vertices size"]]:
        """All vertices of every instance that have no forbidden part, in lexicographic order.

        Raises
        ------
        ValueError : too many to enumerate.
        """

    @abstractmethod
    def verdict(
        self,
        marginals: Float64[Tensor, "batch size"],
        total: Float64[Tensor, " batch"],
        reasons: Mapping[int, str] = NO_REASONS,
    ) -> Solution:
        """Marginals with a verdict, from the log-partition function that they are the gradient of.

        They are certified where that is finite and they lie in the polytope, as far as rows are at hand. No gap.
        ``reasons`` say why it is NaN.
        """

    @abstractmethod
    def value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        r"""The gradient of optimal values with respect to every parameter, ``(batch, *shape)``.

        Of :math:`\max_{x \in P(\theta)} \langle s, x \rangle` for a solution of ``maximize``, of
        :math:`\max_{x \in P(\theta)} \langle s, x \rangle - \tfrac12 \|x\|^2` for one of ``project``: by the envelope
        theorem it needs no more than the dual point. Where several dual points are optimal, the value has a kink, and
        this is the supergradient that belongs to the one that was found. Instances without a certified answer get 0.
        For answers without a dual point, such as those of an oracle, the constraints are asked.

        Raises
        ------
        ValueError : where these do not describe the polytope either.
        """

    @abstractmethod
    def tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection, for a flat direction; see :meth:`optlayers.CompiledPolytope.tangent`."""
