"""OptLayer, over one polytope or a family of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from optlayers.caches import Cache
from optlayers.compiled import CompiledPolytope, solution_of
from optlayers.compiled_once import compiled_of_size, compiled_once
from optlayers.differentiate import GradientUnit, LayerCall, OnFailure, Part, Plain, applied
from optlayers.entries import CPU, batch_of
from optlayers.form.standard import ParameterSpec, ScoredSpec
from optlayers.mixture import differentiable_weights
from optlayers.modes import outside_graphs, outside_inference_mode, transforms_active
from optlayers.objective import FlatObjective, Objective
from optlayers.polytope import Family, Polytope
from optlayers.prepared import AbstractPrepared
from optlayers.rounded import Sameness, sameness
from optlayers.rules.base import AbstractRule, Context
from optlayers.sizes import Share, corner, named_corners, named_instance, named_size, rows_by_size, size_table
from optlayers.solution import Solution
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.tensors import check_generator, check_scores
from optlayers.warn import warn_caller

__all__ = ["OptLayer"]

NO_STATE: Mapping[str, Tensor] = {}


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
    gradient_unit : what the gradient of an instance is measured in before the rule sees it; what the rule gives back is
        multiplied by it. None, the default, leaves gradients as they arrive. Under ``loss.mean()`` they shrink with
        the batch, and with them the steps of :class:`Spigot`, :class:`SpigotCE`, :class:`SpigotEG`,
        :class:`Interpolation`, :class:`LPGD` and :class:`IMLE`: the first three then tend to derivatives at a point,
        and the others are 0 nearly everywhere. ``"norm"`` measures the gradient of each instance in its norm over the
        parts that can move, so that a step does not depend on the batch, on the weight of a loss, or on how far an
        instance has been learned.
        ``"loss"`` divides by the weight with which the loss of the instance enters (1 / batch under a mean), so that
        the step follows the gradient of its own loss; the layer is then called with ``objective=``. Rules that are
        linear in the gradient stay the same.

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
        gradient_unit: GradientUnit = None,
    ) -> None:
        super().__init__()
        if not isinstance(polytope, (Polytope, CompiledPolytope, Family)):
            raise TypeError(f"OptLayer takes a Polytope or a Family, but got {type(polytope).__name__}")
        if not isinstance(rule, AbstractRule):
            hint = f"; make it a value: {rule.__name__}()" if isinstance(rule, type) else ""
            raise TypeError(f"rule must be a backward rule such as Spigot(), but got {rule!r}{hint}")
        if on_failure not in ("raise", "nan"):
            raise ValueError(f'on_failure is "raise" or "nan", but got {on_failure!r}')
        if gradient_unit not in (None, "norm", "loss"):
            raise ValueError(f'gradient_unit is "norm", "loss" or None, but got {gradient_unit!r}')
        if gradient_unit == "norm" and rule.needs_objective:
            raise ValueError(
                f"{rule!r} takes gradients of the loss at other points than the one that arrives, whose norm says "
                'nothing of theirs: give gradient_unit="loss"'
            )
        if isinstance(polytope, CompiledPolytope) and (maximizer is not None or projector is not None):
            raise ValueError("a compiled polytope has its solvers already; give them to compile_polytope")
        self.rule = rule
        self.on_failure: OnFailure = on_failure
        self.gradient_unit: GradientUnit = gradient_unit
        self._maximizer, self._projector = maximizer, projector
        self._family = polytope if isinstance(polytope, Family) else None
        self._rules: Cache[tuple[int, ...], AbstractRule] = Cache(self._family.cache_size if self._family else 1)
        self._takes: Cache[int, bool] = Cache(4)
        self._warned = self._remarked = False
        with outside_inference_mode():
            state = rule.initial_state()
        for name, value in state.items():
            self.register_buffer(f"rule_{name}", value)
        self._compiled_elsewhere: Callable[..., CompiledPolytope] | None = None
        self._only: CompiledPolytope | None = None
        if not isinstance(polytope, Family):
            compiled = polytope
            if isinstance(compiled, Polytope):
                compiled = compiled_once(compiled, maximizer, projector)
            rule.check(compiled)
            self._remark(rule, compiled)
            self._only = compiled

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> OptLayer:
        """To another device, but not to another dtype: what a rule adapts by small steps keeps its precision."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            now = self._buffers[name]
            if value is not None and now is not None and now.dtype != value.dtype:
                self._buffers[name] = value.to(now.device)
        return self

    def with_rule(self, rule: AbstractRule) -> OptLayer:
        """A layer with another rule over the same polytopes, compiled once for both."""
        if self._family is None:
            return OptLayer(self.compiled(), rule, on_failure=self.on_failure, gradient_unit=self.gradient_unit)
        other = OptLayer(self._family, rule, on_failure=self.on_failure, gradient_unit=self.gradient_unit)
        other._compiled_elsewhere = self.compiled
        return other

    def _rule_of(self, compiled: AbstractPrepared, size: tuple[int, ...]) -> AbstractRule:
        """The rule for one size of a family, which takes the polytope of this size."""

        def make(size: tuple[int, ...]) -> AbstractRule:
            rule = self.rule.of_size(*size)
            assert isinstance(compiled, CompiledPolytope)
            rule.check(compiled)
            self._remark(rule, compiled, f" (of this family size {named_size(size)} is the first that it concerns)")
            return rule

        return self._rules.get(size, make)

    def _remark(self, rule: AbstractRule, compiled: CompiledPolytope, where: str = "") -> None:
        """Say once what the rule has to say of a polytope."""
        remark = None if self._remarked else rule.remark(compiled)
        if remark is not None:
            self._remarked = True
            warn_caller(remark + where)

    def sizes_of(self, sizes: Any, scores: Tensor) -> tuple[Int64[Tensor, "instances k"], torch.Size]:
        """For a family: one row of sizes per instance, and the shape of the batch, from what was given."""
        family = self._family
        if family is None:
            raise TypeError("sizes= is for layers over a Family; this layer has one polytope")

        takes = partial(self._takes.get, make=family.takes)
        return size_table(sizes, scores, takes, lambda size: len(self.compiled(size).shape))

    @property
    def family(self) -> Family | None:
        """The family that the layer is over, None for a single polytope."""
        return self._family

    def compiled(self, *size: int) -> CompiledPolytope:
        """The compiled polytope; of a family, the one for a size."""
        family = self._family
        if family is None:
            if size or self._only is None:
                raise TypeError("a layer over one polytope has one size; call compiled() without arguments")
            return self._only
        declared = self._compiled_elsewhere or partial(compiled_of_size, family, self._maximizer, self._projector)
        compiled = declared(*size)
        self._rule_of(compiled, size)  # which may refuse it
        return compiled

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
        if torch.compiler.is_compiling():  # solves cannot be traced: a break in the graph
            return torch.compiler.disable(self.forward)(  # type: ignore[no-any-return, no-untyped-call]
                scores, sizes=sizes, objective=objective, generator=generator, **parameters
            )
        if objective is not None:
            return self._losses(scores, sizes, objective, generator, parameters)
        if self._works_with_losses is not None:
            raise TypeError(
                f"{self._works_with_losses} works with losses: call layer(scores, objective=f), where f takes "
                "structures and gives one loss per instance"
            )
        call, tensors = self._call(scores, sizes, generator, parameters)
        if torch._C._are_functorch_transforms_active():
            return applied(call, *tensors)
        return Plain.apply(call, *tensors)  # type: ignore[no-any-return, no-untyped-call]

    @property
    def _works_with_losses(self) -> str | None:
        """What of the layer needs an objective, None for nothing."""
        if self.rule.needs_objective:
            return repr(self.rule)
        return 'gradient_unit="loss"' if self.gradient_unit == "loss" else None

    def _refuse_without_losses(self, method: str) -> None:
        if self._works_with_losses is not None:
            raise TypeError(f"{self._works_with_losses} works with losses, which {method}() does not take")

    def _losses(
        self,
        scores: Tensor,
        sizes: Any,
        objective: Callable[[Tensor], Tensor],
        generator: torch.Generator | None,
        parameters: Mapping[str, Any],
    ) -> Tensor:
        transformed = transforms_active()
        if transformed and self._works_with_losses is not None:
            raise NotImplementedError(
                f"{self._works_with_losses} works with losses and cannot be transformed by torch.func (vmap, grad, "
                "...); use backward() or torch.autograd.grad, and give the layer the whole batch"
            )
        batch = self._batch(scores, sizes)
        recorded = Objective(objective, batch, scores)
        call, tensors = self._call(scores, sizes, generator, parameters, None if transformed else recorded)
        structures = applied(call, *tensors)
        return recorded.mean(structures, self.rule.apart) if transformed else recorded(structures, self.rule.apart)

    def _batch(self, scores: Tensor, sizes: Any) -> torch.Size:
        check_scores(scores)
        return batch_of(scores, self.compiled().shape) if self._family is None else self.sizes_of(sizes, scores)[1]

    def _call(
        self,
        scores: Tensor,
        sizes: Any,
        generator: torch.Generator | None,
        parameters: Mapping[str, Any],
        objective: Objective | None = None,
        *,
        retained: bool = False,
    ) -> tuple[LayerCall, Sequence[Tensor]]:
        """A call, and its tensors; ``retained`` whether what it finds is looked at."""
        if generator is not None:
            check_generator(generator)
        batch, tensors, shares = self.shares(scores, sizes, parameters)
        state, recorded, parts = self._state() if self._buffers else NO_STATE, torch.is_grad_enabled(), []
        for share in shares:
            entries, needs_gradient, flat = share.entries, recorded and scores.requires_grad, None
            waiting: tuple[str, ...] = ()
            rule = self.rule if self._only is not None else self._rule_of(share.compiled, share.size)
            if recorded and not entries.alone:
                wishes = [t.requires_grad for t in tensors[share.named]]
                needs_gradient |= any(wishes)
                ask = zip(entries.parameters, wishes[len(entries.auxiliaries) :], strict=True)
                waiting = tuple(spec.name for spec, wish in ask if wish)
                if waiting and rule.differentiates_parameters is False:
                    self._warn_of_no_gradient(waiting)
            if objective is not None:
                flat = FlatObjective(objective, share.rows, share.corner, entries.shape, share.home)
            retained |= needs_gradient
            context = Context(generator, state, flat, needs_gradient, bool(waiting))
            parts.append(Part(share, rule, context, waiting, self.gradient_unit))
        if retained and len(tensors) > 1:  # autograd does not save what was made for inference
            tensors = [t.clone() if t.is_inference() else t for t in tensors]
        padded, warn = scores.shape[len(batch) :], self._warn_of_no_gradient
        return LayerCall(parts, batch, padded, self.rule.apart, self.on_failure, retained, warn), tensors

    def shares(
        self, scores: Tensor, sizes: Any, parameters: Mapping[str, Any], name: str = "scores"
    ) -> tuple[torch.Size, Sequence[Tensor], Sequence[Share]]:
        """The shape of a batch, its tensors (scores, then what is given by name, for each polytope), and its polytopes.

        What does not fit is refused; nobody has looked at the numbers.
        """
        if self._only is not None:
            if sizes is not None:
                check_scores(scores, name)
                raise TypeError("sizes= is for layers over a Family; this layer has one polytope")
            compiled = self._only
            arrived = compiled.entries.arrive(scores, parameters, name)
            home = CPU if scores.is_cpu else compiled.home(scores.device)
            return (
                arrived.batch,
                arrived.tensors,
                (Share(compiled, compiled.entries, arrived.batch, home, arrived.once),),
            )
        check_scores(scores, name)
        table, batch = self.sizes_of(sizes, scores)
        padded, tensors, shares = scores.shape[len(batch) :], [scores], []
        rounded = table if self._family is None else self._family.rounded(table)
        for size, rows in rows_by_size(rounded):
            if 0 in size:
                continue
            whose, own = named_instance(rows, batch), None if rounded is table else table[rows]
            compiled, beyond, accept = self._compiled_for(size, own, whose), None, None
            entries, count = compiled.entries, torch.Size([len(rows)])
            if own is None:
                place = corner(compiled.shape, padded, size, whose)
            else:
                place, beyond, accept = self._beyond(compiled, size, own, rows, padded, batch)
            specs: list[ParameterSpec | ScoredSpec] = [*entries.parameters, *entries.auxiliaries]
            mine = named_corners(specs, parameters, rows, batch, size) if parameters else parameters
            try:
                named, once = entries.arrive_named(mine, count)
            except TypeError as error:
                raise TypeError(f"{error}; {self._declared_otherwise(size, rounded, whose)}") from error
            span = slice(len(tensors), len(tensors) + len(named))
            tensors += named
            home = CPU if scores.is_cpu else compiled.home(scores.device)
            shares.append(
                Share(compiled, entries, count, home, once, span, rows, place, batch, size, beyond, own, accept)
            )
        if not shares:  # no polytope says what is scored; what wants a gradient gets 0
            tensors += [value for value in parameters.values() if isinstance(value, Tensor) and value.requires_grad]
        return batch, tensors, shares

    def _compiled_for(self, size: tuple[int, ...], own: Tensor | None, whose: str) -> CompiledPolytope:
        """The polytope of some instances, whose ``own`` sizes may have been rounded up."""
        try:
            return self.compiled(*size)
        except Exception as error:
            if own is None or size in {tuple(row) for row in own.tolist()}:
                raise
            raise ValueError(
                f"{error}; that is for {whose}, whose size {named_size(own[0].tolist())} was rounded up to "
                f"{named_size(size)}: leave round_to out, or give the factory a larger limit"
            ) from error

    def _declared_otherwise(self, size: tuple[int, ...], table: Tensor, whose: str) -> str:
        """What is declared for the instances that something given by name does not fit."""
        said = f"so the declaration of size {named_size(size)} says, which {whose} has"
        for other, _ in rows_by_size(table):
            names = [
                [spec.name for spec in self.compiled(*of).entries.parameters] for of in (size, other) if 0 not in of
            ]
            if len(names) == 2 and set(names[0]) != set(names[1]):
                return (
                    f"{said}: its parameters are {names[0]}, and those of size {named_size(other)} {names[1]}, but all "
                    "instances are given the same ones: declare the same parameters at all sizes of the family"
                )
        return said

    def _beyond(
        self,
        compiled: CompiledPolytope,
        size: tuple[int, ...],
        table: Tensor,
        rows: Tensor,
        padded: torch.Size,
        batch: torch.Size,
    ) -> tuple[tuple[slice, ...], Tensor | None, Callable[[Tensor, Share], None]]:
        """For instances whose sizes are rounded up to ``size``: what they take together of their padded shape, the
        parts of the polytope that each of them does not have, and what refuses parameters."""
        family = self._family
        assert family is not None
        if compiled.entries.auxiliaries:
            raise NotImplementedError(
                "round_to is for families without scored auxiliary variables, whose padding has no fixed place"
            )
        beyond, rounding = torch.ones(len(rows), *compiled.shape, dtype=torch.bool, device="cpu"), []
        for own, mine in rows_by_size(table):
            whose = named_instance(rows[mine], batch)
            place: tuple[Any, ...] = corner(family.shape_of(*own), padded, own, whose)
            beyond[(mine, *place)] = False
            if own != size:
                same = sameness(family, self._maximizer, self._projector, own, size, whose)
                if not compiled.entries.parameters:
                    same.refuse_other_answers(torch.zeros(1, 0, dtype=torch.float64, device="cpu"), whose)
                rounding.append(same)
        together = tuple(slice(0, min(have, need)) for have, need in zip(padded, compiled.shape, strict=True))
        return together, beyond, partial(_accept, tuple(rounding))

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
        self._refuse_without_losses("lifted")
        check_scores(scores)
        if transforms_active():
            raise NotImplementedError(
                "lifted() cannot be transformed by torch.func (vmap, grad, ...): call the layer itself, or lifted() "
                "outside of transforms with the whole batch"
            )
        call, tensors = self._call(scores, sizes, generator, parameters, retained=True)
        value = applied(call, *tensors)
        return value, self._auxiliaries(call, scores, parameters)

    def _auxiliaries(self, call: LayerCall, scores: Tensor, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
        """The values of scored auxiliary variables by name, as :meth:`lifted` gives them."""
        apart = () if self.rule.apart is None else (self.rule.apart,)
        flat: dict[str, Tensor] = {}
        for part in call.parts:
            solution = part.verdict
            for spec in part.share.entries.auxiliaries:
                mine = solution.value[..., spec.span]
                if not solution.all_ok:
                    mine = mine.masked_fill(~solution.ok[:, None], torch.nan)
                mine = mine.reshape(*mine.shape[:-1], *spec.shape).to(scores.device, scores.dtype)
                given = parameters[spec.name]
                padded = given.shape[given.ndim - len(spec.shape) :]
                whole = flat.setdefault(spec.name, mine.new_zeros(*apart, math.prod(call.batch), *padded))
                rows = slice(None) if part.share.rows is None else part.share.rows_on(whole)
                whole[(..., rows, *(slice(0, length) for length in spec.shape))] = mine
        first = len(apart) + 1
        return {n: whole.reshape((*apart, *call.batch, *whole.shape[first:])) for n, whole in flat.items()}

    @outside_graphs
    def solve(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        *,
        sizes: Any = None,
        generator: torch.Generator | None = None,
        **parameters: Any,
    ) -> Solution:
        """The structures of a forward pass with their verdicts, and their gradient.

        Where the rule's answer is a mixture of vertices (:class:`SparseMAP` over :class:`ActiveSet`), the solution has
        ``vertices`` and ``weights``, and the weights have a gradient too: a model can take an expectation over the few
        structures that are selected. Solutions of a family, whose instances have different polytopes, have none. An
        instance of size 0 is solved: residual and gap are 0.

        Arguments and errors are those of :meth:`forward`, without an objective.
        """
        check_scores(scores)
        if transforms_active():
            raise NotImplementedError(
                "solve() gives verdicts, which are numbers, and cannot be transformed by torch.func (vmap, grad, ...); "
                "call the layer itself, or solve() outside of transforms with the whole batch"
            )
        if self.rule.apart is None:
            self._refuse_without_losses("solve")
        else:
            raise TypeError(f"solve() gives one structure per instance, but {self.rule!r} gives {self.rule.apart}")
        call, tensors = self._call(scores, sizes, generator, parameters, retained=True)
        if self._family is not None:
            return self._by_size(call, applied(call, *tensors), self._auxiliaries(call, scores, parameters))
        value, (part,), batch = applied(call, *tensors), call.parts, call.batch
        flat, entries = part.verdict, part.share.entries
        shaped = solution_of(entries, flat, batch, scores)
        verdicts = {name: getattr(shaped, name).clone() for name in ("status", "primal_residual", "gap")}
        shaped = replace(shaped, value=value, **verdicts)
        decomposition = None if flat.evidence is None else flat.evidence.decomposition
        if decomposition is None:
            return shaped
        vector, _ = entries.packed_with_graph(tensors, batch, CPU, None)
        vector = torch.where(torch.isneginf(vector), 0.0, vector)
        vertices, weights = differentiable_weights(decomposition, vector, entries.structure_size)
        most = weights.shape[1]
        structures = vertices[:, :, : entries.structure_size].reshape((*batch, most, *entries.shape))
        structures = structures.to(value.device, value.dtype, copy=True)
        return replace(shaped, mixture=(structures, weights.reshape(*batch, most).to(value)))

    @staticmethod
    def _by_size(call: LayerCall, value: Tensor, auxiliaries: dict[str, Tensor]) -> Solution:
        """The verdicts of a batch of several sizes, together."""
        count, words, reasons = math.prod(call.batch), [], dict[int, str]()
        status = torch.zeros(count, dtype=torch.int8, device=value.device)
        residual = torch.zeros(count, dtype=torch.float64, device=value.device)
        gap = torch.zeros_like(residual)
        for part in call.parts:
            found, rows = part.verdict, part.share.rows_on(status)
            for whole, mine in ((status, found.status), (residual, found.primal_residual), (gap, found.gap)):
                whole[rows] = mine.to(whole)
            places = rows.tolist()
            reasons |= {places[k]: reason for k, reason in found.reasons.items()}
            words += [found.word] if found.word is not None else []
        status, residual, gap = (part.reshape(call.batch) for part in (status, residual, gap))
        word = "; ".join(dict.fromkeys(words)) or None
        return Solution(value, status, residual, gap, reasons, scored=auxiliaries, word=word)

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

    def extra_repr(self) -> str:
        what = self._family if self._family is not None else self.compiled().polytope
        unit = "" if self.gradient_unit is None else f", gradient_unit={self.gradient_unit!r}"
        return f"{what!r}, {self.rule!r}, on_failure={self.on_failure!r}{unit}"


def _accept(rounding: Sequence[Sameness], theta: Tensor, share: Share) -> None:
    """Refuse parameters of instances for which sizes that are rounded up have other answers."""
    own = share.own
    assert own is not None
    for same in rounding:
        mine = torch.nonzero((own == torch.tensor(same.size, device="cpu")).all(dim=1))[:, 0]
        index = share.index(int(mine[0]))
        whose = f"instance {index[0] if len(index) == 1 else index}" if index else "the instance"
        same.refuse_other_answers(theta[mine.to(theta.device)], whose)
