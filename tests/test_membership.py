"""What is seen at run time of an oracle that returns no structure, a fractional one, or another one every time."""

import copy
import itertools
import pickle
from functools import partial

import cvxpy as cp
import numba
import numpy as np
import pytest
import torch

import optlayers as ol
import polytopes
from optlayers.testing import check_oracle, check_polytope
from polytopes.arborescence import unrooted_words
from polytopes.permutahedron import missing_ranks
from polytopes.projective_tree import crossed_words


def scores_for(shape, count, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_oracle(polytope, oracle, **others):
    """A declaration with another oracle."""
    kept = {"integral": polytope.integral, "membership": polytope.membership, "scored": polytope.scored} | others
    return ol.Polytope(polytope.variable, polytope.constraints, oracle=oracle, **kept)


def tree_of(heads):
    tree = np.zeros((len(heads) + 1, len(heads) + 1))
    tree[list(heads), np.arange(1, len(heads) + 1)] = 1.0
    return tree


def ties(scores):
    """The mean of the best choices."""
    best = (scores == scores.max()).astype(float)
    return best / best.sum()


POLYTOPES = {
    "tree": polytopes.arborescence(4),
    "many roots": polytopes.arborescence(4, single_root=False),
    "projective": polytopes.projective_tree(4),
    "projective, many roots": polytopes.projective_tree(4, single_root=False),
    "ranking": polytopes.permutahedron(3),
    "choice": polytopes.simplex(3),
}
WRONG = {
    "a cycle": ("tree", tree_of([0, 3, 4, 2]), "returned no structure: it misses one by 3, by .* unrooted_words"),
    "a cycle beside roots": ("many roots", tree_of([0, 0, 4, 3]), "it misses one by 2, by .* unrooted_words"),
    "crossing arcs": ("projective", tree_of([3, 4, 0, 3]), "it misses one by 3, by membership function crossed_words"),
    "a cycle under a root": ("projective", tree_of([0, 3, 4, 2]), "it misses one by .*, by .* crossed_words"),
    "crossing roots": ("projective, many roots", tree_of([3, 0, 0, 3]), "it misses one by 2, by .* crossed_words"),
    "two heads": (
        "projective",
        tree_of([2, 0, 2, 3]) + np.outer(np.eye(5)[2], np.eye(5)[4]),
        "it misses one by 1, by .* crossed_words",
    ),
    "a rank twice": ("ranking", np.array([2.0, 2.0, 2.0]), "it misses one by 2, by membership function missing_ranks"),
    "a rank beyond": ("ranking", np.array([2.0, 4.0, 1.0]), "it misses one by 1, by membership function missing_ranks"),
    "half of either": ("choice", np.array([0.5, 0.5, 0.0]), "returned an entry that is 0.5 from an integer"),
    "a fractional tree": (
        "tree",
        0.5 * (tree_of([0, 1, 1, 1]) + tree_of([2, 0, 2, 2])),
        "returned an entry that is 0.5 from an integer, but the declaration says integral=True",
    ),
}
each_wrong_answer = pytest.mark.parametrize(("name", "answer", "reason"), WRONG.values(), ids=list(WRONG))


def wrong_at(polytope, answer, which):
    """The polytope with an oracle that gives a wrong answer where the second score is that of the marked instance."""
    right = polytope.oracle

    def careless(scores):
        return answer.copy() if scores.flat[1] == which else right(scores)

    return with_oracle(polytope, careless)


@pytest.mark.many(3)
@each_wrong_answer
@pytest.mark.parametrize("solve", ["maximize", "project"])
def test_a_wrong_answer_is_caught_and_its_neighbours_are_right(name, answer, reason, solve):
    polytope = POLYTOPES[name]
    scores = scores_for(polytope.shape, 10)
    scores.flatten(1)[3, 1] = mark = -0.125
    over_vertices = ol.ActiveSet()
    expected = getattr(ol.compile_polytope(polytope, projector=over_vertices), solve)(scores).check().value
    found = getattr(ol.compile_polytope(wrong_at(polytope, answer, mark), projector=over_vertices), solve)(scores)
    (failure,) = found.failures
    assert failure.index == (3,) and failure.status is ol.Status.INACCURATE
    assert failure.reason.startswith("oracle careless ") and failure.reason.endswith("check_oracle")
    with pytest.raises(ol.SolveError, match=f"instance 3 is INACCURATE: oracle careless .*{reason}"):
        found.check()
    assert found.primal_residual[3] >= 0.5
    assert torch.equal(found.value[found.ok], expected[found.ok])


@pytest.mark.parametrize("compiled", [True, False], ids=["numba", "Python"])
def test_projections_see_a_wrong_vertex_that_comes_late(compiled):
    """The first vertex is right; one that comes on the way is not."""
    cycle, right = tree_of([0, 3, 4, 2]), polytopes.arborescence(4).oracle

    @numba.njit
    def late(scores):
        return right(scores) if scores[0, 1] == 7.0 else cycle.copy()

    oracle = late if compiled else late.py_func
    scores = scores_for((5, 5), 2)
    scores[1, 0, 1] = 7.0
    solution = ol.compile_polytope(with_oracle(polytopes.arborescence(4), oracle)).project(scores)
    assert [f.index for f in solution.failures] == [(0,), (1,)]
    assert all("oracle late returned no structure" in f.reason for f in solution.failures)


def test_what_visible_rows_show_is_said_first():
    solution = ol.compile_polytope(
        with_oracle(polytopes.arborescence(3), lambda scores: 0.5 * tree_of([0, 3, 2]), membership=refuse_to_answer)
    ).maximize(torch.zeros(1, 4, 4))
    assert "left the polytope by 0.5" in solution.failures[0].reason


def refuse_to_answer(*arrays):
    raise ZeroDivisionError("asked without need")


class TestAgain:
    """An oracle is asked twice for one instance of a batch that is worth it."""

    @staticmethod
    def random(count):
        generator = np.random.default_rng(0)
        polytope = with_oracle(polytopes.permutahedron(6), lambda scores: 1.0 + generator.permutation(6))
        return ol.compile_polytope(polytope).maximize(scores_for((6,), count))

    def test_another_answer(self):
        solution = self.random(8)
        (failure,) = solution.failures
        assert failure.index == (0,) and failure.status is ol.Status.FAILED
        assert "oracle <lambda> gave two different answers to the same scores" in failure.reason

    def test_small_batches_are_asked_once(self):
        assert self.random(7).all_ok

    def test_the_sign_of_zero_is_a_difference(self):
        signs = itertools.cycle([0.0, -0.0])
        polytope = with_oracle(polytopes.simplex(2), lambda scores: np.array([1.0, next(signs)]))
        assert [f.index for f in ol.compile_polytope(polytope).maximize(torch.zeros(9, 2)).failures] == [(0,)]

    def test_no_structure_is_an_answer_too(self):
        answers = itertools.cycle([np.full(2, np.nan), np.array([1.0, 0.0])])
        polytope = with_oracle(polytopes.simplex(2), lambda scores: next(answers).copy())
        assert "two different answers" in ol.compile_polytope(polytope).maximize(torch.zeros(8, 2)).failures[0].reason
        steady = with_oracle(polytopes.simplex(2), lambda scores: np.full(2, np.nan))
        nothing = ol.compile_polytope(steady).maximize(torch.full((8, 2), -torch.inf))
        assert (nothing.status == ol.Status.INFEASIBLE).all()

    def test_an_exception_the_second_time(self):
        calls = []

        def tired(scores):
            calls.append(0)
            if len(calls) == 2:
                raise RuntimeError("once is enough")
            return np.array([1.0, 0.0])

        compiled = ol.compile_polytope(with_oracle(polytopes.simplex(2), tired))
        calls.clear()
        (failure,) = compiled.maximize(torch.zeros(8, 2)).failures
        assert failure.index == (0,) and "oracle tired raised RuntimeError: once is enough" in failure.reason


class TestMembership:
    """What a membership function must be, and who is told when it is not."""

    @staticmethod
    def pair(membership, **others):
        """Two neighbours on a ring of four, by a variable for every pair."""
        x, pair = cp.Variable(4), cp.Variable(4, nonneg=True)
        turn = np.roll(np.eye(4), 1, axis=0)

        def best(scores):
            first = int(np.argmax(scores + np.roll(scores, -1)))
            return np.eye(4)[first] + np.eye(4)[(first + 1) % 4]

        return ol.Polytope(
            x, [cp.sum(pair) == 1, x == pair + turn @ pair], oracle=best, membership=membership, **others
        )

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (float("nan"), "membership function says returned nan for the answer of oracle best"),
            (-1.0, "membership function says returned -1 for the answer of oracle best"),
            ("much", "membership function says raised TypeError: it returned 'much'; it must return a number"),
            (np.zeros(3), "membership function says raised TypeError"),
        ],
    )
    def test_no_amount(self, answer, message):
        def says(structure):
            return answer

        for solve in ("maximize", "project"):
            solution = getattr(ol.compile_polytope(self.pair(says)), solve)(scores_for((4,), 2))
            assert (solution.status == ol.Status.FAILED).all()
            assert all(message in failure.reason for failure in solution.failures)
        with pytest.raises(AssertionError, match="membership function says refuses the vertex"):
            check_oracle(self.pair(says))

    def test_an_exception(self):
        polytope = self.pair(refuse_to_answer)
        (failure,) = ol.compile_polytope(polytope).maximize(torch.zeros(1, 4)).failures
        assert failure.status is ol.Status.FAILED
        assert "membership function refuse_to_answer raised ZeroDivisionError: asked without need" in failure.reason

        @numba.njit
        def raising(structure):
            if structure[0] > 0:
                raise ValueError("not today")
            return 0.0

        solution = ol.compile_polytope(self.pair(raising)).maximize(torch.tensor([[0.0, 0, 1, 1], [1.0, 1, 0, 0]]))
        assert solution.status.tolist() == [ol.Status.OPTIMAL, ol.Status.FAILED]
        assert "membership function raising raised an exception" in solution.failures[0].reason

    def test_ctrl_c(self):
        def interrupted(structure):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ol.compile_polytope(self.pair(interrupted)).maximize(torch.zeros(3, 4))

    def test_compiled_ones_return_a_number_and_cannot_write(self):
        @numba.njit
        def whole(structure):
            return len(structure)

        @numba.njit
        def writing(structure):
            structure[0] = 1.0
            return 0.0

        with pytest.raises(TypeError, match=r"membership function whole returns int64.*must return a float64 number"):
            ol.compile_polytope(self.pair(whole))
        with pytest.raises(TypeError, match="numba cannot compile membership function writing"):
            ol.compile_polytope(self.pair(writing))

    def test_python_ones_get_copies(self):
        def writing(structure):
            structure[:] = 7.0
            return 0

        solution = ol.compile_polytope(self.pair(writing)).maximize(scores_for((4,), 3)).check()
        assert torch.equal(solution.value.sum(1), torch.full((3,), 2.0, dtype=torch.float64))

    @pytest.mark.parametrize("compiled", [True, False], ids=["numba", "Python"])
    def test_it_gets_what_the_oracle_gets_and_constants(self, compiled):
        x, hidden, budget = cp.Variable(5), cp.Variable(5), cp.Parameter(name="budget")
        v = cp.Variable((1, 2), name="v", nonneg=True)

        @numba.njit
        def first(scores, more, budget):
            out, other = np.zeros(5), np.zeros((1, 2))
            out[: int(budget[()])] = 1.0
            other[0, 1] = 1.0
            return out, other

        @numba.njit
        def wrong(structure, other, budget, weights, offset):
            return abs(weights @ structure - budget[()]) + abs(other[0, 1] - offset[0])

        def declared(weights, offset):
            function = wrong if compiled else wrong.py_func
            constraints = [x == hidden, hidden >= 0, hidden <= 1, cp.sum(hidden) == budget, cp.sum(v) == 1]
            member = ol.CompiledOracle(function, [weights, offset])
            return ol.Polytope(
                x, constraints, oracle=first if compiled else first.py_func, membership=member, scored=[v]
            )

        given = {"budget": torch.tensor([1.0, 3.0]), "v": torch.zeros(1, 2)}
        right = ol.compile_polytope(declared(np.ones(5), np.array([1]))).maximize(torch.zeros(2, 5), **given)
        assert right.all_ok and torch.equal(right.primal_residual, torch.zeros(2, dtype=torch.float64))
        other = ol.compile_polytope(declared(np.array([1.0, 2, 2, 2, 2]), np.array([3]))).maximize(
            torch.zeros(2, 5), **given
        )
        assert other.primal_residual.tolist() == [2.0, 4.0]
        assert "it misses one by 4, by membership function wrong" in other.failures[1].reason

    def test_rounding_is_no_miss(self):
        solution = ol.compile_polytope(self.pair(lambda structure: 1e-12)).maximize(torch.zeros(1, 4))
        assert solution.all_ok and solution.primal_residual == 1e-12

    def test_the_word_of_the_oracle_where_there_is_none(self):
        apart = np.array([1.0, 0.0, 1.0, 0.0])
        polytope = self.pair(None)
        polytope.oracle = lambda scores: apart.copy()
        compiled = ol.compile_polytope(polytope)
        assert compiled.maximize(torch.zeros(1, 4)).all_ok
        assert "is the oracle's word: no membership function is declared" in compiled.explain()


def test_explain_says_what_stands_for_hidden_rows():
    told = ol.compile_polytope(polytopes.projective_tree(4)).explain()
    assert "Membership function crossed_words stands for the rows with unscored auxiliary variables" in told
    assert "must be integral" in told
    beside = ol.compile_polytope(polytopes.projective_tree(4), projector=ol.Clarabel()).explain()
    assert "Membership function crossed_words" in beside
    tree = polytopes.projective_tree(4)
    tree.membership = partial(tree.membership)
    assert "Membership function crossed_words stands for" in ol.compile_polytope(tree).explain()
    rows = ol.compile_polytope(polytopes.projective_tree(4).without_oracle()).explain()
    assert "embership" not in rows and "must be integral" not in rows
    assert "embership" not in ol.compile_polytope(polytopes.matching(3)).explain()


def test_only_integer_budgets_make_subsets_integral():
    solution = ol.compile_polytope(polytopes.subset(3)).maximize(torch.tensor([[3.0, 2.0, 1.0]]), budget=1.5)
    assert solution.all_ok and solution.value.tolist() == [[1.0, 0.5, 0.0]]


def test_declarations_keep_both_statements():
    polytope = polytopes.permutahedron(4)
    for other in (polytope.without_oracle(), copy.deepcopy(polytope), pickle.loads(pickle.dumps(polytope))):
        assert other.integral and other.membership is missing_ranks
    compiled = pickle.loads(pickle.dumps(ol.compile_polytope(polytope)))
    assert compiled.maximize(scores_for((4,), 9)).all_ok
    with pytest.raises(TypeError, match="membership must be callable, but got float"):
        ol.Polytope(polytope.variable, polytope.constraints, membership=0.0)
    with pytest.raises(TypeError, match="integral must be True or False, but got 1 of type int"):
        ol.Polytope(polytope.variable, polytope.constraints, integral=1)


def test_a_wrong_statement_of_integrality():
    x = cp.Variable(3, nonneg=True)

    def best(scores):
        return 1.5 * np.eye(3)[scores.argmax()]

    polytope = ol.Polytope(x, [cp.sum(x) == 1.5], oracle=best, integral=True)
    with pytest.raises(AssertionError, match=r"says integral=True, but HiGHS finds a vertex that is 0.5 off"):
        check_oracle(polytope)
    with pytest.raises(AssertionError, match="says integral=True, but vertices are fractional"):
        check_polytope(polytope.without_oracle())


@pytest.mark.many(2)
@pytest.mark.parametrize("name", [n for n, p in POLYTOPES.items() if p.membership is not None])
def test_check_oracle_sees_membership_that_accepts_or_refuses_too_much(name):
    def accepts(structure):
        return 0.0

    def refuses(structure):
        return 1.0

    polytope = POLYTOPES[name]
    with pytest.raises(AssertionError, match=r"membership function accepts accepts .* outside of the polytope"):
        check_oracle(with_oracle(polytope, polytope.oracle, membership=accepts), samples=12)
    with pytest.raises(AssertionError, match="membership function refuses refuses the vertex"):
        check_oracle(with_oracle(polytope, polytope.oracle, membership=refuses), samples=12)


def test_trees_are_told_from_all_other_choices_of_heads():
    """Every word takes any other node for its head: a tree, or not, by an independent walk; and crossing, or not."""
    for heads in itertools.product(range(5), repeat=4):
        if any(h == m for m, h in enumerate(heads, 1)):
            continue
        tree = tree_of(heads)
        reached = np.linalg.matrix_power(np.eye(5) + tree, 5)[0] > 0
        assert (unrooted_words(tree) == 0) == reached.all()
        arcs = [(min(h, m), max(h, m)) for m, h in enumerate(heads, 1)]
        crossing = any(a < c < b < d for (a, b), (c, d) in itertools.permutations(arcs, 2))
        assert (crossed_words(tree) == 0) == (reached.all() and not crossing)


def test_rankings_are_told_from_all_other_integers():
    for ranks in itertools.product(range(-1, 6), repeat=3):
        assert missing_ranks(np.array(ranks, float)) == len({1, 2, 3} - set(ranks))
    assert missing_ranks(np.array([np.nan, np.inf, -1e300])) == 3
