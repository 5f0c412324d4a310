"""Numbers in memory as kernels hand them to their parts: an address and a length.

An array of numba is seven fields and a count of references; a part that is given thirty of them takes longer to compile
than what it does with them. A flat array owns nothing: :func:`keep` says at the end of a kernel that the memory of its
flat arrays was in use until then; that of the arguments of a kernel is. A matrix is a :func:`grid`, and its rows are
flat arrays. Indices are not negative. The arrays of a plan are reached through one address, that of a :func:`table`.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.types.containers import BaseTuple, UniTuple
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_getattr, lower_getattr_generic, models, register_model

__all__ = ["ASKED_FIRST", "FlatType", "flat", "grid", "keep", "opening", "row", "table"]

ASKED_FIRST = {"target": "cpu"}
"""Metadata of typing rules: numba asks those for a certain target before those for all. It has dozens of rules for an
operator, and to have all of them say no takes a fifth of the time of a kernel."""

_WORD = ir.IntType(64)


class FlatType(types.Type):
    """The address and the length of numbers of one dtype that lie one after the other."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Flat({dtype})")


def _pointer(dtype: types.Type) -> types.Type:
    return types.CPointer(dtype)  # type: ignore[attr-defined, no-any-return]


class _OwningNothing(models.StructModel):  # type: ignore[misc]
    """There are no references to count in it, so numba need not look for them among the members at every use."""

    def traverse(self, builder: Any) -> list[Any]:
        return []


@register_model(FlatType)
class _FlatModel(_OwningNothing):
    def __init__(self, manager: Any, kind: FlatType) -> None:
        super().__init__(manager, kind, [("data", _pointer(kind.dtype)), ("length", types.intp)])


class _GridType(types.Type):
    """The address of the numbers of a matrix in C order, and how many rows and columns it has."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Grid({dtype})")


@register_model(_GridType)
class _GridModel(_OwningNothing):
    def __init__(self, manager: Any, kind: _GridType) -> None:
        shape = UniTuple(types.intp, 2)
        super().__init__(manager, kind, [("data", _pointer(kind.dtype)), ("shape", shape)])


def member(context: Any, builder: Any, kind: types.Type, value: Any, name: str) -> Any:
    """What an array of numba, a flat one or a grid has by this name, without a way through memory."""
    return context.data_model_manager[kind].get(builder, value, name)


def _made(builder: Any, *members: Any) -> Any:
    return cgutils.pack_struct(builder, members)


@infer_global(len)
class _Length(AbstractTemplate):  # type: ignore[misc]
    metadata = ASKED_FIRST

    def generic(self, args: Any, kws: Any) -> Any:
        return signature(types.intp, *args) if isinstance(args[0], (FlatType, _GridType)) else None


@lower_builtin(len, FlatType)  # type: ignore[untyped-decorator]
def _length(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return member(context, builder, sig.args[0], args[0], "length")


@lower_builtin(len, _GridType)  # type: ignore[untyped-decorator]
def _height(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.extract_value(args[0], [1, 0])


@infer_getattr
class _GridShape(AttributeTemplate):  # type: ignore[misc]
    key = _GridType

    def resolve_shape(self, kind: _GridType) -> Any:
        return UniTuple(types.intp, 2)


@lower_getattr(_GridType, "shape")  # type: ignore[untyped-decorator]
def _shape(context: Any, builder: Any, kind: _GridType, value: Any) -> Any:
    return builder.extract_value(value, 1)


def _is_pair(index: types.Type) -> bool:
    return isinstance(index, BaseTuple) and [isinstance(kind, types.Integer) for kind in index] == [True, True]


def _entry_of_grid(context: Any, builder: Any, kinds: Any, args: Any) -> Any:
    first, second = (
        context.cast(builder, value, kind, types.intp)
        for value, kind in zip(cgutils.unpack_tuple(builder, args[1]), kinds[1], strict=True)
    )
    place = builder.add(builder.mul(first, builder.extract_value(args[0], [1, 1])), second)
    return builder.gep(builder.extract_value(args[0], 0), [place])


@infer_global(operator.getitem)
class _Get(AbstractTemplate):  # type: ignore[misc]
    metadata = ASKED_FIRST

    def generic(self, args: Any, kws: Any) -> Any:
        array, index = args
        if isinstance(array, FlatType) and isinstance(index, types.Integer):
            return signature(array.dtype, array, types.intp)
        if isinstance(array, _GridType) and isinstance(index, types.Integer):
            return signature(FlatType(array.dtype), array, types.intp)
        if isinstance(array, _GridType) and _is_pair(index):
            return signature(array.dtype, array, index)
        return None


@lower_builtin(operator.getitem, FlatType, types.Integer)  # type: ignore[untyped-decorator]
def _get(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    address = builder.gep(member(context, builder, kind, args[0], "data"), [args[1]])
    return context.unpack_value(builder, kind.dtype, address)


@lower_builtin(operator.getitem, _GridType, types.Integer)  # type: ignore[untyped-decorator]
def _get_row(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    data, width = builder.extract_value(args[0], 0), builder.extract_value(args[0], [1, 1])
    return _made(builder, builder.gep(data, [builder.mul(args[1], width)]), width)


@lower_builtin(operator.getitem, _GridType, BaseTuple)  # type: ignore[untyped-decorator]
def _get_entry(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return context.unpack_value(builder, sig.return_type, _entry_of_grid(context, builder, sig.args, args))


@infer_global(operator.setitem)
class _Set(AbstractTemplate):  # type: ignore[misc]
    metadata = ASKED_FIRST

    def generic(self, args: Any, kws: Any) -> Any:
        array, index, _ = args
        if isinstance(array, FlatType) and isinstance(index, types.Integer):
            return signature(types.none, array, types.intp, array.dtype)
        if isinstance(array, _GridType) and _is_pair(index):
            return signature(types.none, array, index, array.dtype)
        return None


@lower_builtin(operator.setitem, FlatType, types.Integer, types.Any)  # type: ignore[untyped-decorator]
def _set(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    address = builder.gep(member(context, builder, kind, args[0], "data"), [args[1]])
    context.pack_value(builder, kind.dtype, args[2], address)
    return context.get_dummy_value()


@lower_builtin(operator.setitem, _GridType, BaseTuple, types.Any)  # type: ignore[untyped-decorator]
def _set_entry(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    context.pack_value(builder, sig.args[2], args[2], _entry_of_grid(context, builder, sig.args, args))
    return context.get_dummy_value()


@infer_global(bool)
class _Truth(AbstractTemplate):  # type: ignore[misc]
    """Asked at every branch."""

    metadata = ASKED_FIRST

    def generic(self, args: Any, kws: Any) -> Any:
        return signature(types.boolean, types.boolean) if args == (types.boolean,) else None


@intrinsic  # type: ignore[untyped-decorator]
def flat(typing_context: Any, array: Any) -> Any:
    """A contiguous array, of any shape, as it lies in memory."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data, length = (member(context, builder, array, args[0], name) for name in ("data", "nitems"))
        return _made(builder, data, length)

    return FlatType(array.dtype)(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def grid(typing_context: Any, array: Any) -> Any:
    """A matrix in C order as it lies in memory."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data, shape = (member(context, builder, array, args[0], name) for name in ("data", "shape"))
        return _made(builder, data, shape)

    return _GridType(array.dtype)(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def row(typing_context: Any, array: Any, index: Any) -> Any:
    """A row of a matrix in C order."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data, shape = (member(context, builder, array, args[0], name) for name in ("data", "shape"))
        width = builder.extract_value(shape, 1)
        return _made(builder, builder.gep(data, [builder.mul(args[1], width)]), width)

    return FlatType(array.dtype)(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def keep(typing_context: Any, array: Any) -> Any:
    """Nothing but a use of an array, whose memory is not given back before."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), generate


def table(arrays: list[np.ndarray]) -> np.ndarray:
    """Address and length of every array. Whoever has the table keeps the arrays, too."""
    return np.array([[array.ctypes.data, len(array)] for array in arrays], dtype=np.int64)


class _TableType(types.Type):
    """The address of a table whose arrays have names and dtypes."""

    def __init__(self, name: str, fields: tuple[tuple[str, types.Type], ...]) -> None:
        self.fields = fields
        super().__init__(name=name)


@register_model(_TableType)
class _TableModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: _TableType) -> None:
        super().__init__(manager, kind, _WORD.as_pointer())


@infer_getattr
class _TableFields(AttributeTemplate):  # type: ignore[misc]
    key = _TableType

    def generic_resolve(self, kind: _TableType, name: str) -> Any:
        fields = dict(kind.fields)
        return FlatType(fields[name]) if name in fields else None


@lower_getattr_generic(_TableType)  # type: ignore[untyped-decorator]
def _field(context: Any, builder: Any, kind: _TableType, value: Any, name: str) -> Any:
    position = [field for field, _ in kind.fields].index(name)
    words = []
    for place in (2 * position, 2 * position + 1):
        word = builder.load(builder.gep(value, [ir.Constant(_WORD, place)]))
        # Kernels do not write to tables, so what is read in a loop is read before it.
        word.set_metadata("invariant.load", builder.module.add_metadata([]))
        words.append(word)
    pointer = context.get_value_type(_pointer(dict(kind.fields)[name]))
    return _made(builder, builder.inttoptr(words[0], pointer), words[1])


def opening(name: str, fields: dict[str, types.Type]) -> Any:
    """What kernels open tables with that have these arrays: a function of the table, whose result has them by name."""
    kind = _TableType(name, tuple(fields.items()))

    @intrinsic  # type: ignore[untyped-decorator]
    def opened(typing_context: Any, of: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(member(context, builder, of, args[0], "data"), _WORD.as_pointer())

        return kind(of), generate

    return opened
