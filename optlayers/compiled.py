"""A polytope made ready: maximize, project, tangent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from optlayers import inputs
from optlayers.bound import AbstractBoundPolytope, Tangent
from optlayers.caches import Cache
from optlayers.diagnosis import explain_infeasible, improper_set, unbounded_entry
from optlayers.enumeration import enumerate_vertices
from optlayers.on_device import DeviceArrays, DevicePolytope, pull_back_on_device
from optlayers.on_host import BoundPolytope
from optlayers.polytope import Polytope
from optlayers.solution import Solution, Status
from optlayers.solvers import ActiveSet, Auto, Highs, Oracle
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver, Answer, Instances
from optlayers.solvers.derivative import pull_back
from optlayers.standard_form import DeclarationError, Forms, NotPolyhedral, StandardForm

__all__ = ["BoundPolytope", "CompiledPolytope", "Tangent", "compile_polytope"]

CPU = torch.device("cpu")
KEPT_ENUMERATIONS = 16
"""For so many values of the parameters are vertices kept."""
KEPT_RELAXATIONS = 16
"""So many relaxations are kept compiled."""
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
        variables (whose rows are then not even built), else :class:`optlayers.Auto`.
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
    maximizer, projector = _chosen(forms, maximizer, projector, Auto(tolerance=tolerance))
    compiled = CompiledPolytope(forms, maximizer, projector, tolerance)
    rows = compiled.rows
    if rows is not None and not compiled.leaves_rows_to_oracle:
        _refuse_unbounded(rows)
    if not compiled.projection_form.parameter_count:
        _refuse_empty(compiled)  # with parameters, instances tell
    return compiled


def _chosen(
    forms: Forms, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None, auto: Auto
) -> tuple[AbstractMaximizer, AbstractProjector]:
    polytope = forms.polytope
    if maximizer is None:
        maximizer = auto if polytope.oracle is None else Oracle(polytope.oracle)
    if projector is None:
        # Without auxiliary variables the rows are few, and a Newton step on them is cheaper than many vertices.
        over_vertices = polytope.oracle is not None and len(polytope.variables) > 1 and not polytope.parameters
        projector = ActiveSet() if over_vertices else auto
    return maximizer, projector


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
    bound = compiled.bind_on_host(
        torch.zeros(1, 0, dtype=torch.float64, device=CPU), None, float(np.finfo(np.float64).eps)
    )
    if form.unslacked and solver.maximize(solver.prepare(form), bound.row_instances).status[0] == Status.OPTIMAL:
        return
    reason = explain_infeasible(form, bound.row_instances, 0)
    if reason is not None:
        raise DeclarationError(f"the polytope is empty: {reason}")


@final
class CompiledPolytope:
    """A polytope with its arrays, its solvers, and what they prepared. It never changes; threads may share it."""

    def __init__(
        self, forms: Forms, maximizer: AbstractMaximizer, projector: AbstractProjector, tolerance: float
    ) -> None:
        self.forms = forms
        self.polytope = forms.polytope
        self.maximizer = maximizer
        self.projector = projector
        self.tolerance = tolerance
        self._prepare()

    def _prepare(self) -> None:
        # A solver that reads the declaration answers for the scored variables alone, without auxiliary columns.
        self._on_devices: Cache[torch.device, DeviceArrays] = Cache()
        self._vertices: Cache[bytes, np.ndarray] = Cache(KEPT_ENUMERATIONS)
        self._relaxations: Cache[Polytope, CompiledPolytope] = Cache(KEPT_RELAXATIONS)
        self.maximizer_form = self._rows_for(self.maximizer)
        rows = self._rows_for(self.projector) if self.projector.polyhedral_only else None
        self.projection_form = self.forms.bare if rows is None else rows
        self._plain: Cache[int, BoundPolytope] = Cache(KEPT_BATCHES)
        self.projector_state = self.projector.prepare(self.projection_form)
        self.maximizer_state = None if self.maximizer_form is None else self.maximizer.prepare(self.maximizer_form)

    def _rows_for(self, solver: AbstractSolver) -> StandardForm | None:
        """The form that a solver works on; None where the declared set is not polyhedral."""
        if solver.reads_declaration:
            return self.forms.scored
        try:
            return self.forms.full
        except NotPolyhedral:
            if self.projector.polyhedral_only:
                raise
            return None

    @property
    def form(self) -> StandardForm | None:
        """All rows of the declaration, built when first asked for; None where the declared set is not polyhedral."""
        try:
            return self.forms.full
        except NotPolyhedral:
            return None

    @property
    def rows(self) -> StandardForm | None:
        """The most complete of the forms that the solvers work on; None where the declared set is not polyhedral."""
        return self.projection_form if self._projects_on_rows else self.maximizer_form

    @property
    def _projects_on_rows(self) -> bool:
        return self.projector.polyhedral_only and not self.projector.reads_declaration

    @property
    def leaves_rows_to_oracle(self) -> bool:
        """Whether there are rows, with auxiliary variables, that no solver has been given: oracles answer for them."""
        return self.forms.hides_variables and self.maximizer.reads_declaration and not self._projects_on_rows

    @property
    def has_vertices(self) -> bool:
        """Whether the declared set is polyhedral."""
        return self.maximizer_form is not None

    @property
    def polyhedral(self) -> bool:
        """Whether the declared set is polyhedral, whoever answers for it."""
        return self.projector.polyhedral_only or self.form is not None

    @property
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides and bounds alone, asked of all rows of the declaration."""
        if not self.projection_form.parameters:
            return True
        form = self.projection_form if self._projects_on_rows else self.form
        return form is not None and form.matrix_is_constant

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
        return self._answer(lambda bound, flat: bound.maximize(flat), scores, parameters)

    def project(self, scores: Float[Tensor, "*batch_and_shape"], **parameters: Any) -> Solution:
        r"""The nearest point of the polytope: :math:`\operatorname{argmin}_{x \in P} \tfrac12 \|x - s\|^2`.

        Arguments, results and errors are those of :meth:`maximize`. A part with score ``-inf`` is 0.
        """
        return self._answer(lambda bound, flat: bound.project(flat), scores, parameters)

    def _answer(
        self,
        ask: Callable[[AbstractBoundPolytope, Tensor], Solution],
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
        precision = inputs.precision(given.values()) if given else inputs.DOUBLE
        bound = self.bind(flat_parameters, forbidden, instances, precision)
        solution = ask(bound, flat)
        value = inputs.of_structure(solution.value, form.structure_size)
        single = len(batch) == 1  # then verdicts have the shape of the batch already
        return Solution(
            inputs.moved(value, scores.shape, scores.dtype, scores.device),
            solution.status if single else solution.status.reshape(batch),
            solution.primal_residual if single else solution.primal_residual.reshape(batch),
            solution.gap if single else solution.gap.reshape(batch),
            solution.reasons,
            solution.answer,
            solution.instances,
            solution.form,
            {
                spec.name: solution.value[:, spec.span].reshape((*batch, *spec.shape)).to(scores.device, scores.dtype)
                for spec in form.auxiliaries
            },
            projects=solution.projects,
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
        flat = self.flat_tangent(solution, inputs.padded(structure, form.size))
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

    def flat_tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative for flat float64 directions on the device of the solution; see :meth:`tangent`."""
        if solution.answer is not None and not isinstance(solution.answer, Answer):
            if solution.form is not self.projection_form:
                raise ValueError("tangent takes a solution of the same compiled polytope, but got one of another")
            scores, theta, ok = pull_back_on_device(self.device_arrays(direction.device), solution, direction)
        else:
            scores, theta, ok = (torch.from_numpy(part) for part in self._pull_back(solution, direction.numpy()))
        parameters = {
            s.name: theta[:, s.span].contiguous().reshape(len(theta), *s.shape) for s in self.projection_form.parameters
        }
        return Tangent(scores, parameters, ok)

    def _pull_back(self, solution: Solution, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradients of flat scores and of the vector of all parameters, and for which instances."""
        answer, instances = solution.answer, solution.instances
        form = self.projection_form
        if (
            not isinstance(answer, Answer)
            or not isinstance(instances, Instances)
            or (answer.free is None and answer.pullback is None)
        ):
            raise ValueError("tangent takes a solution that project() returned, not one of maximize()")
        if solution.form is not form:
            raise ValueError("tangent takes a solution of the same compiled polytope, but got one of another")
        failed = None if solution.all_ok else ~solution.ok.reshape(-1).numpy()
        mine = direction if form.keeps_all else direction[:, form.kept]
        if failed is not None:
            mine = np.where(failed[:, None], 0.0, mine)
        if answer.pullback is not None:
            scored, parameters, right = answer.pullback(mine)
            ok = right if failed is None else right & ~failed
        else:
            scored, parameters, ok = pull_back(form, answer, instances, mine, failed)
        if failed is not None:
            parameters[failed] = 0.0
        if form.keeps_all:
            return np.ascontiguousarray(scored), parameters, ok
        scores = np.zeros((len(direction), form.size))
        scores[:, form.kept] = scored
        return scores, parameters, ok

    def bind(
        self,
        parameters: Mapping[str, Tensor],
        forbidden: Bool[Tensor, "batch size"] | None,
        batch: int,
        precision: float = float(np.finfo(np.float64).eps),
        device: torch.device = CPU,
    ) -> AbstractBoundPolytope:
        """The polytopes of one batch, for flat float64 tensors on a device (see :meth:`home`): what rules speak to.

        ``precision`` is the machine epsilon of the parameters as they were given.
        """
        form = self.projection_form
        if not form.parameters and forbidden is None and device.type == "cpu":
            return self.bind_plain(batch)
        theta = torch.zeros(batch, form.parameter_count, dtype=torch.float64, device=device)
        for spec in form.parameters:
            theta[:, spec.span] = parameters[spec.name].reshape(batch, spec.size)
        if self.stays_on(device):
            return DevicePolytope(self, theta, forbidden, precision)
        return self.bind_on_host(theta, forbidden, precision)

    def bind_plain(self, batch: int) -> BoundPolytope:
        """The polytopes of a batch on the CPU without parameters and forbidden parts: all of one size are one."""
        return self._plain.get(batch, self._bind_plain)

    def _bind_plain(self, batch: int) -> BoundPolytope:
        return self.bind_on_host(torch.zeros(batch, 0, dtype=torch.float64, device=CPU), None, inputs.DOUBLE)

    def bind_on_host(
        self,
        theta: Float64[Tensor, "batch parameters"],
        forbidden: Bool[Tensor, "batch size"] | None,
        precision: float,
    ) -> BoundPolytope:
        """The same for the solvers of the CPU, with all parameters as one vector."""
        return BoundPolytope(self, theta.numpy(), None if forbidden is None else forbidden.numpy(), precision)

    def relaxation(self, polytope: Polytope) -> CompiledPolytope:
        """Another polytope of the same shape, compiled once.

        Raises
        ------
        ValueError : when its shape is another one, or it declares parameters or scored variables that this one has not.
        """
        return self._relaxations.get(polytope, self._relaxation)

    def _relaxation(self, polytope: Polytope) -> CompiledPolytope:
        # Where scores stay on an accelerator, they stay there for the relaxation too.
        auto = Auto(tolerance=self.tolerance) if self._stays else None
        compiled = compile_polytope(polytope, maximizer=auto, projector=auto, tolerance=self.tolerance)
        _refuse_misfit(self.projection_form, compiled.projection_form)
        return compiled

    def bind_relaxed(
        self,
        relaxation: Polytope,
        theta: Float64[Tensor, "batch parameters"],
        forbidden: Bool[Tensor, "batch size"] | None,
        precision: float,
    ) -> AbstractBoundPolytope:
        """The relaxation with the parameters and the forbidden parts of a batch of this polytope."""
        compiled = self.relaxation(relaxation)
        given = {s.name: theta[:, s.span].reshape(len(theta), *s.shape) for s in self.projection_form.parameters}
        device = compiled.home(theta.device)
        return compiled.bind(
            {s.name: given[s.name].to(device) for s in compiled.projection_form.parameters},
            None if forbidden is None else forbidden.to(device),
            len(theta),
            precision,
            device,
        )

    def stays_on(self, device: torch.device) -> bool:
        """Whether scores on a device are solved there: on accelerators, where nobody asked for another solver."""
        return device.type != "cpu" and self._stays

    @property
    def _stays(self) -> bool:
        return isinstance(self.maximizer, Auto) and isinstance(self.projector, Auto) and self.rows is not None

    def home(self, device: torch.device) -> torch.device:
        """Where scores that live on a device are solved."""
        return device if self.stays_on(device) else CPU

    def device_arrays(self, device: torch.device) -> DeviceArrays:
        """The arrays of the form on a device, made when they are first asked for."""
        rows = self.rows
        if rows is None:
            raise TypeError("sets that are not polyhedral are solved on the CPU")
        return self._on_devices.get(device, partial(DeviceArrays, rows))

    def vertices(self, theta: Float64[np.ndarray, " parameters"]) -> Float64[np.ndarray, "vertices size"]:
        """All vertices for one vector of parameters, flat; kept for the values that were asked for last.

        Raises
        ------
        ValueError : when there are too many to enumerate; see :mod:`optlayers.enumeration`.
        """
        return self._vertices.get(theta.tobytes(), self._enumerated)

    def _enumerated(self, theta: bytes) -> np.ndarray:
        one = torch.from_numpy(np.frombuffer(theta).copy())

        def maximize(scores: Tensor) -> Solution:
            return self.bind_on_host(one.expand(len(scores), -1), None, inputs.DOUBLE).maximize(scores)

        return enumerate_vertices(maximize, self.projection_form.size)

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
        if self._projects_on_rows:
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
            f"{max(self.tolerance, self.projector.accuracy):g}.{self._explain_trust()}"
        )

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
