"""What a user writes: a polytope."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, final

import cvxpy as cp
from cvxpy.lin_ops import lin_utils
from torch import Tensor

from optlayers.common.pages import code, facts, heading, items, page, sentence
from optlayers.compiled_oracle import name_of
from optlayers.variables import copied_constraint, described, is_integer, name_given, relaxed_variable

__all__ = ["ARGUMENTS", "Polytope"]

ARGUMENTS = frozenset({"self", "scores", "sizes", "objective", "generator"})
"""Names that are taken: what callers give by name stands beside these."""
LISTED = 12
"""So many constraints, parameters and variables a page lists."""


@final
class Polytope:
    r"""The set of values that ``variable`` can take under ``constraints``.

    A declaration and nothing more: no tensor, no solver, no batch. The entries of ``variable`` are the *parts* that
    receive scores. Every other variable in the constraints is auxiliary, and the polytope is the shadow (projection)
    of the feasible set on ``variable``. Where variables are integers (``boolean=True`` or ``integer=True``), it is the
    convex hull of the shadow, whose structures are the integer points. A :class:`cvxpy.Parameter` in the constraints is
    data that may differ from instance to instance; callers give it by its name.

    Parameters
    ----------
    variable : the scored variable, of any shape; its attributes (``nonneg``, ``bounds``, ``boolean``, ``integer``,
        ``diag``, ``symmetric``, …) are constraints like any other.
    constraints : cvxpy constraints, ``==``, ``<=`` or ``>=`` between affine expressions. Convex functions that are
        piecewise linear (``norm1``, ``max``, …) are taken too. Other convex sets (norm balls, semidefinite matrices, …)
        have projections, and no vertices. Or a function without arguments that returns them, called once, when they
        are first asked for: a declaration whose oracle knows all that is wanted then costs nothing.
    oracle : optional maximizer over one instance, ``oracle(scores, *scored, *parameters)``: a Python function, or one
        compiled by numba, which is then called without the interpreter. It takes float64 NumPy arrays: the scores of
        ``variable``, in its shape, then those of every variable in ``scored``, then every parameter, in the order of
        :attr:`parameters` (``budget[()]`` reads a number). It returns a best vertex in the shape of ``variable`` (a
        tuple with the values of ``scored`` behind it, if there are any), and NaN everywhere when no structure does
        without the forbidden parts, whose score is ``-inf``. A Python function is called by several threads at the same
        time; one that is not safe for that, since it keeps a solver's model, say, is given as
        ``optlayers.Oracle(function, serial=True)``, and one that is to be checked at every call as
        ``optlayers.Oracle(function, verify=True)``.
    log_partition : optional :math:`\log \sum_v \exp \langle s, v \rangle` over the vertices v, in torch:
        ``log_partition(scores, *scored, *parameters)`` for a float64 batch ``(batch, *shape)``, which is not empty,
        returning ``(batch,)``. It is differentiated twice. ``-inf`` where no structure does without the forbidden
        parts; :func:`optlayers.log_sum` and :func:`optlayers.log_add` have derivatives there. Where it raises an
        exception, each half of the batch is tried by itself: the instances that it raises for in the end are failures,
        with the message. :func:`optlayers.testing.check_log_partition` holds it to all of this.
    integral : whether all vertices are integral, for all values of the parameters. An answer of the oracle with a
        fractional entry is then a wrong one; and where vertices are enumerated, no proof of it is needed.
    membership : optional check of the oracle's answers, in Python or compiled by numba, for the constraints that need
        auxiliary variables without scores: the solver that asks an oracle does not have them. It is called as the
        oracle is, by one thread at a time if that is.
        ``membership(structure, *scored, *parameters)`` takes float64 arrays (which it cannot write to when it is
        compiled) and returns a number: 0 for a structure, else by how much it misses being one. It is asked only about
        answers that satisfy everything else: the bounds, the constraints among ``variable`` and ``scored``, and
        integrality where it is declared. Among those it must return 0 at every vertex of the polytope, and more than
        1e-7 at every point that lies more than 1e-6 outside of it (points inside that are no vertices it may refuse).
        A simple check that shares no code with the oracle is worth most. Without it, that these constraints hold is
        the oracle's word.
    rows : whether the constraints describe the convex hull of what the oracle answers. ``"exact"``: they do.
        ``"relaxation"``: they hold for all structures, but leave room for other points, so that the oracle alone knows
        the polytope, and projections go over it (:class:`optlayers.ActiveSet`). None: where ``integral=True`` and
        projections would go over the constraints, both are compared on some scores when the polytope is compiled (with
        parameters, when it is first projected onto), which finds most relaxations and proves nothing.
    separate : optional source of constraints that are too many to list: ``separate(point, *scored, *parameters)`` looks
        at a point as an oracle looks at scores (float64 arrays of its own, from several threads at the same time) and
        returns an inequality that the point violates: ``(coefficients, bound)``, for sum(coefficients * x) <= bound,
        with coefficients in the shape of ``variable`` (a tuple with those of ``scored`` behind them, if there are any).
        A list of such pairs is taken as well; None or an empty list says that the point violates nothing. An inequality
        must hold for all structures. Where variables are integers, it is enough that points of integers are told apart;
        where none are, it must be every point outside of the polytope. The constraints are then a relaxation: linear
        programs and branch and bound (:class:`optlayers.BranchAndBound`) are solved again with what was violated until
        nothing is, projections go over these best vertices (:class:`optlayers.ActiveSet`), and every answer is shown to
        ``separate`` in the end. :func:`optlayers.testing.check_separation` holds it to all of this.
    scored : auxiliary variables that get scores too, as keyword arguments by their name, but count for nothing in
        distances: a projection maximizes :math:`\langle s, x \rangle + \langle t, v \rangle - \tfrac12 \|x\|^2`
        (LP-SparseMAP: Niculae and Martins, 2020). Transition scores of a tag sequence are an example.
    draw : optional picture of a point, ``draw(ax, x, **options)``, for :func:`optlayers.plots.structure`: it draws the
        float64 array x, in the shape of ``variable``, on the matplotlib Axes ``ax``. Entries between 0 and 1 are
        weights of a mixture. Options are passed on as they are given, ``words=`` among them.

    Raises
    ------
    TypeError : when ``variable`` is no cvxpy variable, or a constraint is no cvxpy constraint.
    ValueError : when a scored variable has no name of its own, or is not in the constraints. What a function returns is
        checked when it is called.

    Examples
    --------
    >>> import cvxpy as cp
    >>> x = cp.Variable(5, nonneg=True)
    >>> Polytope(x, [cp.sum(x) == 1])
    Polytope(shape=(5,), constraints=1, parameters=[])
    """

    def __init__(
        self,
        variable: cp.Variable,
        constraints: Iterable[cp.Constraint] | Callable[[], Iterable[cp.Constraint]],
        *,
        oracle: Callable[..., Any] | None = None,
        log_partition: Callable[..., Tensor] | None = None,
        integral: bool = False,
        membership: Callable[..., Any] | None = None,
        rows: Literal["exact", "relaxation"] | None = None,
        separate: Callable[..., Any] | None = None,
        scored: Iterable[cp.Variable] = (),
        draw: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(variable, cp.Variable):
            raise TypeError(f"a Polytope is declared on a cvxpy Variable, but got {type(variable).__name__}")
        functions = {
            "oracle": oracle,
            "log_partition": log_partition,
            "membership": membership,
            "separate": separate,
            "draw": draw,
        }
        for name, function in functions.items():
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, but got {type(function).__name__}")
        if not isinstance(integral, bool):
            raise TypeError(f"integral must be True or False, but got {integral!r} of type {type(integral).__name__}")
        if rows not in (None, "exact", "relaxation"):
            raise ValueError(f'rows must be "exact", "relaxation" or None, but got {rows!r}')
        if rows == "exact" and separate is not None:
            raise ValueError('rows="exact" says that constraints are all there are, but separate= brings further ones')
        if rows == "relaxation" and oracle is None and separate is None:
            raise ValueError('rows="relaxation" is for declarations with an oracle, which knows the polytope instead')
        if isinstance(scored, cp.Variable):
            raise TypeError("scored must be a list of cvxpy variables, but got a single one: put it in [ ]")
        self.variable = variable
        self.oracle = oracle
        self.log_partition = log_partition
        self.membership = membership
        self.separate = separate
        self.rows = rows if separate is None else "relaxation"
        self.scored = tuple(scored)
        self.draw = draw
        for position, variable in enumerate(self.scored):
            if not isinstance(variable, cp.Variable):
                raise TypeError(f"scored[{position}] must be a cvxpy Variable, but got {type(variable).__name__}")
        # Hulls of integer points are integral by what they are.
        self.integral = integral or all(is_integer(v).all() for v in (self.variable, *self.scored))
        self._declare: Callable[[], Iterable[cp.Constraint]] | None = None
        self._constraints: list[tuple[cp.Constraint, ...]] = []
        self._relaxed: list[Polytope] = []
        self._further: tuple[cp.Parameter, ...] = ()
        self._beside: dict[tuple[int, ...], Polytope] = {}
        self.at_an_edge = False
        """Whether parameters are such that there are points, but may be none for others nearby; see
        :mod:`optlayers.shifted`."""
        if callable(constraints):
            self._declare = constraints
        else:
            self._constraints.append(self._checked(constraints))

    @property
    def constraints(self) -> tuple[cp.Constraint, ...]:
        """The constraints, always the same objects."""
        if not self._constraints:
            assert self._declare is not None
            # Two threads may both come here; what was appended first is what both return.
            self._constraints.append(self._declared(self._declare))
        return self._constraints[0]

    def _declared(self, declare: Callable[[], Iterable[cp.Constraint]]) -> tuple[cp.Constraint, ...]:
        what = f"the function {name_of(declare)} that declares the constraints of a Polytope"
        try:
            constraints = declare()
            if isinstance(constraints, Iterable):
                constraints = tuple(constraints)  # what a generator raises is raised here
        except Exception as error:
            error.add_note(f"{what} raised this; it is called without arguments")
            raise
        if constraints is None:
            raise TypeError(f"{what} returned None; it must return a list of constraints: is its return missing?")
        return self._checked(constraints)

    def _checked(self, constraints: Iterable[cp.Constraint]) -> tuple[cp.Constraint, ...]:
        if isinstance(constraints, cp.Constraint):
            raise TypeError("constraints must be a list of cvxpy constraints, but got a single one: put it in [ ]")
        if not isinstance(constraints, Iterable):
            raise TypeError(f"constraints must be a list of cvxpy constraints, but got {type(constraints).__name__}")
        constraints = tuple(constraints)
        for position, constraint in enumerate(constraints):
            if not isinstance(constraint, cp.Constraint):
                raise TypeError(
                    f"constraint {position} is {constraint!r} of type {type(constraint).__name__}, not a cvxpy "
                    "constraint; does it mention a cvxpy variable?"
                )
        auxiliary = {v.id for constraint in constraints for v in constraint.variables()} - {self.variable.id}
        for position, variable in enumerate(self.scored):
            if variable.id not in auxiliary:
                raise ValueError(
                    f"scored[{position}] ({described(variable)}) is no auxiliary variable of the constraints; a scored "
                    "auxiliary variable is one that they mention besides the structure itself"
                )
            name = variable.name()
            if name_given(variable) is None:
                raise ValueError(
                    f"scored[{position}] of shape {variable.shape} has no name; its scores are given by name: "
                    f'cp.Variable({variable.shape or ""}{", " if variable.shape else ""}name="…")'
                )
            if not name.isidentifier() or keyword.iskeyword(name):
                raise ValueError(f"the name {name!r} of scored[{position}] cannot be a keyword argument")
            if name in ARGUMENTS:
                raise ValueError(f"the name {name!r} of scored[{position}] is taken by an argument of the layer")
            if name in {other.name() for other in self.scored[:position]}:
                raise ValueError(f"two scored variables are named {name!r}; give each its own name")
        return constraints

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the scored variable."""
        return tuple(self.variable.shape)

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """Every parameter of the constraints and of the variables' bounds once, in order of appearance."""
        found = {p.id: p for c in self.constraints for p in c.parameters()}
        for variable in self.variables:
            for bound in variable.attributes["bounds"] or ():
                if isinstance(bound, cp.Expression):
                    found |= {p.id: p for p in bound.parameters()}
        found |= {p.id: p for p in self._further}
        return tuple(found.values())

    @property
    def further(self) -> tuple[cp.Parameter, ...]:
        """The parameters that stand beside the constraints; see :meth:`beside`."""
        return self._further

    @property
    def variables(self) -> tuple[cp.Variable, ...]:
        """The scored variable, then every auxiliary one, once."""
        found = {self.variable.id: self.variable}
        for constraint in self.constraints:
            found |= {v.id: v for v in constraint.variables() if v.id not in found}
        return tuple(found.values())

    @property
    def has_integers(self) -> bool:
        """Whether some variable is declared to be integer, or some entries of it."""
        return any(is_integer(variable).any() for variable in self.variables)

    def relaxed(self) -> Polytope:
        r"""The linear relaxation: these constraints, without their variables having to be integers.

        Bounds of 0 and 1 of booleans stay. It is a polytope with vertices that may be fractional, and it contains this
        one: for :class:`optlayers.Spigot`, ``relaxation=``, say. Constraints that ``separate`` brings are not in it.
        Without integer variables it is this declaration.
        """
        if not self.has_integers:
            return self
        if not self._relaxed:
            plain = {v.id: relaxed_variable(v) if is_integer(v).any() else v for v in self.variables}
            by_identity = {id(v): plain[v.id] for v in self.variables}
            constraints = [copied_constraint(constraint, by_identity) for constraint in self.constraints]
            self._relaxed.append(
                Polytope(
                    plain[self.variable.id], constraints, scored=[plain[v.id] for v in self.scored], draw=self.draw
                )
            )
        return self._relaxed[0]

    def beside(self, parameters: Sequence[cp.Parameter]) -> Polytope:
        """These variables and constraints with further parameters, which no constraint need mention: data of what is
        asked about the polytope. There is one for the same parameters, without the oracle and the other functions but
        ``draw``."""
        own = {p.id for p in self.parameters}
        new = tuple(p for p in parameters if p.id not in own)
        if not new:
            return self
        key = tuple(p.id for p in new)
        if key not in self._beside:
            constraints = self._constraints[0] if self._constraints else lambda: self.constraints
            other = Polytope(self.variable, constraints, integral=self.integral, scored=self.scored, draw=self.draw)
            other._further, other.at_an_edge = new, self.at_an_edge
            self._beside.setdefault(key, other)
        return self._beside[key]

    def without_oracle(self) -> Polytope:
        """These variables and constraints alone, for a general solver: what an oracle is compared with."""
        constraints = self._constraints[0] if self._constraints else lambda: self.constraints
        return Polytope(
            self.variable,
            constraints,
            log_partition=self.log_partition,
            integral=self.integral,
            membership=self.membership,
            separate=self.separate,
            scored=self.scored,
            draw=self.draw,
        )

    def __repr__(self) -> str:
        if not self._constraints:  # a line in a log is no reason to build them
            return f"Polytope(shape={self.shape}, constraints when asked for)"
        names = [p.name() for p in self.parameters]
        return f"Polytope(shape={self.shape}, constraints={len(self.constraints)}, parameters={names})"

    @page
    def _repr_html_(self) -> Iterator[str]:
        yield heading(f"Polytope of shape {self.shape}")
        built = bool(self._constraints)  # a page is no reason to build them
        functions = {
            "best structures by": self.oracle,
            "sums over structures by": self.log_partition,
            "membership by": self.membership,
            "further constraints by": self.separate,
        }
        known = [("scored variable", _names([self.variable])), ("scored besides", _names(self.scored))]
        if built:
            scored = {v.id for v in (self.variable, *self.scored)}
            known.append(("auxiliary variables", _names([v for v in self.variables if v.id not in scored])))
            known.append(("parameters", _names(self.parameters)))
            known.append(("integer variables", _names([v for v in self.variables if is_integer(v).any()])))
        known.append(("vertices", "integral, as declared" if self.integral else ""))
        known.append(("rows", "" if self.rows is None else f"{self.rows}, as declared"))
        yield facts([*known, *((what, name_of(f)) for what, f in functions.items() if f is not None)])
        if not built:
            assert self._declare is not None
            yield sentence(f"Its constraints are built by {name_of(self._declare)} when they are first asked for.")
            return
        yield sentence(f"{len(self.constraints)} constraint{'s' if len(self.constraints) != 1 else ''}:")
        lines = [code(str(constraint)) for constraint in self.constraints[:LISTED]]
        left = len(self.constraints) - LISTED
        yield items([*lines, *([f"and {left} more"] if left > 0 else [])])

    def __deepcopy__(self, memo: dict[int, Any]) -> Polytope:
        # A declaration never changes, and cvxpy tells variables apart by identity.
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The function that declares the constraints is often a lambda, and pickle takes none.
        return self.__dict__ | {"_constraints": [self.constraints], "_declare": None, "_relaxed": [], "_beside": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # cvxpy numbers its objects from a counter of the process. An unpickled declaration brings numbers of another
        # process along: without this, a variable made later could get the number of one of ours, and pass for it.
        self.__dict__.update(state)
        counter = lin_utils.ID_COUNTER
        counter.count = max(counter.count, 1 + _largest_id(self))


def _names(leaves: Sequence[cp.Variable | cp.Parameter]) -> str:
    """Names with their shapes; a number has none."""
    named = [f"{name_given(leaf) or 'variable'} {leaf.shape or ''}".strip() for leaf in leaves[:LISTED]]
    return ", ".join([*named, *([f"and {len(leaves) - LISTED} more"] if len(leaves) > LISTED else [])])


def _largest_id(polytope: Polytope) -> int:
    ids = [polytope.variable.id]
    for constraint in polytope.constraints:
        ids.append(constraint.id)
        ids += [leaf.id for leaf in (*constraint.variables(), *constraint.parameters())]
    return max(int(i) for i in ids)
