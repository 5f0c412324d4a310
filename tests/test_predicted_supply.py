"""Predicted right-hand sides: money by hand, gradients of bookings, and the whole example but small."""

import pytest
import torch
from predicted_supply import (
    BOOKING,
    END_TO_END,
    PLANTS,
    QUANTILE,
    SHOPS,
    TWO_STAGE,
    Business,
    Country,
    Days,
    Forecast,
    draw_country,
    gain,
    main,
)


def one_day(supply, demand):
    """Of one plant and one shop; all others have and need nothing."""
    all_supply, all_demand = torch.zeros(1, PLANTS), torch.zeros(1, SHOPS)
    all_supply[0, 0], all_demand[0, 0] = supply, demand
    return Days(torch.zeros(1, 5).double(), all_supply.double(), all_demand.double())


@pytest.mark.parametrize(
    ("booked", "supply", "demand", "profit"),
    [
        (2.0, 5.0, 2.0, 2 * (4 - BOOKING)),
        (3.0, 5.0, 2.0, 2 * 4 - 3 * BOOKING),  # one truck is lost
        (1.0, 5.0, 2.0, 4 - BOOKING + (4 - BOOKING - 2.5)),  # one more by a rush truck
        (3.0, 1.5, 2.0, 1.5 * 4 - 3 * BOOKING),  # there is no more to be had
    ],
)
def test_profits_by_hand(booked, supply, demand, profit):
    day = one_day(supply, demand)
    business = Business(Country(torch.full((PLANTS, SHOPS), 4.0).double(), day, day, day), rush=2.5)
    plan = torch.zeros(1, PLANTS, SHOPS).double()
    plan[0, 0, 0] = booked
    plan.requires_grad_()
    made = business.made(plan, day)
    assert made.item() == pytest.approx(profit)
    if booked == 1.0:  # one booking more saves the rush
        assert torch.autograd.grad(made, plan)[0][0, 0, 0].item() == pytest.approx(2.5)


def test_predictions_have_the_gradient_of_the_profit():
    torch.manual_seed(0)
    country = draw_country([1, 1, 8], 0.5, torch.Generator().manual_seed(0))
    business, forecast = Business(country, 2.5), Forecast()
    parameters = list(forecast.parameters())
    grads = torch.autograd.grad(business.soft_profit(forecast, country.test).sum(), parameters)
    directions, step, worth = [torch.randn_like(g) for g in grads], 1e-7, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * step * direction
            worth.append(business.soft_profit(forecast, country.test).sum())
    slope = sum((g * d).sum().item() for g, d in zip(grads, directions, strict=True))
    assert ((worth[0] - worth[1]) / (2 * step)).item() == pytest.approx(slope, rel=1e-3)


@pytest.mark.slow
def test_end_to_end_makes_more_by_worse_predictions(tmp_path):
    days = ["--days", "300", "100", "500", "--epochs", "6"]
    outcomes = main(["--seeds", "0", "--rush", "4", *days, "--output", str(tmp_path)])
    by_name = {o.name: o for o in outcomes}
    more = gain(outcomes, END_TO_END)
    assert more.mean > 0 and more.chance < 1e-3
    assert by_name[END_TO_END].error > by_name[TWO_STAGE].error
    assert by_name[END_TO_END].profit.mean() > by_name[QUANTILE].profit.mean()
    assert all((o.profit.mean() < o.known.mean()) for o in outcomes)
    assert (tmp_path / "predicted_supply.png").exists()
