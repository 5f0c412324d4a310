"""What :mod:`optlayers.warm` calls so that the compiled functions of the catalogue are on disk, with tiny sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch

import optlayers as ol
from polytopes import (
    arborescence,
    constituency_tree,
    cube,
    grid_path,
    head_choice,
    linear_chain,
    matching,
    monotone_alignment,
    noncrossing_matching,
    partial_matching,
    permutahedron,
    projective_tree,
    rectangular_matching,
    semantic_graph,
    semi_markov,
    sequence,
    simplex,
    spanning_tree,
    subset,
)

__all__ = ["calls"]


def calls() -> dict[str, Callable[[], object]]:
    """A call for each part of the catalogue, by name: oracles, membership functions, log-partition functions."""
    declared = {
        "simplex": lambda: simplex(3),
        "cube": lambda: cube(3),
        "subset": lambda: subset(3),
        "permutahedron": lambda: permutahedron(3),
        "matching": lambda: matching(2),
        "partial matching": lambda: partial_matching(2, 3),
        "rectangular matching": lambda: rectangular_matching(2, 3),
        "sequence": lambda: sequence(2, 2),
        "linear chain": lambda: linear_chain(2, 2),
        "grid path": lambda: grid_path(2, 2),
        "head choice": lambda: head_choice(2),
        "arborescence": lambda: arborescence(3),
        "arborescence of many roots": lambda: arborescence(3, single_root=False),
        "projective tree": lambda: projective_tree(3),
        "projective tree of many roots": lambda: projective_tree(3, single_root=False),
        "segmentation": lambda: semi_markov(2, 1, 2),
        "local alignment": lambda: monotone_alignment(2, 2, local=True),
        "constituency tree": lambda: constituency_tree(3),
        "noncrossing matching": lambda: noncrossing_matching(2),
        "noncrossing perfect matching": lambda: noncrossing_matching(2, perfect=True),
        "spanning tree": lambda: spanning_tree(3),
        "semantic graph": lambda: semantic_graph(2, 1),
    }
    found: dict[str, Callable[[], object]] = {
        f"oracle: {name}": lambda declare=declare: ol.compile_polytope(declare())  # type: ignore[misc]
        for name, declare in declared.items()
    }
    found["answers of oracles"] = _answers
    found["log-partition of trees"] = _log_partition
    found["log-partition of derivations"] = _log_partition_of_derivations
    return found


def _answers() -> None:
    """Best vertices, nearest points and their derivative."""
    polytope = arborescence(3)
    scores = torch.zeros(1, *polytope.shape, dtype=torch.float64, requires_grad=True)
    ol.compile_polytope(polytope).maximize(scores.detach())
    ol.OptLayer(polytope, ol.SparseMAP())(scores).square().sum().backward()


def _log_partition() -> None:
    """Marginals, and their derivatives, where a determinant is exact and where it is not."""
    polytope = arborescence(3)
    ordinary = torch.zeros(1, *polytope.shape, dtype=torch.float64)
    for scores in (ordinary, ordinary + 1e3 * torch.arange(4.0, dtype=torch.float64)[:, None]):
        leaf = scores.requires_grad_()
        marginals = ol.OptLayer(polytope, ol.StructuredAttention())(leaf)
        (gradient,) = torch.autograd.grad(marginals.square().sum(), leaf, create_graph=True)
        torch.autograd.grad(gradient.sum(), leaf)


def _log_partition_of_derivations() -> None:
    """Marginals, their derivatives, and one more derivative."""
    polytope = constituency_tree(3)
    leaf = torch.zeros(1, *polytope.shape, dtype=torch.float64, requires_grad=True)
    marginals = ol.OptLayer(polytope, ol.StructuredAttention())(leaf)
    (gradient,) = torch.autograd.grad(marginals.square().sum(), leaf, create_graph=True)
    torch.autograd.grad(gradient.sum(), leaf)
