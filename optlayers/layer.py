"""OptLayer, over one polytope or a family of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from optlayers.autograd.differentiate import Plain, applied
from optlayers.batch.shares import Shares
from optlayers.batch.sizes import named_size
from optlayers.batch.source import Source, beside
from optlayers.calls.call_part import GradientUnit, OnFailure, Part
from optlayers.calls.call_solution import auxiliaries_of, solution_of_call
from optlayers.calls.layer_call import LayerCall
from optlayers.common.caches import Cache
from optlayers.common.modes import outside_graphs, outside_inference_mode, transforms_active
from optlayers.common.pages import facts, heading, page, sentence, told
from optlayers.common.tensors import check_generator
from optlayers.common.warn import warn_caller
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.family import Family
from optlayers.gibbs.distribution import Gibbs
from optlayers.polytope import Polytope
from optlayers.rules.base import AbstractRule, Context
from optlayers.rules.objective import FlatObjective, Objective
from optlayers.solution import Solution
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector

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
            raise ValueError(
                f'on_failure is "raise" or "nan", but got {on_failure!r}; Elastic(layer) answers infeasible instances '
                "by points of least violation"
            )
        if gradient_unit not in (None, "norm", "loss"):
            raise ValueError(f'gradient_unit is "norm", "loss" or None, but got {gradient_unit!r}')
        if gradient_unit == "norm" and rule.needs_objective:
            raise ValueError(
                f"{rule!r} takes gradients of the loss at other points than the one that arrives, whose norm says "
                'nothing of theirs: give gradient_unit="loss"'
            )
        self.rule = rule
        self.on_failure: OnFailure = on_failure
        self.gradient_unit: GradientUnit = gradient_unit
        self._source = Source(beside(polytope, rule.parameters), maximizer, projector)
        self._rules: Cache[tuple[int, ...], AbstractRule] = Cache(self.family.cache_size if self.family else 1)
        self._warned = self._remarked = False
        with outside_inference_mode():
            state = rule.initial_state()
        for name, value in state.items():
            self.register_buffer(f"rule_{name}", value)
        if self._source.only is not None:
            rule.check(self._source.only)
            self._remark(rule, self._source.only)

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
        family = self.family
        if family is None:
            return OptLayer(self.compiled(), rule, on_failure=self.on_failure, gradient_unit=self.gradient_unit)
        other = OptLayer(family, rule, on_failure=self.on_failure, gradient_unit=self.gradient_unit)
        other._source = self._source
        return other

    def with_failures_as_nan(self) -> OptLayer:
        """This layer with ``on_failure="nan"``, over the same polytopes and with the same buffers."""
        if self.on_failure == "nan":
            return self
        other = copy.copy(self)
        other.on_failure = "nan"
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
        return self._source.sizes_of(sizes, scores, self.compiled)

    @property
    def family(self) -> Family | None:
        """The family that the layer is over, None for a single polytope."""
        return self._source.family

    def compiled(self, *size: int) -> CompiledPolytope:
        """The compiled polytope; of a family, the one for a size."""
        compiled = self._source.compiled(*size)
        if self._source.only is not None:
            return compiled
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
        call, tensors = self._call(self.shares(scores, sizes, parameters), generator)
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
        arrived = self.shares(scores, sizes, parameters)
        recorded = Objective(objective, arrived[0].batch, scores)
        call, tensors = self._call(arrived, generator, None if transformed else recorded)
        structures = applied(call, *tensors)
        return recorded.mean(structures, self.rule.apart) if transformed else recorded(structures, self.rule.apart)

    def _call(
        self,
        arrived: tuple[Shares, Sequence[Tensor]],
        generator: torch.Generator | None,
        objective: Objective | None = None,
        *,
        retained: bool = False,
    ) -> tuple[LayerCall, Sequence[Tensor]]:
        """A call of what :meth:`shares` gives, and its tensors; ``retained`` whether what it finds is looked at."""
        if generator is not None:
            check_generator(generator)
        (shares, tensors), scores = arrived, arrived[1][0]
        state, recorded, parts = self._state() if self._buffers else NO_STATE, torch.is_grad_enabled(), []
        for share in shares.every:
            entries, needs_gradient, flat = share.entries, recorded and scores.requires_grad, None
            waiting: tuple[str, ...] = ()
            rule = self.rule if self._source.only is not None else self._rule_of(share.compiled, share.size)
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
        warn = self._warn_of_no_gradient
        return LayerCall(parts, shares, self.rule.apart, self.on_failure, retained, warn), tensors

    def shares(
        self, scores: Tensor, sizes: Any, parameters: Mapping[str, Any], name: str = "scores"
    ) -> tuple[Shares, Sequence[Tensor]]:
        """A batch split among its polytopes, and its tensors: scores, then what is given by name, for each polytope.

        What does not fit is refused; nobody has looked at the numbers.
        """
        return self._source.shares(scores, sizes, parameters, name, self.compiled)

    def distribution(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        *,
        sizes: Any = None,
        temperature: float | Tensor = 1.0,
        validate_args: bool | None = None,
        **parameters: Any,
    ) -> Gibbs:
        """The Gibbs distribution over structures for a batch of scores: probabilities, samples, the k best, entropy.

        Whatever the rule, it is that of :class:`Gibbs` over the polytopes and with the solvers of this layer, which has
        these arguments; what happens to instances without an answer is said by the ``on_failure`` of the layer.
        """
        return Gibbs(
            self._source,
            scores,
            temperature=temperature,
            sizes=sizes,
            on_failure=self.on_failure,
            validate_args=validate_args,
            **parameters,
        )

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
        if transforms_active():
            raise NotImplementedError(
                "lifted() cannot be transformed by torch.func (vmap, grad, ...): call the layer itself, or lifted() "
                "outside of transforms with the whole batch"
            )
        call, tensors = self._call(self.shares(scores, sizes, parameters), generator, retained=True)
        value = applied(call, *tensors)
        return value, auxiliaries_of(call, scores, parameters)

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
        if transforms_active():
            raise NotImplementedError(
                "solve() gives verdicts, which are numbers, and cannot be transformed by torch.func (vmap, grad, ...); "
                "call the layer itself, or solve() outside of transforms with the whole batch"
            )
        if self.rule.apart is None:
            self._refuse_without_losses("solve")
        else:
            raise TypeError(f"solve() gives one structure per instance, but {self.rule!r} gives {self.rule.apart}")
        call, tensors = self._call(self.shares(scores, sizes, parameters), generator, retained=True)
        return solution_of_call(call, applied(call, *tensors), tensors, parameters)

    def _warn_of_no_gradient(self, parameters: Sequence[str]) -> None:
        """Say once that parameters which wait for a gradient get none from this rule."""
        if self._warned:
            return
        self._warned = True
        wants = "requires one, and gets none" if len(parameters) == 1 else "require one, and get none"
        warn_caller(
            f"{self.rule!r} has no gradient for parameters of the polytope: {', '.join(parameters)} {wants}. "
            "SparseMAP(), LPGD(strength) and Hard(SparseMAP()) have a gradient for parameters, and "
            f"WithParameters({self.rule!r}) has a surrogate; or pass "
            f"{parameters[0]}.detach()"
        )

    def _state(self) -> dict[str, Tensor]:
        return {name.removeprefix("rule_"): value for name, value in self._buffers.items() if value is not None}

    def extra_repr(self) -> str:
        what = self.family if self.family is not None else self.compiled().polytope
        unit = "" if self.gradient_unit is None else f", gradient_unit={self.gradient_unit!r}"
        return f"{what!r}, {self.rule!r}, on_failure={self.on_failure!r}{unit}"

    @page
    def _repr_html_(self) -> Iterator[str]:
        rule, source, only = self.rule, self._source, self._source.only
        yield heading(f"OptLayer with {type(rule).__name__}")
        solvers = (source.maximizer, source.projector) if only is None else (only.maximizer, only.projector)
        known = [("polytopes", told(source.family)) if only is None else ("polytope", told(only.polytope))]
        known += [(one.name, told(getattr(rule, one.name))) for one in _hyperparameters(rule)]
        known += [(f"{name}, now", told(value.tolist())) for name, value in self._state().items()]
        known += [
            ("best vertices by", told(solvers[0]) if solvers[0] else "what is chosen for each size"),
            ("projections by", told(solvers[1]) if solvers[1] else "what is chosen for each size"),
            ("on_failure", told(self.on_failure)),
            ("gradient_unit", told(self.gradient_unit) if self.gradient_unit else ""),
        ]
        yield facts(known)
        why = "layer.compiled()" if only is not None else "layer.compiled(size)"
        yield sentence(f"Why these solvers answer is said by {why}.explain().")


def _hyperparameters(rule: AbstractRule) -> Sequence[Field[Any]]:
    return [one for one in fields(rule) if one.init] if is_dataclass(rule) else []
