"""Who answers, in which time and memory, for one polytope or some sizes of a family."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from optlayers.compiled import CompiledPolytope
from optlayers.reporting.statement import CHOSEN, MEASURED, Section, Statement
from optlayers.solution import Solution

__all__ = ["costs_of", "section_of"]

BATCH = 16
CALLS = 3
BYTES = 8
ENOUGH = 0.3
"""Seconds after which a question is not asked again."""


def costs_of(compiled: CompiledPolytope, named: dict[str, Any], seed: int, late: Callable[[], bool]) -> dict[str, Any]:
    """Seconds per instance for best vertices and for projections, in a batch, and bytes by the sizes of arrays.

    A question that takes long is asked of one instance, once.
    """
    form = compiled.rows or compiled.projection_form
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {
        "parts": int(np.prod(compiled.shape, dtype=int)),
        "rows": form.rows,
        "columns": form.columns,
        # A solver holds a point, a dual point, bounds, right-hand sides and scores; and answers with values.
        "bytes_per_instance": BYTES * (2 * form.size + 6 * form.columns + 3 * form.rows),
        "bytes_once": (BYTES + 4) * form.matrix.nnz + BYTES * 4 * (form.columns + form.rows),
    }
    questions: list[tuple[str, Callable[..., Solution]]] = [("project", compiled.project)]
    if compiled.has_vertices:
        questions.insert(0, ("maximize", compiled.maximize))
    for name, ask in questions:
        if late():
            found[name] = None
            continue
        one = torch.randn(1, *compiled.shape, generator=generator, dtype=torch.float64)
        ask(one, **named)  # what is compiled or prepared at the first call is not counted
        start = time.perf_counter()
        ask(one, **named)
        taken = time.perf_counter() - start
        if taken > ENOUGH / BATCH:
            found[name] = taken
            continue
        scores = torch.randn(BATCH, *compiled.shape, generator=generator, dtype=torch.float64)
        ask(scores, **named)
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            ask(scores, **named)
            times.append(time.perf_counter() - start)
        found[name] = min(times) / BATCH
    return found


def section_of(
    compiled: CompiledPolytope, costs: Sequence[tuple[str, dict[str, Any]]], missed: Sequence[str]
) -> Section:
    """Solvers, times and memory, in words."""
    told = []
    form = compiled.maximizer_form
    if form is not None:
        told.append(Statement(f"best vertices: {compiled.maximizer.explain_maximizer(form)}", CHOSEN))
    told.append(Statement(f"projections: {compiled.projector.explain_projector(compiled.projection_form)}", CHOSEN))
    for size, one in costs:
        times = [f"{name} {_time(one[name])}" for name in ("maximize", "project") if one.get(name) is not None]
        prefix = f"size {size}: " if size else ""
        told.append(
            Statement(
                f"{prefix}{one['parts']} parts, {one['rows']} rows; {', '.join(times) or 'not timed'} per instance of "
                f"{BATCH} together; some {_bytes(one['bytes_per_instance'])} per instance, and "
                f"{_bytes(one['bytes_once'])} once",
                f"{MEASURED}; memory by the sizes of arrays",
            )
        )
    told += [Statement(text, MEASURED) for text in missed]
    return Section("Costs", tuple(told), {"costs": [{"size": size, **one} for size, one in costs]})


def _time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"


def _bytes(count: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
