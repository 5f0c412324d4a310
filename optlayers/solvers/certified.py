"""One solver asked, its answer made exact and certified."""

from __future__ import annotations

import numpy as np

from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, Answer, Instances
from optlayers.solvers.certificate import certify
from optlayers.solvers.kept import KeptModels
from optlayers.solvers.polish import polish
from optlayers.standard_form import StandardForm

__all__ = ["maximize_certified", "project_certified"]


def maximize_certified(solver: AbstractMaximizer, state: object, form: StandardForm, instances: Instances) -> Answer:
    """Best vertices with a certificate, except from a solver that brings its own verdict."""
    answer = solver.maximize(state, instances)
    if answer.certificate is None and answer.residual is None:
        answer.certificate = certify(form, instances, answer.point, answer.dual, projection=False)
    return answer


def project_certified(
    solver: AbstractProjector, state: object, form: StandardForm, instances: Instances, tolerance: float
) -> Answer:
    """Projections with an active set and a certificate, except from a solver that brings its own derivative.

    What stays uncertified by a kept model is solved once more by a fresh one, which has seen nothing else: a kept
    model has scaled its problem for the scores that it saw first, which may be of quite another size.
    """
    answer = solver.project(state, instances)
    if answer.pullback is not None or answer.residual is not None:
        return answer
    if answer.free is None:
        answer = polish(form, instances, answer)
    elif answer.certificate is None:
        answer.certificate = certify(form, instances, answer.point, answer.dual, projection=True)
    certificate = answer.certificate
    if certificate is None:
        raise RuntimeError("a polished answer has a certificate")
    if isinstance(state, KeptModels):
        for k in np.flatnonzero(~certificate.holds(tolerance)):
            alone = instances.take(slice(k, k + 1))
            fresh = polish(form, alone, solver.project(solver.prepare(form), alone))
            if fresh.certificate is not None and fresh.certificate.relative[0] < certificate.relative[k]:
                answer.replace(np.array([k]), fresh, np.array([0]))
    return answer
