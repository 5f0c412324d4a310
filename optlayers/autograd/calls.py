"""Calls: functions of tensors whose first derivative is known, and not that of their operations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from optlayers.autograd.higher_order import Node, Tensors, Transposed

__all__ = ["AbstractCall", "FirstDerivative"]


class AbstractCall(Node):
    """A function of tensors whose first derivative is not that of its operations, but known."""

    inside: AbstractCall | None = None
    """The call that answers for this one under ``vmap``."""
    retained: bool
    """Whether what forward leaves may be used after it."""

    @property
    @abstractmethod
    def home(self) -> torch.device:
        """Where instances are solved."""

    @property
    @abstractmethod
    def solved(self) -> bool:
        """Whether forward has been there."""

    @abstractmethod
    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """The result, which belongs to the caller."""

    @abstractmethod
    def pull_back(self, wanted: Sequence[bool], grad: Tensor) -> Tensors:
        """Gradients, from what forward left, for every tensor that was given and is ``wanted``."""

    @abstractmethod
    def gradients_with_graph(self, wanted: Sequence[bool], grad: Tensor, tensors: Sequence[Tensor]) -> Tensors:
        """The known gradients as functions that autograd differentiates."""

    @property
    def result_place(self) -> int:
        """Where a dimension of ``vmap`` goes in the result."""
        return 0

    def value(self, *given: Tensor | None) -> Tensors:
        """The result."""
        return (self.forward([t for t in given if t is not None]),)

    def graph(self, *given: Tensor | None) -> Tensors:
        """Refused: the derivative of a call is known, and not that of its operations."""
        raise NotImplementedError("the derivative of a call is known, not that of its operations: ask transposed()")

    @abstractmethod
    def gradients(
        self, leaves: Sequence[Tensor | None], *, create_graph: bool
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """The known gradients as linear functions of what comes in; see
        :class:`optlayers.autograd.higher_order.Node`."""

    def transposed(self, wanted: Sequence[bool]) -> Node:
        """The gradients that are known."""
        return FirstDerivative(self, tuple(wanted))

    def second_derivative(self, first: FirstDerivative, wanted: tuple[bool, ...]) -> Node:
        """The derivative of the gradients."""
        return Transposed(first, wanted)

    def places(self, arguments: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The places of a dimension of ``vmap``: in front, but for the result, which says its own."""
        return (0,) * arguments, (self.result_place,)

    @abstractmethod
    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> AbstractCall:
        """The call for ``size`` times the batch."""


@final
@dataclass(frozen=True)
class FirstDerivative(Node):
    """The gradients of a call, of the gradient that arrives and of the tensors of the call."""

    call: AbstractCall
    wanted: tuple[bool, ...]

    @property
    def name(self) -> str:
        """How messages name the call."""
        return self.call.name

    def value(self, *given: Tensor | None) -> Tensors:
        """The gradients, from what the forward pass left on the call."""
        grad, _ = self._of_solved_call(given)
        return self.call.pull_back(self.wanted, grad.detach())

    def graph(self, *given: Tensor | None) -> Tensors:
        """The gradients as functions that autograd differentiates."""
        grad, tensors = self._of_solved_call(given)
        return self.call.gradients_with_graph(self.wanted, grad, tensors)

    def verify(self) -> None:
        """Raise where a derivative that was taken through the call does not exist."""
        self.call.verify()

    def _of_solved_call(self, given: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """The gradient that arrives, and the tensors of the call, which is solved now if it is a new one."""
        grad, *tensors = given
        assert grad is not None
        plain = [t for t in tensors if t is not None]
        if not self.call.solved:
            with torch.no_grad():
                self.call.forward([t.detach() for t in plain])
        return grad, plain

    def transposed(self, wanted: Sequence[bool]) -> Node:
        """The derivative of the gradients: by autograd, unless the call knows better."""
        return self.call.second_derivative(self, tuple(wanted))

    def places(self, arguments: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The places of a dimension of ``vmap``: in front, but for the gradient of the result."""
        return (self.call.result_place, *(0,) * (arguments - 1)), (0,) * (arguments - 1)

    def at_same_arguments(self, dims: Sequence[int | None]) -> bool:
        """Other gradients at the same scores: what forward left is that of one batch."""
        return all(dim is None for dim in dims[1:])

    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> Node:
        """The gradients of the call of the larger batch: the one that answered forward, in the same transform."""
        inside = self.call.inside if any(batched[1:]) else None
        if inside is None:
            inside = self.call.under_vmap(size, randomness, batched[1:])
        return FirstDerivative(inside, self.wanted)
