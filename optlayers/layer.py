"""OptLayer, and the only torch.autograd.Function."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from optlayers import inputs
from optlayers.compiled import CompiledPolytope, compile_polytope
from optlayers.mixture import differentiable_weights
from optlayers.polytope import Family, Polytope
from optlayers.rules.base import AbstractRule
from optlayers.solution import Failure, Solution, SolveError
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, Answer

__all__ = ["OptLayer"]

OnFailure = Literal["raise", "nan"]


@final
class OptLayer(nn.Module):
    """From scores to structures of a polytope, with a gradient.

    The layer has no weights. It may be copied, pickled, saved as a whole, shared between threads and used inside
    ``DistributedDataParallel``.

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
        self._sizes = _Cache(polytope.cache_size if isinstance(polytope, Family) else 1)
        if isinstance(polytope, Polytope):
            self._compiled: CompiledPolytope | None = self._compile(polytope)
        else:
            self._compiled = self._checked(polytope) if isinstance(polytope, CompiledPolytope) else None

    def _compile(self, polytope: Polytope) -> CompiledPolytope:
        return self._checked(compile_polytope(polytope, maximizer=self._maximizer, projector=self._projector))

    def _checked(self, compiled: CompiledPolytope) -> CompiledPolytope:
        if self.rule.maximizes and not compiled.has_vertices:
            raise ValueError(
                f"{self.rule!r} asks for the best vertex, but the declared set is not polyhedral and has no vertices; "
                "use a rule that only projects, such as SparseMAP()"
            )
        return compiled

    def compiled(self, *size: int) -> CompiledPolytope:
        """The compiled polytope; of a family, the one for a size."""
        if self._family is None:
            if size or self._compiled is None:
                raise TypeError("a layer over one polytope has one size; call compiled() without arguments")
            return self._compiled
        family = self._family
        return self._sizes.get(size, lambda: self._compile(family(*size)))

    def forward(
        self, scores: Float[Tensor, "*batch_and_shape"], *, sizes: Any = None, **parameters: Any
    ) -> Float[Tensor, "*batch_and_shape"]:
        """Structures for a batch of scores.

        Parameters
        ----------
        scores : ``(*batch, *shape)``, float64, float32, bfloat16 or float16, on any device, of any strides; ``-inf``
            forbids a part. For a family the largest shape: an instance takes the leading corner of its own shape.
        sizes : for a family, the size of every instance, ``(*batch,)`` integers, or ``(*batch, k)`` for k sizes. An
            instance of size 0 has no parts: its structure is padding.
        parameters : a tensor per declared parameter, ``shape`` for all instances or ``(*batch, *shape)`` for each
            its own; of a family, again the leading corner. Likewise the scores of every auxiliary variable that is
            declared as ``scored``.

        Returns
        -------
        Structures in the shape, dtype and device of the scores. The padding of a family is exactly 0, and so is its
        gradient.

        Raises
        ------
        SolveError : with ``on_failure="raise"``, when an instance has no certified answer.
        TypeError, ValueError : see :meth:`CompiledPolytope.maximize`; sizes that are missing, not asked for, or do
            not fit.
        """
        inputs.check_scores(scores)
        if self._family is not None:
            return self._solve_mixed(self._family, scores, sizes, parameters)
        if sizes is not None:
            raise TypeError("sizes= is for layers over a Family; this layer has one polytope")
        return self._solve(self.compiled(), scores, parameters, None)

    def solve(self, scores: Float[Tensor, "*batch_and_shape"], **parameters: Any) -> Solution:
        """The same structures with their verdicts, and their gradient.

        Where the rule's answer is a mixture of vertices (:class:`SparseMAP` over :class:`ActiveSet`), the solution has
        ``vertices`` and ``weights``, and the weights have a gradient too: a model can take an expectation over the few
        structures that are selected.

        Arguments and errors are those of :meth:`forward`, but for families, whose instances have different polytopes.
        """
        inputs.check_scores(scores)
        if self._family is not None:
            raise TypeError("solve() answers for one polytope; a Family has one for every size: use compiled(size)")
        found: list[Solution] = []
        value = self._solve(self.compiled(), scores, parameters, None, found.append)
        return self._with_gradients(found[0], value, scores, parameters)

    def _with_gradients(self, flat: Solution, value: Tensor, scores: Tensor, parameters: Mapping[str, Any]) -> Solution:
        form = self.compiled().projection_form
        batch = inputs.batch_shape(scores, form.shape)
        shaped = replace(
            flat,
            value=value,
            status=flat.status.reshape(batch),
            primal_residual=flat.primal_residual.reshape(batch),
            gap=flat.gap.reshape(batch),
            scored={
                spec.name: flat.value[:, spec.span].reshape(*batch, *spec.shape).to(scores.device, scores.dtype)
                for spec in form.auxiliaries
            },
        )
        decomposition = flat.answer.decomposition if isinstance(flat.answer, Answer) else None
        if decomposition is None:
            return shaped
        further, _ = inputs.split_named(form.auxiliaries, parameters)
        auxiliary, _ = inputs.auxiliary_scores(form.auxiliaries, further, batch)
        count = len(flat.value)
        parts = [scores.reshape(count, form.structure_size)]
        parts += [auxiliary[spec.name].reshape(count, math.prod(spec.shape)) for spec in form.auxiliaries]
        vector = torch.cat([part.to("cpu", torch.float64) for part in parts], dim=1)
        vector = torch.where(torch.isneginf(vector), 0.0, vector)
        vertices, weights = differentiable_weights(decomposition, vector, form.structure_size)
        most = weights.shape[1]
        structures = vertices[:, :, : form.structure_size].reshape(*batch, most, *form.shape).to(value)
        return replace(shaped, mixture=(structures, weights.reshape(*batch, most).to(value)))

    def _solve(
        self,
        compiled: CompiledPolytope,
        scores: Tensor,
        parameters: Mapping[str, Any],
        positions: Tensor | None,
        found: Callable[[Solution], None] | None = None,
    ) -> Tensor:
        """One polytope; ``positions`` are the batch indices of the instances where they are a part of a batch."""
        batch = inputs.batch_shape(scores, compiled.shape)
        forbids = inputs.check_finite(scores, len(batch), positions)
        form = compiled.projection_form
        further, parameters = inputs.split_named(form.auxiliaries, parameters)
        auxiliary, more_forbids = inputs.auxiliary_scores(form.auxiliaries, further, batch, positions)
        given = inputs.parameter_tensors(form.parameters, parameters, batch, positions)
        precision = inputs.precision(given.values()) if given else inputs.DOUBLE
        home = compiled.home(scores.device)
        call = _Call(
            compiled,
            self.rule,
            self.on_failure,
            tuple(given),
            batch,
            forbids or more_forbids,
            positions,
            precision,
            home,
            found,
        )
        return _Solve.apply(call, scores, *auxiliary.values(), *given.values())

    def _solve_mixed(self, family: Family, scores: Tensor, sizes: Any, parameters: Mapping[str, Any]) -> Tensor:
        table, batch = inputs.size_table(sizes, scores, family.takes)
        flat = scores.reshape(len(table), *scores.shape[len(batch) :])
        if len(table) == 0:
            return scores * 0.0  # empty, and part of the graph
        parts, order = [], []
        failures: list[Failure] = []
        for size in torch.unique(table, dim=0):
            rows = torch.nonzero((table == size).all(dim=1)).flatten()
            order.append(rows)
            if not bool(size.all()):
                nothing = flat[rows.to(flat.device)]
                parts.append(nothing.masked_fill(torch.ones_like(nothing, dtype=torch.bool), 0.0))  # part of the graph
                continue
            compiled = self.compiled(*size.tolist())
            corner = inputs.corner(compiled.shape, flat.shape[1:], tuple(size.tolist()))
            form = compiled.projection_form
            mine = inputs.parameter_corners((*form.parameters, *form.auxiliaries), parameters, rows, batch)
            positions = torch.stack(torch.unravel_index(rows, batch), dim=1)
            padded = flat.new_zeros(len(rows), *flat.shape[1:])
            try:
                padded[(slice(None), *corner)] = self._solve(
                    compiled, flat[rows.to(flat.device)][(slice(None), *corner)], mine, positions
                )
            except SolveError as error:
                failures += error.failures  # of this size; the others are looked at before the batch is given up
            parts.append(padded)
        if failures:
            raise SolveError(sorted(failures, key=lambda f: f.index), len(table))
        place = torch.argsort(torch.cat(order)).to(flat.device)
        return torch.cat(parts)[place].reshape(scores.shape)

    def extra_repr(self) -> str:
        what = self._family if self._family is not None else self.compiled().polytope
        return f"{what!r}, {self.rule!r}, on_failure={self.on_failure!r}"


class _Cache:
    """The compiled polytopes of a family, least recently used last to stay. A copy or a pickle starts empty."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: OrderedDict[tuple[int, ...], CompiledPolytope] = OrderedDict()
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Cache], tuple[int]]:
        return _Cache, (self.size,)

    def get(self, key: tuple[int, ...], make: Callable[[], CompiledPolytope]) -> CompiledPolytope:
        """The entry of ``key``, made when it is missing."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        made = make()  # without the lock: other threads may go on with other sizes
        with self.lock:
            kept = self.kept.setdefault(key, made)
            self.kept.move_to_end(key)
            while len(self.kept) > self.size:
                self.kept.popitem(last=False)
            return kept


@dataclass(slots=True)
class _Call:
    """What one application of the layer needs besides tensors."""

    compiled: CompiledPolytope
    rule: AbstractRule
    on_failure: OnFailure
    names: tuple[str, ...]
    batch: torch.Size
    forbids: bool
    """Whether a score is -inf."""
    positions: Tensor | None
    precision: float
    home: torch.device
    """Where the instances are solved."""
    found: Callable[[Solution], None] | None
    """Who wants to see the solution."""

    def flat(self, value: Tensor, auxiliary: Sequence[Tensor] = ()) -> Tensor:
        """Scores or their gradient as they are solved: float64, a row per instance."""
        size = math.prod(self.compiled.shape)
        flat = inputs.moved(value.detach(), (math.prod(self.batch), size), torch.float64, self.home)
        return inputs.with_auxiliary(flat, auxiliary, len(self.batch), self.home) if auxiliary else flat

    def failed(self, solution: Solution) -> Tensor | None:
        """Which instances have no certified answer, flat, None for none; with ``"raise"`` it raises."""
        if solution.all_ok:
            return None
        failed = ~solution.ok
        if self.on_failure == "raise":
            failures = replace(solution, status=solution.status.reshape(self.batch)).failures
            if self.positions is not None:  # each under its index in the batch that the user handed in
                failures = [replace(f, index=tuple(self.positions[f.index[0]].tolist())) for f in failures]
            raise SolveError(failures, len(failed))
        return failed


class _Solve(torch.autograd.Function):
    """Flat float64 inside, on the CPU or an accelerator; the dtype, device and shape of the scores outside."""

    @staticmethod
    def forward(ctx: Any, call: _Call, scores: Tensor, *named: Tensor) -> Tensor:
        form = call.compiled.projection_form
        auxiliary, parameters = named[: len(form.auxiliaries)], named[len(form.auxiliaries) :]
        flat, forbidden = call.flat(scores, auxiliary), None
        if call.forbids:
            flat, forbidden = inputs.split_forbidden(flat)
        elif flat.data_ptr() == scores.data_ptr():
            flat = flat.clone()  # what is saved for backward must not change with the caller's tensor
        given = {
            name: inputs.flatten_parameter(value, len(flat), len(call.batch), call.home)
            for name, value in zip(call.names, parameters, strict=True)
        }
        bound = call.compiled.bind(given, forbidden, len(flat), call.precision, call.home)
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):  # says to the rule whether backward may be asked for
            solution, saved = call.rule.forward(bound, flat)
        failed = call.failed(solution)
        if call.found is not None:
            call.found(solution)
        value = inputs.of_structure(solution.value, form.structure_size)
        if failed is not None:
            value = value.masked_fill(failed[:, None], torch.nan)
        ctx.call, ctx.bound, ctx.saved, ctx.failed, ctx.forbidden = call, bound, saved, failed, forbidden
        ctx.like = [(v.shape, v.dtype, v.device) for v in (scores, *named)]
        return inputs.moved(value, scores.shape, scores.dtype, scores.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        form = call.compiled.projection_form
        flat = inputs.padded(call.flat(grad), form.size)
        # NaN or inf from a loss (a scaler that overflowed, say) goes on as NaN; no solver ever sees it.
        finite = None if inputs.all_finite(flat) else torch.isfinite(flat).all(dim=1)
        failed: Tensor | None = ctx.failed
        if finite is not None:
            flat = flat.masked_fill(~finite[:, None], 0.0)
        if failed is not None:
            flat = flat.masked_fill(failed[:, None], 0.0)
        result = call.rule.backward(ctx.bound, ctx.saved, flat)
        for solution in result.solutions:
            if ctx.failed is not None:
                solution = replace(solution, status=solution.status.masked_fill(ctx.failed, 0))
            more = call.failed(solution)
            failed = more if failed is None else failed if more is None else failed | more
        gradients = [result.scores] + [result.parameters.get(name) for name in call.names]
        out = [None if g is None else _finish(g, failed, finite) for g in gradients]
        if ctx.forbidden is not None and out[0] is not None:
            out[0] = out[0].masked_fill(ctx.forbidden, 0.0)
        if form.auxiliaries and out[0] is not None:
            spans = [slice(0, form.structure_size), *(spec.span for spec in form.auxiliaries)]
            out[:1] = [out[0][:, span] for span in spans]
        return None, *(None if g is None else inputs.moved(g, *like) for g, like in zip(out, ctx.like, strict=True))


def _finish(gradient: Tensor, failed: Tensor | None, finite: Tensor | None) -> Tensor:
    """0 for instances without an answer, NaN where the incoming gradient was not finite."""
    rows = [-1] + [1] * (gradient.ndim - 1)
    if finite is not None:
        gradient = gradient.masked_fill((~finite).reshape(rows), torch.nan)
    return gradient if failed is None else gradient.masked_fill(failed.reshape(rows), 0.0)
