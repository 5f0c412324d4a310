"""A polytope made ready: maximize, project, tangent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from optlayers import inputs
from optlayers.agreement import beyond_oracle
from optlayers.bound import AbstractBoundPolytope, Tangent, tangent_of
from optlayers.caches import Cache
from optlayers.diagnosis import explain_infeasible, improper_set, unbounded_entry
from optlayers.masks import answered
from optlayers.on_device import DevicePolytope
from optlayers.on_host import BoundPolytope
from optlayers.polytope import Polytope
from optlayers.prepared import CPU, AbstractPrepared
from optlayers.solution import Solution, Status
from optlayers.solvers import ActiveSet, Auto, Highs, Oracle
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.solvers.batch import make_instances
from optlayers.standard_form import DeclarationError, Forms, StandardForm

__all__ = ["BoundPolytope", "CompiledPolytope", "Tangent", "compile_polytope"]

KEPT_BATCHES = 4
"""Of so many sizes are batches without parameters and forbidden parts kept: a rule that draws samples has two."""


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
        variables (whose rows are then not even built), else :class:`optlayers.Auto`. An ``ActiveSet()`` goes over the
        oracle that the maximizer asks, in the same way.
    tolerance : an instance is ``OPTIMAL`` when its residual and its gap, relative to the size of the numbers
        involved, are at most this.

    Raises
    ------
    DeclarationError : when the declaration is not convex, not bounded, empty, integer, or not polyhedral (without a
        projector that takes such sets), or when a parameter has no usable name.
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
    compiled = CompiledPolytope(forms, *_chosen(forms, maximizer, projector, Auto(tolerance=tolerance)), tolerance)
    rows = compiled.rows
    if rows is not None and not compiled.leaves_rows_to_oracle:
        _refuse_unbounded(rows)
    if compiled.projection_form.parameter_count:
        return compiled  # instances tell the rest
    _refuse_empty(compiled)
    return _over_oracle_where_rows_exceed(compiled, chosen=projector is not None)


def _chosen(
    forms: Forms, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None, auto: Auto
) -> tuple[AbstractMaximizer, AbstractProjector]:
    polytope = forms.polytope
    if maximizer is None:
        maximizer = auto if polytope.oracle is None else Oracle(polytope.oracle)
    if projector is None:
        # Without auxiliary variables the rows are few, and a Newton step on them is cheaper than many vertices.
        over_vertices = polytope.oracle is not None and len(polytope.variables) > 1 and not polytope.parameters
        over_vertices |= polytope.rows == "relaxation" and isinstance(maximizer, Oracle)
        projector = ActiveSet() if over_vertices else auto
    if isinstance(projector, ActiveSet) and projector.function is None:
        # One oracle for both, and called in the same way.
        oracle = maximizer if isinstance(maximizer, Oracle) else polytope.oracle
        if isinstance(oracle, Oracle) and (oracle.serial or oracle.verify or oracle.function is not polytope.oracle):
            projector = replace(projector, function=oracle)
    return maximizer, projector


def _over_oracle_where_rows_exceed(compiled: CompiledPolytope, *, chosen: bool) -> CompiledPolytope:
    """One polytope for vertices and for projections: that of the oracle, where rows are a relaxation of it."""
    if compiled.beyond_oracle(np.zeros(0)) is None:
        return compiled
    if chosen or isinstance(compiled.projector, ActiveSet):
        compiled.refuse_two_polytopes(np.zeros(0))
    maximizer, projector = _chosen(compiled.forms, compiled.maximizer, ActiveSet(), Auto(tolerance=compiled.tolerance))
    return CompiledPolytope(compiled.forms, maximizer, projector, compiled.tolerance)


def _refuse_unbounded(form: StandardForm) -> None:
    entry = unbounded_entry(form)
    if entry is not None:
        raise DeclarationError(
            f"the declaration is unbounded: {form.entry_name(entry)} can move without limit; "
            "a polytope bounds every scored entry from below and from above"
        )


def _refuse_misfit(form: StandardForm, relaxation: StandardForm) -> None:
    """A relaxation takes the scores and parameters of the polytope that it is one of."""
    if relaxation.shape != form.shape:
        raise ValueError(f"the relaxation has shape {relaxation.shape}, but the polytope has shape {form.shape}")
    known = {spec.name: spec.shape for spec in form.parameters}
    for spec in relaxation.parameters:
        if known.get(spec.name) != spec.shape:
            raise ValueError(
                f"the relaxation declares parameter {spec.name} of shape {spec.shape}; the polytope, whose numbers it "
                f"gets, has {known or 'no parameters'}"
            )
    if relaxation.size != form.size:
        raise ValueError("a relaxation declares the same scored= variables as the polytope, in the same order")


def _refuse_empty(compiled: CompiledPolytope) -> None:
    form = compiled.rows
    if form is None:
        reason = improper_set(compiled.polytope)
        if reason is not None:
            raise DeclarationError(reason)
        return
    solver = Highs()
    instances = make_instances(form, np.zeros((1, 0)), None)
    if form.unslacked and solver.maximize(solver.prepare(form), instances).status[0] == Status.OPTIMAL:
        return
    reason = explain_infeasible(form, instances, 0)
    if reason is not None:
        raise DeclarationError(f"the polytope is empty: {reason}")


@final
class CompiledPolytope(AbstractPrepared):
    """A polytope with its arrays, its solvers, and what they prepared. It never changes; threads may share it."""

    def _prepare(self) -> None:
        super()._prepare()
        self._plain: Cache[int, BoundPolytope] = Cache(KEPT_BATCHES)

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
        return self._answer(lambda bound, flat: (bound.maximize(flat), None), scores, parameters)

    def project(self, scores: Float[Tensor, "*batch_and_shape"], **parameters: Any) -> Solution:
        r"""The nearest point of the polytope: :math:`\operatorname{argmin}_{x \in P} \tfrac12 \|x - s\|^2`.

        Arguments, results and errors are those of :meth:`maximize`. A part with score ``-inf`` is 0.
        """
        return self._answer(lambda bound, flat: (bound.project(flat), None), scores, parameters)

    def _answer(
        self,
        ask: Callable[[AbstractBoundPolytope, Tensor], tuple[Solution, None]],
        scores: Tensor,
        parameters: Mapping[str, Any],
    ) -> Solution:
        inputs.check_scores(scores)
        batch = inputs.batch_shape(scores, self.shape)
        forbids = inputs.check_finite(scores, len(batch))
        form = self.projection_form
        further, parameters = inputs.split_named(form.auxiliaries, parameters)
        auxiliary, more_forbids = inputs.auxiliary_scores(form.auxiliaries, further, batch)
        given = inputs.parameter_tensors(form.parameters, parameters, batch)
        home = CPU if scores.is_cpu else self.home(scores.device)
        instances, forbidden = math.prod(batch), None
        flat = inputs.flatten_scored(scores, (instances, form.structure_size), auxiliary.values(), len(batch), home)
        if forbids or more_forbids:
            flat, forbidden = inputs.split_forbidden(flat)
        flat_parameters = {
            spec.name: inputs.flatten_parameter(given[spec.name], instances, len(batch), home)
            for spec in form.parameters
        }
        precision = inputs.precision(given)

        def bind(hidden: Tensor | None) -> AbstractBoundPolytope:
            return self.bind(flat_parameters, hidden, instances, precision, home)

        _, _, solution, _ = answered(bind, flat, forbidden, ask, scores.dtype)
        value = inputs.of_structure(solution.value, form.structure_size)
        single = len(batch) == 1  # then verdicts have the shape of the batch already
        return Solution(
            inputs.moved(value, scores.shape, scores.dtype, scores.device),
            solution.status if single else solution.status.reshape(batch),
            solution.primal_residual if single else solution.primal_residual.reshape(batch),
            solution.gap if single else solution.gap.reshape(batch),
            solution.reasons,
            solution.evidence,
            {
                spec.name: solution.value[:, spec.span].reshape((*batch, *spec.shape)).to(scores.device, scores.dtype)
                for spec in form.auxiliaries
            },
            word=solution.word,
        )

    def tangent(self, solution: Solution, direction: Float[Tensor, "*batch_and_shape"]) -> Tangent:
        """The derivative of a projection, applied to a direction.

        The Jacobian J of the projection with respect to the scores is symmetric, so ``J direction`` serves forward
        and backward. With respect to parameters the result is the gradient of ``<direction, projection>``. Where the
        projection has a kink, the result is a generalized derivative: that of a piece that meets there, or a mean of
        several where active constraints depend on each other.

        Parameters
        ----------
        solution : an answer of :meth:`project` of this polytope.
        direction : ``(*batch, *shape)``, like ``solution.value``.

        Returns
        -------
        Tangent : ``scores`` like ``direction``, and per parameter (and per scored auxiliary variable) a tensor
            ``(*batch, *shape of the parameter)``.
            Instances without a certified answer, and those that cannot be differentiated, get 0 and are not ``ok``.
        """
        if tuple(direction.shape) != tuple(solution.value.shape):
            raise ValueError(
                f"the direction has shape {tuple(direction.shape)} but the solution {tuple(solution.value.shape)}"
            )
        batch = solution.status.shape
        home = solution.status.device
        form = self.projection_form
        structure = inputs.flatten_scores(direction, self.shape, home)
        flat = tangent_of(form, solution, inputs.padded(structure, form.size))
        named = dict(flat.parameters) | {
            spec.name: flat.scores[:, spec.span].reshape(len(structure), *spec.shape) for spec in form.auxiliaries
        }
        parameters = {
            name: value.reshape((*batch, *value.shape[1:])).to(direction.device, direction.dtype)
            for name, value in named.items()
        }
        shaped = flat.scores[:, : form.structure_size].reshape(direction.shape)
        shaped = shaped.to(direction.device, direction.dtype)
        return Tangent(shaped, parameters, flat.ok.reshape(batch))

    def bind(
        self,
        parameters: Mapping[str, Tensor],
        forbidden: Bool[Tensor, "batch size"] | None,
        batch: int,
        precision: Mapping[str, float] | None = None,
        device: torch.device = CPU,
    ) -> AbstractBoundPolytope:
        """The polytopes of one batch, for flat float64 tensors on a device (see :meth:`home`): what rules speak to.

        ``precision`` is the machine epsilon of the dtype in which each parameter was given, float64's for those that it
        does not name.
        """
        form = self.projection_form
        theta = torch.zeros(batch, form.parameter_count, dtype=torch.float64, device=device)
        epsilon = np.full(form.parameter_count, inputs.DOUBLE)
        for spec in form.parameters:
            theta[:, spec.span] = parameters[spec.name].reshape(batch, spec.size)
            epsilon[spec.span] = inputs.DOUBLE if precision is None else precision.get(spec.name, inputs.DOUBLE)
        if self.stays_on(device):
            return DevicePolytope(self, theta, forbidden, epsilon)
        return self.bind_on_host(theta, forbidden, epsilon)

    def bind_on_host(
        self,
        theta: Float64[Tensor, "batch parameters"],
        forbidden: Bool[Tensor, "batch size"] | None,
        precision: Float64[np.ndarray, " parameters"],
    ) -> BoundPolytope:
        """The polytopes of a batch for the solvers of the CPU, with all parameters as one vector.

        ``precision`` is the machine epsilon of the dtype in which each entry of the parameters was given. Without
        parameters and forbidden parts all batches of one size are one.
        """
        if forbidden is not None or self.projection_form.parameters:
            return BoundPolytope(self, theta.numpy(), None if forbidden is None else forbidden.numpy(), precision)
        return self._plain.get(len(theta), self._bind_plain)

    def _bind_plain(self, batch: int) -> BoundPolytope:
        return BoundPolytope(self, np.zeros((batch, 0)), None, np.zeros(0))

    def compile_relaxation(self, polytope: Polytope) -> CompiledPolytope:
        """Another polytope of the same shape, compiled. Where scores stay on an accelerator, they stay for it too.

        Raises
        ------
        ValueError : when its shape is another one, or it declares parameters or scored variables that this one has not.
        """
        auto = Auto(tolerance=self.tolerance) if self.stays else None
        compiled = compile_polytope(polytope, maximizer=auto, projector=auto, tolerance=self.tolerance)
        _refuse_misfit(self.projection_form, compiled.projection_form)
        return compiled

    def explain(self) -> str:
        """One paragraph: sizes after presolve, blocks, the solvers chosen and why."""
        form, form_of_parameters = self.rows, self.projection_form
        size = int(np.prod(self.shape, dtype=int))
        names = [f"{s.name} {s.shape}" for s in form_of_parameters.parameters]
        given = f" Parameters per instance: {', '.join(names)}." if names else ""
        if form is None:
            return (
                f"A convex set of {size} scored entries of shape {self.shape}; it is not polyhedral, so it has no "
                f"vertices to maximize over.{given} Projections and derivatives come from {self.projector!r}."
            )
        scored = [f"{s.name} {s.shape}" for s in form.auxiliaries]
        also = f" Scored besides, but not regularized: {', '.join(scored)}." if scored else ""
        fixed = form.size - form.scored
        did = f" Presolve: {', '.join(form.notes)}." if form.notes else ""
        matrix = "" if form.matrix_is_constant else " A parameter enters the matrix, so each instance has its own."
        derivative = "The derivative of projections comes from the projector."
        if self.projects_on_rows and not isinstance(self.projector, ActiveSet):
            derivative = "The derivative of projections solves a sparse system on the active set."
        which = "After presolve it has"
        if self.leaves_rows_to_oracle:
            which = "Its rows with auxiliary variables are left to the oracle and not built; without them it has"
        return (
            f"A polytope of {size} scored entries of shape {self.shape}, {fixed} of them fixed by the constraints."
            f"{also} {which} {form.scored} scored, {form.auxiliary} auxiliary and {form.slack} slack columns "
            f"in {form.equalities} equality and {form.slack} inequality rows with {form.matrix.nnz} entries, in "
            f"{form.blocks} independent block{'s' if form.blocks != 1 else ''}.{did}{given}{matrix} "
            f"maximize: {self.maximizer.explain_maximizer(form)}. project: {self.projector.explain_projector(form)}. "
            f"{derivative} Certified to a relative "
            f"{max(self.tolerance, self.projector.accuracy):g}.{self._explain_rows()}{self._explain_trust()}"
        )

    def _explain_rows(self) -> str:
        """Why projections go over an oracle although there are rows."""
        polytope, maximizer, beyond = self.polytope, self.maximizer, None
        if not (isinstance(maximizer, Oracle) and isinstance(self.projector, ActiveSet)) or self.leaves_rows_to_oracle:
            return ""
        if polytope.rows == "relaxation":
            beyond = "as the declaration says"
        elif polytope.rows is None and polytope.integral and not polytope.parameters:
            beyond = beyond_oracle(self.forms, maximizer, np.zeros(0))
        if beyond is None:
            return ""
        return f" The constraints are a relaxation of what the oracle knows ({beyond}): projections go over the oracle."

    def _explain_trust(self) -> str:
        """What certifies that answers of an oracle are structures."""
        if not self.maximizer.reads_declaration and not self.projector.reads_declaration:
            return ""
        integral = " An answer of the oracle must be integral." if self.polytope.integral else ""
        if not self.forms.hides_variables:
            return integral
        membership = self.polytope.membership
        if membership is None:
            return integral + (
                " That it satisfies the rows with unscored auxiliary variables is the oracle's word: no membership "
                "function is declared."
            )
        name = getattr(membership, "__name__", repr(membership))
        return integral + f" Membership function {name} stands for the rows with unscored auxiliary variables."

    def __repr__(self) -> str:
        return f"CompiledPolytope({self.polytope!r}, maximizer={self.maximizer!r}, projector={self.projector!r})"
