"""Tables as the loops hold them: an address and nothing else that costs.

numba's arrays carry shape and strides of their own, multiply by them at every access and look
whether an index is negative. A *table* has its number of columns in its type, so that a place is a
shift and an offset, and no index below 0. Each load and store says which table and column it is
of: what is written to one may stay in a register while another is written.

A table is made of an array inside a compiled function, which must not outlive that array.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_model,
)

__all__ = ["lesser", "lowest_bit", "table"]


class TableType(types.Type):
    """A table of a name; columns are 0 where only the array knows how many."""

    def __init__(self, label: str, dtype: Any, ndim: int, columns: int) -> None:  # noqa: ANN401  numba's type
        self.label, self.dtype, self.ndim, self.columns = label, dtype, ndim, columns
        super().__init__(name=f"table({label}, {dtype}, {ndim}, {columns})")


@register_model(TableType)
class _TableModel(models.StructModel):
    def __init__(self, manager: Any, of: TableType) -> None:  # noqa: ANN401  the same
        members = [
            ("data", types.CPointer(of.dtype)),
            ("rows", types.intp),
            ("columns", types.intp),
        ]
        super().__init__(manager, of, members)


@intrinsic(prefer_literal=True)
def _table(_: Any, array: Any, label: Any, columns: Any) -> Any:  # noqa: ANN401  numba's types
    """Return the table of an array, given its name and its number of columns, or 0."""
    of = TableType(label.literal_value, array.dtype, array.ndim, columns.literal_value)

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401
        source = context.make_array(sig.args[0])(context, builder, args[0])
        made = cgutils.create_struct_proxy(of)(context, builder)
        shape = cgutils.unpack_tuple(builder, source.shape, of.ndim)
        made.data, made.rows, made.columns = source.data, shape[0], shape[-1]
        return made._getvalue()  # noqa: SLF001  how numba's structs are read

    return of(array, label, columns), build


@intrinsic
def _lowest_bit(_: Any, bits: Any) -> Any:  # noqa: ANN401, ARG001  numba's types
    """Return the number of the lowest bit that is set; there is one."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:  # noqa: ANN401
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), build


@intrinsic
def _lesser(_: Any, one: Any, other: Any) -> Any:  # noqa: ANN401, ARG001  numba's types
    """Return the lesser of two figures that are not NaN; of many it is found several at a time."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:  # noqa: ANN401
        double = ir.DoubleType()
        least = builder.module.declare_intrinsic(
            "llvm.minnum", [double], ir.FunctionType(double, [double, double])
        )
        return builder.call(least, args, fastmath=("nnan", "nsz"))

    return types.float64(types.float64, types.float64), build


# To a type checker they are what they are to the loops.
table = cast("Callable[[Any, str, int], Any]", _table)
lowest_bit = cast("Callable[[Any], Any]", _lowest_bit)
lesser = cast("Callable[[Any, Any], Any]", _lesser)


@infer_global(len)
class _Length(AbstractTemplate):
    def generic(self, args: Any, _kws: Any) -> Any:  # noqa: ANN401  numba's types
        return signature(types.intp, *args) if isinstance(args[0], TableType) else None


@lower_builtin(len, TableType)
def _length(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401
    return cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).rows


@infer_global(operator.getitem)
class _Read(AbstractTemplate):
    def generic(self, args: Any, _kws: Any) -> Any:  # noqa: ANN401
        of, index = args
        return signature(of.dtype, of, index) if isinstance(of, TableType) else None


@infer_global(operator.setitem)
class _Write(AbstractTemplate):
    def generic(self, args: Any, _kws: Any) -> Any:  # noqa: ANN401
        of, index, _ = args
        return signature(types.none, of, index, of.dtype) if isinstance(of, TableType) else None


@lower_builtin(operator.getitem, TableType, types.Any)
def _read(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401
    place, kind = _place(context, builder, sig.args, args)
    found = builder.load(place)
    found.set_metadata("tbaa", kind)
    return found


@lower_builtin(operator.setitem, TableType, types.Any, types.Any)
def _write(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401
    place, kind = _place(context, builder, sig.args, args)
    builder.store(args[2], place).set_metadata("tbaa", kind)
    return context.get_dummy_value()


def _place(context: Any, builder: Any, kinds: Any, args: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Return the address of what an index means, and what the optimizer is to know of it."""
    of, index = kinds[0], kinds[1]
    made = cgutils.create_struct_proxy(of)(context, builder, args[0])
    parts, values = [index], [args[1]]
    if isinstance(index, types.BaseTuple):
        parts = list(cast("Any", index))
        values = cgutils.unpack_tuple(builder, args[1], len(parts))
    if len(parts) != of.ndim:
        raise TypeError(f"table {of.label} has {of.ndim} dimensions")
    numbers = [
        context.cast(builder, value, part, types.intp)
        for value, part in zip(values, parts, strict=True)
    ]
    at = numbers[0]
    if of.ndim > 1:
        width = context.get_constant(types.intp, of.columns) if of.columns else made.columns
        at = builder.add(builder.mul(at, width), numbers[1])
    column = getattr(parts[1], "literal_value", None) if of.ndim > 1 and of.columns else None
    return builder.gep(made.data, [at], inbounds=True), _kind(builder.module, of.label, column)


def _kind(module: Any, label: str, column: int | None) -> Any:  # noqa: ANN401  LLVM's
    """Return the tag of a table's accesses, or of those of one of its columns."""
    zero = ir.Constant(ir.IntType(64), 0)
    root = module.add_metadata(["moesim tables"])
    kind = module.add_metadata([label, root, zero])
    if column is not None:
        kind = module.add_metadata([f"{label} {column}", kind, zero])
    return module.add_metadata([kind, kind, zero])
