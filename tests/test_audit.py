"""Audits of gradients: truths that are known, rules that are right, useless or wrong, errors that are honest."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from typing import Any, final

import cvxpy as cp
import matplotlib.pyplot
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

import optlayers as ol
from optlayers.auditing.advice import advice_on_truth
from optlayers.auditing.estimate import Cosine, Estimate, Sent
from optlayers.auditing.findings import Findings
from optlayers.rules import AbstractVertexRule
from polytopes import arborescence, linear_chain, matching, semi_markov, sequence, simplex, subset

matplotlib.use("Agg")
COST = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def linear(cost: Tensor):
    return lambda z: (z * cost.to(z.dtype)).flatten(-cost.ndim).sum(-1)


def smoothed_choice(scores: list[float], cost: list[float], sigma: float) -> list[float]:
    """The gradient of the expected cost of the largest of scores under normal noise, by numerical integration.

    The probability that i is the largest changes with the score of j, which is other than i, by minus the density with
    which both are the same and the largest.
    """

    def meet(i: int, j: int) -> float:
        def density(x: float) -> float:
            value = norm.pdf(x, scores[i], sigma) * norm.pdf(x, scores[j], sigma)
            for k, score in enumerate(scores):
                if k not in (i, j):
                    value *= norm.cdf(x, score, sigma)
            return value

        return quad(density, min(scores) - 9 * sigma, max(scores) + 9 * sigma)[0]

    n = len(scores)
    return [sum((cost[j] - cost[i]) * meet(i, j) for i in range(n) if i != j) for j in range(n)]


@final
@dataclass(frozen=True)
class Backwards(AbstractVertexRule):
    """Minus the gradient that a rule should send back."""

    def backward(self, polytope: Any, saved: Any, grad: Tensor, context: ol.Context) -> ol.Gradient:
        return ol.Gradient(-grad)


@final
@dataclass(frozen=True)
class Noise(AbstractVertexRule):
    """Random numbers."""

    draws = True

    def backward(self, polytope: Any, saved: Any, grad: Tensor, context: ol.Context) -> ol.Gradient:
        return ol.Gradient(torch.randn(grad.shape, generator=context.generator, dtype=torch.float64))


# The truth


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_truth_is_the_smoothed_gradient_by_integration(sigma):
    scores = torch.tensor([[0.2, -0.1, 0.4], [1.0, 0.0, 0.3]], dtype=torch.float64)
    found = ol.audit(
        ol.Pipeline(), simplex(3), linear(COST), scores, scales=[sigma], relative=False, samples=8000,
        generator=seeded(0),
    )  # fmt: skip
    truth = found.truths[sigma]
    expected = torch.tensor([smoothed_choice(row, COST.tolist(), sigma) for row in scores.tolist()])
    assert truth.error.max() < 0.06 * expected.abs().max()
    assert ((truth.mean - expected).abs() < 4.0 * truth.error).all()
    assert abs(truth.total - expected.square().sum()) < 4.0 * truth.total_error


def test_errors_are_honest():
    """Of entries, of squared norms and of cosines: the truth lies within 3 errors in 99 of 100 cases, and not always
    within 1. One audit of a batch of the same instances is as many audits of one, whose random numbers differ."""
    scores, cost, sigma, count, group = [0.2, -0.1, 0.4], COST.tolist(), 0.5, 1200, 4
    expected = torch.tensor(smoothed_choice(scores, cost, sigma), dtype=torch.float64)
    grad = torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64)
    cosine = float(grad @ expected / grad.norm() / expected.norm())
    batch = torch.tensor(scores, dtype=torch.float64).expand(count, 3)
    found = ol.audit(
        ol.Pipeline(), simplex(3), linear(COST), batch, scales=[sigma], steps=[1.0], relative=False,
        generator=seeded(0),
    )  # fmt: skip
    truth, sent = found.truths[sigma], Sent(grad.expand(1, count, 3))
    assert truth.norm2 is not None and truth.norm2_error is not None
    away = {
        "entries": ((truth.mean - expected) / truth.error).flatten(),
        "products": (truth.along(sent)[0] - grad @ expected) / truth.along(sent)[1],
        "norms": (truth.norm2 - expected.square().sum()) / truth.norm2_error,
    }
    cosines = []
    for first in range(0, count, group):
        mine = slice(first, first + group)
        part = Estimate.by_slopes(truth.directions[:, mine], truth.slopes[:, mine])
        each = part.cosine(Sent(grad.expand(1, group, 3)), part.known)
        cosines.append((each.value - cosine) / each.error)
    away["cosines"] = torch.tensor(cosines)
    for name, z in away.items():
        outside, beyond = ((z.abs() > limit).double().mean().item() for limit in (3.0, 1.0))
        assert outside <= 0.01, f"{name}: {outside}"
        assert 0.2 < beyond < 0.4, f"{name}: {beyond}"
        assert abs(z.mean()) < 0.2, f"{name} are biased: {z.mean()}"


def test_draws_of_a_rule_are_part_of_the_error():
    scores, sigma = draw(8, 3), 0.5
    expected = torch.tensor([smoothed_choice(row, COST.tolist(), sigma) for row in scores.tolist()])
    truth = Estimate.exact(expected.double(), torch.ones(8, dtype=torch.bool))
    away = []
    for seed in range(100):
        noise = 0.4 * torch.randn(8, 8, 3, generator=seeded(seed), dtype=torch.float64)
        mine = truth.cosine(Sent(expected.double() + noise), truth.known)
        away.append((mine.value - 1.0) / mine.error)
    assert sum(abs(z) > 3.0 for z in away) <= 2
    assert abs(sum(away) / len(away)) < 0.5


def test_where_no_score_matters_nothing_is_claimed():
    found = ol.audit(ol.StraightThrough(), simplex(3), lambda z: z.sum(-1), draw(6, 3), generator=seeded(0))
    assert found.scale is None and not any(truth.resolved for truth in found.truths.values())
    assert math.isnan(found["StraightThrough()"].cosine[0.3].value)
    assert any(line.startswith("Nothing is known of the truth") for line in found.advice)


# Rules that are right


@pytest.mark.parametrize(
    "rule",
    [ol.SparseMAP(), ol.StructuredAttention(), ol.Regularized(ol.Entropy(0.5)), ol.CentralPath(0.3, hard=False)],
    ids=repr,
)
@pytest.mark.parametrize("polytope", [simplex(4), matching(3)], ids=["simplex", "matching"])
def test_derivatives_of_smooth_maps_are_those_of_their_own_loss(rule, polytope):
    cost = draw(*polytope.shape, seed=1)
    scores = 0.3 * draw(6, *polytope.shape)

    def curved(z: Tensor) -> Tensor:
        return (z - cost).square().flatten(1).sum(1)

    found = ol.audit(rule, polytope, curved, scores, samples=32, generator=seeded(0))
    (mine,) = found.findings.values()
    assert mine.own.value == pytest.approx(1.0, abs=1e-6) and mine.own.error == 0.0


def test_the_own_loss_along_few_random_directions_has_an_error():
    polytope, target = matching(4), draw(4, 4, seed=1)
    found = ol.audit(
        ol.StructuredAttention(), polytope, lambda z: (z - target).square().sum((-1, -2)), draw(20, 4, 4), samples=24,
        generator=seeded(0),
    )  # fmt: skip
    own = found["StructuredAttention()"].own
    assert 0.0 < own.error < 0.2 and abs(own.value - 1.0) < 4.0 * own.error


def test_a_perturbed_optimizer_is_right_for_a_linear_loss():
    rule, scores = ol.PerturbedAdditive(samples=100, scale=0.7), draw(24, 4)
    cost = draw(4, seed=1)
    found = ol.audit(
        rule, simplex(4), linear(cost), scores, scales=[0.7], relative=False, samples=1024, generator=seeded(2)
    )
    (mine,) = found.findings.values()
    cosine = mine.cosine[0.7]
    assert cosine.error < 0.1 and abs(cosine.value - 1.0) < 3.0 * cosine.error
    assert mine.bias < 0.25 and 0.0 < mine.variance < 10.0
    assert mine.single[0.7].value < cosine.value
    assert mine.own is None
    for length, steps in mine.steps.items():
        assert steps.lower > found.references["random direction"][length].lower
        assert steps.change < 0.0


# Rules that are not


def test_a_rule_that_points_the_wrong_way_is_called_out():
    cost = draw(16, 4, 3, 3, seed=1)
    found = ol.audit(
        [Backwards(), ol.StraightThrough()], sequence(4, 3), lambda z: (z * cost).flatten(1).sum(1),
        draw(16, 4, 3, 3), generator=seeded(0),
    )  # fmt: skip
    wrong, right = found["Backwards()"], found["StraightThrough()"]
    for scale in found.truths:
        assert wrong.cosine[scale].value == pytest.approx(-right.cosine[scale].value)
    assert right.cosine[1.0].value > 0.3 and right.along > right.against
    assert wrong.against == right.along and wrong.along == right.against
    assert wrong.steps[1.0].higher > wrong.steps[1.0].lower
    said = [line for line in found.advice if "Backwards" in line]
    assert any("points against the truth: cosine -0." in line for line in said)
    assert any("raise the loss" in line for line in said)
    assert not any("StraightThrough() points against" in line for line in found.advice)


def test_useless_rules_are_named():
    found = ol.audit(
        [ol.Pipeline(), ol.Interpolation(1e-6), Noise()], simplex(4), linear(draw(4, seed=1)), draw(16, 4),
        generator=seeded(0),
    )  # fmt: skip
    assert found["Pipeline()"].zero == 1.0 and math.isnan(found["Pipeline()"].cosine[1.0].value)
    assert found["Interpolation(1e-06)"].zero == 1.0
    assert found["Noise()"].variance > 5.0 and math.isnan(found["Noise()"].bias)
    assert all(math.isnan(cosine.value) for cosine in found["Noise()"].cosine.values())
    said = "\n".join(found.advice)
    assert "Pipeline() sends nothing back: its gradient is 0 in all instances." in said
    assert 'Raise strength (it is 1e-06), or use gradient_unit="norm".' in said


def test_a_saturated_chain_resists_small_steps():
    """Scores so far apart that no step below their spread changes a tag: the straight-through gradient is not 0, and
    moves nothing."""
    tags = torch.tensor([0, 1, 0, 1])
    scores = torch.zeros(8, 4, 2, dtype=torch.float64)
    scores[:, torch.arange(4), tags] = 20.0
    scores += 0.1 * draw(8, 4, 2)
    wanted = torch.eye(2, dtype=torch.float64)[1 - tags]
    pairs = torch.zeros(8, 4, 2, 2, dtype=torch.float64)
    found = ol.audit(
        ol.StraightThrough(), linear_chain(4, 2), lambda z: (z - wanted).square().sum((-1, -2)), scores,
        scales=[0.1, 2.0], steps=[0.1, 3.0], transition=pairs, generator=seeded(0),
    )  # fmt: skip
    mine = found["StraightThrough()"]
    assert mine.zero == 0.0
    assert mine.steps[0.1].lower == mine.steps[0.1].higher == 0.0 and mine.steps[3.0].lower == 1.0
    assert not found.truths[0.1].resolved and found.truths[2.0].resolved
    assert math.isnan(mine.cosine[0.1].value) and mine.cosine[2.0].value > 0.7
    assert any(line.startswith("At scale 0.1 the truth is not told from its own error") for line in found.advice)


def test_steps_that_are_cut_off_are_named():
    scores, cost = draw(16, 4), 40.0 * draw(4, seed=1)
    rules = {"short": ol.Spigot(1e-3), "long": ol.Spigot(1.0), "clipped": ol.Spigot(1.0, clip_norm=0.1)}
    found = ol.audit(rules, simplex(4), linear(cost), scores, generator=seeded(0))
    assert found["short"].cut_off == found["clipped"].cut_off == 0.0 and found["long"].cut_off == 1.0
    assert found["long"].kept < 0.2 and found["short"].kept == pytest.approx(1.0)
    assert any(line.startswith("long's step is cut off in 100 %") and "lower step_size (it is 1)" in line
               for line in found.advice)  # fmt: skip
    soft = ol.audit(
        [ol.SpigotCE(1e-4), ol.SpigotCE(1.0), ol.SpigotCE(1.0, at="marginals")], simplex(4), linear(cost), scores
    )
    assert [one.cut_off for one in soft.findings.values()] == [0.0, 1.0, None]
    unit = ol.audit(ol.Spigot(0.1), simplex(4), linear(cost), scores, gradient_unit="norm", generator=seeded(0))
    assert unit["Spigot(step_size=0.1)"].cut_off == 0.0
    wide = ol.audit(ol.Spigot(9.0), simplex(4), linear(cost), scores, gradient_unit="norm", generator=seeded(0))
    (said,) = (line for line in wide.advice if "is cut off" in line)
    assert "gradient_unit" not in said


def test_a_mean_over_the_batch_shortens_what_arrives():
    scores, cost = draw(32, 4), draw(4, seed=1)
    by = {
        reduction: ol.audit(
            [ol.Interpolation(1.0), ol.StraightThrough()], simplex(4), linear(cost), scores, reduction=reduction,
            generator=seeded(0),
        )
        for reduction in ("sum", "mean")
    }  # fmt: skip
    assert by["mean"]["Interpolation(1.0)"].zero > by["sum"]["Interpolation(1.0)"].zero + 0.2
    assert by["mean"]["StraightThrough()"].bias == pytest.approx(by["sum"]["StraightThrough()"].bias)


def advice_for(**rules: tuple[float, float, float]) -> list[str]:
    """What is said of rules with a cosine, its error, and milliseconds."""
    found = [
        Findings(name, ol.Pipeline(), cosine={1.0: Cosine(value, error)}, milliseconds=time)
        for name, (value, error, time) in rules.items()
    ]
    truth = Estimate.exact(torch.ones(1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.bool))
    return [line for line in advice_on_truth({1.0: truth}, 1.0, 8, found) if line.startswith("Nearest")]


def test_rules_within_two_errors_of_the_best_are_not_told_apart():
    (said,) = advice_for(slow=(0.35, 0.01, 64.7), quick=(0.34, 0.01, 1.3), far=(0.2, 0.01, 0.1))
    assert said == (
        "Nearest to the truth at scale 1 are slow (cosine 0.35 ± 0.01, 65 ms a pass) and quick (cosine 0.34 ± 0.01, "
        "1.3 ms a pass): their cosines are not told apart by 2 standard errors. The cheapest of them is quick."
    )
    (said,) = advice_for(a=(0.56, 0.02, 9.0), b=(0.59, 0.06, 76.0), c=(0.5, 0.02, 5.0))
    assert "are b (" in said and "and c (" in said and said.endswith("The cheapest of them is c.")
    (said,) = advice_for(a=(0.9, 0.01, 9.0), b=(0.8, 0.01, 1.0))
    assert said == "Nearest to the truth at scale 1 is a (cosine 0.90 ± 0.01, 9.0 ms a pass)."
    (said,) = advice_for(a=(0.9, 0.3, 9.0), noise=(0.5, 0.4, 1.0))  # which is not told from 0
    assert "is a (" in said and "noise" not in said
    assert not advice_for(a=(0.1, 0.1, 9.0), b=(0.0, 0.1, 1.0))


# What instances may be


def test_masks_and_padding_are_left_alone():
    family = ol.Family(arborescence)
    scores = draw(5, 6, 6)
    scores[1, 0, 2] = -torch.inf
    scores[2, 3, 1] = torch.finfo(torch.float64).min
    sizes = torch.tensor([5, 4, 3, 2, 5])
    target = draw(5, 6, 6, seed=1)
    found = ol.audit(
        [ol.StraightThrough(), ol.Spigot(), ol.SparseMAP()], family, lambda z: (z * target).sum((-1, -2)), scores,
        sizes=sizes, generator=seeded(0),
    )  # fmt: skip
    assert all(one.skipped is None for one in found.findings.values())
    truth = found.truths[1.0].mean.reshape(5, 6, 6)
    assert (truth[1, 0, 2] == 0) and (truth[2, 3, 1] == 0)
    assert (truth[3, 3:] == 0).all() and (truth[:, :, 0] == 0).all()
    assert truth[3, :3, :3].abs().sum() > 0.0
    assert found["SparseMAP()"].own.value == pytest.approx(1.0, abs=1e-4)


def test_parameters_go_by_name_those_of_rules_too():
    temperature = cp.Parameter(pos=True, name="temperature")
    budget = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    found = ol.audit(
        [ol.StraightThrough(), ol.Regularized(ol.Entropy(temperature))], subset(4), linear(draw(4, seed=1)),
        draw(4, 4), budget=budget, temperature=0.5, generator=seeded(0),
    )  # fmt: skip
    assert all(one.skipped is None for one in found.findings.values()), str(found)
    assert budget.grad is None


def test_what_a_polytope_lacks_skips_the_rule():
    x = cp.Variable(16)
    cube = ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) <= 7.5])  # too many vertices to enumerate
    found = ol.audit(
        [ol.StructuredAttention(), ol.StraightThrough()], cube, linear(draw(16, seed=1)), draw(3, 16), samples=16,
        generator=seeded(0),
    )  # fmt: skip
    assert "vertices" in found["StructuredAttention()"].skipped
    assert found["StraightThrough()"].skipped is None
    assert "StructuredAttention() skipped: " in str(found)
    needs_objective = ol.audit(
        [ol.Spigot(steps=2), ol.ScoreFunction()], simplex(3), linear(COST), draw(4, 3), gradient_unit="norm"
    )
    assert 'give gradient_unit="loss"' in needs_objective["Spigot(steps=2)"].skipped


def test_rules_that_need_an_objective_get_it():
    def steps(z: Tensor) -> Tensor:
        return (z @ COST > 0.5).to(z.dtype)  # without a derivative

    rules = [ol.ScoreFunction(samples=50), ol.StraightThrough(), ol.SpigotEG(at="marginals")]
    found = ol.audit(rules, simplex(3), steps, draw(24, 3), generator=seeded(0))
    assert found["ScoreFunction(samples=50)"].cosine[1.0].value > 0.7
    assert found["StraightThrough()"].zero == 1.0 and found["StraightThrough()"].arrives == 0.0
    assert "The loss sends no gradient to StraightThrough()" in "\n".join(found.advice)


def test_rules_that_adapt_have_adapted_and_layers_are_as_before():
    layer = ol.OptLayer(simplex(4), ol.Spigot(ol.AdaptiveStep(start=1e3)))
    found = ol.audit([layer.rule, ol.AdaptiveIMLE()], layer, linear(draw(4, seed=1)), draw(8, 4), generator=seeded(0))
    assert float(layer.rule_step_size) == 1e3
    assert all(one.skipped is None for one in found.findings.values())
    assert found["AdaptiveIMLE()"].zero < 1.0


def test_one_instance_without_batch_dimensions_and_other_precisions():
    for dtype in (torch.float32, torch.bfloat16):
        scores = draw(3).to(dtype)
        found = ol.audit(
            [ol.SparseMAP(), ol.Spigot()], simplex(3), lambda z: z.float() @ COST.float(), scores, generator=seeded(0)
        )
        assert found.instances == 1 and all(one.skipped is None for one in found.findings.values()), str(found)


def test_several_batch_dimensions():
    cost = draw(2, 3, 4, seed=1)
    found = ol.audit(ol.StraightThrough(), simplex(4), lambda z: (z * cost).sum(-1), draw(2, 3, 4), generator=seeded(0))
    assert found.instances == 6 and found["StraightThrough()"].cosine[1.0].value > 0.3


# Random numbers


def test_a_generator_makes_it_reproducible_whatever_other_rules_there_are():
    def numbers(rules: list[ol.AbstractRule], **kwargs: Any) -> dict[str, Any]:
        found = ol.audit(rules, simplex(4), linear(draw(4, seed=1)), draw(6, 4), **kwargs).to_dict()["rules"]
        for one in found.values():
            one.pop("milliseconds")
        return found

    both = numbers([ol.IMLE(), ol.PerturbedAdditive()], generator=seeded(3))
    assert both == numbers([ol.IMLE(), ol.PerturbedAdditive()], generator=seeded(3))
    alone = numbers([ol.PerturbedAdditive()], generator=seeded(3))
    assert alone["PerturbedAdditive()"] == both["PerturbedAdditive()"]
    assert both != numbers([ol.IMLE(), ol.PerturbedAdditive()], generator=seeded(4))
    torch.manual_seed(5)
    first = numbers([ol.IMLE()])
    torch.manual_seed(5)
    assert numbers([ol.IMLE()]) == first


# What it is shown as


def test_tables_numbers_and_pictures():
    rules = [ol.Pipeline(), ol.Spigot(), ol.SparseMAP(), ol.IMLE(samples=2), ol.SpigotCE(), ol.SpigotCE()]
    found = ol.audit(rules, simplex(3), linear(COST), draw(8, 3), generator=seeded(0))
    text = str(found)
    for name in ("Pipeline()", "IMLE(samples=2)", "SpigotCE() #2", "(random direction)", "cut off", "cos 0.3"):
        assert name in text
    assert "<" in repr(found) and "6 rules over 8 instances" in repr(found)
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + len(rules) + len(found.references) and "<script" not in html
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["rules"]["Pipeline()"]["cosine"]["1"] == {"value": None, "error": None}
    assert numbers["rules"]["SparseMAP()"]["own"]["value"] == pytest.approx(1.0)
    before = matplotlib.pyplot.get_fignums()
    ax = found.plot()
    assert matplotlib.pyplot.get_fignums() == before
    assert [label.get_text() for label in ax.get_yticklabels()] == list(found.findings)
    assert found.plot(ax) is ax
    ax.figure.savefig(io.BytesIO())


def test_names_in_html_are_text():
    found = ol.audit({"<b>bold</b>": ol.Pipeline()}, simplex(3), linear(COST), draw(2, 3), samples=8)
    assert "<b>" not in found._repr_html_() and "&lt;b&gt;" in found._repr_html_()


def test_a_bar_is_shown_when_asked_for(capsys):
    ol.audit(ol.Pipeline(), simplex(3), linear(COST), draw(2, 3), samples=8)
    assert capsys.readouterr() == ("", "")
    ol.audit(ol.Pipeline(), simplex(3), linear(COST), draw(2, 3), samples=8, progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "audit" in shown.err


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rules": []}, ValueError, "there are no rules to audit"),
        ({"rules": ol.Spigot}, TypeError, r"make it a value: Spigot\(\)"),
        ({"rules": ["spigot"]}, TypeError, "rules are backward rules such as"),
        ({"rules": 3}, TypeError, "rules are backward rules such as"),
        ({"polytope": 3}, TypeError, "OptLayer takes a Polytope or a Family, but got int"),
        ({"objective": lambda z: z.sum()}, ValueError, r"one loss per instance, of shape \(4,\).*leave out its mean"),
        ({"objective": lambda z: z}, ValueError, r"one loss per instance, of shape \(4,\).*returned shape \(4, 3\)"),
        ({"objective": lambda z: 1.0}, TypeError, "objective must return a tensor of losses, but returned float"),
        ({"objective": lambda z: z.sum(-1) / 0}, ValueError, "a loss of inf for the best vertex of instance 0"),
        ({"objective": "loss"}, TypeError, "objective must be a function of structures, but got str"),
        ({"scores": draw(4, 5)}, ValueError, "scores end in"),
        ({"scores": torch.full((4, 3), torch.nan)}, ValueError, "scores hold nan at batch index 0"),
        ({"scores": [1.0, 2.0, 3.0]}, TypeError, "scores must be a torch.Tensor, but got list"),
        ({"scores": draw(0, 3)}, ValueError, "a batch without instances has nothing to audit"),
        ({"scores": torch.full((4, 3), -torch.inf)}, ol.SolveError, "4 of 4 instances could not be solved"),
        ({"samples": 7}, ValueError, "samples come in pairs: an even number from 8 on, but got 7"),
        ({"samples": 2.0}, TypeError, "samples must be an int, but got 2.0"),
        ({"scales": 0.3}, TypeError, r"scales must be several numbers, such as \(0.1, 1.0\), but got 0.3"),
        ({"scales": [0.3, -1.0]}, ValueError, "every one of scales must be positive and finite, but got -1.0"),
        ({"scales": ["a"]}, TypeError, "every one of scales must be a number, but got 'a'"),
        ({"steps": []}, ValueError, "steps must be different numbers, at least one"),
        ({"runs": 1}, ValueError, "runs must be at least 3"),
        ({"reduction": "none"}, ValueError, 'reduction is "sum" or "mean", but got \'none\''),
        ({"relative": 1}, TypeError, "relative must be True or False, but got 1"),
        ({"gradient_unit": "scale"}, ValueError, 'gradient_unit is "norm", "loss" or None'),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, but got int"),
        ({"sizes": [3]}, TypeError, "sizes= is for layers over a Family"),
        ({"load": 3.0}, TypeError, "load"),
    ],
)
def test_bad_input_is_refused_in_the_words_of_the_user(change, error, message):
    given = {"rules": [ol.Spigot()], "polytope": simplex(3), "objective": linear(COST), "scores": draw(4, 3)} | change
    with pytest.raises(error, match=message):
        ol.audit(given.pop("rules"), given.pop("polytope"), given.pop("objective"), given.pop("scores"), **given)


def test_a_set_without_vertices_is_refused_by_the_audit_itself():
    x = cp.Variable(2)
    disc = ol.Polytope(x, [cp.norm(x) <= 1])
    for given in (disc, ol.OptLayer(disc, ol.SparseMAP())):
        with pytest.raises(ValueError, match=r"audit\(\) compares .* best vertices .* has no vertices") as raised:
            ol.audit(ol.SparseMAP(), given, lambda z: z.sum(-1), draw(3, 2))
        assert "Pipeline" not in str(raised.value)


@pytest.mark.parametrize(
    "objective",
    [
        lambda z: z @ COST - (z @ COST).mean(),
        lambda z: z @ COST - (z @ COST).max(),
        lambda z: torch.softmax(z @ COST, dim=0),
        lambda z: (z - z[:1]).square().sum(-1),
        lambda z: (z - z.roll(1, 0)).square().sum(-1),
        lambda z: torch.nn.functional.batch_norm(z, None, None, training=True) @ COST,
        lambda z: (z @ COST).float() - 1e-2 * (z @ COST).float().mean(),
    ],
    ids=["mean", "max", "softmax", "first", "neighbour", "batch norm", "float32"],
)
def test_losses_that_depend_on_other_instances_are_refused(objective):
    """Each of these mixes instances by its formula, and some structure of another instance changes it."""
    with pytest.raises(ValueError, match=r"loss of its own structure alone, but the loss of instance \d+ changes from"):
        ol.audit(ol.StraightThrough(), simplex(3), objective, draw(16, 3), generator=seeded(0))


def test_the_instance_is_named_by_its_place_in_the_batch():
    with pytest.raises(ValueError, match=r"the loss of instance \(\d, \d\) changes"):
        ol.audit(ol.Pipeline(), simplex(3), lambda z: z @ COST - (z @ COST).mean(), draw(2, 3, 3), samples=8)


def test_losses_of_each_instance_alone_are_not_accused():
    """Gold structures for each instance, random numbers, half precision, paddings: none of these mixes instances."""
    gold = torch.eye(3, dtype=torch.float64)[torch.arange(16) % 3]
    dropout = torch.nn.Dropout(0.5)
    calls = iter(range(10**6))
    rarely = lambda z: z @ COST + (next(calls) % 7 == 3)  # noqa: E731 - the same losses but for one call in seven
    weights = draw(3, 50, seed=2).float()
    for objective in (
        lambda z: (z - gold).square().sum(-1),
        lambda z: dropout(z @ COST),
        lambda z: z @ COST + torch.randn(16, dtype=z.dtype),
        rarely,
        lambda z: torch.logsumexp(1e3 * (z.float() @ weights), -1),
        lambda z: 1e6 + (z.half() @ COST.half()).float(),
        lambda z: torch.nn.functional.layer_norm(z, (3,)) @ COST,
    ):
        found = ol.audit(ol.Pipeline(), simplex(3), objective, draw(16, 3), samples=8, generator=seeded(0))
        assert found.to_dict()["rules"]["Pipeline()"]["zero"] == 1.0
    for dtype in (torch.float32, torch.bfloat16):
        mine, scores = gold.to(dtype), draw(16, 3).to(dtype)
        found = ol.audit(ol.Pipeline(), simplex(3), lambda z, mine=mine: (z - mine).square().sum(-1), scores)
        assert found.to_dict()["rules"]["Pipeline()"]["zero"] == 1.0


def test_mixed_losses_are_refused_before_the_work():
    calls = []

    def objective(z: Tensor) -> Tensor:
        calls.append(z)
        return z @ COST - (z @ COST).mean()

    with pytest.raises(ValueError, match="its own structure alone"):
        ol.audit(ol.Pipeline(), simplex(3), objective, draw(16, 3), samples=1024)
    assert len(calls) < 20


def test_nothing_of_the_caller_changes():
    scores, other = draw(4, 3).requires_grad_(), torch.nn.Linear(3, 1, dtype=torch.float64)
    before = scores.detach().clone()
    ol.audit([ol.Spigot(), ol.SparseMAP()], simplex(3), lambda z: other(z)[:, 0], scores, samples=16)
    assert torch.equal(scores, before) and scores.grad is None and other.weight.grad is None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = ol.audit(ol.StraightThrough(), simplex(3), linear(COST), scores.detach() + 0.0, samples=16)
        assert found["StraightThrough()"].zero == 0.0


def test_segments_with_a_fixed_layout_are_audited():
    found = ol.audit(
        [ol.Spigot(), ol.Hard(ol.SparseMAP())], semi_markov(4, 2, 3), lambda z: z.flatten(1).sum(1), draw(6, 4, 3, 2),
        samples=64, generator=seeded(0),
    )  # fmt: skip
    assert found["Hard(SparseMAP())"].skipped is None
