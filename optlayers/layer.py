"""OptLayer, over one polytope or a family of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from optlayers import inputs
from optlayers.autograd import Call, OnFailure, structures_of
from optlayers.caches import Cache
from optlayers.compiled import CompiledPolytope, compile_polytope
from optlayers.mixture import differentiable_weights
from optlayers.modes import outside_graphs, outside_inference_mode, transforms_active
from optlayers.objective import FlatObjective, Objective
from optlayers.polytope import Family, Polytope
from optlayers.rules.base import AbstractRule, Context
from optlayers.solution import Failure, Solution, SolveError
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.standard_form import ScoredSpec, StandardForm
from optlayers.warn import warn_caller

__all__ = ["OptLayer"]


@final
class OptLayer(nn.Module):
    """From scores to structures of a polytope, with a gradient.

    The layer has no weights; what a rule adapts is a buffer, which ``state_dict`` saves. It may be copied, pickled,
    saved as a whole, shared between threads and used inside ``DistributedDataParallel``. Models that contain it may be
    transformed by ``torch.func`` and compiled by ``torch.compile``, for which the layer is a break in the graph.

    Parameters
    ----------
    polytope : a :class:`Polytope`, an already compiled one, or a :class:`Family` for batches of mixed length.
    rule : what goes forward and what goes back: ``Spigot()``, ``SparseMAP()``, …
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.
    on_failure : what happens when some instances have no certified answer. ``"raise"`` raises
        :class:`SolveError`. ``"nan"`` makes these instances NaN and their gradient 0; the others are right.

    Examples
    --------
    >>> import torch
    >>> from optlayers import SparseMAP
    >>> from polytopes import simplex
    >>> layer = OptLayer(simplex(3), SparseMAP())
    >>> layer(torch.tensor([[1.0, 0.5, -2.0]]))
    tensor([[0.7500, 0.2500, 0.0000]])
    """

    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family,
        rule: AbstractRule,
        *,
        maximizer: AbstractMaximizer | None = None,
        projector: AbstractProjector | None = None,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__()
        if not isinstance(polytope, (Polytope, CompiledPolytope, Family)):
            raise TypeError(f"OptLayer takes a Polytope or a Family, but got {type(polytope).__name__}")
        if not isinstance(rule, AbstractRule):
            hint = f"; make it a value: {rule.__name__}()" if isinstance(rule, type) else ""
            raise TypeError(f"rule must be a backward rule such as Spigot(), but got {rule!r}{hint}")
        if on_failure not in ("raise", "nan"):
            raise ValueError(f'on_failure is "raise" or "nan", but got {on_failure!r}')
        if isinstance(polytope, CompiledPolytope) and (maximizer is not None or projector is not None):
            raise ValueError("a compiled polytope has its solvers already; give them to compile_polytope")
        self.rule = rule
        self.on_failure: OnFailure = on_failure
        self._maximizer, self._projector = maximizer, projector
        self._family = polytope if isinstance(polytope, Family) else None
        self._sizes: Cache[tuple[int, ...], _Ready] = Cache(polytope.cache_size if isinstance(polytope, Family) else 1)
        self._takes: Cache[int, bool] = Cache(4)
        self._warned = False
        with outside_inference_mode():
            state = rule.initial_state()
        for name, value in state.items():
            self.register_buffer(f"rule_{name}", value)
        self._compiled_elsewhere: Callable[..., CompiledPolytope] | None = None
        self._only: _Ready | None = None if isinstance(polytope, Family) else self._ready(polytope, rule)

    def with_rule(self, rule: AbstractRule) -> OptLayer:
        """A layer with another rule over the same polytopes, compiled once for both."""
        if self._family is None:
            return OptLayer(self.compiled(), rule, on_failure=self.on_failure)
        other = OptLayer(self._family, rule, on_failure=self.on_failure)
        other._compiled_elsewhere = self.compiled
        return other

    def _ready(self, polytope: Polytope | CompiledPolytope, rule: AbstractRule) -> _Ready:
        if isinstance(polytope, Polytope):
            polytope = compile_polytope(polytope, maximizer=self._maximizer, projector=self._projector)
        rule.check(polytope)
        return _Ready(polytope, rule)

    def _of_size(self, *size: int) -> _Ready:
        family = self._family
        if family is None:
            if size or self._only is None:
                raise TypeError("a layer over one polytope has one size; call compiled() without arguments")
            return self._only
        declared = self._compiled_elsewhere or family
        return self._sizes.get(size, lambda size: self._ready(declared(*size), self.rule.of_size(*size)))

    def sizes_of(self, sizes: Any, scores: Tensor) -> tuple[Int64[Tensor, "instances k"], torch.Size]:
        """For a family: one row of sizes per instance, and the shape of the batch, from what was given."""
        family = self._family
        if family is None:
            raise TypeError("sizes= is for layers over a Family; this layer has one polytope")

        takes = partial(self._takes.get, make=family.takes)
        return inputs.size_table(sizes, scores, takes, lambda size: len(self.compiled(size).shape))

    @property
    def family(self) -> Family | None:
        """The family that the layer is over, None for a single polytope."""
        return self._family

    def compiled(self, *size: int) -> CompiledPolytope:
        """The compiled polytope; of a family, the one for a size."""
        return self._of_size(*size).compiled

    @outside_graphs
    def forward(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        *,
        sizes: Any = None,
        objective: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
        **parameters: Any,
    ) -> Float[Tensor, "*batch_and_shape"] | Float[Tensor, "*batch"]:
        """Structures for a batch of scores, or the losses that an objective gives them.

        Parameters
        ----------
        scores : ``(*batch, *shape)``, float64, float32, bfloat16 or float16, on any device, of any strides; ``-inf``
            forbids a part. For a family the largest shape: an instance takes the leading corner of its own shape.
        sizes : for a family, the size of every instance, ``(*batch,)`` integers, or ``(*batch, k)`` for k sizes. An
            instance of size 0 has no parts: its structure is padding.
        objective : from structures ``(*batch, *shape)`` to one loss per instance, ``(*batch,)``, each of its own
            structure alone. With one, the layer returns these losses (for rules that draw several structures,
            their mean), and what lies behind the objective gets its gradient as usual. Rules that look at the loss at
            more than one structure need it: :class:`ScoreFunction`, and :class:`Spigot` with several steps. For other
            rules, ``layer(scores, objective=f)`` is ``f(layer(scores))``.
        generator : what random numbers are drawn from by rules that draw; by default torch's own, see
            ``torch.manual_seed``.
        parameters : a tensor per declared parameter, ``shape`` for all instances or ``(*batch, *shape)`` for each
            its own; of a family, again the leading corner. Likewise the scores of every auxiliary variable that is
            declared as ``scored``.

        Returns
        -------
        Structures in the shape, dtype and device of the scores. The padding of a family is exactly 0, and so is its
        gradient. With an objective, losses ``(*batch,)``.

        Raises
        ------
        SolveError : with ``on_failure="raise"``, when an instance has no certified answer.
        TypeError, ValueError : see :meth:`CompiledPolytope.maximize`; sizes that are missing, not asked for, or do
            not fit.
        """
        if self.rule.needs_objective and objective is None:
            raise TypeError(
                f"{self.rule!r} works with losses: call layer(scores, objective=f), where f takes structures and gives "
                "one loss per instance"
            )
        batch, solve = self._solver(scores, sizes, generator, parameters)
        if objective is None:
            return solve(_Wishes(generator))
        recorded = Objective(objective, batch, scores)
        if not transforms_active():
            return recorded(solve(_Wishes(generator, recorded)), self.rule.apart)
        if self.rule.needs_objective:
            raise NotImplementedError(
                f"{self.rule!r} works with losses and cannot be transformed by torch.func (vmap, grad, ...); use "
                "backward() or torch.autograd.grad, and give the layer the whole batch"
            )
        return recorded.mean(solve(_Wishes(generator)), self.rule.apart)

    def _solver(
        self, scores: Tensor, sizes: Any, generator: torch.Generator | None, parameters: Mapping[str, Any]
    ) -> tuple[torch.Size, Callable[[_Wishes], Tensor]]:
        """The shape of the batch, and what answers for all of it."""
        inputs.check_scores(scores)
        inputs.check_generator(generator)
        if self._family is not None:
            table, batch = self.sizes_of(sizes, scores)
            return batch, partial(self._structures_of_sizes, scores, table, batch, parameters)
        if sizes is not None:
            raise TypeError("sizes= is for layers over a Family; this layer has one polytope")
        ready = self._of_size()
        batch = inputs.batch_shape(scores, ready.compiled.shape)
        return batch, partial(self._solve, ready, scores, batch, parameters)

    @outside_graphs
    def lifted(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        *,
        sizes: Any = None,
        generator: torch.Generator | None = None,
        **parameters: Any,
    ) -> tuple[Float[Tensor, "*batch_and_shape"], dict[str, Tensor]]:
        """Structures, and the values of the auxiliary variables that are declared as ``scored``.

        These are the points of the lifted polytope, in the space of all that has scores. Arguments and errors are those
        of :meth:`forward`, without an objective.

        Returns
        -------
        What :meth:`forward` returns, and the value of every scored auxiliary variable by its name, shaped like its
        scores but always with the dimensions of the batch, and without a gradient. In padding they are 0, and NaN where
        an instance has no answer. None of them for a batch without instances, whose polytopes are not known.
        """
        if self.rule.needs_objective:
            raise TypeError(f"{self.rule!r} works with losses, which lifted() does not take")
        batch, solve = self._solver(scores, sizes, generator, parameters)
        if transforms_active():
            raise NotImplementedError(
                "lifted() cannot be transformed by torch.func (vmap, grad, ...): call the layer itself, or lifted() "
                "outside of transforms with the whole batch"
            )
        found: list[_Found] = []
        value = solve(_Wishes(generator, found=found.append))
        apart = () if self.rule.apart is None else (self.rule.apart,)
        flat: dict[str, Tensor] = {}
        for part in found:
            for spec in part.form.auxiliaries:
                mine = part.values(spec).to(scores.device, scores.dtype)
                given = parameters[spec.name]
                room = given.shape[given.ndim - len(spec.shape) :]
                whole = flat.setdefault(spec.name, mine.new_zeros(*apart, math.prod(batch), *room))
                rows = slice(None) if part.rows is None else part.rows.to(whole.device)
                whole[(..., rows, *(slice(0, length) for length in spec.shape))] = mine
        first = len(apart) + 1
        return value, {n: whole.reshape((*apart, *batch, *whole.shape[first:])) for n, whole in flat.items()}

    @outside_graphs
    def solve(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        *,
        generator: torch.Generator | None = None,
        **parameters: Any,
    ) -> Solution:
        """The structures of a forward pass with their verdicts, and their gradient.

        Where the rule's answer is a mixture of vertices (:class:`SparseMAP` over :class:`ActiveSet`), the solution has
        ``vertices`` and ``weights``, and the weights have a gradient too: a model can take an expectation over the few
        structures that are selected.

        Arguments and errors are those of :meth:`forward`, but for families, whose instances have different polytopes.
        """
        inputs.check_scores(scores)
        if self._family is not None:
            raise TypeError("solve() answers for one polytope; a Family has one for every size: use compiled(size)")
        if transforms_active():
            raise NotImplementedError(
                "solve() gives verdicts, which are numbers, and cannot be transformed by torch.func (vmap, grad, ...); "
                "call the layer itself, or solve() outside of transforms with the whole batch"
            )
        if self.rule.apart is not None:
            raise TypeError(f"solve() gives one structure per instance, but {self.rule!r} gives {self.rule.apart}")
        found: list[_Found] = []
        _, solve = self._solver(scores, None, generator, parameters)
        value = solve(_Wishes(generator, found=found.append))
        return self._with_gradients(found[0].solution, value, scores, parameters)

    def _with_gradients(self, flat: Solution, value: Tensor, scores: Tensor, parameters: Mapping[str, Any]) -> Solution:
        form = self.compiled().projection_form
        batch = inputs.batch_shape(scores, form.shape)
        shaped = replace(
            flat,
            value=value,
            status=flat.status.reshape(batch).clone(),
            primal_residual=flat.primal_residual.reshape(batch).clone(),
            gap=flat.gap.reshape(batch).clone(),
            scored={
                spec.name: inputs.owned(flat.value[:, spec.span], (*batch, *spec.shape), scores.dtype, scores.device)
                for spec in form.auxiliaries
            },
        )
        decomposition = None if flat.evidence is None else flat.evidence.decomposition
        if decomposition is None:
            return shaped
        further, _ = inputs.split_named(form.auxiliaries, parameters)
        auxiliary, _ = inputs.auxiliary_tensors(form.auxiliaries, further, batch)
        count = len(flat.value)
        parts = [scores.reshape(count, form.structure_size)]
        parts += [auxiliary[spec.name].reshape(count, math.prod(spec.shape)) for spec in form.auxiliaries]
        vector = torch.cat([part.to("cpu", torch.float64) for part in parts], dim=1)
        vector = torch.where(torch.isneginf(vector), 0.0, vector)
        vertices, weights = differentiable_weights(decomposition, vector, form.structure_size)
        most = weights.shape[1]
        structures = vertices[:, :, : form.structure_size]
        structures = inputs.owned(structures, (*batch, most, *form.shape), value.dtype, value.device)
        return replace(shaped, mixture=(structures, weights.reshape(*batch, most).to(value)))

    def _solve(
        self, ready: _Ready, scores: Tensor, batch: torch.Size, parameters: Mapping[str, Any], wishes: _Wishes
    ) -> Tensor:
        """One polytope."""
        compiled = ready.compiled
        form = compiled.projection_form
        further, parameters = inputs.split_named(form.auxiliaries, parameters)
        auxiliary, once = inputs.auxiliary_tensors(form.auxiliaries, further, batch)
        given = inputs.parameter_shapes(form.parameters, parameters, batch)
        home = compiled.home(scores.device)
        objective = None
        if wishes.objective is not None:
            objective = FlatObjective(wishes.objective, wishes.rows, wishes.corner, form.structure_size, home)
        recorded = torch.is_grad_enabled()
        waiting = tuple(n for n, value in given.items() if value.requires_grad) if recorded and given else ()
        if waiting and ready.rule.differentiates_parameters is False:
            self._warn_of_no_gradient(waiting)
        needs_gradient = bool(waiting) or (recorded and scores.requires_grad)
        if auxiliary:
            needs_gradient |= recorded and any(value.requires_grad for value in auxiliary.values())
        found = wishes.finder(form)
        call = Call(
            compiled,
            ready.rule,
            self.on_failure,
            batch,
            once,
            wishes.positions,
            inputs.precision(given),
            home,
            found,
            Context(wishes.generator, self._state(), objective, needs_gradient, bool(waiting)),
            needs_gradient or found is not None,
            waiting,
            self._warn_of_no_gradient,
        )
        named = [*auxiliary.values(), *given.values()]
        if named and needs_gradient:  # autograd does not save what was made for inference
            scores, *named = (t.clone() if t.is_inference() else t for t in (scores, *named))
        return structures_of(call, scores, *named)

    def _warn_of_no_gradient(self, parameters: Sequence[str]) -> None:
        """Say once that parameters which wait for a gradient get none from this rule."""
        if self._warned:
            return
        self._warned = True
        wants = "requires one, and gets none" if len(parameters) == 1 else "require one, and get none"
        warn_caller(
            f"{self.rule!r} has no gradient for parameters of the polytope: {', '.join(parameters)} {wants}. "
            "SparseMAP(), LPGD(strength) and Hard(SparseMAP()) have a gradient for parameters; or pass "
            f"{parameters[0]}.detach()"
        )

    def _state(self) -> dict[str, Tensor]:
        return {name.removeprefix("rule_"): value for name, value in self._buffers.items() if value is not None}

    def _structures_of_sizes(
        self, scores: Tensor, table: Tensor, batch: torch.Size, parameters: Mapping[str, Any], wishes: _Wishes
    ) -> Tensor:
        flat = scores.reshape(len(table), *scores.shape[len(batch) :])
        apart = () if self.rule.apart is None else (self.rule.apart,)
        if len(table) == 0:
            return (scores * 0.0).expand(*apart, *scores.shape)  # empty, and part of the graph
        parts, order = [], []
        failures: list[Failure] = []
        for size in torch.unique(table, dim=0):
            rows = torch.nonzero((table == size).all(dim=1)).flatten()
            order.append(rows)
            if not bool(size.all()):
                nothing = flat[rows.to(flat.device)]
                nothing = nothing.masked_fill(torch.ones_like(nothing, dtype=torch.bool), 0.0)  # part of the graph
                parts.append(nothing.expand(*apart, *nothing.shape))
                continue
            ready = self._of_size(*size.tolist())
            compiled = ready.compiled
            corner = inputs.corner(compiled.shape, flat.shape[1:], tuple(size.tolist()))
            form = compiled.projection_form
            mine = inputs.parameter_corners((*form.parameters, *form.auxiliaries), parameters, rows, batch)
            positions = inputs.positions(rows, batch)
            padded = flat.new_zeros(*apart, len(rows), *flat.shape[1:])
            place: tuple[Any, ...] = (..., *corner)
            mine_alone = replace(wishes, positions=positions, rows=rows, corner=corner)
            try:
                asked = flat[rows.to(flat.device)][place]
                padded[place] = self._solve(ready, asked, rows.shape, mine, mine_alone)
            except SolveError as error:
                failures += error.failures  # of this size; the others are looked at before the batch is given up
            parts.append(padded)
        if failures:
            raise SolveError(sorted(failures, key=lambda f: f.index), len(table))
        back = torch.argsort(torch.cat(order)).to(flat.device)
        return torch.cat(parts, dim=len(apart)).index_select(len(apart), back).reshape(*apart, *scores.shape)

    def extra_repr(self) -> str:
        what = self._family if self._family is not None else self.compiled().polytope
        return f"{what!r}, {self.rule!r}, on_failure={self.on_failure!r}"


@dataclass(frozen=True)
class _Ready:
    """A compiled polytope and the rule for its size."""

    compiled: CompiledPolytope
    rule: AbstractRule


@dataclass(frozen=True)
class _Found:
    """A flat solution, the form of its polytope, and the rows that it answers for, None for all."""

    form: StandardForm
    rows: Tensor | None
    solution: Solution

    def values(self, spec: ScoredSpec) -> Float[Tensor, "*apart instances *shape"]:
        """The values of an auxiliary variable, NaN for instances without an answer."""
        flat = self.solution.value[..., spec.span]
        if not self.solution.all_ok:
            flat = flat.masked_fill(~self.solution.ok[:, None], torch.nan)
        return flat.reshape(*flat.shape[:-1], *spec.shape)


@dataclass(slots=True)
class _Wishes:
    """What a call asks for besides structures.

    Of a part of a batch: ``positions`` are its indices in the batch, ``rows`` its flat ones, ``corner`` its place in
    the room of an instance.
    """

    generator: torch.Generator | None = None
    objective: Objective | None = None
    found: Callable[[_Found], None] | None = None
    positions: Tensor | None = None
    rows: Tensor | None = None
    corner: tuple[slice, ...] = ()

    def finder(self, form: StandardForm) -> Callable[[Solution], None] | None:
        """Who wants to see the flat solution."""
        found, rows = self.found, self.rows
        return None if found is None else lambda solution: found(_Found(form, rows, solution))
