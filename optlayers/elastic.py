"""Soft feasibility: instances that nothing satisfies are answered by points of least violation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import cvxpy as cp
import numpy as np
import torch
from cvxpy.constraints.zero import Equality
from jaxtyping import Float
from torch import Tensor, nn

from optlayers.common.modes import outside_graphs
from optlayers.layer import OptLayer
from optlayers.polytope import Polytope
from optlayers.rules.sparsemap import SparseMAP
from optlayers.shifted import ByConstraint, label_of, shifted
from optlayers.solution import Solution, Status

__all__ = ["Elastic"]


@final
class Elastic(nn.Module):
    r"""A layer whose constraints give way where they cannot hold together.

    An instance that some point satisfies has the answer of the ``layer``. One that nothing satisfies (a demand beyond
    all supply, a word without any head that is not forbidden) is answered as if the right sides of its constraints were
    moved by the least violation: with :math:`v_i` for what constraint i misses, the v with the least
    :math:`\tfrac12 \sum_i w_i v_i^2` for which there are points at all. Among these points the ``layer`` chooses by the
    scores, and its rule sends back gradients. v itself is a function of the parameters, through which they have a
    gradient under rules that have one for parameters; ``solution.violation`` can be part of a loss.

    Constraints that bound single entries of variables by numbers (``x >= 0``, ``x <= 1``) hold in any case, and so do
    bounds that are attributes of variables, and forbidden parts. All other constraints give way, if weights do not say
    otherwise.

    Points of least violation are those of the constraints of the declaration. What only an oracle knows of the polytope
    is not asked: where constraints are a relaxation, or where moved right sides make them one, such answers may be
    fractional. They have no room to the inequalities that gave way, so that a :class:`Barrier` has no point there, and
    an :class:`Entropy` leaves a few of them in a thousand without a verdict, where parts have to be 0 between others.

    Parameters
    ----------
    layer : an :class:`optlayers.OptLayer` over one polytope.
    weights : w by constraint, positive: a number, or an array in the shape of the constraint; ``math.inf`` for one that
        must hold. 1 for those that are not named.

    References
    ----------
    Chinneck (2008), Feasibility and infeasibility in optimization, chapter 6 (elastic programs).

    Examples
    --------
    >>> import cvxpy as cp, torch
    >>> from optlayers import Polytope, SparseMAP
    >>> x, supply = cp.Variable(2, nonneg=True), cp.Parameter(name="supply")
    >>> demand, stock = cp.sum(x) >= 2, cp.sum(x) <= supply
    >>> soft = Elastic(OptLayer(Polytope(x, [demand, stock, x <= 5]), SparseMAP()), weights={demand: 3.0})
    >>> solution = soft.solve(torch.tensor([0.2, 0.0]), supply=torch.tensor(1.0))
    >>> solution.value
    tensor([0.9750, 0.7750])
    >>> [round(solution.violations[constraint].item(), 6) for constraint in (demand, stock)]
    [0.25, 0.75]
    """

    def __init__(self, layer: OptLayer, *, weights: Mapping[cp.Constraint, float | np.ndarray] | None = None) -> None:
        super().__init__()
        if not isinstance(layer, OptLayer):
            raise TypeError(f"Elastic wraps an OptLayer, but got {type(layer).__name__}")
        if layer.family is not None:
            raise TypeError("Elastic wraps a layer over one polytope, but this one is over a Family: one for each size")
        if layer.rule.needs_objective or layer.rule.apart is not None or layer.gradient_unit == "loss":
            raise TypeError(
                f"Elastic wraps layers that give one structure per instance without an objective: {layer!r}"
            )
        self.layer = layer
        polytope = layer.compiled().polytope
        moved = shifted(polytope)
        self._shifts = moved.shifts
        self._weights = _weights(polytope, {} if weights is None else weights)
        least, self._names = _least(polytope, self._weights)
        self._soft = tuple(k for k, weight in enumerate(self._weights) if weight is not None)
        self._least = OptLayer(least, SparseMAP(), on_failure="nan")
        self._moved = OptLayer(
            moved.polytope.beside(polytope.further), layer.rule, on_failure="nan", gradient_unit=layer.gradient_unit
        )

    def forward(
        self, scores: Float[Tensor, "*batch_and_shape"], *, generator: torch.Generator | None = None, **parameters: Any
    ) -> Float[Tensor, "*batch_and_shape"]:
        """Structures, as :meth:`optlayers.OptLayer.forward` gives them, without ``sizes`` and ``objective``.

        Raises
        ------
        SolveError : with ``on_failure="raise"`` of the layer, an instance whose constraints with weight ``inf``
            cannot hold together, or without a certified answer.
        """
        return self.solve(scores, generator=generator, **parameters).value

    @outside_graphs
    def solve(
        self, scores: Float[Tensor, "*batch_and_shape"], *, generator: torch.Generator | None = None, **parameters: Any
    ) -> Solution:
        """The structures with their verdicts, their gradient and their violations.

        ``status`` is OPTIMAL for instances of least violation too: their answer is certified for the moved right sides.
        ``solution.violation`` ``(*batch,)`` is the weighted norm of the violations, 0 where all constraints hold, and
        ``solution.violations`` by how much each constraint is violated; both have a gradient for parameters.
        """
        found = self.layer.with_failures_as_nan().solve(scores, generator=generator, **parameters)
        batch, count = found.status.shape, found.status.numel()
        rows = torch.nonzero(found.status.reshape(-1) == int(Status.INFEASIBLE)).flatten()
        polytope = self.layer.compiled().polytope
        violation = torch.zeros(count, dtype=torch.float64, device=scores.device)
        each = [
            torch.zeros(count, *constraint.shape, dtype=torch.float64, device=scores.device)
            for constraint in polytope.constraints
        ]
        if len(rows):
            rows = rows.to(scores.device)
            entries = self.layer.compiled().entries
            arrived = entries.arrive(scores, parameters)
            flat = [t.reshape((count, *t.shape[len(batch) :]))[rows] for t in arrived.tensors]
            cut = 1 + len(entries.auxiliaries)
            of_parameters = {spec.name: t for spec, t in zip(entries.parameters, flat[cut:], strict=True)}
            of_auxiliaries = {spec.name: t for spec, t in zip(entries.auxiliaries, flat[1:cut], strict=True)}
            least = self._least_violation(flat[:cut], of_parameters)
            size = torch.where(least.ok[:, None], least.value, 0.0).square().sum(-1)
            size = torch.where(size > 0.0, size, 1.0).sqrt() * (size > 0.0)
            shifts, mine = self._shifts_of(torch.where(least.ok[:, None], least.value, 0.0))
            answer = self._moved.solve(flat[0], generator=generator, **of_auxiliaries, **of_parameters, **shifts)
            violation = violation.index_put((rows,), size)
            each = [whole.index_put((rows,), part) for whole, part in zip(each, mine, strict=True)]
            found = _joined(found, rows, answer, least, batch)
        solution = replace(
            found,
            violation=violation.reshape(batch),
            violations=ByConstraint(polytope.constraints, [part.reshape((*batch, *part.shape[1:])) for part in each]),
        )
        return solution.check() if self.layer.on_failure == "raise" else solution

    def _least_violation(self, scores: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> Solution:
        """By how much constraints are violated at least, in units of their weights, side by side; for scores of the
        structure and of auxiliary variables, of which those of -inf matter."""
        size, device = self._least.compiled().shape[0], scores[0].device
        nothing = torch.zeros(len(scores[0]), size, dtype=torch.float64, device=device)
        given: dict[str, Any] = dict(parameters)
        for name, part in zip(self._names[:-1], scores, strict=True):
            given[name] = torch.where(torch.isneginf(part.detach()), 0.0, math.inf).double()
        given[self._names[-1]] = torch.tensor(math.inf, dtype=torch.float64, device=device)
        return self._least.solve(nothing, **given)

    def _shifts_of(self, least: Float[Tensor, "rows entries"]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The shift of every constraint by its name, and by how much each constraint is violated."""
        polytope, shifts, each, start = self.layer.compiled().polytope, {}, [], 0
        for constraint, shift, weight in zip(polytope.constraints, self._shifts, self._weights, strict=True):
            if weight is None:
                mine = torch.zeros(len(least), *shift.shape, dtype=torch.float64, device=least.device)
            else:
                scale = torch.from_numpy(1.0 / np.sqrt(weight)).to(least.device)
                mine = (least[:, start : start + shift.size] * scale).reshape(len(least), *shift.shape)
                start += shift.size
            shifts[shift.name()] = mine
            each.append(mine.abs() if isinstance(constraint, Equality) else mine.clamp(min=0.0))
        return shifts, each

    def extra_repr(self) -> str:
        names = [label_of(self.layer.compiled().polytope.constraints[k], k) for k in self._soft]
        return f"gives way: {', '.join(names)}"


def _joined(found: Solution, rows: Tensor, answer: Solution, least: Solution, batch: torch.Size) -> Solution:
    """The answers of all instances, those of ``rows`` by their least violation."""
    count = found.status.numel()

    def put(whole: Tensor, part: Tensor) -> Tensor:
        flat = whole.reshape(count, *whole.shape[len(batch) :])
        return flat.index_put((rows.to(flat.device),), part.to(flat)).reshape(whole.shape)

    reasons = dict(found.reasons)
    status = torch.where(least.ok, answer.status, least.status)
    for k, row in enumerate(rows.tolist()):
        reasons.pop(row, None)
        if not bool(least.ok[k]):
            why = least.reasons.get(k, Status(int(least.status[k])).meaning)
            reasons[row] = f"its violations cannot be told, as what must hold does not: {why}"
        elif k in answer.reasons:
            reasons[row] = answer.reasons[k]
    scored = {name: put(value, answer.scored[name]) for name, value in found.scored.items()}
    return Solution(
        put(found.value, answer.value),
        put(found.status, status),
        put(found.primal_residual, answer.primal_residual),
        put(found.gap, answer.gap),
        reasons,
        scored=scored,
        word=found.word,
    )


def _weights(polytope: Polytope, given: Mapping[cp.Constraint, float | np.ndarray]) -> tuple[np.ndarray | None, ...]:
    """The weights of every constraint, one for each entry in C order; None for one that must hold."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"weights of Elastic are a mapping from constraints to numbers, such as {{demand: 3.0}}, but got {given!r}"
        )
    known = {id(constraint) for constraint in polytope.constraints}
    for constraint in given:
        if id(constraint) not in known:
            raise ValueError(f"{constraint} has a weight, but is no constraint of the declaration")
    found: list[np.ndarray | None] = []
    by_id = {id(constraint): weight for constraint, weight in given.items()}
    for position, constraint in enumerate(polytope.constraints):
        weight = by_id.get(id(constraint), math.inf if _bounds_entries(constraint) else 1.0)
        array = np.asarray(weight, dtype=np.float64)
        if array.shape not in ((), constraint.shape):
            raise ValueError(
                f"the weight of {label_of(constraint, position)} has shape {array.shape}, but the constraint has shape "
                f"{constraint.shape}: give one number, or one for each entry"
            )
        if np.isinf(array).all() and (array > 0.0).all():
            found.append(None)
        elif not (np.isfinite(array).all() and (array > 0.0).all()):
            raise ValueError(
                f"the weight of {label_of(constraint, position)} must be positive and finite, or inf for all entries "
                f"where it must hold, but is {weight}"
            )
        else:
            found.append(np.broadcast_to(array, constraint.shape).ravel())
    if all(weight is None for weight in found):
        raise ValueError("no constraint may give way: all of them bound single entries, or have the weight inf")
    return tuple(found)


def _bounds_entries(constraint: cp.Constraint) -> bool:
    """Whether a constraint bounds single entries of variables by numbers."""
    if constraint.parameters() or len(constraint.args) != 2:
        return False
    difference = constraint.args[0] - constraint.args[1]
    if not difference.is_affine():
        return False
    copies = {id(variable): cp.Variable(variable.shape) for variable in difference.variables()}
    for copy in copies.values():
        copy.value = np.zeros(copy.shape)  # cvxpy differentiates at a point
    entries = [abs(jacobian) > 0 for jacobian in difference.tree_copy(copies).grad.values()]
    count = np.zeros(constraint.size)
    for part in entries:
        count = count + np.asarray(part.sum(axis=0)).ravel()
    return bool(count.max(initial=0.0) <= 1.0)


def _least(polytope: Polytope, weights: tuple[np.ndarray | None, ...]) -> tuple[Polytope, tuple[str, ...]]:
    """The violations that constraints can have, in units of their weights, as a polytope; and the names of its
    parameters: how far the parts of the structure and of scored auxiliary variables may be from 0, and the limit of
    violations (infinite, but for the compiler, to which a polytope is bounded)."""
    taken = {leaf.name() for leaf in (*polytope.parameters, *polytope.variables)}

    def name(wanted: str) -> str:
        while wanted in taken:
            wanted += "_"
        taken.add(wanted)
        return wanted

    size = sum(len(weight) for weight in weights if weight is not None)
    violations = cp.Variable(size, name=name("violations"))
    constraints, start = [], 0
    for position, (constraint, weight) in enumerate(zip(polytope.constraints, weights, strict=True)):
        if weight is None:
            constraints.append(constraint)
            continue
        mine = cp.multiply(1.0 / np.sqrt(weight), violations[start : start + len(weight)])
        shaped = cp.reshape(mine, constraint.shape, order="C") if constraint.shape else cp.sum(mine)
        start += len(weight)
        left, right = constraint.args
        moved = left == right + shaped if isinstance(constraint, Equality) else left <= right + shaped
        moved.set_label(label_of(constraint, position))
        constraints.append(moved)
    names = []
    for variable in (polytope.variable, *polytope.scored):
        top = cp.Parameter(variable.shape, nonneg=True, name=name(f"top_of_{variable.name()}"))
        names.append(top.name())
        constraints += [variable <= top, variable >= -top]
    limit = cp.Parameter(nonneg=True, name=name("limit_of_violations"))
    constraints += [violations <= limit, violations >= -limit]
    return Polytope(violations, constraints).beside(polytope.parameters), (*names, limit.name())
