"""Distributions over scores on an accelerator: what comes back lives there, and is what the CPU says."""

import pytest
import torch
from accelerator import AWAY as DEVICE
from torch.distributions import kl_divergence

import optlayers as ol
import polytopes

pytestmark = pytest.mark.device
CASES = {
    "rows": (polytopes.matching(3).without_oracle(), (2, 3, 3), {}),
    "oracle": (polytopes.arborescence(2), (2, 3, 3), {}),
    "family": (ol.Family(polytopes.matching), (2, 3, 3), {"sizes": [2, 3]}),
    "auxiliaries": (polytopes.linear_chain(3, 2).without_oracle(), (2, 3, 2), {"transition": torch.ones(3, 2, 2)}),
}
QUESTIONS = (
    lambda d: d.mean,
    lambda d: d.entropy(),
    lambda d: d.variance,
    lambda d: d.mode,
    lambda d: d.log_count(),
    lambda d: d.top_k(3).structures,
    lambda d: d.top_k(3).log_prob,
    lambda d: d.log_prob(d.mode),
    lambda d: kl_divergence(d, d),
    lambda d: d.enumerate_support() if d._source.family is None else d.log_partition,
)


@pytest.mark.many(2)
@pytest.mark.parametrize("which", CASES)
def test_answers_are_those_of_the_cpu(which):
    polytope, shape, given = CASES[which]
    scores = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    here = ol.Gibbs(polytope, scores, **given)
    moved = {name: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    leaf = scores.to(DEVICE).requires_grad_()
    there = ol.Gibbs(polytope, leaf, temperature=torch.ones(2, device=DEVICE), **moved)
    for question in QUESTIONS:
        one, other = question(here), question(there)
        assert other.device.type == DEVICE.type
        torch.testing.assert_close(other.detach().cpu(), one.detach(), atol=1e-5, rtol=1e-5)
    there.entropy().sum().backward()
    assert leaf.grad.device.type == DEVICE.type
    if which != "auxiliaries" or DEVICE.type != "meta":  # the pretended device has no sparse tensors
        assert there.sample((2,)).device.type == DEVICE.type
