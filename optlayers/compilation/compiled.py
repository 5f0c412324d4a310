"""A polytope made ready: maximize, project, tangent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from optlayers.batch.entries import CPU, DOUBLE, Entries, parameter_tensors
from optlayers.batch.masks import answered
from optlayers.bound.base import Tangent, tangent_of
from optlayers.bound.host import HostPolytope
from optlayers.bound.polytope import BoundPolytope, numbers_of, plain_on_host
from optlayers.common.caches import cached_property
from optlayers.common.pages import page
from optlayers.common.tensors import check_direction, check_scores, moved
from optlayers.compilation.choices import chosen_solvers, refuse_empty, refuse_misfit, refuse_unbounded
from optlayers.compilation.duals import duals
from optlayers.compilation.explain import explained, page_on
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.compile import Forms
from optlayers.form.standard import DeclarationError
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.regularizers.euclidean import Euclidean
from optlayers.shifted import RELAXATION, ByConstraint, shifted
from optlayers.solution import Solution
from optlayers.solvers import ActiveSet, Auto
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.vertices.enumeration import TooMany, Unsolved

__all__ = ["CompiledPolytope", "compile_polytope", "solution_of"]


def compile_polytope(
    polytope: Polytope,
    *,
    maximizer: AbstractMaximizer | None = None,
    projector: AbstractProjector | None = None,
    tolerance: float = 1e-8,
) -> CompiledPolytope:
    """Turn a declaration into arrays and choose its solvers.

    Parameters
    ----------
    polytope : the declaration.
    maximizer : by default the oracle of the declaration if it has one, else :class:`optlayers.Auto`.
    projector : by default :class:`optlayers.ActiveSet` where there is an oracle and the constraints need auxiliary
        variables (whose rows are then not even built), else :class:`optlayers.Auto`, and for sets that are not
        polyhedral :class:`optlayers.ConeNewton` or :class:`optlayers.CvxpyLayers`. An ``ActiveSet()`` goes over the
        oracle that the maximizer asks, in the same way.
    tolerance : an instance is ``OPTIMAL`` when its residual and its gap, relative to the size of the numbers
        involved, are at most this.

    Raises
    ------
    DeclarationError : when the declaration is not convex, not bounded, empty, integer, or not polyhedral (with a
        projector that takes no such sets), or when a parameter has no usable name.
    """
    if not isinstance(polytope, Polytope):
        raise TypeError(f"compile_polytope takes a Polytope, but got {type(polytope).__name__}")
    if maximizer is not None and not isinstance(maximizer, AbstractMaximizer):
        raise TypeError(f"maximizer must be a solver such as Highs(), but got {maximizer!r}")
    if projector is not None and not isinstance(projector, AbstractProjector):
        raise TypeError(f"projector must be a solver such as Clarabel(), but got {projector!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, but got {tolerance}")
    forms = Forms(polytope)
    compiled = CompiledPolytope(forms, *chosen_solvers(forms, maximizer, projector, tolerance), tolerance)
    rows = compiled.rows
    if rows is not None and not compiled.leaves_rows_to_oracle:
        refuse_unbounded(rows)
    if compiled.projection_form.parameter_count:
        return compiled  # instances tell the rest
    refuse_empty(compiled)
    return _over_oracle_where_rows_exceed(compiled, chosen=projector is not None)


def _over_oracle_where_rows_exceed(compiled: CompiledPolytope, *, chosen: bool) -> CompiledPolytope:
    """One polytope for vertices and for projections: that of the oracle, where rows are a relaxation of it."""
    if compiled.beyond_oracle(np.zeros(0)) is None:
        return compiled
    if chosen or isinstance(compiled.projector, ActiveSet):
        compiled.refuse_two_polytopes(np.zeros(0))
    maximizer, projector = chosen_solvers(compiled.forms, compiled.maximizer, ActiveSet(), compiled.tolerance)
    return CompiledPolytope(compiled.forms, maximizer, projector, compiled.tolerance)


def _maximize(polytope: BoundPolytope, scores: Tensor) -> tuple[Solution, None]:
    return polytope.maximize(scores), None


def _project(polytope: BoundPolytope, scores: Tensor) -> tuple[Solution, None]:
    return polytope.project(scores), None


def solution_of(entries: Entries, flat: Solution, batch: torch.Size, scores: Tensor) -> Solution:
    """A flat solution in the shape of a batch, and in the dtype and place of its scores."""
    status, residual, gap = flat.status, flat.primal_residual, flat.gap
    if len(batch) != 1:  # else verdicts have the shape of the batch already
        status, residual, gap = status.reshape(batch), residual.reshape(batch), gap.reshape(batch)
    return Solution(
        entries.structures(flat.value, scores.shape, scores.dtype, scores.device),
        status,
        residual,
        gap,
        flat.reasons,
        flat.evidence,
        entries.named(flat.value, batch, scores) if entries.auxiliaries else {},
        word=flat.word,
    )


@final
class CompiledPolytope(AbstractPrepared):
    """A polytope with its arrays, its solvers, and what they prepared, as :func:`compile_polytope` makes it.

    It never changes, and threads may share it. Layers, losses and distributions that are given one compile nothing.
    """

    def __getstate__(self) -> dict[str, Any]:
        given = ("forms", "polytope", "maximizer", "projector", "tolerance")
        return {name: self.__dict__[name] for name in given}  # what solvers made of them is made again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledPolytope:
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the structure."""
        return self.polytope.shape

    def maximize(self, scores: Float[Tensor, "*batch_and_shape"], **parameters: Any) -> Solution:
        r"""A vertex with the highest score: :math:`\operatorname{argmax}_{x \in P} \langle s, x \rangle`.

        Among several best vertices the choice depends on the scores of that instance alone (see
        :class:`optlayers.Highs`). No gradient is recorded: for that, use :class:`optlayers.OptLayer`.

        Parameters
        ----------
        scores : ``(*batch, *shape)``, floating-point, on any device; ``-inf`` forbids a part. Solved in float64.
        parameters : one tensor per declared parameter, ``shape`` for all instances or ``(*batch, *shape)``; and
            likewise the scores of every auxiliary variable that is declared as ``scored``.

        Returns
        -------
        Solution : ``value`` like ``scores``; verdicts ``(*batch,)``.

        Raises
        ------
        TypeError : scores of a dtype that is not real and floating-point; missing or unexpected parameters.
        ValueError : wrong shapes, NaN or +inf, a parameter that breaks its declared sign.
        """
        return self._answer(_maximize, scores, parameters, None)

    def project(self, scores: Float[Tensor, "*batch_and_shape"], **parameters: Any) -> Solution:
        r"""The nearest point of the polytope: :math:`\operatorname{argmin}_{x \in P} \tfrac12 \|x - s\|^2`.

        Arguments, results and errors are those of :meth:`maximize`. A part with score ``-inf`` is 0.
        """
        return self._answer(_project, scores, parameters, Euclidean())

    def regularized(
        self, scores: Float[Tensor, "*batch_and_shape"], regularizer: AbstractRegularizer, **parameters: Any
    ) -> Solution:
        r"""The regularized point :math:`\operatorname{argmax}_{z \in P} \langle s, z \rangle - \Omega(z)`.

        Ω counts the parts of the structure, not auxiliary variables. ``gap`` of the result is a bound on what the point
        is worth less than the best one, and ``tangent`` its derivative. Arguments, results and errors are otherwise
        those of :meth:`maximize`.

        Parameters
        ----------
        regularizer : Ω, such as ``Entropy(temperature=0.1)``.

        Raises
        ------
        DeclarationError : where the polytope is known by its structures alone, and not by constraints.

        Examples
        --------
        >>> from optlayers import Entropy
        >>> from polytopes import simplex
        >>> compile_polytope(simplex(3)).regularized(torch.tensor([1.0, 0.0, 0.0]), Entropy()).value
        tensor([0.5761, 0.2119, 0.2119])
        """
        if not isinstance(regularizer, AbstractRegularizer):
            raise TypeError(f"regularizer must be one such as Entropy(), but got {regularizer!r}")

        def ask(polytope: BoundPolytope, numbers: Tensor) -> tuple[Solution, None]:
            return polytope.regularized(numbers, regularizer), None

        return self._answer(ask, scores, parameters, regularizer)

    def _answer(
        self,
        ask: Callable[[BoundPolytope, Tensor], tuple[Solution, None]],
        scores: Tensor,
        named: Mapping[str, Any],
        regularizer: AbstractRegularizer | None,
    ) -> Solution:
        entries = self.entries
        arrived = entries.arrive(scores, named)
        home = CPU if scores.is_cpu else self.home(scores.device)
        packed = entries.pack(arrived.tensors, arrived.batch, home, arrived.once)
        _, forbidden, asked, solution, _ = answered(partial(BoundPolytope.of, self, packed), packed, ask)
        shaped = solution_of(entries, solution, arrived.batch, scores)
        ask_again = partial(self.duals, asked, packed.theta, forbidden, packed.precision, regularizer)
        return replace(shaped, ask_for_duals=partial(ask_again, arrived.batch, scores))

    def duals(
        self,
        scores: Float64[Tensor, "batch size"],
        theta: Float64[Tensor, "batch parameters"] | None,
        forbidden: Bool[Tensor, "batch size"] | None,
        precision: Float64[np.ndarray, " parameters"],
        regularizer: AbstractRegularizer | None,
        batch: torch.Size,
        like: Tensor,
    ) -> ByConstraint:
        """The multipliers of a batch of flat scores, for :attr:`optlayers.Solution.duals`."""
        found = duals(self, self._of_shifts, scores, theta, forbidden, precision, regularizer)
        shaped = [moved(part, (*batch, *part.shape[1:]), like.dtype, like.device) for part in found]
        return ByConstraint(self.polytope.constraints, shaped)

    @cached_property
    def _of_shifts(self) -> CompiledPolytope:
        """The polytope whose constraints can be shifted."""
        if self.polytope.rows == "relaxation":
            raise DeclarationError(RELAXATION)
        further = self.polytope.further
        with_shifts = shifted(self.polytope).polytope
        return compile_polytope(with_shifts.beside(further) if further else with_shifts, tolerance=self.tolerance)

    def vertices(self, **parameters: Any) -> Float64[Tensor, "vertices *shape"]:
        """All vertices of the polytope, for a structure that is small enough to look at as a whole.

        They are found by best vertices alone (see :mod:`optlayers.vertices.enumeration`), and that there are no others
        is proved. Those of an integral polytope are its structures; where variables are integers of more values than 0
        and 1, structures are all integer points, of which the vertices of their hull are a part.

        Parameters
        ----------
        parameters : a tensor ``shape`` per declared parameter, of one instance.

        Returns
        -------
        float64 on the CPU, in a fixed order; none where the parameters leave no point. Where auxiliary variables have
        scores, the structures of the vertices of what is scored, each of them once.

        Raises
        ------
        TypeError : missing or unexpected parameters.
        ValueError : wrong shapes; a set that is not polyhedral; more than 5,000 vertices, or vertices that are not 0/1
            in too many dimensions to prove that they are all; a question on the way without a certified answer.

        Examples
        --------
        >>> from polytopes import subset
        >>> compile_polytope(subset(3)).vertices(budget=2)
        tensor([[0., 1., 1.],
                [1., 0., 1.],
                [1., 1., 0.]], dtype=torch.float64)
        """
        if not self.has_vertices:
            raise ValueError("the declared set is not polyhedral and has no finite list of vertices")
        entries, one = self.entries, torch.Size([])
        given = parameter_tensors(entries.parameters, parameters, one)
        theta = entries.packed_parameters(given, one)[0][0].numpy() if given else np.zeros(0)
        try:
            found = self.enumerated(theta)[:, : entries.structure_size]
        except TooMany as error:
            raise TooMany(f"{error}; single ones are found by maximize(scores)") from None
        except Unsolved as error:
            raise ValueError(f"the vertices are not known: {error}") from None
        if entries.auxiliaries:
            found = np.unique(found, axis=0)
        return torch.from_numpy(found.copy()).reshape(len(found), *entries.shape)

    def tangent(self, solution: Solution, direction: Float[Tensor, "*batch_and_shape"]) -> Tangent:
        """The derivative of a projection, applied to a direction.

        The Jacobian J of the projection with respect to the scores is symmetric, so ``J direction`` serves forward
        and backward. With respect to parameters the result is the gradient of ``<direction, projection>``. Where the
        projection has a kink, the result is a generalized derivative: that of a piece that meets there, or a mean of
        several where active constraints depend on each other.

        Parameters
        ----------
        solution : an answer of :meth:`project` of this polytope.
        direction : ``(*batch, *shape)``, like ``solution.value``, floating-point and finite, on any device.

        Returns
        -------
        Tangent : ``scores`` like ``direction``, and per parameter (and per scored auxiliary variable) a tensor
            ``(*batch, *shape of the parameter)``.
            Instances without a certified answer, and those that cannot be differentiated, get 0 and are not ``ok``.

        Raises
        ------
        TypeError : a direction that is no tensor of real, floating-point numbers.
        ValueError : a direction of another shape than the solution, or with numbers that are not finite for an instance
            that has an answer; a solution that is none of :meth:`project`.
        """
        check_scores(direction, "direction")
        if tuple(direction.shape) != tuple(solution.value.shape):
            raise ValueError(
                f"the direction has shape {tuple(direction.shape)} but the solution {tuple(solution.value.shape)}"
            )
        batch, entries = solution.status.shape, self.entries
        check_direction(direction, solution.ok)
        flat = entries.flat_structure(direction.detach(), solution.status.device)
        tangent = tangent_of(self.projection_form, solution, flat)
        parameters = {n: v.reshape((*batch, *v.shape[1:])).to(direction) for n, v in tangent.parameters.items()}
        parameters |= entries.named(tangent.scores, batch, direction)
        shaped = entries.structures(tangent.scores, direction.shape, direction.dtype, direction.device)
        return Tangent(shaped, parameters, tangent.ok.reshape(batch))

    def bind(
        self,
        parameters: Mapping[str, Tensor],
        forbidden: Bool[Tensor, "batch size"] | None,
        batch: int,
        precision: Mapping[str, float] | None = None,
        device: torch.device = CPU,
    ) -> BoundPolytope:
        """The polytopes of one batch, for flat float64 tensors on a device (that of ``home``): what rules speak to.

        ``precision`` is the machine epsilon of the dtype in which each parameter was given, float64's for those that it
        does not name.
        """
        specs, theta = self.projection_form.parameters, None
        if specs:
            theta = torch.cat([parameters[spec.name].reshape(batch, spec.size).to(device) for spec in specs], dim=1)
        known = {} if precision is None else precision
        epsilon = np.concatenate([np.zeros(0), *(np.full(s.size, known.get(s.name, DOUBLE)) for s in specs)])
        return BoundPolytope(numbers_of(self, theta, forbidden, batch, epsilon, device))

    def bind_on_host(
        self,
        theta: Float64[Tensor, "batch parameters"],
        forbidden: Bool[Tensor, "batch size"] | None,
        precision: Float64[np.ndarray, " parameters"],
    ) -> HostPolytope:
        """The polytopes of a batch for the solvers of the CPU, with all parameters as one vector.

        ``precision`` is the machine epsilon of the dtype in which each entry of the parameters was given.
        """
        if forbidden is None and not self.projection_form.parameters:
            return plain_on_host(self, len(theta))
        return HostPolytope(self, theta.numpy(), None if forbidden is None else forbidden.numpy(), precision)

    def compile_relaxation(self, polytope: Polytope) -> CompiledPolytope:
        """Another polytope of the same shape, compiled. Where scores stay on an accelerator, they stay for it too.

        Raises
        ------
        ValueError : when its shape is another one, or it declares parameters or scored variables that this one has not.
        """
        auto = Auto(tolerance=self.tolerance) if self.stays else None
        compiled = compile_polytope(polytope, maximizer=auto, projector=auto, tolerance=self.tolerance)
        refuse_misfit(self.projection_form, compiled.projection_form)
        return compiled

    def explain(self) -> str:
        """One paragraph: sizes after presolve, blocks, the solvers chosen and why."""
        return explained(self)

    @page
    def _repr_html_(self) -> Iterator[str]:
        return page_on(self)

    def __repr__(self) -> str:
        return f"CompiledPolytope({self.polytope!r}, maximizer={self.maximizer!r}, projector={self.projector!r})"
