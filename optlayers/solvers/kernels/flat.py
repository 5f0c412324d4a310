"""Numbers in memory as kernels hand them to their parts: an address and a length.

An array of numba is seven fields and a count of references; a part that is given thirty of them takes longer to compile
than what it does with them. A flat array owns nothing: :func:`keep` says at the end of a kernel that the memory of its
flat arrays was in use until then. Indices are not negative. The arrays of a plan are reached through one address, that
of a :func:`table`.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_getattr_generic, models, register_model

__all__ = ["ASKED_FIRST", "FlatType", "flat", "keep", "opening", "row", "table"]

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


@register_model(FlatType)
class _FlatModel(models.StructModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: FlatType) -> None:
        super().__init__(manager, kind, [("data", _pointer(kind.dtype)), ("length", types.intp)])


def _made(context: Any, builder: Any, kind: FlatType, data: Any, length: Any) -> Any:
    made = cgutils.create_struct_proxy(kind)(context, builder)
    made.data, made.length = data, length
    return made._getvalue()


def _taken(context: Any, builder: Any, kind: FlatType, value: Any) -> Any:
    return cgutils.create_struct_proxy(kind)(context, builder, value)


@infer_global(len)
class _Length(AbstractTemplate):  # type: ignore[misc]
    metadata = ASKED_FIRST

    def generic(self, args: Any, kws: Any) -> Any:
        return signature(types.intp, *args) if isinstance(args[0], FlatType) else None


@lower_builtin(len, FlatType)  # type: ignore[untyped-decorator]
def _length(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _taken(context, builder, sig.args[0], args[0]).length


@infer_global(operator.getitem)
class _Get(AbstractTemplate):  # type: ignore[misc]
    metadata = ASKED_FIRST

    def generic(self, args: Any, kws: Any) -> Any:
        array, index = args
        if isinstance(array, FlatType) and isinstance(index, types.Integer):
            return signature(array.dtype, array, types.intp)
        return None


@lower_builtin(operator.getitem, FlatType, types.Integer)  # type: ignore[untyped-decorator]
def _get(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    address = builder.gep(_taken(context, builder, kind, args[0]).data, [args[1]])
    return context.unpack_value(builder, kind.dtype, address)


@infer_global(operator.setitem)
class _Set(AbstractTemplate):  # type: ignore[misc]
    metadata = ASKED_FIRST

    def generic(self, args: Any, kws: Any) -> Any:
        array, index, _ = args
        if isinstance(array, FlatType) and isinstance(index, types.Integer):
            return signature(types.none, array, types.intp, array.dtype)
        return None


@lower_builtin(operator.setitem, FlatType, types.Integer, types.Any)  # type: ignore[untyped-decorator]
def _set(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    address = builder.gep(_taken(context, builder, kind, args[0]).data, [args[1]])
    context.pack_value(builder, kind.dtype, args[2], address)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def flat(typing_context: Any, array: Any) -> Any:
    """A contiguous array, of any shape, as it lies in memory."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = context.make_array(sig.args[0])(context, builder, args[0])
        return _made(context, builder, sig.return_type, given.data, given.nitems)

    return FlatType(array.dtype)(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def row(typing_context: Any, array: Any, index: Any) -> Any:
    """A row of a matrix in C order."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = context.make_array(sig.args[0])(context, builder, args[0])
        width = builder.extract_value(given.shape, 1)
        data = builder.gep(given.data, [builder.mul(args[1], width)])
        return _made(context, builder, sig.return_type, data, width)

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
    made = FlatType(dict(kind.fields)[name])
    pointer = context.get_value_type(_pointer(made.dtype))
    return _made(context, builder, made, builder.inttoptr(words[0], pointer), words[1])


def opening(name: str, fields: dict[str, types.Type]) -> Any:
    """What kernels open tables with that have these arrays: a function of the table, whose result has them by name."""
    kind = _TableType(name, tuple(fields.items()))

    @intrinsic  # type: ignore[untyped-decorator]
    def opened(typing_context: Any, of: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            given = context.make_array(sig.args[0])(context, builder, args[0])
            return builder.bitcast(given.data, _WORD.as_pointer())

        return kind(of), generate

    return opened
