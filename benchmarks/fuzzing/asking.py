"""Questions to optlayers, and its answers, an instance at a time."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

import optlayers as ol
from fuzzing.cases import Case
from fuzzing.declarations import Declaration
from fuzzing.numbers import DTYPES

__all__ = ["MAXIMIZERS", "PROJECTORS", "Answer", "Asked", "compiled", "in_words", "parameters_of", "scores_of"]

MAXIMIZERS = ("Auto", "Highs", "InteriorPoint", "DualNewton", "Dense")
PROJECTORS = ("Auto", "Clarabel", "InteriorPoint", "DualNewton", "Dense", "ActiveSet", "CvxpyLayers")
OURS = ("optlayers", "polytopes")


@dataclass(frozen=True)
class Answer:
    """What came back for one instance: a verdict and a structure, or an error."""

    question: str
    solver: str
    instance: int
    status: str
    """The name of a status, or "error"."""
    value: np.ndarray | None = None
    message: str = ""
    told: bool = True
    """Whether an error is in the words of optlayers."""


def in_words(error: BaseException) -> bool:
    """Whether an error is raised by optlayers itself, for the user, rather than by a library or by accident."""
    if isinstance(error, (ol.SolveError, ol.DeclarationError)):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(part in OURS for part in Path(last.filename).parts)
    return ours and type(error) in (ValueError, TypeError, NotImplementedError)


def scores_of(case: Case, instances: Sequence[int] | slice = slice(None)) -> Tensor:
    """The scores of some instances, ``(instances, *shape)`` in their dtype."""
    values = torch.from_numpy(case.scores[instances]).to(DTYPES[case.dtype])
    return values.reshape(-1, *case.declaration.shape)


def parameters_of(case: Case, instances: Sequence[int] | slice = slice(None)) -> dict[str, Tensor]:
    """The parameters of some instances, by name."""
    theta = torch.from_numpy(case.theta[instances]).to(DTYPES[case.parameter_dtype])
    return {p.name: theta[:, p.start : p.start + p.size].reshape(-1, *p.shape) for p in case.declaration.parameters}


_COMPILED: WeakKeyDictionary[Declaration, dict[tuple[str, str], ol.CompiledPolytope]] = WeakKeyDictionary()


def compiled(declaration: Declaration, maximizer: str = "default", projector: str = "default") -> ol.CompiledPolytope:
    """The polytope of a declaration with these solvers, compiled once."""
    kept = _COMPILED.setdefault(declaration, {})
    key = maximizer, projector
    if key not in kept:
        kept[key] = ol.compile_polytope(declaration.build(), maximizer=_solver(maximizer), projector=_solver(projector))
    return kept[key]


@dataclass(frozen=True)
class Asked:
    """A case that is put to one pair of solvers."""

    case: Case
    maximizer: str = "default"
    projector: str = "default"

    @property
    def compiled(self) -> ol.CompiledPolytope:
        """The polytope, compiled when something is asked."""
        return compiled(self.case.declaration, self.maximizer, self.projector)

    def answers(self, question: str) -> list[Answer]:
        """To "maximize" or "project", for all instances in one batch; where that raises, for each by itself."""
        solver = self.maximizer if question == "maximize" else self.projector
        everyone = range(len(self.case))
        try:
            compiled = self.compiled
        except Exception as error:
            return [self._error(question, solver, k, error) for k in everyone]
        try:
            return self._of(compiled, question, solver, list(everyone))
        except Exception as error:
            answers = [self.alone(question, k) for k in everyone]
            if any(answer.status == "error" for answer in answers):
                return answers
            return [self._error(question, solver, k, error) for k in everyone]  # it is the batch that raises

    def alone(self, question: str, instance: int) -> Answer:
        """For one instance, in a batch of one."""
        solver = self.maximizer if question == "maximize" else self.projector
        try:
            return self._of(self.compiled, question, solver, [instance])[0]
        except Exception as error:
            return self._error(question, solver, instance, error)

    def _of(self, compiled: ol.CompiledPolytope, question: str, solver: str, instances: list[int]) -> list[Answer]:
        ask: Callable[..., ol.Solution] = getattr(compiled, question)
        solution = ask(scores_of(self.case, instances), **parameters_of(self.case, instances))
        values = solution.value.to(torch.float64).reshape(len(instances), -1).numpy()
        return [
            Answer(question, solver, k, ol.Status(int(status)).name, value)
            for k, status, value in zip(instances, solution.status, values, strict=True)
        ]

    @staticmethod
    def _error(question: str, solver: str, instance: int, error: Exception) -> Answer:
        message = f"{type(error).__name__}: {error}"
        return Answer(question, solver, instance, "error", None, message, in_words(error))


def _solver(name: str) -> Any:
    if name == "default":
        return None
    if name == "CvxpyLayers":
        return ol.CvxpyLayers()
    return getattr(ol, name)()
