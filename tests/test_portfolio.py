"""A learned covariance under a portfolio: the problem by cvxpy, and the whole example but small."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from portfolio import (
    ASSETS,
    CAP,
    END_TO_END,
    RISK_AVERSION,
    SECTORS,
    TWO_STAGE,
    Investor,
    Market,
    draw_months,
    gain,
    main,
)


def test_portfolios_are_those_of_cvxpy():
    torch.manual_seed(0)
    market, (months,) = Market(), draw_months([3], 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        shares = Investor().shares(market, months.signals)
        means, factors, own = market(months.signals)
    for share, mean, loadings, risks in zip(shares, means.numpy(), factors.numpy(), own.numpy(), strict=True):
        w = cp.Variable(ASSETS, nonneg=True)
        risk = cp.sum_squares(loadings @ w) + cp.sum_squares(cp.multiply(risks, w))
        caps = [cp.sum(w[k : k + ASSETS // SECTORS]) <= CAP for k in range(0, ASSETS, ASSETS // SECTORS)]
        cp.Problem(cp.Maximize(mean @ w - 0.5 * RISK_AVERSION * risk), [cp.sum(w) == 1, *caps]).solve(cp.CLARABEL)
        np.testing.assert_allclose(share, w.value, atol=1e-5)


def test_the_covariance_has_the_gradient_of_the_utility():
    torch.manual_seed(0)
    market, investor = Market(), Investor()
    (months,) = draw_months([4], 1.0, torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(investor.utility(market, months).sum(), market.factors)
    step, direction = 1e-6, torch.randn_like(grad)
    worth = []
    for sign in (1, -1):
        with torch.no_grad():
            market.factors += sign * step * direction
            worth.append(investor.utility(market, months).sum())
            market.factors -= sign * step * direction
    assert ((worth[0] - worth[1]) / (2 * step)).item() == pytest.approx((grad * direction).sum().item(), rel=1e-4)


def test_surprise_is_the_likelihood():
    torch.manual_seed(0)
    market, (months,) = Market(), draw_months([5], 1.0, torch.Generator().manual_seed(0))
    mean, factors, own = market(months.signals)
    known = torch.distributions.LowRankMultivariateNormal(mean, factors.mT, own.square() + 1e-3)
    constant = 0.5 * ASSETS * np.log(2 * np.pi)
    torch.testing.assert_close(market.surprise(months) + constant, -known.log_prob(months.returns).mean())


@pytest.mark.slow
def test_end_to_end_earns_more_where_the_model_is_not_right(tmp_path):
    outcomes = main(["--seeds", "1", "--bend", "1.5", "--output", str(tmp_path)])
    more = gain(outcomes, END_TO_END)
    assert more.mean > 0 and more.chance < 0.01
    assert outcomes[0].name == TWO_STAGE
    for o in outcomes:
        assert o.shares.min() > -1e-9 and (o.shares.sum(1) - 1).abs().max() < 1e-8
        assert o.shares.unflatten(1, (SECTORS, -1)).sum(2).max() < CAP + 1e-8
    assert (tmp_path / "portfolio.png").exists()
