"""One adapter per library: how a user of it finds nearest points or best vertices for a batch of scores.

An adapter takes a problem and returns a function from scores ``(batch, *shape)`` to structures of the same shape. What
can be prepared once per polytope is prepared before the function is returned. Where a library has a gradient, the
function records it for autograd. Solvers without a batch are asked instance by instance, in one thread.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.optimize
import scipy.sparse as sp
import torch
from problems import Problem
from torch import Tensor

import optlayers as ol

__all__ = [
    "MAXIMIZERS",
    "OURS",
    "PROJECTORS",
    "Peer",
    "Solve",
    "hungarian",
    "is_kind",
    "linear_chain_edges",
    "maximize",
    "project",
]

OURS = "optlayers"

Solve = Callable[[Tensor], Tensor]


def _always(_: Problem) -> bool:
    return True


@dataclass(frozen=True)
class Peer:
    """A library and how it is asked."""

    name: str
    module: str
    """What is imported; :attr:`distribution` is what is installed."""
    distribution: str
    prepare: Callable[[Problem], Solve]
    applies: Callable[[Problem], bool] = _always
    has_gradient: bool = False
    compared: Callable[[Problem], Solve] | None = None
    """What answers where these are compared, if not what is measured: one that draws what the others draw."""

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.distribution)


def is_kind(*kinds: str) -> Callable[[Problem], bool]:
    """For peers that know one structure, or some."""
    return lambda problem: problem.kind in kinds


def project(problem: Problem) -> Solve:
    """Ours: nearest points."""
    return partial(ol.OptLayer(problem.polytope, ol.SparseMAP()), **problem.parameters)


def maximize(problem: Problem) -> Solve:
    """Ours: best vertices."""
    return partial(ol.OptLayer(problem.polytope, ol.Pipeline()), **problem.parameters)


def _cvxpylayers(problem: Problem) -> Solve:
    """The projection as a user of cvxpylayers writes it."""
    from cvxpylayers.torch import CvxpyLayer

    polytope = problem.polytope
    target = cp.Parameter(polytope.shape)
    nearest = cp.Problem(cp.Minimize(cp.sum_squares(polytope.variable - target)), list(polytope.constraints))
    given = [torch.tensor(problem.parameters[p.name()], dtype=torch.float64) for p in polytope.parameters]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The problem has an expression with dimension greater than 2")
        layer = CvxpyLayer(
            nearest, [target, *polytope.parameters], [polytope.variable], solver_args={"solve_method": "Clarabel"}
        )
    return lambda scores: layer(scores, *given)[0]


def _clarabel(problem: Problem) -> Solve:
    import clarabel

    arrays = problem.arrays
    less, less_rhs = arrays.less_and_bounds
    rows, rhs = sp.vstack([arrays.equal, less], format="csc"), np.concatenate([arrays.equal_rhs, less_rhs])
    cones = [clarabel.ZeroConeT(len(arrays.equal_rhs)), clarabel.NonnegativeConeT(len(less_rhs))]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.presolve_enable = False  # a presolved problem cannot be updated
    solver = clarabel.DefaultSolver(arrays.curvature, np.zeros(arrays.width), rows, rhs, cones, settings)

    def nearest(scores: np.ndarray) -> Any:
        solver.update(q=-scores)
        return solver.solve().x

    return _one_by_one(problem, nearest)


def _piqp(problem: Problem) -> Solve:
    import piqp

    arrays = problem.arrays
    solver = piqp.SparseSolver()
    solver.settings.verbose = False
    equal = (arrays.equal, arrays.equal_rhs) if len(arrays.equal_rhs) else (None, None)
    less = (arrays.less, None, arrays.less_rhs) if len(arrays.less_rhs) else (None, None, None)
    solver.setup(arrays.curvature, np.zeros(arrays.width), *equal, *less, arrays.lower, arrays.upper)

    def nearest(scores: np.ndarray) -> Any:
        solver.update(c=-scores)
        solver.solve()
        return solver.result.x

    return _one_by_one(problem, nearest)


def _one_by_one(problem: Problem, solve: Callable[[np.ndarray], Any]) -> Solve:
    arrays = problem.arrays
    return lambda scores: arrays.structures(np.stack([np.array(solve(one)) for one in arrays.scores(scores)]))


def _qpth(problem: Problem) -> Solve:
    from qpth.qp import QPFunction

    arrays = problem.arrays
    less, less_rhs = arrays.less_and_bounds
    dense = [arrays.curvature.toarray(), less.toarray(), less_rhs, arrays.equal.toarray(), arrays.equal_rhs]
    curvature, *rows = (torch.tensor(part, device=problem.device) for part in dense)
    solve = QPFunction(verbose=-1, check_Q_spd=False)
    kept, fixed = (torch.from_numpy(part).to(problem.device) for part in (arrays.kept, arrays.fixed))

    def nearest(scores: Tensor) -> Tensor:
        flat = scores.reshape(len(scores), -1)
        found = solve(curvature, -flat[:, kept], *rows)
        return fixed.expand_as(flat).index_copy(1, kept, found).reshape(scores.shape)

    return nearest


def _moreau(problem: Problem, curvature: sp.csr_matrix, method: str) -> Solve:
    """Its interior point is told which entries are nonnegative, which halves its time; the active set takes rows only.

    Where the active set needs more than the 200 steps that are its default, it gives back a point on its way, without
    an error; ``solver.info.status`` says so.
    """
    import moreau
    from moreau.torch import Solver

    arrays = problem.arrays
    direct = (arrays.lower == 0.0) & (method == "ipm")
    less, less_rhs = arrays.less_and_bounds_but(direct)
    rows = sp.vstack([arrays.equal, less], format="csr")
    rhs = torch.from_numpy(np.concatenate([arrays.equal_rhs, less_rhs])).expand(problem.batch, -1)
    nonnegative = (
        [moreau.DirectConeSpec(kind="nonneg", indices=np.flatnonzero(direct).tolist())] if direct.any() else []
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="solver='auto' resolved to ACTIVE_SET")
        solver = Solver(
            *(rows.shape[1], rows.shape[0]),
            *(torch.from_numpy(part.astype(np.int64)) for part in (curvature.indptr, curvature.indices)),
            *(torch.from_numpy(part.astype(np.int64)) for part in (rows.indptr, rows.indices)),
            cones=moreau.Cones(
                num_zero_cones=len(arrays.equal_rhs), num_nonneg_cones=len(less_rhs), dir_cones=nonnegative
            ),
            settings=moreau.Settings(
                solver=method, device="cpu", batch_size=problem.batch, enable_grad=True, max_iter=10_000
            ),
        )
    entries = torch.from_numpy(curvature.data), torch.from_numpy(rows.data)
    kept, fixed = torch.from_numpy(arrays.kept), torch.from_numpy(arrays.fixed)

    def solve(scores: Tensor) -> Tensor:
        flat = scores.reshape(len(scores), -1)
        costs = torch.nn.functional.pad(-flat[:, kept], (0, arrays.auxiliary))
        found = solver.solve(*entries, costs, rhs).x[:, : len(kept)]
        return fixed.expand_as(flat).index_copy(1, kept, found).reshape(scores.shape)

    return solve


def _moreau_projection(problem: Problem, method: str) -> Solve:
    """By default (``auto``) it is the active set up to 500 variables, beyond them the interior point (``ipm``)."""
    curvature = sp.csr_matrix(problem.arrays.curvature)
    curvature.eliminate_zeros()
    return _moreau(problem, curvature, method)


def _moreau_vertex(problem: Problem) -> Solve:
    """Linear programs are for its interior point, which ends near a vertex."""
    width = problem.arrays.width
    return _moreau(problem, sp.csr_matrix((width, width)), "ipm")


def _without_auxiliaries(problem: Problem) -> bool:
    """The quadratic term has to be positive definite, and dense matrices have to be bearable."""
    return problem.arrays.auxiliary == 0 and problem.arrays.width <= 500


def _sparsemax(_: Problem) -> Solve:
    from entmax import sparsemax

    return partial(sparsemax, dim=-1)


def _highs(problem: Problem) -> Solve:
    import highspy
    from highspy import _core

    arrays = problem.arrays
    rows = sp.vstack([arrays.equal, arrays.less], format="csc")
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = arrays.width, rows.shape[0]
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = np.zeros(arrays.width), arrays.lower, arrays.upper
    lp.row_lower_ = np.concatenate([arrays.equal_rhs, np.full(len(arrays.less_rhs), -np.inf)])
    lp.row_upper_ = np.concatenate([arrays.equal_rhs, arrays.less_rhs])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = rows.indptr, rows.indices, rows.data
    highs = _core._Highs()  # the public class prints a banner before it can be silenced
    highs.setOptionValue("output_flag", False)
    highs.passModel(lp)
    columns = np.arange(arrays.width, dtype=np.int32)

    def best(scores: np.ndarray) -> Any:
        highs.changeColsCost(len(columns), columns, scores)
        highs.run()
        return highs.getSolution().col_value

    return _one_by_one(problem, best)


def hungarian(_: Problem) -> Solve:
    """SciPy's assignment, instance by instance."""

    def best(scores: Tensor) -> Tensor:
        found = np.zeros(scores.shape)
        for matrix, one in zip(scores.numpy(), found, strict=True):
            one[scipy.optimize.linear_sum_assignment(matrix, maximize=True)] = 1.0
        return torch.from_numpy(found)

    return best


def _transport(problem: Problem) -> Solve:
    import ot

    ones = np.ones(problem.polytope.shape[0])
    return lambda scores: torch.from_numpy(np.stack([ot.emd(ones, ones, -matrix) for matrix in scores.numpy()]))


def linear_chain_edges(_: Problem) -> Solve:
    """The start is a first node whose only state is 0; torch-struct has the state that is entered before the other."""
    from torch_struct import LinearChainCRF

    def best(scores: Tensor) -> Tensor:
        potentials = scores.transpose(-1, -2).clone()
        potentials[:, 0, :, 1:] = -torch.inf
        return LinearChainCRF(potentials).argmax.transpose(-1, -2)

    warnings.filterwarnings("ignore", message=".*does not define `arg_constraints`")
    return best


PROJECTORS = [
    Peer(OURS, "optlayers", "optlayers", project, has_gradient=True),
    Peer("cvxpylayers", "cvxpylayers", "cvxpylayers", _cvxpylayers, has_gradient=True),
    Peer("Clarabel kept", "clarabel", "clarabel", _clarabel),
    Peer("PIQP kept", "piqp", "piqp", _piqp),
    Peer("qpth", "qpth", "qpth", _qpth, _without_auxiliaries, has_gradient=True),
    Peer("Moreau", "moreau", "moreau", partial(_moreau_projection, method="auto"), has_gradient=True),
    Peer("Moreau, interior", "moreau", "moreau", partial(_moreau_projection, method="ipm"), has_gradient=True),
    Peer("sparsemax", "entmax", "entmax", _sparsemax, is_kind("simplex"), has_gradient=True),
]
MAXIMIZERS = [
    Peer(OURS, "optlayers", "optlayers", maximize),
    Peer("HiGHS warm", "highspy", "highspy", _highs),
    Peer("Moreau", "moreau", "moreau", _moreau_vertex),
    Peer("SciPy assignment", "scipy", "scipy", hungarian, is_kind("matching")),
    Peer("POT", "ot", "POT", _transport, is_kind("matching")),
    Peer("torch-struct", "torch_struct", "torch-struct", linear_chain_edges, is_kind("sequence")),
]
