"""A structure that is in no catalogue: declared, checked, explained, trained.

A ward plans a week. Every day needs a number of nurses, which differs from week to week; nobody works fewer than two
days or more than five. From weeks planned by hand we learn what the planner prefers.
"""

import cvxpy as cp
import torch

import optlayers as ol

DAYS, NURSES = 7, 5


def roster() -> ol.Polytope:
    """Who works when: shape (DAYS, NURSES). Integral: a transportation polytope with integer bounds."""
    works = cp.Variable((DAYS, NURSES))
    demand = cp.Parameter(DAYS, name="demand", nonneg=True)  # data of each instance
    days_of_each = cp.sum(works, axis=0)
    return ol.Polytope(
        works, [works >= 0, works <= 1, cp.sum(works, axis=1) == demand, days_of_each >= 2, days_of_each <= 5]
    )


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    demand = torch.randint(1, 4, (48, DAYS), generator=generator, dtype=torch.float64)
    demand[:, 0] += (10 - demand.sum(1)).clamp(min=0)  # five nurses for two days each are 10 shifts at least
    polytope = roster()

    report = ol.testing.check_polytope(polytope, demand=demand[0])
    print(f"checked: {report.samples} random objectives, vertices integral: {report.integral}\n")
    compiled = ol.compile_polytope(polytope)
    print(compiled.explain(), "\n")

    wishes = torch.randn(DAYS, NURSES, generator=generator, dtype=torch.float64)  # what the planner has in mind
    decide = ol.OptLayer(compiled, ol.Pipeline())
    planned = decide(wishes.expand(len(demand), -1, -1), demand=demand)

    learned = torch.zeros_like(wishes, requires_grad=True)
    relaxed = ol.OptLayer(compiled, ol.SparseMAP())
    optimizer = torch.optim.Adam([learned], lr=0.2)
    for step in range(61):
        scores = learned.expand(len(demand), -1, -1)
        loss = (relaxed(scores, demand=demand) - planned).square().sum((1, 2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 15 == 0:
            same = (decide(scores.detach(), demand=demand) == planned).all((1, 2)).sum()
            print(f"step {step:2d}   loss {loss:6.3f}   weeks planned as by hand: {same:2d} of {len(demand)}")

    found = decide(learned.detach().expand(len(demand), -1, -1), demand=demand)
    torch.testing.assert_close(found, planned)
    print("\nthe planner's weeks are met, every one; the first:")
    print("\n".join("  " + " ".join("x" if shift > 0.5 else "." for shift in nurse) for nurse in found[0].T))


if __name__ == "__main__":
    main()
