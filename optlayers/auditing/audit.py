"""Whether gradients point anywhere: rules, a loss, and how the loss really changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from optlayers.auditing.estimate import Estimate
from optlayers.auditing.findings import Findings, Steps, compare, name_of, steps_along
from optlayers.auditing.mixed_losses import refuse_mixed_losses
from optlayers.auditing.passes import passes_through
from optlayers.auditing.problem import Problem
from optlayers.auditing.report import GradientAudit
from optlayers.auditing.truth import directions_of, own_gradient, smoothed_gradient
from optlayers.bound.base import AbstractBoundPolytope
from optlayers.calls.call_part import GradientUnit
from optlayers.common.modes import transforms_active
from optlayers.common.progress import bar
from optlayers.common.tensors import check_generator, check_scores
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.family import Family
from optlayers.form.standard import DeclarationError
from optlayers.layer import OptLayer
from optlayers.polytope import Polytope
from optlayers.rules.base import AbstractRule, AbstractVertexRule, Context, Gradient
from optlayers.rules.hyperparameters import positive
from optlayers.solution import SolveError

__all__ = ["audit"]

Rules = AbstractRule | Iterable[AbstractRule] | Mapping[str, AbstractRule]
CLEAR, NEARLY = 0.5, 1.2
"""Where there is one number, the truth is that of the smallest scale whose error is at most this part of it, or so many
times that of the clearest scale."""
IN_PLAIN_WORDS = (TypeError, ValueError, NotImplementedError, SolveError, DeclarationError)


def audit(
    rules: Rules,
    polytope: Polytope | CompiledPolytope | Family | OptLayer,
    objective: Callable[[Tensor], Tensor],
    scores: Float[Tensor, "*batch_and_shape"],
    *,
    samples: int = 256,
    scales: Sequence[float] = (0.1, 0.3, 1.0),
    steps: Sequence[float] = (0.1, 0.3, 1.0),
    relative: bool = True,
    runs: int = 8,
    reduction: Literal["sum", "mean"] = "sum",
    gradient_unit: GradientUnit = None,
    sizes: Any = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **parameters: Any,
) -> GradientAudit:
    r"""Whether the gradients of rules point anywhere: they are compared with how the loss really changes.

    A loss of best vertices :math:`L(\hat z(s))` is a step function of the scores, without a derivative that says
    anything; the gradients of rules stand in its place. What they stand for can be measured. The loss under noise has a
    gradient,

    .. math:: \nabla_s \, \mathbb E[L(\hat z(s + \sigma Z))] = \mathbb E[L(\hat z(s + \sigma Z)) \, Z] / \sigma,

    which is estimated without bias from pairs of Z and -Z for several σ, with its standard error; and a step against a
    gradient lowers the loss, or does not. Losses need no derivative for that. Whatever goes forward under a rule, it is
    compared with the loss of best vertices; rules that are the derivative of a smooth forward map
    (:class:`SparseMAP`, :class:`StructuredAttention`, :class:`Regularized`) are also compared with the gradient of
    their own loss, by differences.

    Cosines are over all instances of the batch together, and are corrected for the error of the truth, which would make
    them smaller; the error that they are given with is that of the samples and of the draws of a rule, not that of
    another batch. A rule that the polytope lacks something for is skipped, with the reason.

    Parameters
    ----------
    rules : one or several, or a mapping of names to rules. Rules that adapt (:class:`AdaptiveIMLE`,
        ``Spigot(AdaptiveStep())``) do so in 20 passes first.
    polytope : a :class:`Polytope`, a compiled one, a :class:`Family` (give ``sizes=``), or an :class:`OptLayer`, of
        which the polytope, the solvers and the ``gradient_unit`` are taken.
    objective : from structures ``(*batch, *shape)`` to one loss per instance, ``(*batch,)``, each of its own structure
        alone, the same for the same structures (switch dropout off). It is called for every sample of every scale, and
        a few times before with the structures of some instances exchanged, whether the losses of the others stay.
    scores : ``(*batch, *shape)``; -inf forbids a part. They alone are moved: scores of auxiliary variables, given by
        name, stay as they are.
    samples : how many noises for each scale, an even number from 8 on; half of them are the negatives of others. So
        many best vertices of every instance are found, for each scale.
    scales : σ, in units of the spread of an instance's scores: of the standard deviation over the parts that can move.
    steps : lengths of steps against gradients. A step of length t is as long as noise of scale t.
    relative : False takes scales and steps as they are, without the spread.
    runs : how many passes of a rule that draws, at least 3.
    reduction : ``"sum"`` or ``"mean"``: how losses of instances are added up in training. Under a mean the gradients
        that come to a rule shrink with the batch; what it sends back is multiplied by the batch again here.
    gradient_unit : that of :class:`OptLayer`.
    sizes, parameters : see :meth:`OptLayer.forward`. Parameters get no gradient here. One that belongs to a rule goes
        to that rule.
    generator : what all random numbers are drawn from; by default torch's own. What is drawn for a rule does not depend
        on the other rules.
    progress : whether to show a bar, in a notebook or on standard error, there by rich (``optlayers[report]``).

    Returns
    -------
    GradientAudit : ``print`` it; it has ``findings`` by rule, ``advice``, ``to_dict()`` and ``plot()``.

    Raises
    ------
    SolveError : an instance without a best vertex.
    TypeError, ValueError : no rules, arguments out of range, a set that is not polyhedral and has no vertices, losses
        that are not one for each instance, that change with the structures of other instances, or that are not finite,
        and what :meth:`OptLayer.forward` refuses.

    References
    ----------
    Berthet, Blondel, Teboul, Cuturi, Vert and Bach (2020), Learning with differentiable perturbed optimizers, NeurIPS.
    Glasserman (2003), Monte Carlo methods in financial engineering, chapters 4 and 7 (antithetic pairs, scores).

    Examples
    --------
    >>> import torch
    >>> from optlayers import Pipeline, SparseMAP
    >>> from polytopes import simplex
    >>> generator = torch.Generator().manual_seed(0)
    >>> cost, scores = torch.tensor([0.0, 1.0, 3.0]), torch.randn(16, 3, generator=generator)
    >>> found = audit([Pipeline(), SparseMAP()], simplex(3), lambda z: z @ cost, scores, generator=generator)
    >>> found["Pipeline()"].zero, round(found["SparseMAP()"].own.value, 2)
    (1.0, 1.0)
    >>> print(*(line for line in found.advice if line.startswith("Pipeline")))
    Pipeline() sends nothing back: its gradient is 0 in all instances.
    """
    if transforms_active():
        raise NotImplementedError("audit() cannot be transformed by torch.func (vmap, grad, ...): call it outside")
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return audit(
                rules, polytope, objective, scores, samples=samples, scales=scales, steps=steps, relative=relative,
                runs=runs, reduction=reduction, gradient_unit=gradient_unit, sizes=sizes, generator=generator,
                progress=progress, **parameters,
            )  # fmt: skip
    named = _named(rules)
    _check(objective, samples, scales, steps, runs, reduction, relative, gradient_unit)
    check_scores(scores)
    if generator is not None:
        check_generator(generator)
    if isinstance(polytope, OptLayer):
        gradient_unit = polytope.gradient_unit if gradient_unit is None else gradient_unit
    home = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (2,), generator=generator, device=home).tolist()
    parameters = {name: v.detach() if isinstance(v, Tensor) else v for name, v in parameters.items()}
    theirs = {p.name() for rule in named.values() for p in rule.parameters}
    theirs -= _declared(polytope)
    for_polytope = {name: value for name, value in parameters.items() if name not in theirs}

    problem = Problem.of(_layer(polytope, _BestVertices(), None), objective, scores, sizes, for_polytope)
    refuse_mixed_losses(problem)
    drawn = torch.Generator().manual_seed(seeds[0])
    unit = problem.spread if relative else torch.ones_like(problem.spread)
    with _bar(progress, len(scales) + len(named)) as advance:
        directions = directions_of(problem, samples // 2, drawn)
        truths: dict[float, Estimate] = {}
        for scale in sorted(float(scale) for scale in scales):
            truths[scale] = smoothed_gradient(problem, directions, scale * unit)
            advance()
        chosen = _chosen(truths)
        lengths = {t: t * unit * problem.root for t in sorted(float(t) for t in steps)}
        everyone = torch.ones(problem.count, dtype=torch.bool)
        references: dict[str, Mapping[float, Steps]] = {}
        if chosen is not None:
            references["smoothed gradient"] = steps_along(problem, truths[chosen].mean[None], everyone, lengths)
        anywhere = directions_of(problem, runs, drawn).to(torch.float64)
        references["random direction"] = steps_along(problem, anywhere, everyone, lengths)
        findings = {}
        for name, rule in named.items():
            mine = {p.name() for p in rule.parameters}
            given = {n: value for n, value in parameters.items() if n not in theirs or n in mine}
            weight = 1.0 if reduction == "sum" else 1.0 / problem.count
            try:
                layer = _layer(polytope, rule, gradient_unit)
                passes = passes_through(layer, problem, given, weight, runs, seeds[1])
                own = None
                if not rule.maximizes and not rule.draws and not rule.needs_objective:
                    own = own_gradient(problem, _layer(polytope, rule, None), given, directions)
                taken = steps_along(problem, passes.sent.gradients, ~passes.failed, lengths)
                findings[name] = compare(name, layer, passes, truths, chosen, own, taken)
            except Exception as error:  # a rule of the user's may raise anything; the others are looked at all the same
                kind = "" if isinstance(error, IN_PLAIN_WORDS) else f"{type(error).__name__}: "
                findings[name] = Findings(name, rule, skipped=f"{kind}{error}")
            advance()
    return GradientAudit(findings, truths, chosen, references, problem.count, samples)


def _named(rules: Rules) -> dict[str, AbstractRule]:
    """The rules by the names that the table has."""
    if isinstance(rules, Mapping):
        pairs = [(str(name), rule) for name, rule in rules.items()]
    elif isinstance(rules, (AbstractRule, type)) or not isinstance(rules, Iterable):
        pairs = [("", rules)]
    else:
        pairs = [("", rule) for rule in rules]
    if not pairs:
        raise ValueError("there are no rules to audit: give one, such as Spigot(), or several")
    named: dict[str, AbstractRule] = {}
    for name, rule in pairs:
        if not isinstance(rule, AbstractRule):
            hint = f"; make it a value: {rule.__name__}()" if isinstance(rule, type) else ""
            raise TypeError(f"rules are backward rules such as Spigot(), but one is {rule!r}{hint}")
        plain = name or name_of(rule)
        unique, number = plain, 1
        while unique in named:
            number += 1
            unique = f"{plain} #{number}"
        named[unique] = rule
    return named


def _check(
    objective: Any, samples: Any, scales: Any, steps: Any, runs: Any, reduction: Any, relative: Any, unit: Any
) -> None:
    if not callable(objective):
        raise TypeError(f"objective must be a function of structures, but got {type(objective).__name__}")
    if not isinstance(samples, int) or isinstance(samples, bool):
        raise TypeError(f"samples must be an int, but got {samples!r}")
    if samples < 8 or samples % 2:
        raise ValueError(f"samples come in pairs: an even number from 8 on, but got {samples}")
    if not isinstance(runs, int) or isinstance(runs, bool):
        raise TypeError(f"runs must be an int, but got {runs!r}")
    if runs < 3:
        raise ValueError(f"runs must be at least 3, as the variance of a rule is told from them, but got {runs}")
    if not isinstance(relative, bool):
        raise TypeError(f"relative must be True or False, but got {relative!r}")
    if unit not in (None, "norm", "loss"):
        raise ValueError(f'gradient_unit is "norm", "loss" or None, but got {unit!r}')
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction is "sum" or "mean", but got {reduction!r}')
    for name, values in (("scales", scales), ("steps", steps)):
        try:
            several = list(values)
        except TypeError:
            raise TypeError(f"{name} must be several numbers, such as (0.1, 1.0), but got {values!r}") from None
        for value in several:
            positive(**{f"every one of {name}": value})
        if not several or len(set(several)) < len(several):
            raise ValueError(f"{name} must be different numbers, at least one, but got {values!r}")


def _declared(polytope: Polytope | CompiledPolytope | Family | OptLayer) -> set[str]:
    """The names of parameters that the polytope has without any rule; of a family these are not known."""
    if isinstance(polytope, OptLayer):
        if polytope.family is not None:
            return set()
        polytope = polytope.compiled()
    if isinstance(polytope, CompiledPolytope):
        polytope = polytope.polytope
    return {p.name() for p in polytope.parameters} if isinstance(polytope, Polytope) else set()


def _layer(
    polytope: Polytope | CompiledPolytope | Family | OptLayer, rule: AbstractRule, unit: GradientUnit
) -> OptLayer:
    """A layer with a rule, whose failures are NaN."""
    if not isinstance(polytope, OptLayer):
        layer = OptLayer(polytope, rule, gradient_unit=unit)
    else:
        layer = polytope.with_rule(rule)
        layer.gradient_unit = unit
        layer.on_failure = "raise"
    return layer if isinstance(rule, _BestVertices) else layer.with_failures_as_nan()


@final
@dataclass(frozen=True)
class _BestVertices(AbstractVertexRule):
    """What all rules are compared with: best vertices, without a gradient."""

    takes_any_gradient = True
    differentiates_parameters = False

    def check(self, compiled: CompiledPolytope) -> None:
        """Raise ValueError for a set without vertices."""
        if not compiled.has_vertices:
            raise ValueError(
                "audit() compares rules with how the loss of best vertices changes, but the declared set is not "
                "polyhedral and has no vertices. Its nearest points have a derivative that is exact where they are "
                "differentiable, as in SparseMAP(): there is no gradient in its place to audit"
            )

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """Zero, whatever arrives."""
        return Gradient(torch.zeros_like(grad))


def _chosen(truths: Mapping[float, Estimate]) -> float | None:
    """The smallest scale whose truth is clear, or nearly as clear as any; None where none is told from noise."""
    resolved = {scale: truth.relative_error for scale, truth in truths.items() if truth.resolved}
    enough = max(CLEAR, NEARLY * min(resolved.values(), default=0.0))
    return min((scale for scale, error in resolved.items() if error <= enough), default=None)


@contextmanager
def _bar(wanted: bool, total: int) -> Iterator[Callable[[], None]]:
    """What is called after each of so many pieces of work."""
    shown, done = bar(total, "audit", asked=True) if wanted else None, itertools.count(1)
    try:
        yield lambda: None if shown is None else shown.show(next(done), "audit")
    finally:
        if shown is not None:
            shown.close()
