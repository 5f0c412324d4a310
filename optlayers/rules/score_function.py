"""The score function estimator: structures drawn exactly, and a gradient from their losses alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.hyperparameters import at_least_one
from optlayers.rules.samples import less_mean_of_others
from optlayers.solution import Solution

__all__ = ["ScoreFunction"]


@final
@dataclass(frozen=True)
class ScoreFunction(AbstractRule):
    r"""The expected loss under :math:`p(z) \propto e^{\langle s, z \rangle}`, from structures that are drawn exactly.

    Called as ``layer(scores, objective=f)``: every structure :math:`z_k` goes to the objective by itself, and the layer
    returns the mean of their losses :math:`\ell_k`. Backward

    .. math:: \frac1K \sum_k (\ell_k - b_k)(z_k - \mu), \qquad b_k = \frac{1}{K-1} \sum_{j \ne k} \ell_j,

    the gradient of the expected loss without bias, whatever the loss: it need not have a derivative, and is never asked
    about a structure that is not discrete. Use it as the honest reference, and where losses are black boxes; its
    variance is the largest of all rules. Structures are drawn by the log-partition function of the declaration or over
    all vertices, as for :class:`StructuredAttention`. With baselines :math:`\mu` cancels and is not computed.

    Parameters
    ----------
    samples : K, 10 by default.
    baseline : the :math:`b_k`, True by default; it needs 2 samples. 0 in their place otherwise.

    Raises
    ------
    TypeError, ValueError : samples that are no int or too few.

    References
    ----------
    Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning, Machine
    Learning 8. Kool, van Hoof and Welling (2019), Buy 4 REINFORCE samples, get a baseline for free!
    """

    samples: int = 10
    baseline: bool = True

    maximizes = False
    draws = True
    needs_objective = True
    differentiates_parameters = False

    def __post_init__(self) -> None:
        at_least_one(samples=self.samples)
        if self.baseline and self.samples < 2:
            raise ValueError(
                f"samples must be at least 2 with a baseline, the mean of the others, but got {self.samples}; or set "
                "baseline=False"
            )

    @property
    def apart(self) -> int:  # type: ignore[override]
        """All samples."""
        return self.samples

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """Structures ``(samples, batch, size)``, drawn."""
        solution = polytope.sample(scores, self.samples, context.generator)
        return solution, (scores, solution.value)

    def backward(
        self,
        polytope: AbstractBoundPolytope,
        saved: Any,
        grad: Float64[Tensor, "samples batch size"],
        context: Context,
    ) -> Gradient:
        """From the losses; ``grad`` says nothing."""
        scores, structures = saved
        if context.objective is None:
            raise RuntimeError("ScoreFunction needs the losses of an objective")
        losses = context.objective.losses
        if self.baseline:
            losses = less_mean_of_others(losses)
            mean = torch.einsum("kb,kbn->bn", losses, structures) / self.samples
        else:
            marginals = polytope.marginals(scores).means
            mean = torch.einsum("kb,kbn->bn", losses, structures - marginals) / self.samples
        return Gradient(mean * context.objective.weights[:, None])
