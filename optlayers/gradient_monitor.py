"""What goes through a layer in training: gradients, and the verdicts of solvers."""

from __future__ import annotations

import copy
import math
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from optlayers.calls.layer_call import LayerCall, call_behind, is_nothing
from optlayers.layer import OptLayer
from optlayers.solution import SolveError, Status

__all__ = ["GradientMonitor"]

CUT_OFF = 0.99
"""A step of which less than this is left is cut off."""


@final
class GradientMonitor:
    """Watches a layer in training: the gradients that come in and go out, and the verdicts of its solves.

    It watches from when it is made until :meth:`close`, or to the end of a ``with`` block, and changes no number. What
    calls of the layer, and the backward passes that follow, leave behind is added up until :meth:`step`, which gives it
    as a dict: call it once for every step of the optimizer. All calls that record a graph are seen, in any number of
    threads; a call that raises is counted by its failures. Calls without a graph (evaluation), within ``torch.func``,
    and by ``layer.solve`` or ``layer.lifted`` are not.

    A copy of the layer, or one that is loaded from a file, is not watched.

    Parameters
    ----------
    layer : an :class:`OptLayer`, with any rule.
    window : over how many of the last steps :meth:`means` goes.

    Examples
    --------
    >>> import torch
    >>> from optlayers import OptLayer, Spigot
    >>> from polytopes import simplex
    >>> layer = OptLayer(simplex(3), Spigot(step_size=2.0))
    >>> scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    >>> with GradientMonitor(layer) as monitor:
    ...     (layer(scores) * torch.tensor([1.0, 0.0, 0.0])).sum().backward()
    ...     found = monitor.step()
    >>> found["instances"], found["zero_share"], found["cut_off_share"]
    (2.0, 0.5, 1.0)
    """

    def __init__(self, layer: OptLayer, *, window: int = 100) -> None:
        if not isinstance(layer, OptLayer):
            inside = []
            if isinstance(layer, nn.Module):
                inside = [name for name, module in layer.named_modules() if isinstance(module, OptLayer)]
            hint = f"; give one of the layers in it: {', '.join(inside)}" if inside else ""
            raise TypeError(f"GradientMonitor watches an OptLayer, but got {type(layer).__name__}{hint}")
        if not isinstance(window, int) or isinstance(window, bool):
            raise TypeError(f"window must be an int, but got {window!r}")
        if window < 1:
            raise ValueError(f"window must be at least 1, but got {window}")
        self.layer = layer
        self._lock = threading.Lock()
        self._tally = _Tally()
        self._last: deque[dict[str, float]] = deque(maxlen=window)
        self._handle = layer.register_forward_hook(_Hook(weakref.ref(self)), always_call=True)

    @property
    def window(self) -> int:
        """Over how many steps :meth:`means` goes."""
        return self._last.maxlen or 1

    def close(self) -> None:
        """Watch no longer. What was seen stays."""
        self._handle.remove()

    def __enter__(self) -> GradientMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientMonitor:
        """One that watches the copy of the layer, and has seen the same steps."""
        other = GradientMonitor(copy.deepcopy(self.layer, memo), window=self.window)
        with self._lock:
            other._last.extend(dict(step) for step in self._last)
        return other

    def __reduce__(self) -> tuple[Callable[..., GradientMonitor], tuple[OptLayer, int]]:
        return _made_again, (self.layer, self.window)

    def step(self) -> dict[str, float]:
        """What was seen since the last step; from now on a new one is added up.

        Returns
        -------
        dict : ``calls``, ``backward_calls`` and ``instances``, which are counts; ``incoming_norm`` and
            ``outgoing_norm``, the mean norms of an instance's gradients of its structure and of its scores, of those
            that are finite; ``incoming_zero_share`` and ``zero_share``, how many of these are 0;
            ``not_finite_share``, how many gradients that came in or went out hold NaN or infinity; under rules that
            take steps, such as ``Spigot``, ``cut_off_share``, how many of the steps that moved something the polytope
            cuts off, and ``kept_share``, the mean part of a step that is left; ``failed_share`` and a count for every
            status of forward solves: ``optimal``, ``infeasible``, ``unbounded``, ``inaccurate``, ``limit``, ``failed``;
            ``gradient_failures``, how many instances have an answer but no gradient; ``gap`` and ``residual``, the
            largest of certified answers; and what the rule adapts by, such as ``rule_step_size``. A number that is not
            known is left out: the gap of answers of an oracle, which prove none, shares of steps under rules that take
            none, norms where no backward pass came.
        """
        with self._lock:
            tally, self._tally = self._tally, _Tally()
        found = tally.numbers()
        for name, value in self.layer.named_buffers(recurse=False):
            if value.numel() == 1:
                found[name] = float(value)
        with self._lock:
            self._last.append(found)
        return dict(found)

    def means(self) -> dict[str, float]:
        """The mean of every number over those of the last ``window`` steps that know it."""
        with self._lock:
            steps = list(self._last)
        names = dict.fromkeys(name for step in steps for name in step)
        found = {}
        for name in names:
            known = [step[name] for step in steps if name in step and not math.isnan(step[name])]
            if known:
                found[name] = sum(known) / len(known)
        return found

    def write(self, writer: Any, step: int, *, prefix: str = "gradients") -> None:
        """Write the numbers of the last :meth:`step` to TensorBoard.

        Parameters
        ----------
        writer : a ``torch.utils.tensorboard.SummaryWriter`` (``pip install 'optlayers[tensorboard]'``), or what has
            its ``add_scalar(name, value, step)``.
        step : the step that they are of.
        prefix : what names begin with, before a ``/``.

        Raises
        ------
        TypeError : a writer without ``add_scalar``.
        ValueError : before the first :meth:`step`.
        """
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(
                "writer must have add_scalar(name, value, step), as a torch.utils.tensorboard.SummaryWriter has, but "
                f"got {type(writer).__name__}"
            )
        with self._lock:
            if not self._last:
                raise ValueError("there is nothing to write before the first step(): call monitor.step() first")
            last = dict(self._last[-1])
        for name, value in last.items():
            if not math.isnan(value):
                writer.add_scalar(f"{prefix}/{name}", value, step)

    def _forward(self, output: Any, error: BaseException | None) -> None:
        """After a call of the layer."""
        if isinstance(error, SolveError):
            with self._lock:
                self._tally.raised(error)
            return
        found = call_behind(output) if isinstance(output, Tensor) else None
        if found is None:
            return
        node, call = found
        me = weakref.ref(self)
        before: list[Mapping[str, Tensor]] = []
        if any(part.context.state for part in call.parts):

            def remember(_: Any) -> None:
                before.append(
                    {name: value.clone() for part in call.parts for name, value in part.context.state.items()}
                )

            node.register_prehook(remember)

        def seen(outgoing: tuple[Tensor | None, ...], incoming: tuple[Tensor | None, ...]) -> None:
            monitor = me()
            if monitor is not None:
                state = before.pop() if before else {}
                monitor._backward(call, incoming[0], outgoing[0], state)

        node.register_hook(seen)
        with self._lock:
            self._tally.solved(call)

    def _backward(
        self, call: LayerCall, incoming: Tensor | None, outgoing: Tensor | None, state: Mapping[str, Tensor]
    ) -> None:
        """After a backward pass."""
        if incoming is None or outgoing is None or call.shares.count == 0:
            return
        with torch.no_grad():
            sent = _Sent.of(call, incoming.detach(), outgoing.detach(), state)
        with self._lock:
            self._tally.sent(sent)


def _made_again(layer: OptLayer, window: int) -> GradientMonitor:
    return GradientMonitor(layer, window=window)


@final
class _Hook:
    """Tells a monitor of calls; on copies of the layer it does nothing."""

    def __init__(self, monitor: Callable[[], GradientMonitor | None]) -> None:
        self.monitor = monitor

    def __call__(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        monitor = self.monitor()
        if monitor is not None and monitor.layer is layer:
            monitor._forward(output, sys.exc_info()[1] if output is None else None)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(_nobody)

    def __reduce__(self) -> tuple[type[_Hook], tuple[Callable[[], None]]]:
        return _Hook, (_nobody,)


def _nobody() -> None:
    """The monitor of a copy."""


STATUSES = len(Status)
AT_ONCE = 64
"""After so many calls what they left behind is added up."""


@final
@dataclass(frozen=True)
class _Sent:
    """What a backward pass leaves behind: of every instance the norms of what came in and of what went out, and the
    part of its step that is left, on the device of the gradients; no number is looked at yet."""

    norms: tuple[Tensor, Tensor]
    kept: Tensor | None
    apart: bool
    failed: int

    @classmethod
    def of(cls, call: LayerCall, incoming: Tensor, outgoing: Tensor, state: Mapping[str, Tensor]) -> _Sent:
        """Of one backward pass."""
        count = call.shares.count
        came = incoming.reshape(*([] if call.apart is None else [call.apart]), count, -1)
        came = came if call.apart is None else came.movedim(0, 1).flatten(1)
        norms = tuple(
            torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in (came, outgoing.reshape(count, -1))
        )
        return cls((norms[0], norms[1]), call.kept(incoming, outgoing, state), call.apart is not None, _failed(call))

    def sums(self) -> np.ndarray:
        """What is added up: the sums of both norms and how many are finite, how many are 0, how many instances have one
        that is not finite; of steps how many moved something, how many were cut off, and what is left of them."""
        came, went = self.norms
        nothing = is_nothing(went, torch.zeros_like(came) if self.apart else came)
        norms = np.stack([norm.cpu().numpy() for norm in self.norms])
        finite = np.isfinite(norms)
        kept = np.zeros(0) if self.kept is None else self.kept.cpu().numpy()
        kept = kept[np.isfinite(kept)]
        return np.array(
            [
                *np.where(finite, norms, 0.0).sum(axis=1),
                *finite.sum(axis=1),
                (norms[0] == 0.0).sum(),
                int(nothing.sum()),
                (~finite).any(axis=0).sum(),
                len(kept),
                (kept < CUT_OFF).sum(),
                kept.sum(),
            ],
            dtype=np.float64,
        )


def _failed(call: LayerCall) -> int:
    """How many instances have an answer but no gradient."""
    if not any(part.polytope is not None and part.polytope.failed for part in call.parts):
        return 0
    unanswered = 0
    for part in call.parts:
        unanswered += 0 if part.failed is None else int(part.failed.sum())
    return int(call.failed().sum()) - unanswered


@final
@dataclass
class _Tally:
    """What is added up for a step."""

    calls: int = 0
    backward_calls: int = 0
    instances: int = 0
    backward_instances: int = 0
    gradient_failures: int = 0
    statuses: list[int] = field(default_factory=lambda: [0] * STATUSES)
    sums: np.ndarray = field(default_factory=lambda: np.zeros(10))
    largest: np.ndarray = field(default_factory=lambda: np.full(2, -math.inf))
    waiting: list[_Sent] = field(default_factory=list)
    verdicts: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)

    def solved(self, call: LayerCall) -> None:
        """A forward pass."""
        self.calls += 1
        self.instances += call.shares.count
        for part in call.parts:
            verdict, count = part.verdict, math.prod(part.share.batch)
            if verdict.all_ok:
                self.statuses[0] += count
            else:
                for status, many in enumerate(torch.bincount(verdict.status.long(), minlength=STATUSES).tolist()):
                    self.statuses[status] += many
            self.verdicts.append((verdict.gap, verdict.primal_residual, None if verdict.all_ok else verdict.ok))
        if len(self.verdicts) > AT_ONCE:
            self._add_up()

    def raised(self, error: SolveError) -> None:
        """A call that gave up for some of its instances."""
        self.calls += 1
        self.instances += error.batch
        self.statuses[0] += error.batch - len(error.failures)
        for failure in error.failures:
            self.statuses[int(failure.status)] += 1

    def sent(self, sent: _Sent) -> None:
        """A backward pass."""
        self.backward_calls += 1
        self.backward_instances += len(sent.norms[0])
        self.gradient_failures += sent.failed
        self.waiting.append(sent)
        if len(self.waiting) > AT_ONCE:
            self._add_up()

    def _add_up(self) -> None:
        """Look at the numbers that wait."""
        for sent in self.waiting:
            self.sums += sent.sums()
        for *pair, ok in self.verdicts:
            numbers = np.stack([number.cpu().numpy() for number in pair])
            seen = np.isfinite(numbers) if ok is None else np.isfinite(numbers) & ok.cpu().numpy()
            self.largest = np.maximum(self.largest, np.where(seen, numbers, -math.inf).max(axis=1, initial=-math.inf))
        self.waiting.clear()
        self.verdicts.clear()

    def numbers(self) -> dict[str, float]:
        """All that is known of it, by name."""
        self._add_up()
        came, went, finite_in, finite_out, zero_in, zero_out, wrong, moved, cut, left = self.sums.tolist()
        gap, residual = self.largest.tolist()
        judged = sum(self.statuses)
        found = {
            "calls": float(self.calls),
            "backward_calls": float(self.backward_calls),
            "instances": float(self.instances),
            "incoming_norm": _over(came, finite_in),
            "outgoing_norm": _over(went, finite_out),
            "incoming_zero_share": _over(zero_in, self.backward_instances),
            "zero_share": _over(zero_out, self.backward_instances),
            "not_finite_share": _over(wrong, self.backward_instances),
            "cut_off_share": _over(cut, moved),
            "kept_share": _over(left, moved),
            "failed_share": _over(judged - self.statuses[0], judged),
            **{status.name.lower(): float(self.statuses[int(status)]) for status in Status},
            "gradient_failures": float(self.gradient_failures),
            "gap": gap if math.isfinite(gap) else math.nan,
            "residual": residual if math.isfinite(residual) else math.nan,
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
