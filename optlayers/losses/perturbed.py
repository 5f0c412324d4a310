"""The Fenchel-Young loss of perturbed optimizers."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.polytope import BoundPolytope
from optlayers.common.modes import outside_graphs
from optlayers.common.tensors import check_generator
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.family import Family
from optlayers.losses.base import Reduction
from optlayers.losses.fenchel_young import AbstractFenchelYoungLoss
from optlayers.losses.prediction import Prediction
from optlayers.polytope import Polytope
from optlayers.rules.base import Context
from optlayers.rules.hyperparameters import at_least_one, positive
from optlayers.rules.noise import AbstractNoise, Gaussian, check_noise
from optlayers.rules.samples import mean_of_samples, with_one_verdict
from optlayers.solution import Solution
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector

__all__ = ["PerturbedFenchelYoungLoss"]


@final
class PerturbedFenchelYoungLoss(AbstractFenchelYoungLoss):
    r"""The Fenchel-Young loss of the maximum under noise, from samples of it.

    .. math:: \frac1K \sum_k \max_{z \in P} \langle s + \varepsilon Z_k, z \rangle - \langle s, y \rangle

    The regularizer is that whose conjugate is the mean of the maximum; its value :math:`\Omega(y)`, which does not
    depend on the scores, is not known and left out, so that the loss may be negative. (Against a mask of admissible
    parts, and where auxiliary variables have scores, nothing is left out: both terms are means, over the same noise.)
    The gradient is
    :math:`\frac1K \sum_k \hat z(s + \varepsilon Z_k) - y`, exact for these samples and without bias for the loss. It
    needs nothing but best vertices, K of them per instance in one batch. Second derivatives are refused.

    Parameters
    ----------
    polytope : a :class:`Polytope`, a compiled one, or a :class:`Family`, for which a call takes ``sizes=``.
    reduction : ``"mean"`` or ``"sum"`` over instances, or ``"none"`` for one loss per instance, ``(*batch,)``.
    validate : whether targets that are no points of the polytope are refused.
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.
    samples : K, how many.
    scale : ε, positive.
    noise : ``Gaussian()``, ``Gumbel()``, …

    References
    ----------
    Berthet, Blondel, Teboul, Cuturi, Vert and Bach (2020), Learning with differentiable perturbed optimizers, NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from polytopes import simplex
    >>> loss = PerturbedFenchelYoungLoss(simplex(3), samples=200, scale=0.5)
    >>> scores = torch.zeros(3, requires_grad=True)
    >>> loss(scores, torch.tensor([1, 0, 0]), generator=torch.Generator().manual_seed(0)).backward()
    >>> scores.grad.sum().abs().item() < 1e-6, scores.grad[0].item() < -0.5
    (True, True)
    """

    predicts_means = True

    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family,
        *,
        samples: int = 10,
        scale: float = 1.0,
        noise: AbstractNoise | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
        maximizer: AbstractMaximizer | None = None,
        projector: AbstractProjector | None = None,
    ) -> None:
        at_least_one(samples=samples)
        positive(scale=scale)
        noise = Gaussian() if noise is None else noise
        check_noise(noise)
        super().__init__(polytope, reduction=reduction, validate=validate, maximizer=maximizer, projector=projector)
        self.samples, self.scale, self.noise = samples, scale, noise

    @outside_graphs
    def forward(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        target: Tensor,
        *,
        sizes: Any = None,
        generator: torch.Generator | None = None,
        **parameters: Any,
    ) -> Tensor:
        """The loss of scores against a target; noise is drawn from ``generator``, torch's own for None.

        The other arguments and the errors are those of :meth:`AbstractFenchelYoungLoss.forward`.
        """
        check_generator(generator)
        home = "cpu" if generator is None else generator.device
        # A seed, so that both terms of a masked loss see the same noise.
        seed = int(torch.randint(2**62, (), generator=generator, device=home))
        return self.against(scores, target, sizes, parameters, torch.Generator(home).manual_seed(seed))

    def decoded(self, polytope: BoundPolytope, scores: Float64[Tensor, "batch size"]) -> Solution:
        """The best vertices for scores with the mean of the noise, which favours parts where it is not 0."""
        return polytope.maximize(scores + self.scale * self.noise.mean)

    def predict(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> Prediction:
        """The mean of best vertices under noise, and the mean of their values."""
        if scores.requires_grad:
            raise NotImplementedError(
                "PerturbedFenchelYoungLoss has no second derivatives; SparseMAPLoss and CRFLoss have"
            )
        noise = self.noise.draw((self.samples, *scores.shape), context.generator, scores.device)
        perturbed = scores + self.scale * noise
        best = polytope.repeated(self.samples).maximize(perturbed.flatten(0, 1))
        solution = with_one_verdict(best, self.samples)
        values = (perturbed * solution.value).sum(-1).mean(0)
        return Prediction(mean_of_samples(solution), values, behind=best)
