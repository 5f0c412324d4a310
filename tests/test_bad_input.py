"""Bad input gets an error that says what was given, what is accepted and what to change."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol
from optlayers.common.tensors import all_finite
from polytopes import arborescence, matching, sequence, simplex, subset

x = cp.Variable(3, name="x")
box = [x >= 0, x <= 1]


def declared(*constraints: cp.Constraint, variable: cp.Variable = x) -> ol.Polytope:
    return ol.Polytope(variable, constraints)


flag, count, field = cp.Variable(3, boolean=True), cp.Variable(3, integer=True), cp.Variable(3, complex=True)
k = cp.Parameter(name="k")
BAD_DECLARATIONS = {
    "infeasible bounds": (
        declared(x >= 2, x <= 1),
        r"empty: x\[0\] must be >= 2 by constraint 0.*<= 1 by constr",
    ),
    "infeasible rows": (declared(*box, cp.sum(x) == 4), r"empty: .*constraint 2.*cannot hold together: they miss by 1"),
    "contradicting rows": (
        declared(*box, cp.sum(x) == 1, 2 * cp.sum(x) == 3),
        "constraint . .*contradicts other equalities",
    ),
    "impossible row": (declared(*box, cp.sum(x) - cp.sum(x) >= 1), "constraint 2 .*cannot hold"),
    "unbounded above": (declared(x >= 0), r"unbounded: x\[0\] can move without limit"),
    "unbounded along a line": (declared(x[:2] <= 1, x >= -1, x[2] - x[0] >= 0), r"unbounded: x\[2\]"),
    "unbounded both ways": (declared(x[1] == x[0], x[2] == 0), r"unbounded: x\[0\]"),
    "not convex": (declared(*box, cp.square(x[0]) >= 0.5), "constraint 2 .*is not convex by cvxpy's rules"),
    "an equality that is not affine": (declared(*box, cp.norm(x) == 1), "constraint 2 .*is not convex"),
    "integers that are not polyhedral": (
        declared(cp.norm(count) <= 2, variable=count),
        "convex but not polyhedral .*SOC cones.*integer variables",
    ),
    "not mentioned": (
        declared(cp.Variable(2, name="y") <= 1),
        r"no constraint mentions the scored variable x; the constraints mention y$",
    ),
    "no constraint": (declared(), "no constraint mentions the scored variable x; .*no variable at all"),
    "no integer point": (declared(2 * cp.sum(flag) == 3, variable=flag), "empty: no integer point satisfies"),
    "fixed between integers": (declared(2 * flag == 1, variable=flag), r"is integer, but .* fix it at 0.5"),
    "integers without limit": (declared(count >= 0, variable=count), "unbounded: .* can move without limit"),
    "complex": (declared(cp.real(field) <= 1, variable=field), "is complex; polytopes are real"),
    "nameless parameter": (declared(*box, cp.sum(x) <= cp.Parameter()), "has no name; callers give parameters by name"),
    "name that is no identifier": (declared(*box, cp.sum(x) <= cp.Parameter(name="a b")), "'a b' cannot be a keyword"),
    "name that is a keyword": (
        declared(*box, cp.sum(x) <= cp.Parameter(name="lambda")),
        "'lambda' cannot be a keyword",
    ),
    "name that is taken": (declared(*box, cp.sum(x) <= cp.Parameter(name="sizes")), "'sizes' is taken"),
    "a name used twice": (
        declared(*box, x[0] <= k, x[1] <= cp.Parameter(name="k")),
        "two different parameters are named 'k'",
    ),
    "product of parameters": (declared(*box, k * k * x[0] <= 1), "product of parameters"),
    "symmetric parameter": (
        declared(*box, cp.Parameter((3, 3), name="S", symmetric=True) @ x <= 1),
        "parameter S is declared symmetric",
    ),
}


@pytest.mark.parametrize("what", BAD_DECLARATIONS)
def test_declarations_are_refused_when_compiled(what):
    polytope, message = BAD_DECLARATIONS[what]
    with pytest.raises(ol.DeclarationError, match=message):
        ol.OptLayer(polytope, ol.SparseMAP())


def test_arguments_of_a_polytope_are_checked():
    with pytest.raises(TypeError, match="declared on a cvxpy Variable, but got int"):
        ol.Polytope(3, [])
    with pytest.raises(TypeError, match=r"a single one: put it in \[ \]"):
        ol.Polytope(x, x >= 0)
    with pytest.raises(TypeError, match="constraint 1 is True of type bool"):
        ol.Polytope(x, [x >= 0, 2 > 1])
    with pytest.raises(TypeError, match="oracle must be callable"):
        ol.Polytope(x, box, oracle=3)
    with pytest.raises(TypeError, match=r"must return a Polytope, but .* returned int"):
        ol.OptLayer(ol.Family(lambda size: size), ol.Pipeline())(torch.zeros(1, 2), sizes=[2])


def nothing():
    [x >= 0, cp.sum(x) == 1]


def generated():
    yield x >= 0
    yield cp.sum(x) == 1


def broken():
    yield x >= 0
    raise KeyError("no such row")


def test_functions_that_declare_constraints_are_checked():
    def layer(declare):
        return ol.OptLayer(ol.Polytope(x, declare), ol.SparseMAP())

    assert layer(generated)(torch.zeros(3)).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert layer(row for row in generated())(torch.zeros(3)).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    with pytest.raises(
        TypeError, match=r"function nothing that declares the constraints .* returned None; .* return mis"
    ):
        layer(nothing)
    for declare in (broken, lambda size: [x >= 0]):
        with pytest.raises((KeyError, TypeError)) as caught:
            layer(declare)
        assert any("declares the constraints of a Polytope raised this" in note for note in caught.value.__notes__)
    with pytest.raises(TypeError, match=r"a single one: put it in \[ \]"):
        layer(lambda: x >= 0)
    with pytest.raises(TypeError, match="constraint 1 is True of type bool"):
        layer(lambda: [x >= 0, True])
    for given in (None, 5, lambda: 5):
        with pytest.raises(TypeError, match=r"must be a list of cvxpy constraints, but got (NoneType|int)"):
            layer(given)


@pytest.mark.parametrize("size", [1.5, 2.0, True, "3", None])
def test_cache_sizes_are_integers(size):
    with pytest.raises(TypeError, match="cache_size must be an integer, but got"):
        ol.Family(simplex, cache_size=size)
    assert ol.Family(simplex, cache_size=np.int64(3)).cache_size == 3
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        ol.Family(simplex, cache_size=0)


SIZES = {
    "uint8": np.array([3, 4], np.uint8),
    "uint16": np.array([3, 4], np.uint16),
    "uint32": np.array([3, 4], np.uint32),
    "uint64": np.array([3, 4], np.uint64),
    "another byte order": np.array([3, 4], ">i4"),
    "backwards": np.array([4, 3])[::-1],
    "unsigned tensor": torch.tensor([3, 4], dtype=torch.uint16),
    "int8 tensor": torch.tensor([3, 4], dtype=torch.int8),
    "tensors": [torch.tensor(3), torch.tensor(4)],
    "tensors and numbers": (torch.tensor(3), 4),
    "numbers of NumPy": [np.int8(3), np.uint32(4)],
    "range": range(3, 5),
}


@pytest.mark.many(2)
@pytest.mark.parametrize("what", SIZES)
def test_sizes_of_any_integers(what):
    scores = torch.arange(10.0, dtype=torch.float64).reshape(2, 5)
    layer, loss = ol.OptLayer(ol.Family(simplex), ol.Pipeline()), ol.CRFLoss(ol.Family(simplex))
    chosen = layer(scores, sizes=SIZES[what])
    assert chosen.argmax(1).tolist() == [2, 3]
    assert torch.equal(loss(scores, chosen, sizes=SIZES[what]), loss(scores, chosen, sizes=[3, 4]))


BAD_SIZES = {
    "strings": (np.array(["3", "4"]), TypeError, "sizes must be integers, but got str"),
    "a string": ("34", TypeError, "sizes must be integers, but got str"),
    "floats": ([3.0, 4.0], TypeError, "sizes must be integers, but got float64"),
    "float tensors": (
        [torch.tensor(3.0), torch.tensor(4.0)],
        TypeError,
        "sizes must be integers, but got torch.float32",
    ),
    "booleans": ([True, False], TypeError, "sizes must be integers, but got bool"),
    "None": ([None, 3], TypeError, "sizes must be integers, but got list of objects"),
    "a mapping": ({1: 2}, TypeError, "sizes must be integers, but got dict of objects"),
    "lists of other lengths": ([[1], [2, 3]], TypeError, "integers in lists of equal length, but got"),
    "tensors of other shapes": ([torch.tensor(3), torch.tensor([4])], ValueError, "sizes must have one shape"),
    "a negative one": ([-1, 2], ValueError, "sizes must not be negative, but one is -1"),
    "a huge one": (np.array([2**63 + 1, 4], np.uint64), ValueError, "sizes of scores, but one is 9223372036854775809"),
    "a number": (3, ValueError, r"they have \(2, 5\); give sizes= for the whole batch, \(2,\)"),
}


@pytest.mark.parametrize("what", BAD_SIZES)
def test_sizes_that_are_none_are_said(what):
    sizes, error, message = BAD_SIZES[what]
    with pytest.raises(error, match=message):
        ol.OptLayer(ol.Family(simplex), ol.Pipeline())(torch.zeros(2, 5), sizes=sizes)


def test_arguments_of_a_layer_are_checked():
    with pytest.raises(TypeError, match=r"must be a backward rule.*make it a value: Spigot\(\)"):
        ol.OptLayer(simplex(3), ol.Spigot)
    with pytest.raises(TypeError, match="takes a Polytope or a Family, but got list"):
        ol.OptLayer([x >= 0], ol.Spigot())
    with pytest.raises(ValueError, match='"raise" or "nan", but got \'ignore\''):
        ol.OptLayer(simplex(3), ol.Spigot(), on_failure="ignore")
    with pytest.raises(TypeError, match=r"maximizer must be a solver such as Highs\(\)"):
        ol.OptLayer(simplex(3), ol.Spigot(), maximizer=ol.Clarabel())
    with pytest.raises(TypeError, match=r"projector must be a solver such as Clarabel\(\)"):
        ol.compile_polytope(simplex(3), projector="clarabel")
    with pytest.raises(ValueError, match="a compiled polytope has its solvers already"):
        ol.OptLayer(ol.compile_polytope(simplex(3)), ol.Spigot(), projector=ol.Clarabel())
    ball = ol.Polytope(x, [cp.norm(x) <= 1])
    with pytest.raises(ValueError, match="not polyhedral and has no vertices"):
        ol.OptLayer(ball, ol.Spigot(), projector=ol.CvxpyLayers())
    with pytest.raises(TypeError, match=r"Hard wraps a rule such as SparseMAP\(\)"):
        ol.Hard("sparsemap")
    for solver in (ol.Highs, ol.Clarabel, ol.CvxpyLayers):
        with pytest.raises(ValueError, match="tolerance must be"):
            solver(tolerance=0)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def spoiled(value: float) -> torch.Tensor:
    scores = zeros(2, 4, 3, 3)
    scores[1, 2, 0, 1] = value
    return scores


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_numbers_are_refused_with_their_place(value):
    message = rf"scores hold {value} at batch index \(1, 2\), entry \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        ol.OptLayer(matching(3), ol.SparseMAP())(spoiled(value))
    with pytest.raises(ValueError, match=message):
        ol.compile_polytope(matching(3)).maximize(spoiled(value))
    with pytest.raises(ValueError, match=message):
        ol.OptLayer(ol.Family(matching), ol.Spigot())(spoiled(value), sizes=torch.full((2, 4), 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_is_seen_wherever_it_is(dtype, bad):
    largest = torch.full((3, 7), torch.finfo(dtype).max, dtype=dtype)  # whose sum would overflow
    for values in (largest, -largest, largest.T, largest[:, 1::2], largest[0, :0]):
        assert all_finite(values)
        for index in torch.cartesian_prod(*(torch.arange(n) for n in values.shape)).reshape(-1, values.ndim).tolist():
            spoilt = values.clone()  # in the same order in memory
            spoilt[tuple(index)] = bad
            assert not all_finite(spoilt)


@pytest.mark.parametrize(
    "scores", [torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, 3, dtype=torch.int64)], ids=str
)
def test_dtypes_that_are_no_real_numbers_are_refused(scores):
    with pytest.raises(TypeError, match=rf"real and floating-point .*but got {scores.dtype}"):
        ol.OptLayer(simplex(3), ol.SparseMAP())(scores)


def test_scores_of_another_kind_or_shape_are_refused():
    layer = ol.OptLayer(matching(3), ol.SparseMAP())
    with pytest.raises(TypeError, match=r"scores must be a torch.Tensor, but got list"):
        layer([[1.0]])
    with pytest.raises(ValueError, match=r"scores end in \(3, 4\) but the polytope has shape \(3, 3\)"):
        layer(zeros(5, 3, 4))
    with pytest.raises(ValueError, match=r"scores end in \(3,\) but the polytope has shape \(3, 3\)"):
        layer(zeros(3))
    with pytest.raises(TypeError, match="sizes= is for layers over a Family"):
        layer(zeros(3, 3), sizes=[3])


def test_parameters_are_checked():
    layer = ol.OptLayer(subset(4), ol.SparseMAP())
    with pytest.raises(TypeError, match=r"missing \['budget'\]; the polytope declares \['budget'\]"):
        layer(zeros(2, 4))
    with pytest.raises(TypeError, match=r"unexpected \['weight'\]"):
        layer(zeros(2, 4), budget=1.0, weight=2.0)
    with pytest.raises(
        ValueError, match=r"budget has shape \(3,\), .*declared with shape \(\) and the batch is \(2,\)"
    ):
        layer(zeros(2, 4), budget=zeros(3))
    with pytest.raises(ValueError, match=r"budget must be nonnegative, but is -1.0 in instance 1"):
        layer(zeros(2, 4), budget=torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="budget must be finite, but is nan in instance 0"):
        layer(zeros(2, 4), budget=torch.tensor([torch.nan, 1.0]))
    with pytest.raises(TypeError, match=r"budget must be real, but got torch.complex64"):
        layer(zeros(2, 4), budget=torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"unexpected \['load'\]"):
        ol.compile_polytope(simplex(3)).project(zeros(3), load=1.0)
    with pytest.raises(ol.SolveError, match=r"instance 1 is INFEASIBLE: .*parameters involved: budget"):
        layer(zeros(2, 4), budget=torch.tensor([1.0, 5.0]))


def test_sizes_are_checked():
    layer = ol.OptLayer(ol.Family(arborescence), ol.Pipeline())
    with pytest.raises(TypeError, match="needs sizes="):
        layer(zeros(2, 4, 4))
    with pytest.raises(TypeError, match=r"sizes must be integers, but got torch.float32"):
        layer(zeros(2, 4, 4), sizes=torch.ones(2))
    with pytest.raises(ValueError, match=r"sizes have shape \(3, 1\) but scores have shape \(2, 4, 4\)"):
        layer(zeros(2, 4, 4), sizes=[[1], [2], [3]])
    with pytest.raises(ValueError, match=r"Family\(arborescence\) does not take 3 sizes such as \(1, 2, 3\)"):
        layer(zeros(2, 4, 4), sizes=[1, 2, 3])
    with pytest.raises(ValueError, match=r"size 4 needs scores of shape \(5, 5\) per instance, but they have \(4, 4\)"):
        layer(zeros(2, 4, 4), sizes=[1, 4])
    with pytest.raises(ValueError, match="must not be negative, but one is -1"):
        layer(zeros(2, 4, 4), sizes=[1, -1])


def test_forbidden_parts_that_leave_nothing_are_named():
    scores = zeros(2, 3, 3)
    scores[1, 0] = -torch.inf
    with pytest.raises(ol.SolveError, match=r"instance 1 is INFEASIBLE: .*with variable\[0, 0\].* forbidden"):
        ol.OptLayer(matching(3), ol.Pipeline())(scores)
    single = zeros(2, 2)
    single[0, 1] = -torch.inf
    with pytest.raises(ol.SolveError, match=r"variable\[0, 1\] is forbidden .*but the constraints fix it at 1"):
        ol.OptLayer(arborescence(1), ol.Pipeline())(single)
    steps = zeros(2, 2, 2)
    steps[1] = -torch.inf
    assert torch.isnan(ol.OptLayer(sequence(2, 2), ol.SparseMAP(), on_failure="nan")(steps)).all()


def test_tangent_wants_a_projection():
    compiled = ol.compile_polytope(simplex(3))
    with pytest.raises(ValueError, match=r"tangent takes a solution that project\(\) returned"):
        compiled.tangent(compiled.maximize(zeros(2, 3)), zeros(2, 3))
    with pytest.raises(ValueError, match="a solution of the same compiled polytope"):
        ol.compile_polytope(simplex(3)).tangent(compiled.project(zeros(2, 3)), zeros(2, 3))
    with pytest.raises(ValueError, match=r"direction has shape \(3,\) but the solution \(2, 3\)"):
        compiled.tangent(compiled.project(zeros(2, 3)), zeros(3))


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ([[1.0, 0.0, 0.0]] * 2, "direction must be a torch.Tensor, but got list; torch.stack makes one of several"),
        (zeros(2, 3).bool(), "direction must be real and floating-point .*, but got torch.bool"),
        (zeros(2, 3).long(), "direction must be real and floating-point .*, but got torch.int64"),
        (zeros(2, 3).to(torch.complex64), "direction must be real and floating-point .*, but got torch.complex64"),
        (zeros(2, 3).to("meta"), "direction must hold numbers, but a tensor on the device meta has none"),
        (zeros(2, 3).to_sparse(), "direction must be dense, but got layout torch.sparse_coo"),
    ],
)
def test_tangent_wants_a_direction_like_scores(direction, message):
    compiled = ol.compile_polytope(simplex(3))
    with pytest.raises(TypeError, match=message):
        compiled.tangent(compiled.project(zeros(2, 3)), direction)


def test_tangent_wants_a_finite_direction_where_there_is_an_answer():
    compiled = ol.compile_polytope(subset(3))
    solution = compiled.project(zeros(2, 3), budget=torch.tensor([1.0, 7.0]))
    assert solution.ok.tolist() == [True, False]
    for wrong in (torch.nan, torch.inf):
        direction = torch.tensor([[1.0, 0.0, wrong], [0.0, 0.0, 0.0]])
        with pytest.raises(ValueError, match=rf"direction holds {wrong} at batch index 0, entry \[2\] .* are finite"):
            compiled.tangent(solution, direction)
        tangent = compiled.tangent(solution, direction.flip(0))
        assert (tangent.scores == 0).all() and tangent.ok.tolist() == [True, False]


def test_maximize_without_vertices_is_refused():
    ball = ol.compile_polytope(ol.Polytope(x, [cp.norm(x) <= 1]), projector=ol.CvxpyLayers())
    with pytest.raises(TypeError, match="maximize needs a polyhedral set"):
        ball.maximize(zeros(3))
