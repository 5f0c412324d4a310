"""Layers under every rule, and losses: what goes forward, and what comes back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import optlayers as ol
from fuzzing.asking import Answer, compiled, in_words, parameters_of, scores_of
from fuzzing.cases import Case
from fuzzing.numbers import DTYPES

__all__ = ["Given", "Returned", "loss_of", "noise_of", "run_layer", "run_loss"]

SAMPLES = 3


class Given(ol.AbstractNoise):
    """Noise that is known beforehand, which counts as normal."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def _draw(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        return out.copy_(self.values.reshape(out.shape))

    def score(self, noise: Tensor) -> Tensor:
        """The score of normal noise."""
        return noise


@dataclass
class Returned:
    """What a layer or a loss gave: per instance a structure or a loss, and gradients of scores and parameters."""

    answers: list[Answer]
    scores: np.ndarray | None = None
    parameters: np.ndarray | None = None
    complaint: str = ""
    """What is wrong with all of it: a dtype that was not kept."""
    extra: dict[str, Any] = field(default_factory=dict)


def noise_of(case: Case) -> np.ndarray:
    """Noise ``(samples, instances, size)`` in the digits of float32: of an instance always the same."""
    drawn = [
        np.random.default_rng([case.seed, 29, number]).standard_normal((SAMPLES, case.declaration.size))
        for number in case.numbers
    ]
    return np.stack(drawn, axis=1).astype(np.float32).astype(np.float64)


def loss_of(structures: Any) -> Any:
    """A loss of structures ``(..., size)``, in torch or NumPy; its gradients fit into float16."""
    return (structures**2).sum(-1) / 2**14


def run_layer(
    case: Case, rule: str, question: str, with_parameters: bool, noise: np.ndarray, on_failure: Any = "nan"
) -> Returned:
    """One forward and one backward pass; where these raise, the same for each instance by itself."""
    polytope = None
    try:
        polytope = compiled(case.declaration)
        layer = ol.OptLayer(polytope, _rule(rule, noise), on_failure=on_failure)
        return _run(layer, case, question, rule, with_parameters)
    except Exception as error:
        whole = Returned([_error(question, rule, k, error) for k in range(len(case))])
    if polytope is None or len(case) == 1:
        return whole
    found = [
        run_layer(case.take([k]), rule, question, with_parameters, noise[:, k : k + 1], on_failure)
        for k in range(len(case))
    ]
    return _joined(case, found) if _raises_alone(found) else whole


def _rule(text: str, noise: np.ndarray) -> Any:
    return eval(text, {"ol": ol, "noise": Given(torch.from_numpy(noise)), "one": Given(torch.from_numpy(noise[:1]))})


def _run(layer: ol.OptLayer, case: Case, question: str, rule: str, with_parameters: bool) -> Returned:
    scores = scores_of(case).requires_grad_()
    parameters = parameters_of(case)
    if with_parameters:
        parameters = {name: value.requires_grad_() for name, value in parameters.items()}
    objective = None
    drawn: list[Tensor] = []
    if "ScoreFunction" in rule:

        def objective(structures: Tensor) -> Tensor:
            drawn.append(structures.detach().to(torch.float64).flatten(-len(case.declaration.shape)))
            return loss_of(structures.to(torch.float64).flatten(-len(case.declaration.shape)))

    generator = torch.Generator().manual_seed(case.seed % 2**31)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = layer(scores, objective=objective, generator=generator, **parameters)
        if objective is None:
            gradient = torch.from_numpy(case.gradients).to(value.dtype).reshape(value.shape)
        else:
            gradient = torch.ones_like(value)
        value.backward(gradient)
    flat = value.detach().to(torch.float64).reshape(len(case), -1).numpy()
    failed = np.isnan(flat).any(axis=1)
    answers = [Answer(question, rule, k, "failed" if failed[k] else "OPTIMAL", flat[k]) for k in range(len(case))]
    complaint = "" if value.dtype == scores.dtype or objective is not None else f"structures are {value.dtype}"
    back = scores.grad
    if back is None:
        return Returned(answers, complaint="no gradient reaches the scores")
    if back.dtype != scores.dtype or back.shape != scores.shape:
        complaint = f"the gradient is {back.dtype} of shape {tuple(back.shape)}"
    theta = None
    if with_parameters and parameters:
        parts = [v.grad for v in parameters.values()]
        if any(part is None for part in parts):
            return Returned(answers, complaint="no gradient reaches a parameter")
        theta = np.concatenate([p.to(torch.float64).reshape(len(case), -1).numpy() for p in parts], axis=1)
    return Returned(answers, back.to(torch.float64).reshape(len(case), -1).numpy(), theta, complaint, {"drawn": drawn})


def run_loss(case: Case, loss: str, targets: np.ndarray, extra: np.ndarray) -> Returned:
    """A loss per instance, and its gradient."""
    polytope = None
    try:
        polytope = compiled(case.declaration)
        made = eval(loss, {"ol": ol})(polytope, reduction="none")
        scores = scores_of(case).requires_grad_()
        shape = scores.shape
        target = torch.from_numpy(targets).to(DTYPES[case.dtype]).reshape(shape)
        more = torch.from_numpy(extra).to(DTYPES[case.dtype]).reshape(shape)
        given = (scores, more) if "SPOPlus" in loss else (scores, target)
        options = {"cost": more} if "Hinge" in loss else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = made(*given, **options, **parameters_of(case))
            value.sum().backward()
        flat = value.detach().to(torch.float64).numpy()
        answers = [Answer("loss", loss, k, "OPTIMAL", flat[k : k + 1]) for k in range(len(case))]
        back = scores.grad
        complaint = "" if value.dtype == scores.dtype else f"losses are {value.dtype}"
        return Returned(answers, back.to(torch.float64).reshape(len(case), -1).numpy(), None, complaint)
    except Exception as error:
        whole = Returned([_error("loss", loss, k, error) for k in range(len(case))])
    if polytope is None or len(case) == 1:
        return whole
    found = [run_loss(case.take([k]), loss, targets[k : k + 1], extra[k : k + 1]) for k in range(len(case))]
    return _joined(case, found) if _raises_alone(found) else whole


def _error(question: str, rule: str, instance: int, error: Exception) -> Answer:
    status = "failed" if isinstance(error, ol.SolveError) else "error"
    return Answer(question, rule, instance, status, None, f"{type(error).__name__}: {error}", in_words(error))


def _raises_alone(found: list[Returned]) -> bool:
    """Whether an instance has no answer by itself either; else it is the batch that raises, which is a fault."""
    return any(answer.status in ("failed", "error") for one in found for answer in one.answers)


def _joined(case: Case, found: list[Returned]) -> Returned:
    """What instances gave one by one."""
    answers = []
    for k, one in enumerate(found):
        first = one.answers[0]
        answers.append(Answer(first.question, first.solver, k, first.status, first.value, first.message, first.told))
    size, count = case.declaration.size, case.declaration.parameter_count
    scores = np.stack([np.full(size, np.nan) if f.scores is None else f.scores[0] for f in found])
    theta = None
    if any(f.parameters is not None for f in found):
        theta = np.stack([np.full(count, np.nan) if f.parameters is None else f.parameters[0] for f in found])
    complaints = sorted({f.complaint for f in found if f.complaint})
    return Returned(answers, scores, theta, "; ".join(complaints), {"one by one": True})
