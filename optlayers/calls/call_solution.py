"""What a call of a layer found, with its verdicts, as a user gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optlayers.batch.entries import CPU
from optlayers.calls.call_part import Part
from optlayers.calls.layer_call import LayerCall
from optlayers.compilation.compiled import CompiledPolytope, solution_of
from optlayers.mixture import differentiable_weights
from optlayers.shifted import ByConstraint
from optlayers.solution import Solution

__all__ = ["auxiliaries_of", "solution_of_call"]


def auxiliaries_of(call: LayerCall, scores: Tensor, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """The values of scored auxiliary variables by name, as :meth:`optlayers.OptLayer.lifted` gives them."""
    apart = () if call.apart is None else (call.apart,)
    found, padded = [], dict[str, torch.Size]()
    for part in call.parts:
        solution, entries = part.verdict, part.share.entries
        for spec in entries.auxiliaries:
            given = parameters[spec.name]
            padded[spec.name] = given.shape[given.ndim - len(spec.shape) :]
        if entries.auxiliaries:
            value = solution.value
            failed = None if solution.all_ok else ~solution.ok[:, None]
            found.append((part.share, value if failed is None else value.masked_fill(failed, torch.nan)))
    return {name: call.shares.auxiliary(found, name, shape, scores, apart) for name, shape in padded.items()}


def solution_of_call(
    call: LayerCall, value: Tensor, tensors: Sequence[Tensor], parameters: Mapping[str, Any]
) -> Solution:
    """The structures ``value`` that a call gave for these ``tensors``, with their verdicts and what belongs to them."""
    if not call.shares.whole:
        return _by_size(call, value, auxiliaries_of(call, tensors[0], parameters))
    (part,), batch = call.parts, call.shares.batch
    flat, entries = part.verdict, part.share.entries
    shaped = solution_of(entries, flat, batch, tensors[0])
    verdicts = {name: getattr(shaped, name).clone() for name in ("status", "primal_residual", "gap")}
    shaped = replace(shaped, value=value, **verdicts)
    if part.rule.optimizes:
        shaped = replace(shaped, ask_for_duals=partial(_duals, part, tensors, batch))
    decomposition = None if flat.evidence is None else flat.evidence.decomposition
    if decomposition is None:
        return shaped
    vector, _ = entries.packed_with_graph(tensors, batch, CPU, None)
    vector = torch.where(torch.isneginf(vector), 0.0, vector)
    vertices, weights = differentiable_weights(decomposition, vector, entries.structure_size)
    most = weights.shape[1]
    structures = vertices[:, :, : entries.structure_size].reshape((*batch, most, *entries.shape))
    structures = structures.to(value.device, value.dtype, copy=True)
    return replace(shaped, mixture=(structures, weights.reshape(*batch, most).to(value)))


def _duals(part: Part, tensors: Sequence[Tensor], batch: torch.Size) -> ByConstraint:
    """The multipliers of an answer, with a graph of scores and parameters."""
    share = part.share
    assert isinstance(share.compiled, CompiledPolytope)
    flat, theta = share.entries.packed_with_graph(tensors, batch, share.home, part.forbidden)
    precision = (
        share.entries.packed_parameters(tensors[share.named][len(share.entries.auxiliaries) :], batch)[1]
        if theta is not None
        else np.zeros(0)
    )
    return share.compiled.duals(flat, theta, part.forbidden, precision, part.rule.omega, batch, tensors[0])


def _by_size(call: LayerCall, value: Tensor, auxiliaries: dict[str, Tensor]) -> Solution:
    """The verdicts of a batch of several sizes, together."""
    verdicts, words, reasons = [(part.share, part.verdict) for part in call.parts], [], dict[int, str]()
    for share, verdict in verdicts:
        assert share.rows is not None
        places = share.rows.tolist()
        reasons |= {places[k]: reason for k, reason in verdict.reasons.items()}
        words += [verdict.word] if verdict.word is not None else []
    shares, device = call.shares, value.device
    status = shares.numbers([(share, one.status) for share, one in verdicts], torch.int8, device)
    residual = shares.numbers([(share, one.primal_residual) for share, one in verdicts], device=device)
    gap = shares.numbers([(share, one.gap) for share, one in verdicts], device=device)
    word = "; ".join(dict.fromkeys(words)) or None
    return Solution(value, status, residual, gap, reasons, scored=auxiliaries, word=word)
