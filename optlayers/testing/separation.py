"""What a function that brings constraints on demand keeps: no structure is cut off, and everything else is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from optlayers.compilation.compiled import CompiledPolytope, compile_polytope
from optlayers.compiled_oracle import name_of
from optlayers.form.standard import DeclarationError
from optlayers.integer.diagram import TooWide
from optlayers.integer.program import NoIntegers
from optlayers.polytope import Polytope
from optlayers.solvers.diagram import diagrams_of
from optlayers.solvers.separation import Cut, Separation, SeparationError
from optlayers.sums.structure_sums import PathSums
from optlayers.testing.answers import in_a_row
from optlayers.testing.draws import draw, with_scores

__all__ = ["check_separation"]

CUT_OFF = 1e-7
"""A structure may violate an inequality by this much, relative to the size of its terms."""
AT_MOST = 5000
"""So many points of integers are looked at where structures are not given."""


def check_separation(
    polytope: Polytope,
    *,
    structures: ArrayLike | Tensor | Sequence[ArrayLike | Tensor] | None = None,
    samples: int = 24,
    seed: int = 0,
    **parameters: Any,
) -> None:
    """Hold the ``separate`` function of a declaration to all structures.

    It is asked about what linear programs and branch and bound over the constraints find best for random, tied, equal,
    large scores and scores of 0 and 1, again with every inequality that it returns, until it returns none; then about
    structures, mixtures of them, and points beside them. What it returns must have the right shapes, cut off the point,
    and be the same for the same point again; no structure may be cut off; and no answer may score more than the best
    structure.

    Parameters
    ----------
    polytope : a declaration with ``separate``.
    structures : all structures, or all vertices, ``(count, *shape)``; a tuple with the values of scored auxiliary
        variables behind them, if there are any. Where they are not given and variables are integers, they are the
        points of integers that satisfy the constraints and that the function returns nothing for, if these are at most
        5,000; otherwise the answers to all samples stand for them, and that answers score no more is not checked.
    samples : how many scores are tried.
    seed : of the random scores.
    parameters : one value for all samples per declared parameter, and scores of scored auxiliary variables, which are
        drawn where they are not given.

    Raises
    ------
    AssertionError : naming the function, and what is wrong with what it returns.
    TypeError : for a declaration without ``separate``.
    """
    if polytope.separate is None:
        raise TypeError("check_separation takes a declaration with Polytope(..., separate=...)")
    name = f"separate={name_of(polytope.separate)}"
    named = with_scores(polytope, parameters, seed)
    recorder = _Recorder(polytope)
    watched = _watched(polytope, recorder)
    try:
        compiled = compile_polytope(watched)
    except DeclarationError as error:
        recorder.refuse()
        if name not in str(error):
            raise
        raise AssertionError(f"{name} cuts off everything: {error}") from None
    theta = _theta(compiled, named)
    known = None if structures is None else _flat(polytope, structures)
    complete = known is not None
    if known is None:
        known = _accepted(compiled, recorder.separation, theta)
        complete = known is not None
    scores = draw(polytope.shape, samples, seed)
    some = torch.rand(scores.shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu") < 0.5
    scores[4::2] = some[4::2].to(torch.float64)  # odd sets and cycles are where constraints leave halves
    answers: list[np.ndarray] = []
    reasons: dict[int, str] = {}
    for k in range(samples):
        # Compiled anew, so that no sample has what another one has found.
        one = compile_polytope(watched).maximize(scores[k : k + 1], **named)
        answers.append(in_a_row(one.value, one.scored)[0].numpy())
        if not one.all_ok:
            reasons[k] = one.failures[0].reason
    recorder.refuse()
    for k, reason in reasons.items():
        raise AssertionError(f"{name}, on sample {k}: there is no answer: {reason}")
    points = np.stack(answers) if known is None else known
    _ask_around(recorder, points, theta, seed)
    recorder.refuse()
    for cut in recorder.cuts:
        violations = np.array([cut.violation(point) for point in points])
        worst = int(violations.argmax())
        assert violations[worst] <= CUT_OFF, (
            f"{name} returned an inequality that cuts off a structure, by {violations[worst]:.3g} next to its terms: "
            f"{_shown(points[worst])}"
        )
    if not complete:
        return
    asked = in_a_row(
        scores, {v.name(): torch.as_tensor(named[v.name()]).expand(samples, *v.shape) for v in polytope.scored}
    )
    for k, (mine, answer) in enumerate(zip(asked.numpy(), answers, strict=True)):
        best = float((points @ mine).max())
        more = float(mine @ answer) - best
        size = 1.0 + float(np.abs(mine * answer).sum())
        assert more <= 1e-7 * size, (
            f"{name}, on sample {k}: it returns nothing for a point that scores {more:.6g} more than the best "
            f"structure: {_shown(answer)}"
        )
        assert more >= -1e-7 * size, (
            f"{name}, on sample {k}: the answer scores {-more:.6g} less than the best structure"
        )


@final
class _Recorder:
    """A function that separates, asked twice, with all that it returned and all that was wrong with it."""

    def __init__(self, polytope: Polytope) -> None:
        self.separation = Separation(polytope)
        self.cuts: list[Cut] = []
        self.wrong: list[str] = []
        self.__name__ = name_of(self.separation.function)

    def __call__(self, *given: np.ndarray) -> list[tuple[Any, float]]:
        count = len(self.separation.shapes)
        point = np.concatenate([part.reshape(-1) for part in given[:count]])
        theta = np.concatenate([np.zeros(0), *(part.reshape(-1) for part in given[count:])])
        return [(self._shaped(cut), cut.bound) for cut in self.asked(point, theta)]

    def asked(self, point: np.ndarray, theta: np.ndarray) -> list[Cut]:
        """What it returns for a point."""
        try:
            first, second = self.separation.cuts(point, theta), self.separation.cuts(point, theta)
        except SeparationError as error:
            self.wrong.append(str(error))
            return []
        if [cut.key for cut in first] != [cut.key for cut in second]:
            self.wrong.append(f"{self.separation} returned different inequalities for the same point: {_shown(point)}")
        self.cuts += first
        return first

    def refuse(self) -> None:
        """Raise AssertionError for the first thing that was wrong."""
        assert not self.wrong, self.wrong[0]

    def _shaped(self, cut: Cut) -> Any:
        sizes = [int(np.prod(shape, dtype=int)) for shape in self.separation.shapes]
        flat = np.split(cut.coefficients, np.cumsum(sizes)[:-1])
        parts = tuple(part.reshape(shape) for part, shape in zip(flat, self.separation.shapes, strict=True))
        return parts if len(parts) > 1 else parts[0]


def _watched(polytope: Polytope, recorder: _Recorder) -> Polytope:
    return Polytope(
        polytope.variable, polytope.constraints, integral=polytope.integral, separate=recorder, scored=polytope.scored
    )


def _theta(compiled: CompiledPolytope, named: dict[str, Any]) -> np.ndarray:
    known = {spec.name for spec in compiled.projection_form.parameters}
    given = {name: value for name, value in named.items() if name in known}
    theta: np.ndarray = compiled.entries.theta(given, torch.Size([1])).numpy()[0]
    return theta


def _flat(polytope: Polytope, structures: Any) -> np.ndarray:
    """All structures, flat."""
    variables = (polytope.variable, *polytope.scored)
    parts = structures if len(variables) > 1 else (structures,)
    flat = []
    for part, variable in zip(parts, variables, strict=True):
        array = np.asarray(part, dtype=np.float64)
        if array.shape[1:] != tuple(variable.shape):
            raise ValueError(f"structures have shape {array.shape}, but must have shape (count, *{variable.shape})")
        flat.append(array.reshape(len(array), -1))
    return np.concatenate(flat, axis=1)


def _accepted(compiled: CompiledPolytope, separation: Separation, theta: np.ndarray) -> np.ndarray | None:
    """The points of integers that satisfy the constraints and that the function returns nothing for; None where these
    are too many, or variables are no integers."""
    form = compiled.forms.full
    if not form.integer.all():
        return None
    try:
        points = PathSums(diagrams_of(form, False).of(theta)).points(AT_MOST)
    except (TooWide, NoIntegers, ValueError):
        return None
    try:
        return np.array([point for point in points if not separation.cuts(point, theta)]).reshape(-1, form.size)
    except SeparationError:
        return None  # the samples will meet it, too


def _ask_around(recorder: _Recorder, points: np.ndarray, theta: np.ndarray, seed: int) -> None:
    """Ask about structures, mixtures of them, and points beyond them."""
    generator = np.random.default_rng(seed)
    some = points[generator.permutation(len(points))[:50]]
    mixtures = generator.dirichlet(np.ones(min(4, len(some))), 50)
    chosen = [generator.permutation(len(some))[: mixtures.shape[1]] for _ in mixtures]
    inside = np.stack([weights @ some[which] for weights, which in zip(mixtures, chosen, strict=True)])
    beyond = inside[:25] + 0.3 * (inside[:25] - inside[25:])
    for point in (*some, *inside, *beyond):
        recorder.asked(point, theta)


def _shown(point: np.ndarray) -> str:
    entries = np.flatnonzero(point)
    listed = ", ".join(f"{k}: {point[k]:.6g}" for k in entries[:20].tolist())
    return f"a point that is 0 but for the flat entries {{{listed}{', …' if len(entries) > 20 else ''}}}"
