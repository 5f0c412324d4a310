"""Who answers, in which time and memory, for one polytope or some sizes of a family."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from optlayers.compilation.compiled import CompiledPolytope
from optlayers.reporting.statement import CHOSEN, LEFT_OUT, MEASURED, PREDICTED, Section, Statement
from optlayers.solution import Solution

__all__ = ["costs_of", "in_words", "predicted", "section_of"]

BATCH, LARGER = 16, 48
CALLS = 3
BYTES = 8
ENOUGH = 0.3
"""Seconds after which a question is not asked again."""


def costs_of(compiled: CompiledPolytope, named: dict[str, Any], seed: int, late: Callable[[], bool]) -> dict[str, Any]:
    """Seconds per instance for best vertices and for projections, in a batch, and bytes: by the sizes of arrays, and
    by how the peak of NumPy's arrays grows with the batch.

    A question that takes long is asked of one instance, once, and its memory is not measured.
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
        if not late() and not tracemalloc.is_tracing():  # a trace of the user's own is left alone
            more = torch.randn(LARGER, *compiled.shape, generator=generator, dtype=torch.float64)
            ask(more, **named)
            grown = max(0, _peak(ask, more, named) - _peak(ask, scores, named)) / (LARGER - BATCH)
            found["measured_bytes_per_instance"] = max(grown, found.get("measured_bytes_per_instance", 0.0))
    return found


def _peak(ask: Callable[..., Solution], scores: torch.Tensor, named: dict[str, Any]) -> int:
    """The most bytes of Python and NumPy in a call."""
    tracemalloc.start()
    try:
        ask(scores, **named)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def predicted(costs: Sequence[dict[str, Any]], parts: int) -> dict[str, float]:
    """Seconds per instance with so many parts, as times have grown with the number of parts: a power of it.

    Of questions that were timed for two different numbers of parts at least.
    """
    found = {}
    for name in ("maximize", "project"):
        timed = [(one["parts"], one[name]) for one in costs if one.get(name)]
        if len({count for count, _ in timed}) > 1:
            x, y = np.log(np.array(timed)).T
            slope, start = np.polyfit(x, y, 1)
            found[name] = float(np.exp(start + slope * np.log(parts)))
    return found


def section_of(
    compiled: CompiledPolytope,
    costs: Sequence[tuple[str, dict[str, Any]]],
    missed: Sequence[str],
    predictions: dict[str, dict[str, float]],
) -> Section:
    """Solvers, times and memory, in words."""
    told = []
    form = compiled.maximizer_form
    if form is not None:
        told.append(Statement(f"best vertices: {compiled.maximizer.explain_maximizer(form)}", CHOSEN))
    told.append(Statement(f"projections: {compiled.projector.explain_projector(compiled.projection_form)}", CHOSEN))
    for size, one in costs:
        times = in_words({name: one[name] for name in ("maximize", "project") if one.get(name) is not None})
        prefix = f"size {size}: " if size else ""
        told.append(
            Statement(
                f"{prefix}{one['parts']} parts, {one['rows']} rows; {times or 'not timed'} per instance of "
                f"{BATCH} together; some {_bytes(one['bytes_per_instance'])} per instance"
                + (f", {_bytes(measured)} at the peak of a call" if (measured := _measured(one)) else "")
                + f", and {_bytes(one['bytes_once'])} once",
                f"{MEASURED if times else LEFT_OUT}; memory by the sizes of arrays"
                + (" and by tracemalloc" if measured else ""),
            )
        )
    told += [Statement(text, PREDICTED) for text in missed]
    facts = {"costs": [{"size": size, **one} for size, one in costs], "predicted": predictions}
    return Section("Costs", tuple(told), facts)


def _measured(one: dict[str, Any]) -> float:
    return float(one.get("measured_bytes_per_instance", 0.0))


def in_words(times: dict[str, float]) -> str:
    """Seconds by question, in units that are read at once."""
    return ", ".join(f"{name} {_time(seconds)}" for name, seconds in times.items())


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
