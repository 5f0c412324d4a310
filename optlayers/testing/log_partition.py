"""What a log-partition function keeps: value, marginals and their derivative, wherever parts are forbidden."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.compilation.compiled import compile_polytope
from optlayers.compiled_oracle import name_of
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.sums.vertex_sums import log_weights
from optlayers.variables import name_given

__all__ = ["check_log_partition"]

BLOCKS = 100
"""So many forbidden parts, and so many forbidden blocks, are tried."""
VALUE, DERIVATIVE = 1e-9, 1e-6
"""Errors of values, relative to the scores of structures, and of derivatives."""
ALONE = 8
"""So many samples are asked about alone."""
SAFE = (
    "torch.logsumexp and torch.logaddexp have NaN for a derivative where all terms are -inf: use optlayers.log_sum and "
    "optlayers.log_add in their place, and subtract no -inf from -inf"
)


def check_log_partition(polytope: Polytope, *, samples: int = 24, seed: int = 0, **parameters: Any) -> None:
    """Hold the ``log_partition`` of a declaration to the sum over its vertices, which are enumerated.

    Its value, its gradient (the marginals) and its second derivative (their covariance, in a random direction) are
    compared: for scores that are random, tied, all equal, tiny and large (1e4 and -1e4, also side by side); with single
    parts forbidden by ``-inf``, whole blocks of them (all parts that share an index, or several), random ones, all that
    a structure does without, and all parts. The least number of float32, which masks often are, forbids as well. Where
    no structure is left, the value is ``-inf`` and derivatives are 0. It answers in float64, alike in batches of one
    and of many and beside an instance with other parameters, and leaves its arguments as they are.

    Parameters
    ----------
    polytope : a declaration with a ``log_partition``, small enough for its vertices to be enumerated.
    samples : how many random scores are tried.
    seed : of the random scores.
    parameters : one value for all samples per declared parameter.

    Raises
    ------
    AssertionError : naming the function, what was asked, and what to change.
    TypeError : for a declaration without a ``log_partition``.
    ValueError : when there are too many vertices; check the function at a smaller size.

    Examples
    --------
    >>> import cvxpy as cp, optlayers as ol, torch
    >>> x = cp.Variable((2, 2), nonneg=True)
    >>> nested = lambda scores: torch.logsumexp(torch.logsumexp(scores, -1), -1)
    >>> try:
    ...     check_log_partition(ol.Polytope(x, [cp.sum(x) == 1], log_partition=nested))
    ... except AssertionError as error:
    ...     print(str(error).partition(", but")[0])
    log_partition <lambda>, where variable[0, :] is forbidden: its gradient is NaN
    >>> safe = lambda scores: ol.log_sum(ol.log_sum(scores))
    >>> check_log_partition(ol.Polytope(x, [cp.sum(x) == 1], log_partition=safe))
    """
    if polytope.log_partition is None:
        raise TypeError("check_log_partition takes a declaration with one: Polytope(..., log_partition=...)")
    compiled = compile_polytope(polytope.without_oracle())
    form = compiled.projection_form
    theta = compiled.entries.theta(parameters, torch.Size([]))[0]
    vertices = torch.from_numpy(compiled.enumerated(theta.numpy()))
    asked = list(_questions(form, vertices, samples, seed))
    scores = torch.stack([one.scores for one in asked])
    direction = torch.randn(
        scores.shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu"
    )
    check = _Check(polytope, form, theta, vertices)
    total, gradient, turned = check.answers(asked, scores, direction)
    check.compare(asked, scores, direction, (total, gradient, turned))
    for k in np.linspace(0, len(asked) - 1, min(ALONE, len(asked))).astype(int).tolist():
        mine = slice(k, k + 1)
        alone = check.answers(asked[mine], scores[mine], direction[mine])
        for one, many, what in zip(alone, (total, gradient, turned), ("value", "gradient", "derivative"), strict=True):
            same = torch.equal(one[0].isneginf(), many[k].isneginf())
            size = 1.0 + many[k].nan_to_num(neginf=0.0).abs().max()
            assert same and bool(((one[0] - many[k]).nan_to_num(neginf=0.0).abs() <= 1e-8 * size).all()), (
                f"{check.name}, {asked[k].what}: its {what} depends on the rest of the batch; in a batch of one it is "
                f"{one[0].tolist()}, else {many[k].tolist()}"
            )
    if len(theta):
        check.own_parameters(scores[:ALONE], total[:ALONE])


@final
@dataclass(frozen=True)
class _Case:
    """A scored vector, and what is special about it."""

    scores: Float64[Tensor, " size"]
    what: str


def _questions(form: StandardForm, vertices: Tensor, samples: int, seed: int) -> Iterator[_Case]:
    generator = torch.Generator("cpu").manual_seed(seed)
    size = form.size

    def drawn() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")

    for _ in range(samples):
        yield _Case(drawn(), "at random scores")
    yield _Case(torch.zeros(size, dtype=torch.float64, device="cpu"), "at scores of 0")
    yield _Case(torch.full((size,), -0.7, dtype=torch.float64, device="cpu"), "at equal scores")
    yield _Case(drawn().round(), "at tied scores")
    yield _Case(1e-8 * drawn(), "at tiny scores")
    for scale in (1e4, -1e4):
        yield _Case(scale * (1.0 + drawn().abs()), f"at scores of size {scale:g}")
        yield _Case(torch.where(drawn() < 0.0, scale * drawn().abs(), drawn()), f"at some scores of size {scale:g}")
        yield _Case(torch.full((size,), scale, dtype=torch.float64, device="cpu"), f"at equal scores of {scale:g}")
    for mask, what in _masks(form, vertices, samples, generator):
        yield _Case(drawn().masked_fill(mask, -torch.inf), f"where {what} forbidden")
        kind = int(torch.randint(4, (1,), generator=generator, device="cpu"))
        if kind == 0:
            large = (1e4 * drawn()).masked_fill(mask, -torch.inf)
            yield _Case(large, f"at scores of size 1e4, where {what} forbidden")
        if kind == 1 and bool((vertices[:, mask] == 0.0).all(dim=1).any()):
            low = torch.finfo(torch.float32).min
            yield _Case(drawn().masked_fill(mask, low), f"where {what} at a score of {low:.2g}")


def _masks(
    form: StandardForm, vertices: Tensor, samples: int, generator: torch.Generator
) -> Iterator[tuple[Bool[Tensor, " size"], str]]:
    """Forbidden parts, and how they are called."""
    size = form.size
    names = [
        (name_given(form.polytope.variable) or "variable", form.shape, 0),
        *((s.name, s.shape, s.span.start) for s in form.scored_auxiliaries),
    ]
    blocks = [block for name, shape, start in names for block in _blocks(name, shape, start, size)]
    for pool in (
        [(torch.arange(size, device="cpu") == k, f"{form.entry_name(k)} is") for k in range(size)],
        [(mask, f"{name} is") for mask, name in blocks],
    ):
        chosen = torch.randperm(len(pool), generator=generator, device="cpu")[:BLOCKS]
        yield from (pool[k] for k in sorted(chosen.tolist()))
    for share in (0.15, 0.5):
        for _ in range(samples // 2):
            mask = torch.rand(size, generator=generator, device="cpu") < share
            yield mask, f"{int(mask.sum())} of {size} parts are"
    for k in torch.randperm(len(vertices), generator=generator, device="cpu")[: samples // 2].tolist():
        yield vertices[k] == 0.0, "all that a structure does without is"
    yield torch.ones(size, dtype=torch.bool, device="cpu"), "everything is"


def _blocks(name: str, shape: Sequence[int], start: int, size: int) -> Iterator[tuple[Bool[Tensor, " size"], str]]:
    """All entries of a variable that share one index, or several, but not all."""
    dimensions = len(shape)
    for count in range(1, dimensions):
        for axes in itertools.combinations(range(dimensions), count):
            for index in itertools.islice(np.ndindex(*(shape[axis] for axis in axes)), BLOCKS):
                place: list[Any] = [slice(None)] * dimensions
                for axis, one in zip(axes, index, strict=True):
                    place[axis] = one
                mask = torch.zeros(size, dtype=torch.bool, device="cpu")
                mask[start : start + int(np.prod(shape))].view(*shape)[tuple(place)] = True
                yield mask, f"{name}[{', '.join(':' if isinstance(p, slice) else str(p) for p in place)}]"


@final
class _Check:
    """A log-partition function, asked and compared."""

    def __init__(self, polytope: Polytope, form: StandardForm, theta: Tensor, vertices: Tensor) -> None:
        assert polytope.log_partition is not None
        self.function = polytope.log_partition
        self.name = f"log_partition {name_of(self.function)}"
        self.form, self.theta, self.vertices = form, theta, vertices

    def own_parameters(self, scores: Tensor, total: Tensor) -> None:
        """Ask beside an instance with other parameters, unless the function refuses these."""
        theta = self.theta.expand(len(scores) + 1, -1).clone()
        theta[0] += 1.0
        try:
            self.function(*self._parts(scores[:1], theta[:1]))
        except ValueError:  # which it may refuse, alone; beside others it answers
            return
        found = self.function(*self._parts(torch.cat([scores[:1], scores]), theta))[1:]
        far = (found - total).nan_to_num(neginf=0.0).abs().max()
        names = ", ".join(spec.name for spec in self.form.parameters)
        assert bool(far <= 1e-8 * (1.0 + total.nan_to_num(neginf=0.0).abs().max())), (
            f"{self.name}: its value depends on the {names} of other instances; it moved by {float(far):.3g}"
        )

    def _parts(self, flat: Tensor, theta: Tensor) -> list[Tensor]:
        """Scores and parameters, as the function takes them."""
        form, count = self.form, len(flat)
        parts = [flat[:, : form.structure_size].reshape(count, *form.shape)]
        parts += [flat[:, s.span].reshape(count, *s.shape) for s in form.scored_auxiliaries]
        return parts + [theta[:, s.span].reshape(count, *s.shape).clone() for s in form.parameters]

    def answers(self, asked: Sequence[_Case], scores: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, gradients, and second derivatives in a direction, of flat scored vectors."""
        count, name = len(scores), self.name
        leaf = scores.clone().requires_grad_()
        parts = self._parts(leaf, self.theta.expand(count, -1))
        before = [part.detach().clone() for part in parts]
        try:
            total = self.function(*parts)
        except Exception as error:
            raise AssertionError(
                f"{name} raises {type(error).__name__}: {error}; where no structure is left it returns -inf"
            ) from error
        assert isinstance(total, Tensor), f"{name} returns {type(total).__name__}; it must return a tensor"
        assert tuple(total.shape) == (count,), (
            f"{name} returns shape {tuple(total.shape)} for scores of shape {tuple(parts[0].shape)}; it must return "
            f"{(count,)}, a number per instance"
        )
        assert total.dtype == torch.float64, f"{name} returns {total.dtype} for scores of float64; marginals lose by it"
        unchanged = all(torch.equal(part.detach(), old) for part, old in zip(parts, before, strict=True))
        assert unchanged, f"{name} writes to its arguments; work on copies"
        assert total.requires_grad, f"{name} has no gradient: it is written in torch, without detach(), item() or NumPy"
        gradient = self._derivative(total.sum(), leaf, "gradient", create_graph=True)
        if not gradient.requires_grad:
            return total.detach(), gradient, torch.zeros_like(scores)
        turned = self._derivative((gradient * direction).sum(), leaf, "second derivative", create_graph=False)
        return total.detach(), gradient.detach(), turned

    def _derivative(self, value: Tensor, leaf: Tensor, what: str, *, create_graph: bool) -> Tensor:
        try:
            (found,) = torch.autograd.grad(value, leaf, create_graph=create_graph, allow_unused=True)
        except RuntimeError as error:
            raise AssertionError(f"{self.name}: its {what} raises {type(error).__name__}: {error}") from error
        return torch.zeros_like(leaf) if found is None else found

    def compare(
        self,
        asked: Sequence[_Case],
        scores: Tensor,
        direction: Tensor,
        found: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """With the sums over all vertices."""
        total, gradient, turned = found
        expected, mean, covariance = self._sums(scores, direction)
        assert bool(turned.any()) or float(covariance.abs().max()) <= DERIVATIVE, (
            f"{self.name} has no second derivative, which is what the gradient of marginals is: write it in operations "
            "that torch differentiates twice"
        )
        usable = scores.masked_fill(torch.isneginf(scores), 0.0).abs() @ self.vertices.abs().T
        size = 1.0 + (usable.amax(dim=1) if len(self.vertices) else usable.sum(dim=1))
        for k, one in enumerate(asked):
            where = f"{self.name}, {one.what}: "
            mine, right = float(total[k]), float(expected[k])
            assert not np.isnan(mine), f"{where}it is NaN, but right is {right:.9g}; {SAFE}"
            if right == -np.inf:
                assert mine == right, f"{where}it is {mine:.9g}, but no structure is left, for which it returns -inf"
            assert abs(mine - right) <= VALUE * float(size[k]) or mine == right, (
                f"{where}it is {mine:.12g}, but the log of the sum over all {len(self.vertices)} vertices is "
                f"{right:.12g}"
            )
            for what, part, exact in (
                ("gradient", gradient[k], mean[k]),
                ("second derivative", turned[k], covariance[k]),
            ):
                assert bool(torch.isfinite(part).all()), f"{where}its {what} is NaN, but is finite by the sum; {SAFE}"
                error = (part - exact).abs()
                worst = int(error.argmax())
                assert float(error[worst]) <= DERIVATIVE * (1.0 + float(exact.abs().max())), (
                    f"{where}its {what} is {float(part[worst]):.9g} at {self.form.entry_name(worst)}, but right is "
                    f"{float(exact[worst]):.9g}"
                )

    def _sums(self, scores: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The log of the sum, the mean of vertices, and their covariance times a direction; -inf and 0 for no term."""
        vertices = self.vertices
        if len(vertices) == 0:
            return (
                torch.full((len(scores),), -torch.inf, device="cpu"),
                torch.zeros_like(scores),
                torch.zeros_like(scores),
            )
        weights = log_weights(vertices, scores)
        share = torch.softmax(weights, dim=1).nan_to_num()
        mean, values = share @ vertices, direction @ vertices.T
        covariance = (share * (values - (share * values).sum(dim=1, keepdim=True))) @ vertices
        return torch.logsumexp(weights, dim=1), mean, covariance
