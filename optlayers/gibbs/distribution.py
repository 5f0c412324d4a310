"""Probabilities of structures: a distribution of PyTorch over the structures of polytopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from optlayers.batch.entries import CPU
from optlayers.batch.source import Source
from optlayers.common.modes import outside_graphs, transforms_active
from optlayers.common.tensors import as_tensor, check_generator
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.family import Family
from optlayers.form.standard import ParameterSpec, ScoredSpec
from optlayers.gibbs.door import Door, Found
from optlayers.gibbs.expectations import Expectations
from optlayers.gibbs.listing import Listing
from optlayers.gibbs.partition import PartitionCall, check_temperature
from optlayers.gibbs.support import (
    BestStructures,
    Scores,
    Structures,
    no_structure,
    temperature_of,
    together,
    value_of,
)
from optlayers.polytope import Polytope

__all__ = ["Gibbs"]

ONE = torch.Size()


@final
class Gibbs(Distribution):
    r"""The Gibbs distribution over structures, :math:`p(z) \propto e^{\langle s, z \rangle / T}`, exactly.

    Structures are the vertices of the polytope. Where variables are declared to be integers of more values than 0 and
    1, they are all integer points, of which the vertices of the hull are a part.

    Sums over structures come from the log-partition function that the polytope declares, else from the decision diagram
    of its rows (:class:`optlayers.Diagram`), else from its vertices, of which there may be 5,000. :attr:`mean`,
    :attr:`variance`, :attr:`log_partition`, :meth:`entropy`, :meth:`log_prob`, :meth:`cross_entropy` and
    ``torch.distributions.kl_divergence`` are differentiable in the scores and the temperature to any order that the
    function of the polytope is; :attr:`mode`, samples and lists of structures have no gradient. Numbers are worked out
    in float64 and have the dtype and the device of the scores. Within ``torch.func`` there are the first of these, the
    variance where structures are 0/1 and there are no parameters, but no structures.

    Where auxiliary variables of the polytope have scores, z is the pair of a structure and their values.

    Parameters
    ----------
    polytope : a :class:`Polytope`, an already compiled one, or a :class:`Family` for batches of mixed length.
    scores : ``(*batch, *shape)``, float64, float32, bfloat16 or float16; ``-inf`` forbids a part. For a family the
        largest shape: an instance takes the leading corner of its own shape, and structures are 0 beside it.
    temperature : T, a positive number or a tensor that broadcasts to ``(*batch,)``.
    sizes : for a family, the size of every instance, ``(*batch,)`` integers, or ``(*batch, k)`` for k sizes.
    on_failure : ``"raise"`` raises :class:`SolveError`, which names the instances without an answer (those without
        structures, for example); ``"nan"`` gives NaN for them, and a gradient of 0.
    validate_args : whether :meth:`log_prob` refuses what is no structure, rather than give it -inf; True by default, as
        in torch. Scores, temperatures and shapes are checked in any case.
    parameters : a tensor per declared parameter, and the scores of every auxiliary variable that is declared as
        ``scored``, as for :class:`OptLayer`. Parameters get no gradient.

    Raises
    ------
    TypeError : arguments that are no tensors of numbers; parameters that are missing or unexpected.
    ValueError : wrong shapes; NaN or +inf; a temperature that is not positive; parameters that require a gradient.

    References
    ----------
    Lafferty, McCallum and Pereira (2001), Conditional random fields, ICML. Wainwright and Jordan (2008), Graphical
    models, exponential families, and variational inference.

    Examples
    --------
    >>> import torch
    >>> from polytopes import matching
    >>> permutations = Gibbs(matching(3), torch.zeros(3, 3), temperature=0.5)
    >>> permutations.mean[0], round(permutations.entropy().exp().item())
    (tensor([0.3333, 0.3333, 0.3333]), 6)
    >>> structures, log_prob = permutations.top_k(2)
    >>> structures.shape, log_prob.exp()
    (torch.Size([2, 3, 3]), tensor([0.1667, 0.1667]))
    """

    has_rsample = False
    has_enumerate_support = True

    @outside_graphs
    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family | Source,
        scores: Float[Tensor, "*batch_and_shape"],
        *,
        temperature: float | Tensor = 1.0,
        sizes: Any = None,
        on_failure: Literal["raise", "nan"] = "raise",
        validate_args: bool | None = None,
        **parameters: Any,
    ) -> None:
        if not isinstance(polytope, (Polytope, CompiledPolytope, Family, Source)):
            raise TypeError(f"Gibbs takes a Polytope or a Family, but got {type(polytope).__name__}")
        if on_failure not in ("raise", "nan"):
            raise ValueError(f'on_failure is "raise" or "nan", but got {on_failure!r}')
        self._source = source = polytope if isinstance(polytope, Source) else Source(polytope)
        self._sizes, self._named = sizes, parameters
        shares, tensors = source.shares(scores, sizes, parameters, "scores", source.compiled)
        every, batch, padded = shares.every, shares.batch, shares.padded
        self._specs: dict[str, ParameterSpec | ScoredSpec] = {}
        for share in every:
            self._specs |= {spec.name: spec for spec in share.entries.parameters}
            self._specs |= {spec.name: spec for spec in share.entries.auxiliaries}
        auxiliaries = {
            name: parameters[name].shape[parameters[name].ndim - len(spec.shape) :]
            for name, spec in self._specs.items()
            if isinstance(spec, ScoredSpec)
        }
        self._door = Door(every, batch, padded, every[0].home if every else CPU, scores.dtype, on_failure, auxiliaries)
        self.scores = scores
        self.temperature = temperature_of(temperature, batch)
        self._tensors = self._prepared(tensors)
        self._expectations, self._listing = Expectations(self._door, self._tensors), Listing(self._door, self._tensors)
        if not transforms_active():
            check_temperature(self._tensors[-1])
            for share in every:
                self._door.packed(share, self._tensors)  # refuses NaN and the like
        super().__init__(batch, padded, validate_args=False)  # that was all done
        self._validate_args = Distribution._validate_args if validate_args is None else bool(validate_args)

    def _prepared(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of calls: scores in float64 where instances are solved, parameters as they are, temperatures."""
        door, found = self._door, [*tensors, self.temperature]
        for share in door.every:
            for spec, tensor in zip(
                share.entries.parameters, tensors[share.named][len(share.entries.auxiliaries) :], strict=True
            ):
                if tensor.requires_grad and torch.is_grad_enabled():
                    raise ValueError(
                        f"Gibbs has no gradient for parameters, but {spec.name} requires one; pass "
                        f"{spec.name}.detach(), or learn it through OptLayer with SparseMAP()"
                    )
        for place in (*door.scored(found), -1):
            found[place] = found[place].to(door.home, torch.float64)
        return [t.clone() if t.is_inference() else t for t in found]

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Scores are finite or -inf, temperatures positive."""
        return {"scores": Scores(), "temperature": constraints.positive}

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """The structures, which depend on the masks and the parameters of an instance."""
        return Structures(self.is_structure, len(self.event_shape))

    # Functions of the scores

    @property
    @outside_graphs
    def log_partition(self) -> Float[Tensor, "*batch"]:
        r"""The log of the sum of :math:`e^{\langle s, z \rangle / T}` over structures."""
        return self._out(self._expectations.total())

    @property
    @outside_graphs
    def mean(self) -> Float[Tensor, "*batch_and_shape"]:
        """The marginals: of 0/1 structures, the probability of every part."""
        return self._out(self._expectations.means()[0])

    @property
    @outside_graphs
    def variance(self) -> Float[Tensor, "*batch_and_shape"]:
        """The variance of every part: the diagonal of the covariance. Where structures are not known to be 0/1, it
        takes a derivative of the marginals for every part."""
        return self._out(self._expectations.variance())

    @outside_graphs
    def entropy(self) -> Float[Tensor, "*batch"]:
        r"""Minus the mean log-probability, :math:`\log Z - \langle s, \mu \rangle / T`, in nats."""
        return self._out(self._expectations.entropy())

    @outside_graphs
    def log_prob(self, value: Tensor, **auxiliaries: Tensor) -> Float[Tensor, "*sample_and_batch"]:
        """Log-probabilities of structures ``(*sample_shape, *batch, *shape)`` of any dtype of numbers.

        Where auxiliary variables have scores, their values by name, shaped alike, make it the probability of the pair.
        Without them it is that of the structure, whatever they are: a sum, for structures of 0 and 1.

        What is no structure, or has a forbidden part, has -inf. To tell takes a best vertex per value; within
        ``torch.func`` values are not looked at.

        Raises
        ------
        ValueError : wrong shapes; with ``validate_args``, a value that is no structure.
        TypeError : names of no auxiliary variable, or some of several.
        """
        value, auxiliaries, tolerance = self._values(value, auxiliaries)
        total = self._expectations.total()
        batch = value.shape[: value.ndim - len(self.event_shape)]
        wider, alone = self if batch == self.batch_shape else self.expand(batch), not auxiliaries
        inside = None if transforms_active() else wider._listing.inside(value, auxiliaries, tolerance)
        if alone and self._door.auxiliaries:
            if inside is None:
                raise NotImplementedError(
                    "the probability of a structure without the values of auxiliary variables cannot be transformed by "
                    f"torch.func; give the values of {', '.join(self._door.auxiliaries)}"
                )
            event = [1] * len(self.event_shape)
            known = (
                value
                if bool(inside.all())
                else torch.where(inside.reshape((*batch, *event)), value, wider._listing.best())
            )
            found = wider._expectations.total(PartitionCall(wider._door, known)) - total
        else:
            found = wider._expectations.weights(value, auxiliaries) - total
        if inside is None or bool(inside.all()):
            return self._out(found)
        missing = ~inside & ~torch.isnan(total)
        if self._validate_args and bool(missing.any()):
            raise ValueError(no_structure(missing, value))
        return self._out(found.masked_fill(missing, -torch.inf))

    @outside_graphs
    def cross_entropy(self, other: Gibbs) -> Float[Tensor, "*batch"]:
        r"""Minus the mean of the ``other`` log-probability under this distribution,
        :math:`\log Z_q - \langle s_q, \mu_p \rangle / T_q`. It is inf where a structure of this one is forbidden there.

        Raises
        ------
        TypeError, ValueError : another kind of distribution, other polytopes, sizes or parameters.
        """
        return self._out(self._cross_entropy(other))

    def _cross_entropy(self, other: Gibbs) -> Tensor:
        mine, theirs = self._side_by_side(other)
        found, hidden = mine._expectations.crossed(theirs._expectations)
        if transforms_active() or not any(bool(forbidden.any()) for forbidden in hidden):
            return found
        return found.masked_fill(mine._listing.reaching(hidden), torch.inf)

    def _side_by_side(self, other: Gibbs) -> tuple[Gibbs, Gibbs]:
        """Both for one batch; refused where they are over other structures."""
        if not isinstance(other, Gibbs):
            raise TypeError(f"the other distribution must be a Gibbs distribution, but got {type(other).__name__}")
        if not self._source.is_that_of(other._source):
            raise ValueError(
                f"distributions over different polytopes have no cross-entropy: {self!r} and {other!r}; make both over "
                "one Polytope or Family object"
            )
        if self.event_shape != other.event_shape:
            raise ValueError(
                f"structures have shapes {tuple(self.event_shape)} and {tuple(other.event_shape)}, which must be one"
            )
        batch = together(self.batch_shape, other.batch_shape)
        if batch is None:
            raise ValueError(f"batches {tuple(self.batch_shape)} and {tuple(other.batch_shape)} do not broadcast")
        mine, theirs = (one if one.batch_shape == batch else one.expand(batch) for one in (self, other))
        if not transforms_active():
            _refuse_other_sets(mine._door, mine._tensors, theirs._door, theirs._tensors)
        return mine, theirs

    # Structures

    @property
    @outside_graphs
    def mode(self) -> Float[Tensor, "*batch_and_shape"]:
        """The best structure, as of :class:`Pipeline`; no gradient."""
        return self._listing.best().to(self.scores.device, self.scores.dtype)

    @outside_graphs
    def sample(
        self, sample_shape: Sequence[int] = ONE, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*sample_batch_and_shape"]:
        """Structures drawn exactly, ``(*sample_shape, *batch, *shape)``; no gradient.

        ``generator`` is what random numbers are drawn from, torch's own for None.
        """
        return self.lifted_sample(sample_shape, generator)[0]

    @outside_graphs
    def lifted_sample(
        self, sample_shape: Sequence[int] = ONE, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "*sample_batch_and_shape"], dict[str, Tensor]]:
        """Structures drawn exactly, and the values of scored auxiliary variables that were drawn with them, by name,
        ``(*sample_shape, *batch, *shape)``."""
        check_generator(generator)
        return self._listing.drawn(torch.Size(sample_shape), generator, self.scores)

    @outside_graphs
    def top_k(self, k: int) -> BestStructures:
        """The k most probable structures of every instance, best first, with their log-probabilities.

        An instance that has fewer than k gives all of them: the result has ``counts``, is as long as the largest of
        these, and has log-probabilities of -inf behind the last structure. Structures that score the same are listed in
        lexicographic order. Which of those that tie for the last place are listed is decided by the scores, the masks
        and the parameters of the instance alone, not by the batch around it, and a longer list has all of a shorter
        one. A decision diagram takes those that decide ties of best structures everywhere (:class:`optlayers.Highs`),
        an enumeration the first ones in lexicographic order. A partitioning takes those that the maximizer finds first:
        its own best structure, then the best of what is left.

        Where structures are summed over by a decision diagram, it lists them. All other polytopes that are known to
        have vertices of 0 and 1 alone (by their rows, or declared ``integral``) are partitioned by forced and forbidden
        parts (Lawler, 1972; Murty, 1968); others are enumerated. No list needs the sum over all structures, which
        ``log_prob`` does. Solvers of rows find a best vertex to their tolerance, oracles to rounding.

        Raises
        ------
        TypeError, ValueError : a k that is no int, or below 1; vertices that are not 0/1, and too many to enumerate.
        """
        if not isinstance(k, int) or isinstance(k, bool):
            raise TypeError(f"k must be an int, but got {k!r}")
        if k < 1:
            raise ValueError(f"k must be at least 1, but got {k}: it is how many structures are listed")
        door = self._door
        found, counts, most = self._listing.k_best(k)
        structures, auxiliaries = door.unpacked(found, most, self.scores)
        counts = counts.reshape(self.batch_shape)
        log_prob = partial(self._log_prob_of_best, found, counts, most)
        return BestStructures(structures, counts.to(self.scores.device), auxiliaries, log_prob)

    def _log_prob_of_best(self, found: Found[Tensor], counts: Tensor, most: int) -> Tensor:
        door, parts = self._door, []
        for share, structures, _ in found:
            scores = door.flat_scores(share, self._tensors)
            parts.append((share, (structures * scores.masked_fill(torch.isneginf(scores), 0.0)).sum(dim=-1)))
        weight = door.numbers(parts) if parts else torch.zeros(most, *door.batch, dtype=torch.float64)
        log_prob = weight / self._tensors[-1] - self._expectations.total()
        place = torch.arange(most, device=counts.device).reshape(-1, *[1] * counts.ndim)
        return self._out(log_prob.masked_fill((place >= counts) & ~torch.isnan(log_prob), -torch.inf))

    @outside_graphs
    def log_count(self) -> Float[Tensor, "*batch"]:
        """The log of the number of structures that masks and parameters admit, -inf for none; of pairs where auxiliary
        variables have scores. No gradient."""
        return self._out(self._listing.log_count())

    @outside_graphs
    def enumerate_support(self, expand: bool = True) -> Float[Tensor, "count *batch_and_shape"]:
        """All structures in lexicographic order, ``(count, *batch, *shape)``.

        Parameters
        ----------
        expand : False gives the batch dimensions a length of 1, for instances that all have the same structures.

        Raises
        ------
        ValueError : too many structures; instances that have different numbers of them (their masks, parameters or
            sizes differ), or different ones with ``expand=False``.
        """
        door, every = self._door, self._listing.every()
        counts = [len(one) for one in every]
        if len(set(counts)) > 1:
            raise ValueError(
                f"instances have between {min(counts)} and {max(counts)} structures, which fit in no tensor together; "
                "enumerate instances of one size, mask and parameters, or ask top_k(), which pads and counts"
            )
        if not expand and any(not torch.equal(every[0], one) for one in every[1:]):
            raise ValueError("instances have different structures; with expand=True each has its own")
        if not every:
            found = self.scores.new_zeros(0, *self.scores.shape)
        elif expand:
            found = torch.stack(every, dim=1).reshape(counts[0], *self.scores.shape)
        else:
            found = every[0].reshape(counts[0], *[1] * len(door.batch), *door.padded)
        return found.to(self.scores.device, self.scores.dtype)

    @outside_graphs
    def is_structure(self, value: Tensor, **auxiliaries: Tensor) -> Bool[Tensor, "*sample_and_batch"]:
        """Which of some values are structures without forbidden parts, ``(*sample_shape, *batch)``; arguments as for
        :meth:`log_prob`."""
        value, auxiliaries, tolerance = self._values(value, auxiliaries)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        wider = self if batch == self.batch_shape else self.expand(batch)
        return wider._listing.inside(value, auxiliaries, tolerance).to(self.scores.device)

    def _values(self, value: Tensor, auxiliaries: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], float]:
        """Values in float64 for one batch, and how far they may be from those of a structure."""
        shapes = self._door.auxiliaries
        if auxiliaries and set(auxiliaries) != set(shapes):
            raise TypeError(
                f"values of {sorted(auxiliaries)} are given, but the auxiliary variables that have scores are "
                f"{sorted(shapes)}: give the values of all of them by name, or of none"
            )
        given = [value_of("value", value, self.event_shape, self.batch_shape)]
        given += [value_of(n, auxiliaries[n], shape, self.batch_shape) for n, shape in shapes.items() if auxiliaries]
        batch = together(self.batch_shape, *(head for _, head, _ in given))
        if batch is None:
            raise ValueError(f"values have batches {[tuple(head) for _, head, _ in given]}, which do not broadcast")
        wide = [one.to(self._door.home).expand(*batch, *one.shape[len(head) :]) for one, head, _ in given]
        return wide[0], dict(zip(shapes, wide[1:], strict=False)), max(tolerance for *_, tolerance in given)

    @outside_graphs
    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Gibbs:
        """The distribution for a batch shape that its own broadcasts to; no numbers are copied."""
        shape, own = torch.Size(batch_shape), self.batch_shape
        named = dict(self._named)
        for name, spec in self._specs.items():
            value = as_tensor(name, named[name])
            if own and value.ndim == len(own) + len(spec.shape) and value.shape[: len(own)] == own:
                named[name] = value.expand(*shape, *value.shape[len(own) :])
        sizes = self._sizes
        if sizes is not None:
            table, _ = self._source.sizes_of(sizes, self.scores, self._source.compiled)
            sizes = table.reshape((*own, table.shape[1])).expand(*shape, table.shape[1])
        return Gibbs(
            self._source,
            self.scores.expand(*shape, *self.event_shape),
            temperature=self.temperature.expand(shape),
            sizes=sizes,
            on_failure=self._door.on_failure,
            validate_args=self._validate_args,
            **named,
        )

    def _out(self, value: Tensor) -> Tensor:
        """In the dtype and on the device of the scores."""
        return value.to(self.scores.device, self.scores.dtype)

    def __repr__(self) -> str:
        what = self._source.family if self._source.only is None else self._source.only.polytope
        return f"Gibbs({what!r}, batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"


@register_kl(Gibbs, Gibbs)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl(p: Gibbs, q: Gibbs) -> Tensor:
    """The cross-entropy less the entropy."""
    return p._out(p._cross_entropy(q) - p._expectations.entropy())


def _refuse_other_sets(mine: Door, ours: Sequence[Tensor], other: Door, theirs: Sequence[Tensor]) -> None:
    """Refuse distributions whose instances have other sizes or parameters."""
    same = len(mine.every) == len(other.every)
    for one, two in zip(mine.every, other.every, strict=False):
        same = same and one.size == two.size and (one.rows is None or torch.equal(one.rows, two.rows_on(one.rows)))
        first = len(one.entries.auxiliaries)
        given = zip(ours[:-1][one.named][first:], theirs[:-1][two.named][first:], strict=False)
        same = same and all(bool((a.detach().cpu() == b.detach().cpu()).all()) for a, b in given)
    if not same:
        raise ValueError(
            "distributions whose instances have different sizes or parameters are over different structures, and have "
            "no cross-entropy here; masks (scores of -inf) may differ"
        )
