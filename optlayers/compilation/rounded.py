"""Whether a size of a family that is rounded up has the answers of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.batch.sizes import named_size
from optlayers.common.caches import Cache
from optlayers.compilation.compiled import CompiledPolytope, compile_polytope
from optlayers.compilation.compiled_once import compiled_of_size
from optlayers.family import Family
from optlayers.form.standard import AffineMap, ParameterSpec, StandardForm
from optlayers.proofs.agreement import questions
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector

__all__ = ["Sameness", "are_the_same", "sameness"]

NEAR = 1e-6
"""Answers that differ by less, next to their size, are the same."""
SCALES = (0.3, 1.0, 10.0)
"""Projections are compared for scores of these sizes."""
ASKED = 64
"""For so many values of the parameters are two sizes compared by their answers."""
NORMALS = 512
"""So many normals of rows and bounds are asked about at most."""
DENSE = 2**22
"""Rows with more numbers than this are not compared one by one."""
DIGITS = 9
"""Rows are the same that agree to so many digits behind the point, when their largest entry is 1."""


@final
@dataclass(eq=False)
class Sameness:
    """A size and the one that it is rounded up to: the answers of the smaller polytope have to be those of the larger
    one whose further parts are forbidden.

    Where both have rows that say all, these are compared one by one, which proves it for all values of the parameters:
    there is then no ``pair`` to ask. Else the best values and the projections of both are compared for many scores,
    among them the normals of the rows that are known; that is done for the values of the parameters that occur, the
    first :data:`ASKED` of them.
    """

    family: Family
    size: tuple[int, ...]
    rounded: tuple[int, ...]
    pair: tuple[CompiledPolytope, CompiledPolytope] | None
    asked: set[bytes] = field(default_factory=set)

    def refuse_other_answers(self, theta: Float64[Tensor, "instances parameters"], whose: object) -> None:
        """Raise ValueError where answers are found that differ for the parameters of some instances, ``whose`` first
        is named. Every value of the parameters is compared once.
        """
        pair = self.pair
        if pair is None:
            return
        rows = theta.detach().to("cpu", torch.float64).numpy()
        new = {row.tobytes(): row for row in rows}
        new = {key: row for key, row in new.items() if key not in self.asked}
        for key, row in list(new.items())[: max(0, ASKED - len(self.asked))]:
            # In a thread of its own, which no transform of torch.func and no default device is around.
            with ThreadPoolExecutor(1) as alone:
                different = alone.submit(_difference, *pair, row).result()
            if different is not None:
                raise _refused(self.family, self.size, self.rounded, different, whose)
            self.asked.add(key)
        if not theta.shape[1]:
            self.pair = None  # there is no more to ask


def sameness(
    family: Family,
    maximizer: AbstractMaximizer | None,
    projector: AbstractProjector | None,
    size: tuple[int, ...],
    rounded: tuple[int, ...],
    whose: object,
) -> Sameness:
    """Of two sizes; what takes a compilation of the smaller polytope is done once.

    Raises
    ------
    ValueError : where their parameters differ.
    NotImplementedError : where parameters are no numbers.
    """

    def make(_: tuple[tuple[int, ...], tuple[int, ...]]) -> Sameness:
        large = compiled_of_size(family, maximizer, projector, *rounded)
        for spec in large.entries.parameters:
            if spec.shape:
                raise NotImplementedError(
                    f"round_to is for families whose parameters are numbers, but {spec.name} has shape {spec.shape}, "
                    "and nobody knows its values for parts that an instance does not have"
                )
        small = compile_polytope(family(*size), maximizer=maximizer, projector=projector)
        names = [[(spec.name, spec.sign) for spec in one.entries.parameters] for one in (small, large)]
        if names[0] != names[1]:
            mine, other = ([name for name, _ in one] for one in names)
            raise _refused(family, size, rounded, f", as its parameters are {mine} and not {other}", whose)
        return Sameness(family, size, rounded, None if are_the_same(small, large) else (small, large))

    kept: Cache[tuple[tuple[int, ...], tuple[int, ...]], Sameness]
    kept = family.__dict__.setdefault("_compared", Cache())
    return kept.get((size, rounded), make)


def _refused(
    family: Family, size: tuple[int, ...], rounded: tuple[int, ...], different: str, whose: object
) -> ValueError:
    return ValueError(
        f"{family!r} cannot be rounded: the polytope of size {named_size(size)} is not that of size "
        f"{named_size(rounded)} without its further parts{different}; {whose} has that size: leave round_to out"
    )


def _difference(
    small: CompiledPolytope, large: CompiledPolytope, theta: Float64[np.ndarray, " parameters"]
) -> str | None:
    """How answers for some scores differ, in words; None where they do not."""
    specs = small.entries.parameters
    given = {spec.name: torch.from_numpy(theta[spec.span].copy()).reshape(()) for spec in specs}
    named = ", ".join(f"{name}={value.item():.6g}" for name, value in given.items())
    where = f", with {named}" if named else ""
    scores = questions(math.prod(small.shape))
    if small.has_vertices and large.has_vertices:
        normals = [n for one in (small, large) for n in _normals(one, small.shape)]
        found = _both(small, large, "maximize", np.concatenate([scores, *normals]), given)
        if isinstance(found, str):
            return where + found
        asked, mine, other = found
        size = 1.0 + (asked * mine).abs().sum(1)
        if bool((((asked * mine).sum(1) - (asked * other).sum(1)).abs() > NEAR * size).any()):
            return where
    found = _both(small, large, "project", np.concatenate([scale * scores for scale in SCALES]), given)
    if isinstance(found, str):
        return where + found
    _, mine, other = found
    return None if torch.allclose(mine, other, atol=NEAR, rtol=NEAR) else where


def _both(
    small: CompiledPolytope,
    large: CompiledPolytope,
    ask: str,
    scores: Float64[np.ndarray, "questions size"],
    given: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor] | str:
    """Scores with the answers of both, flat, where there are some; or why only one of them has some."""
    flat = torch.from_numpy(scores)
    narrow = flat.reshape(-1, *small.shape)
    own = (slice(None), *(slice(0, length) for length in small.shape))
    wider = torch.full((len(flat), *large.shape), -torch.inf, dtype=torch.float64, device="cpu")
    wider[own] = narrow
    one, other = (getattr(compiled, ask)(s, **given) for compiled, s in ((small, narrow), (large, wider)))
    if not torch.equal(other.ok, one.ok):
        return f" ({(other.failures or one.failures)[0].reason})"
    good = one.ok
    return flat[good], one.value.flatten(1)[good], other.value[own].flatten(1)[good]


def _normals(compiled: CompiledPolytope, shape: tuple[int, ...]) -> list[Float64[np.ndarray, "questions size"]]:
    """The normals of rows and bounds, both ways, among the parts of a smaller polytope: where two polytopes without
    auxiliary variables have the same best values for all of these, they are the same."""
    form = compiled.rows
    if form is None or not compiled.rows_say_all or form.auxiliary:
        return []
    matrix = np.zeros((form.rows, form.size))
    if matrix.size > DENSE:
        return []
    matrix[:, form.kept] = form.matrix[:, : form.scored].toarray()
    mine = np.vstack([matrix[:, _corner(compiled.shape, shape)], np.eye(math.prod(shape))])
    mine = np.unique(mine[mine.any(axis=1)], axis=0)
    return [mine, -mine] if len(mine) <= NORMALS else []


def _corner(shape: tuple[int, ...], corner: tuple[int, ...]) -> Int64[np.ndarray, " entries"]:
    """The flat entries of the leading corner of a shape."""
    places = np.arange(math.prod(shape)).reshape(shape)[tuple(slice(0, length) for length in corner)]
    return np.asarray(places, dtype=np.int64).reshape(-1)


def are_the_same(small: CompiledPolytope, large: CompiledPolytope) -> bool:
    """Whether the rows of the larger polytope, with 0 for its further parts, are those of the smaller one, for all
    values of the parameters. They may be and not be shown to be."""
    described = []
    for compiled in (small, large):
        form = compiled.rows
        if form is None or not compiled.rows_say_all:
            return False
        rows = _Rows.of(form, _corner(compiled.shape, small.shape))
        if rows is None:
            return False
        described.append(rows.keys())
    return described[0] is not None and described[0] == described[1]


@final
class _Rows:
    """Rows ``C x <= r``, or ``==`` where ``equal``, over some parts while all others are 0.

    ``C`` is ``(rows, 1 + parameters, parts)`` and ``r`` ``(rows, 1 + parameters)``: the constant, and what every
    parameter adds, whose ``sign`` is 1 or -1 where one is declared.
    """

    def __init__(self, body: np.ndarray, side: np.ndarray, equal: np.ndarray, sign: np.ndarray) -> None:
        self.body, self.side, self.equal, self.sign = body, side, equal, sign

    @classmethod
    def of(cls, form: StandardForm, entries: Int64[np.ndarray, " parts"]) -> _Rows | None:
        """Those of a form; None where it has more than rows and bounds of its parts, or too many."""
        width, parts = 1 + form.parameter_count, len(entries)
        slack = form.lower.constant[form.unslacked :], form.upper.constant[form.unslacked :]
        plain = not slack[0].any() and bool(np.isposinf(slack[1]).all()) and not len(form.consistency.constant)
        if form.auxiliary or not plain or (form.rows + 2 * form.scored) * width * parts > DENSE:
            return None
        place = np.full(form.size, -1)
        place[entries] = np.arange(parts)
        fixed = np.setdiff1d(np.arange(form.size), form.kept)
        if form.fixed[fixed[place[fixed] < 0]].any():
            return None
        mine = place[form.kept]  # by column; -1 for parts that are 0
        body = np.zeros((form.rows, width, parts + 1))  # the last of which is for those
        row, column = form.matrix.indices, form.entry_column
        scored = np.flatnonzero(column < form.scored)
        body[row[scored], 0, mine[column[scored]]] = form.matrix.data[scored]
        moved = form.matrix_map.tocoo()
        if (column[moved.row] >= form.scored).any():
            return None
        body[row[moved.row], 1 + moved.col, mine[column[moved.row]]] += moved.data
        equal = np.arange(form.rows) < form.equalities
        pieces = [(body, _affine(form.rhs, width), equal)]
        for bounds, sense in ((form.upper, 1.0), (form.lower, -1.0)):
            sides = _affine(bounds, width)[: form.scored]
            limited = np.flatnonzero(np.isfinite(sides[:, 0]))
            unit = np.zeros((len(limited), width, parts + 1))
            unit[np.arange(len(limited)), 0, mine[limited]] = sense
            pieces.append((unit, sense * sides[limited], np.zeros(len(limited), dtype=bool)))
        inside = fixed[place[fixed] >= 0]
        unit, sides = np.zeros((len(inside), width, parts + 1)), np.zeros((len(inside), width))
        unit[np.arange(len(inside)), 0, place[inside]], sides[:, 0] = 1.0, form.fixed[inside]
        pieces.append((unit, sides, np.ones(len(inside), dtype=bool)))
        body, side, equal = (np.concatenate([piece[k] for piece in pieces]) for k in range(3))
        return cls(body[:, :, :parts], side, equal, _signs(form.parameters))

    def keys(self) -> frozenset[bytes] | None:
        """What the rows say, each once, without those that say nothing; None where they contradict each other."""
        self._put_in_what_is_fixed()
        says = self.body.any(axis=(1, 2))
        if (self.equal & ~says & self.side.any(axis=1)).any():
            return None
        least = self._least(self.side)
        nothing = np.where(says, self._most() <= least, self.equal | (least >= 0.0))
        keep = np.flatnonzero(~nothing)
        body, side = self.body[keep], self.side[keep]
        largest = np.abs(body).max(axis=(1, 2), initial=0.0)
        largest[largest == 0.0] = 1.0
        body, side = body / largest[:, None, None], side / largest[:, None]
        for k in np.flatnonzero(self.equal[keep]):
            first = body[k][body[k] != 0.0][0]
            body[k], side[k] = np.sign(first) * body[k], np.sign(first) * side[k]
        flat = np.hstack([self.equal[keep, None], side, body.reshape(len(keep), -1)])
        return frozenset((np.round(row, DIGITS) + 0.0).tobytes() for row in flat)

    def _put_in_what_is_fixed(self) -> None:
        """Equalities of one part, whose number goes into all other rows."""
        done = np.zeros(len(self.body), dtype=bool)
        while True:
            constant = ~self.body[:, 1:].any(axis=(1, 2)) & ~self.side[:, 1:].any(axis=1)
            single = np.flatnonzero(self.equal & constant & ~done & (np.count_nonzero(self.body[:, 0], axis=1) == 1))
            if len(single) == 0:
                return
            k = int(single[0])
            part = int(np.flatnonzero(self.body[k, 0])[0])
            done[k] = True
            others = np.arange(len(self.body)) != k
            self.side[others] -= self.body[others, :, part] * (self.side[k, 0] / self.body[k, 0, part])
            self.body[others, :, part] = 0.0

    def _least(self, side: np.ndarray) -> Float64[np.ndarray, " rows"]:
        """The least right-hand sides, whatever values parameters have that keep their signs."""
        signed = side[:, 1:] * self.sign
        certain = ((side[:, 1:] == 0.0) | (signed > 0.0)).all(axis=1)
        return np.where(certain, side[:, 0], -np.inf)

    def _most(self) -> Float64[np.ndarray, " rows"]:
        """How much inequalities of several parts reach by the constant bounds alone; inf for other rows."""
        constant = ~self.body[:, 1:].any(axis=(1, 2))
        count = np.count_nonzero(self.body[:, 0], axis=1)
        bound = np.flatnonzero(constant & (count == 1) & ~self.equal & ~self.side[:, 1:].any(axis=1))
        low, high = np.full(self.body.shape[2], -np.inf), np.full(self.body.shape[2], np.inf)
        for k in bound:
            part = int(np.flatnonzero(self.body[k, 0])[0])
            entry, value = self.body[k, 0, part], self.side[k, 0] / self.body[k, 0, part]
            if entry > 0.0:
                high[part] = min(high[part], value)
            else:
                low[part] = max(low[part], value)
        body = self.body[:, 0]
        with np.errstate(invalid="ignore"):
            terms = np.where(body > 0.0, body * high, np.where(body < 0.0, body * low, 0.0))
        return np.where(constant & (count > 1) & ~self.equal, terms.sum(axis=1), np.inf)


def _affine(values: AffineMap, width: int) -> Float64[np.ndarray, "entries width"]:
    found = np.zeros((len(values.constant), width))
    found[:, 0] = values.constant
    if width > 1:
        found[:, 1:] = values.matrix.toarray()
    return found


def _signs(parameters: tuple[ParameterSpec, ...]) -> Float64[np.ndarray, " parameters"]:
    known = {"nonneg": 1.0, "pos": 1.0, "nonpos": -1.0, "neg": -1.0}
    return np.concatenate([np.zeros(0), *(np.full(s.size, known.get(s.sign or "", 0.0)) for s in parameters)])
