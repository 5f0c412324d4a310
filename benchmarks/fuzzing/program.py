"""A failing case as a small program that runs by itself, and as a line of JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fuzzing.cases import Case
from fuzzing.layers import noise_of
from fuzzing.losses import targets_of
from fuzzing.session import Finding

__all__ = ["as_json", "as_program"]

HEAD = '''"""{title}

{reason}
Right{one}: {right}
"""
import cvxpy as cp
import numpy as np
import torch
from torch import tensor

import optlayers as ol
import polytopes

'''
NOISE = '''
class Given(ol.AbstractNoise):
    """Noise that is known beforehand."""

    def __init__(self, values):
        self.values = torch.tensor(values, dtype=torch.float64)

    def _draw(self, out, generator):
        return out.copy_(self.values.reshape(out.shape))

    def score(self, noise):
        return noise


noise = Given({noise})
one = Given({one})
'''


def as_program(case: Case, finding: Finding) -> str:
    """Python that asks the same question and prints what comes back."""
    verdict, question = finding.verdict, finding.question
    title = f"Seed {case.seed}: {question.label}, {question.solver}, {finding.part}."
    one = " (one of several, where vertices tie)" if question.what in ("maximize", "alone") else ""
    right = "-" if verdict.right is None else str(list(verdict.right))
    lines = [HEAD.format(title=title, reason=f"It is wrong: {verdict.reason}.", one=one, right=right)]
    lines.append(case.declaration.source())
    shape = case.declaration.shape
    lines.append(f"scores = {_tensor(case.scores, shape, case.dtype)}")
    inside = []
    for p in case.declaration.parameters:
        values = case.theta[:, p.start : p.start + p.size]
        inside.append(f'    "{p.name}": {_tensor(values, p.shape, case.parameter_dtype)},\n')
    lines.append("parameters = {\n" + "".join(inside) + "}" if inside else "parameters = {}")
    lines.append(_question(case, finding))
    return "\n".join(lines) + "\n"


def _question(case: Case, finding: Finding) -> str:
    question = finding.question
    if question.what in ("maximize", "project", "alone"):
        which = "project" if question.what == "project" else "maximize"
        best, _, near = question.solver.partition(" ")
        named = f", projector=ol.{near}()" if which == "project" else f", maximizer=ol.{best}()"
        solver = "" if question.solver == "default" else named
        return (
            f"solution = ol.compile_polytope(polytope{solver}).{which}(scores, **parameters)\n"
            'print([ol.Status(int(s)).name for s in solution.status], solution.value, solution.gap, sep="\\n")'
        )
    if question.what == "ties":
        return (
            f"for solver in (ol.Auto(), ol.{question.solver.split()[0]}()):\n"
            "    solution = ol.compile_polytope(polytope, maximizer=solver).maximize(scores, **parameters)\n"
            '    print(solver, [ol.Status(int(s)).name for s in solution.status], solution.value, sep="\\n")'
        )
    if question.what == "regularized":
        back = _tensor(case.gradients, case.declaration.shape, case.dtype)
        return (
            f"solution = ol.compile_polytope(polytope).regularized(scores, {question.solver}, **parameters)\n"
            'print([ol.Status(int(s)).name for s in solution.status], solution.value, solution.gap, sep="\\n")\n'
            f'layer = ol.OptLayer(polytope, ol.Regularized({question.solver}), on_failure="nan")\n'
            f"z = layer(scores.requires_grad_(), **parameters)\n"
            f"z.backward({back}.to(z.dtype))\n"
            "print(scores.grad)"
        )
    if question.what == "rule":
        text = ""
        if "noise" in question.solver:
            noise = noise_of(case)
            text = NOISE.format(noise=noise.tolist(), one=noise[:1].tolist())
        wanted = "SparseMAP" in question.solver or "LPGD" in question.solver
        grads = "parameters = {n: p.requires_grad_() for n, p in parameters.items()}\n" if wanted else ""
        shown = ", {n: p.grad for n, p in parameters.items()}" if wanted else ""
        back = _tensor(case.gradients, case.declaration.shape, case.dtype)
        if "ScoreFunction" in question.solver:
            call = "objective=lambda z: z.double().flatten(1).square().sum(-1) / 2**14, "
            back = "torch.ones(len(scores))"
        else:
            call = ""
        return (
            f"{text}{grads}scores.requires_grad_()\n"
            f'layer = ol.OptLayer(polytope, {question.solver}, on_failure="nan")\n'
            f"generator = torch.Generator().manual_seed({case.seed % 2**31})\n"
            f"z = layer(scores, {call}generator=generator, **parameters)\n"
            f"z.backward({back}.to(z.dtype))\n"
            f'print(z.detach(), scores.grad{shown}, sep="\\n")'
        )
    targets, extra = targets_of(case, question.solver)
    shape = case.declaration.shape
    target = _tensor(extra if "SPOPlus" in question.solver else targets, shape, case.dtype)
    cost = f"cost={_tensor(extra, shape, case.dtype)}, " if "Hinge" in question.solver else ""
    return (
        f'loss = {question.solver}(polytope, reduction="none")\n'
        "scores.requires_grad_()\n"
        f"value = loss(scores, {target}, {cost}**parameters)\n"
        "value.sum().backward()\n"
        'print(value.detach(), scores.grad, sep="\\n")'
    )


def _tensor(values: np.ndarray | None, shape: tuple[int, ...], dtype: str) -> str:
    assert values is not None
    told = repr(np.asarray(values).reshape(-1, *shape).tolist()).replace("inf", "np.inf")
    return f"tensor({told}, dtype=torch.{dtype})"


def as_json(case: Case, finding: Finding) -> str:
    """Everything about it, on one line."""
    told: dict[str, Any] = {
        "seed": case.seed,
        "instance": finding.instance,
        "question": finding.question.label,
        "solver": finding.question.solver,
        "part": finding.part,
        "kind": case.kinds[finding.instance] if finding.instance < len(case.kinds) else "",
        "reason": finding.verdict.reason,
        "right": finding.verdict.right,
        "answer": None if finding.answer is None or finding.answer.value is None else finding.answer.value.tolist(),
        "dtype": case.dtype,
        "parameter_dtype": case.parameter_dtype,
        "scores": case.scores.tolist(),
        "parameters": case.theta.tolist(),
        "declaration": case.declaration.source(),
    }
    return json.dumps(told)
