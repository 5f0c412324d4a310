"""Derivatives of any order, backward and forward, of functions that are written once.

A :class:`Node` is a function of tensors that can give its results twice: plainly, and with a graph that autograd
differentiates. From that follow its transposed derivative (:class:`Transposed`: gradients) and its derivative
(:class:`Pushed`: forward mode, as the derivative of gradients with respect to what they are gradients of). Both are
nodes again, and so on. :class:`Derived` is how PyTorch meets a node; inside of it numbers can be seen, whatever
transforms of ``torch.func`` are around.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from optlayers.common.modes import mapped_over, slice_by_slice

__all__ = ["Derived", "NoDerivative", "Node", "Pushed", "Tensors", "Transposed", "in_front", "one_by_one"]

Tensors = tuple[Tensor | None, ...]
Places = tuple[int, ...]


@final
class NoDerivative(NotImplementedError):
    """A derivative that does not exist; the message says why."""


class Node(ABC):
    """A function of tensors, with a graph or without."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How messages call it."""

    @abstractmethod
    def value(self, *given: Tensor | None) -> Tensors:
        """The results, without a graph; the tensors are plain."""

    @abstractmethod
    def graph(self, *given: Tensor | None) -> Tensors:
        """The results as functions of those tensors that require a gradient."""

    @abstractmethod
    def places(self, arguments: int) -> tuple[Places, Places]:
        """Where a dimension of ``vmap`` is put: in every one of so many arguments, and in every result."""

    @abstractmethod
    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> Node:
        """The function of ``size`` times the batch; ``batched`` says which arguments differ between these."""

    def transposed(self, wanted: Sequence[bool]) -> Node:
        """The function from gradients of the results to gradients of the arguments that are ``wanted``."""
        return Transposed(self, tuple(wanted))

    def pushed(self, arguments: int) -> Node:
        """The function from directions of the arguments to directions of the results."""
        return Pushed(self, arguments)

    def at_same_arguments(self, dims: Sequence[int | None]) -> bool:
        """Whether a batch of calls under ``vmap`` is better answered one by one, by what is known of the arguments."""
        return False

    @abstractmethod
    def verify(self) -> None:
        """Raise where a derivative that was just taken through the graph does not exist."""

    def gradients(
        self, leaves: Sequence[Tensor | None], *, create_graph: bool
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Gradients of the leaves that require one, as linear functions of gradients of the results.

        The latter come first, are 0, and have the places of the results: None where there is no result. Where
        ``create_graph``, the gradients are functions of the leaves, too.
        """
        results = self.graph(*leaves)
        incoming = [None if r is None else torch.zeros_like(r).requires_grad_() for r in results]
        return incoming, _gradients(results, leaves, incoming, create_graph=True)


@final
@dataclass(frozen=True)
class Transposed(Node):
    """Gradients of a node: its arguments are gradients of the results of the node, then the arguments of the node."""

    node: Node
    wanted: tuple[bool, ...]

    def value(self, *given: Tensor | None) -> Tensors:
        """The gradients without a graph: autograd goes from the results to leaves of its own."""
        incoming, arguments = self._parted(given)
        try:
            with torch.enable_grad():
                leaves = _leaves(arguments, self.wanted)
                results = self.node.graph(*leaves)
            gradients = self._all(_gradients(results, self._of(leaves), incoming, create_graph=False))
        except NoDerivative as error:
            raise NotImplementedError(f"{self.name} has no second derivative here: {error}") from None
        self.verify()
        return gradients

    def verify(self) -> None:
        """Raise where a derivative that was taken through the node does not exist."""
        self.node.verify()

    def graph(self, *given: Tensor | None) -> Tensors:
        """The gradients as autograd takes them, with a graph."""
        incoming, arguments = self._parted(given)
        arguments = [
            a if a is None or not needs or a.requires_grad else a.detach().requires_grad_()
            for a, needs in zip(arguments, self.wanted, strict=True)
        ]
        results = self.node.graph(*arguments)
        return self._all(_gradients(results, self._of(arguments), incoming, create_graph=True))

    @property
    def name(self) -> str:
        """How messages call the node."""
        return self.node.name

    def _parted(self, given: Sequence[Tensor | None]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        cut = len(given) - len(self.wanted)
        return list(given[:cut]), list(given[cut:])

    def _of(self, arguments: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [a for a, needs in zip(arguments, self.wanted, strict=True) if needs]

    def _all(self, gradients: Sequence[Tensor | None]) -> Tensors:
        """The gradients of all arguments, None for those that are not wanted."""
        rest = iter(gradients)
        return tuple(next(rest) if needs else None for needs in self.wanted)

    def places(self, arguments: int) -> tuple[Places, Places]:
        """The places of the node: those of its results, then those of its arguments; and the latter."""
        own, results = self.node.places(len(self.wanted))
        return (*results, *own), own

    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> Node:
        """The gradients of the node of the larger batch."""
        cut = len(batched) - len(self.wanted)
        return Transposed(self.node.under_vmap(size, randomness, batched[cut:]), self.wanted)


@final
@dataclass(frozen=True)
class Pushed(Node):
    """Forward mode: its arguments are directions of the arguments of a node, then these themselves."""

    node: Node
    arguments: int

    def value(self, *given: Tensor | None) -> Tensors:
        """The directions of the results without a graph, as a gradient of gradients."""
        directions, arguments = given[: self.arguments], given[self.arguments :]
        try:
            with torch.enable_grad():
                leaves = _leaves(arguments, [d is not None and bool(d.any()) for d in directions])
                moved = self._pushed(leaves, directions, create_graph=False)
        except NoDerivative as error:
            raise NotImplementedError(f"{self.name} has no derivative in forward mode here: {error}") from None
        self.verify()
        return moved

    def verify(self) -> None:
        """Raise where a derivative that was taken through the node does not exist."""
        self.node.verify()

    def graph(self, *given: Tensor | None) -> Tensors:
        """The directions of the results with a graph, as a gradient of gradients."""
        directions, arguments = given[: self.arguments], list(given[self.arguments :])
        arguments = [
            a if a is None or d is None or a.requires_grad or not a.is_floating_point() else a.detach().requires_grad_()
            for a, d in zip(arguments, directions, strict=True)
        ]
        return self._pushed(arguments, directions, create_graph=True)

    @property
    def name(self) -> str:
        """How messages call the node."""
        return self.node.name

    def _pushed(
        self, arguments: Sequence[Tensor | None], directions: Sequence[Tensor | None], *, create_graph: bool
    ) -> Tensors:
        incoming, gradients = self.node.gradients(arguments, create_graph=create_graph)
        products = [
            (g * d).sum()
            for g, d in zip(gradients, directions, strict=True)
            if g is not None and d is not None and g.requires_grad
        ]
        ones = [torch.ones_like(product) for product in products]
        moved = _gradients(products, incoming, ones, create_graph=create_graph)
        return tuple(
            torch.zeros_like(g) if m is None and g is not None else m for m, g in zip(moved, incoming, strict=True)
        )

    def places(self, arguments: int) -> tuple[Places, Places]:
        """The places of the node: those of its arguments, for directions and once more; and its results."""
        own, results = self.node.places(self.arguments)
        return (*own, *own), results

    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> Node:
        """The forward mode of the node of the larger batch."""
        return Pushed(self.node.under_vmap(size, randomness, batched[self.arguments :]), self.arguments)


def _leaves(given: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Tensors of their own that autograd begins at."""
    plain = [None if t is None else t.detach() for t in given]
    return [
        t.requires_grad_() if t is not None and needs and t.is_floating_point() else t
        for t, needs in zip(plain, wanted, strict=True)
    ]


def _gradients(
    results: Sequence[Tensor | None],
    leaves: Sequence[Tensor | None],
    incoming: Sequence[Tensor | None],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    """Gradients of the leaves; None for those that the results do not depend on."""
    used = [
        (r, g) for r, g in zip(results, incoming, strict=True) if r is not None and g is not None and r.requires_grad
    ]
    of = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    if not used or not of:
        return [None] * len(leaves)
    gradients = torch.autograd.grad(
        [r for r, _ in used], of, [g for _, g in used], create_graph=create_graph, allow_unused=True
    )
    rest = iter(gradients)
    return [next(rest) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


@final
class Derived(torch.autograd.Function):
    """A node, for PyTorch."""

    @staticmethod
    def forward(node: Node, *given: Tensor | None) -> Any:
        return node.value(*given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.node = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        incoming = tuple(g if g is None or g.layout is torch.strided else g.to_dense() for g in incoming)
        if all(g is None for g in incoming):
            return (None,) * len(ctx.needs_input_grad)
        if any(g is not None and mapped_over(g) for g in incoming):
            return slice_by_slice(partial(Derived.backward, ctx), *incoming)
        node = ctx.node.transposed(ctx.needs_input_grad[1:])
        if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            return None, *node.value(*incoming, *ctx.saved_tensors)
        return None, *Derived.apply(node, *incoming, *ctx.saved_tensors)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, _: None, *directions: Tensor | None) -> Any:
        if any(d is not None and mapped_over(d) for d in directions):
            return slice_by_slice(partial(Derived.jvp, ctx, None), *directions)
        given = ctx.saved_tensors
        return Derived.apply(ctx.node.pushed(len(given)), *directions, *given)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], node: Node, *given: Tensor | None) -> tuple[Any, Any]:
        size, dims = info.batch_size, in_dims[1:]
        if node.at_same_arguments(dims):
            return one_by_one(partial(Derived.apply, node), size, dims, given)
        places, places_of_results = node.places(len(given))
        moved = [
            None if t is None else in_front(t, dim, size, place)
            for t, dim, place in zip(given, dims, places, strict=True)
        ]
        inside = node.under_vmap(size, info.randomness, [dim is not None for dim in dims])
        results = Derived.apply(inside, *moved)  # type: ignore[no-untyped-call]
        return results, tuple(None if r is None else p for r, p in zip(results, places_of_results, strict=True))


def in_front(tensor: Tensor, dim: int | None, size: int, place: int = 0) -> Tensor:
    """A tensor with the dimension of ``vmap`` at ``place``; one that has none is the same for all."""
    if dim is not None:
        return tensor.movedim(dim, place)
    return tensor.unsqueeze(place).expand(*tensor.shape[:place], size, *tensor.shape[place:])


def one_by_one(
    function: Callable[..., Tensors], size: int, dims: Sequence[int | None], given: Sequence[Tensor | None]
) -> tuple[Tensors, tuple[int | None, ...]]:
    """``vmap`` by a loop over what is mapped over."""
    rows = [
        function(*(t if t is None or dim is None else t.select(dim, k) for t, dim in zip(given, dims, strict=True)))
        for k in range(size)
    ]
    columns = [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]
    return tuple(columns), tuple(None if column is None else 0 for column in columns)
