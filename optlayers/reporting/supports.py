"""Which rules, losses and distributions answer over a polytope, and what the others say that they need."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from optlayers.compilation.compiled import CompiledPolytope
from optlayers.gibbs.distribution import Gibbs
from optlayers.layer import OptLayer
from optlayers.losses import (
    CRFLoss,
    FenchelYoungLoss,
    PerturbedFenchelYoungLoss,
    SparseMAPLoss,
    SPOPlusLoss,
    StructuredHingeLoss,
    StructuredPerceptronLoss,
)
from optlayers.polytope import Polytope
from optlayers.regularizers import Entropy, Tsallis
from optlayers.reporting.statement import LEFT_OUT, TRIED, Section, Statement
from optlayers.rules import (
    IMLE,
    LPGD,
    AbstractRule,
    AdaptiveIMLE,
    CentralPath,
    GumbelStraightThrough,
    Hard,
    Identity,
    Interpolation,
    MirrorSpigot,
    PerturbAndMAP,
    PerturbedAdditive,
    PerturbedMultiplicative,
    Pipeline,
    Regularized,
    SampledMarginals,
    ScoreFunction,
    SparseMAP,
    Spigot,
    SpigotCE,
    SpigotEG,
    StraightThrough,
    StructuredAttention,
)

__all__ = ["section_of"]

INSTANCES = 2
SUMS = (
    *("StructuredAttention", "SpigotCE", "SpigotEG", "GumbelStraightThrough", "SampledMarginals", "ScoreFunction"),
    *("CRFLoss", "Gibbs.mean", "Gibbs.sample", "Gibbs.log_count"),
)
"""What needs sums over all structures. They are asked for once: to find that there are too many takes a while."""


ENUMERATION = 0.015
"""Seconds by part that an enumeration may take until it finds that there are too many structures."""
SAMPLES = ("SampledMarginals", "ScoreFunction", "Gibbs.sample")


def rules() -> dict[str, AbstractRule]:
    """One of every kind; the values of their numbers do not matter here."""
    return {
        "Pipeline": Pipeline(),
        "StraightThrough": StraightThrough(),
        "Identity": Identity(),
        "Interpolation": Interpolation(1.0),
        "LPGD": LPGD(1.0),
        "Spigot": Spigot(),
        "SpigotCE": SpigotCE(),
        "SparseMAP": SparseMAP(),
        "Hard(SparseMAP)": Hard(SparseMAP()),
        "Regularized(Entropy)": Regularized(Entropy()),
        "Regularized(Tsallis)": Regularized(Tsallis(1.5)),
        "CentralPath": CentralPath(),
        "MirrorSpigot": MirrorSpigot(Entropy()),
        "PerturbedAdditive": PerturbedAdditive(samples=2),
        "PerturbedMultiplicative": PerturbedMultiplicative(samples=2),
        "PerturbAndMAP": PerturbAndMAP(),
        "IMLE": IMLE(),
        "AdaptiveIMLE": AdaptiveIMLE(),
        "StructuredAttention": StructuredAttention(),
        "SpigotEG": SpigotEG(),
        "GumbelStraightThrough": GumbelStraightThrough(),
        "SampledMarginals": SampledMarginals(),
        "ScoreFunction": ScoreFunction(samples=2),
    }


def section_of(
    polytope: Polytope,
    compiled: CompiledPolytope,
    named: Mapping[str, Any],
    seed: int,
    late: Callable[[], bool],
    left: Callable[[], float],
) -> Section:
    """Each is called, forward and backward, on random scores; what refuses says what it needs in its own words."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(INSTANCES, *polytope.shape, generator=generator, dtype=torch.float64)
    calls: dict[str, dict[str, Callable[[], object]]] = {"rules": {}, "losses": {}, "distributions": {}}

    def by_rule(rule: AbstractRule) -> Callable[[], object]:
        def call() -> object:
            leaf = scores.clone().requires_grad_()
            layer = OptLayer(polytope, rule)
            if isinstance(rule, ScoreFunction):
                return torch.autograd.grad(layer(leaf, objective=_square, **named).sum(), leaf)
            return torch.autograd.grad(_square(layer(leaf, **named)).sum(), leaf, allow_unused=True)

        return call

    def by_loss(make: Callable[[], Any], with_structure: bool) -> Callable[[], object]:
        def call() -> object:
            target = compiled.maximize(scores, **named).check().value if with_structure else scores
            leaf = scores.clone().requires_grad_()
            return torch.autograd.grad(make()(leaf, target, **named).sum(), leaf)

        return call

    calls["rules"] = {name: by_rule(rule) for name, rule in rules().items()}
    losses: dict[str, tuple[Callable[[], Any], bool]] = {
        "StructuredPerceptronLoss": (lambda: StructuredPerceptronLoss(polytope), True),
        "StructuredHingeLoss": (lambda: StructuredHingeLoss(polytope), True),
        "SparseMAPLoss": (lambda: SparseMAPLoss(polytope), True),
        "PerturbedFenchelYoungLoss": (lambda: PerturbedFenchelYoungLoss(polytope, samples=2), True),
        "SPOPlusLoss": (lambda: SPOPlusLoss(polytope), False),
        "FenchelYoungLoss(Entropy)": (lambda: FenchelYoungLoss(polytope, Entropy()), True),
        "CRFLoss": (lambda: CRFLoss(polytope), True),
    }
    calls["losses"] = {name: by_loss(*given) for name, given in losses.items()}
    calls["distributions"] = {
        "Gibbs.mean": lambda: Gibbs(polytope, scores, **named).mean,
        "Gibbs.sample": lambda: Gibbs(polytope, scores, **named).sample(),
        "Gibbs.top_k": lambda: Gibbs(polytope, scores, **named).top_k(2).structures,
        "Gibbs.log_count": lambda: Gibbs(polytope, scores, **named).log_count(),
    }
    # Without a formula structures are enumerated, some thousands of best vertices, which nothing interrupts.
    no_time = polytope.log_partition is None and ENUMERATION * scores[0].numel() > left()
    no_sums = None if late() or no_time else _refusal(calls["distributions"]["Gibbs.log_count"])
    told: list[Statement] = []
    marginals = 0.0
    facts: dict[str, Any] = {"works": {}, "needs": {}, "not_tried": []}
    for kind, all_of_kind in calls.items():
        good: list[str] = []
        by_reason: dict[str, list[str]] = {}
        for name, call in all_of_kind.items():
            # A sample by a formula takes the marginals once for every part.
            sample = marginals * scores[0].numel() if name in SAMPLES and polytope.log_partition is not None else 0.0
            if late() or sample > left() or (no_time and name in SUMS):
                facts["not_tried"].append(name)
                continue
            start = time.perf_counter()
            reason = no_sums if name in SUMS and no_sums is not None else _refusal(call)
            if name == "StructuredAttention":
                marginals = time.perf_counter() - start
            if reason is None:
                good.append(name)
            else:
                by_reason.setdefault(reason, []).append(name)
                facts["needs"][name] = reason
        facts["works"][kind] = good
        if good:
            told.append(Statement(f"{kind} that work: {', '.join(good)}", TRIED))
        for reason, names in by_reason.items():
            told.append(Statement(f"{', '.join(names)} refuse{'s' * (len(names) == 1)}: {reason}", TRIED))
    if facts["not_tried"]:
        told.append(Statement(f"not tried, for want of time: {', '.join(facts['not_tried'])}", LEFT_OUT))
    return Section("What it supports", tuple(told), facts)


def _square(structure: Tensor) -> Tensor:
    return structure.flatten(1).square().sum(dim=1)


def _refusal(call: Callable[[], object]) -> str | None:
    """The message of what refuses to work, None for what works."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            return " ".join(str(error).split())
    return None
