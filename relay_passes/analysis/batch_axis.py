"""Finds the batch axis of each value, and shrinks operators to a part of the batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from tvm import relax
from tvm.relax import op as R

from ..ir import CALLS, Expr, bindings_of, bytes_of, op_name, operands, shape_of, used_vars
from ..operators.random import DRAWS, RANDOM
from ..operators.record import Kind, kind_of
from ..operators.registry import attributes_of
from ..operators.training import winograd_output
from .access import Selection, reads

REPEATS = ("relax.broadcast_to", "relax.full")
"""Operators whose result may repeat one value for each sample."""
WHOLE = " (whole)"
"""End of the name of a parameter that reads a whole input beside the parameter for one part of it."""


@dataclass
class BatchAxis:
    """Batch size of a function, and the position of the batch in each value."""

    batch: int
    inputs: frozenset[relax.Var]
    """Inputs with a row for each sample. The others are shared by all samples."""
    batched: dict[relax.Var, Selection]
    """Values computed for each sample independently, with the first sample's part."""
    repeated: dict[relax.Var, Selection] = field(default_factory=dict)
    """Values that are equal for each sample and depend on no input, with one sample's part."""
    needs: dict[relax.Var, Collection[relax.Var]] = field(default_factory=dict)
    """For a batched or repeated value, the operands of which a part needs only that part. Other operands are read
    whole."""
    mixed: dict[relax.Var, Expr] = field(default_factory=dict)
    """Values that mix samples (a batch mean), or depend on such values, with their bound expressions, in order."""

    def on_part(self, whole: relax.Var, call: Expr, count: int) -> Expr:
        """Shrink ``call``, which computes ``whole``, to one of ``count`` parts of the batch.

        The operands in :attr:`needs` are already parts. Shapes among the arguments are divided here.
        """
        name = op_name(call)
        is_reshape = kind_of(call) is Kind.RESHAPE
        if name in DRAWS:
            attributes = attributes_of(call)
            return relax.Call(call.op, list(call.args), attributes | {"count": attributes["count"] // count})
        if not is_reshape and name not in (*REPEATS, "pock.winograd_output"):
            return call
        shape = list(shape_of(whole))
        shape[(self.batched.get(whole) or self.repeated[whole]).axis] //= count
        if name == "relax.full":
            return R.full(shape, call.args[1], call.attrs.dtype)
        if name == "relax.broadcast_to":
            return R.broadcast_to(call.args[0], shape)
        return R.reshape(call.args[0], shape) if is_reshape else winograd_output(*call.args, shape=tuple(shape))

    def share(self, var: Expr) -> Selection | None:
        """Return one sample's part of a batched or repeated value; None for any other."""
        return (self.batched.get(var) or self.repeated.get(var)) if isinstance(var, relax.Var) else None


def batch_axis_of(func: relax.Function, batch: int | None = None, *, draws_parts: bool = False) -> BatchAxis:
    """Analyse a dataflow function whose first ``num_input`` parameters are its inputs.

    ``batch``: by default that of :func:`batch_of`. ``draws_parts``: a part of the batch draws its own random numbers,
    those of the whole batch at its positions. Otherwise random numbers are read whole.
    """
    batch = batch_of(func) if batch is None else batch
    rows = frozenset(x for x in _inputs(func) if batch > 1 and shape_of(x)[:1] == (batch,))
    samples = BatchAxis(batch, rows, dict.fromkeys(rows, Selection(0, 0, 1)))
    for binding in bindings_of(func):
        var, value = binding.var, binding.value
        read = used_vars(value)
        is_draw = draws_parts and op_name(value) in DRAWS
        if is_draw:
            found = _drawn(value, batch)
        else:
            found = None if any(each in samples.mixed for each in read) else _share(binding, samples)
        if found is not None:
            share, samples.needs[var] = found
            is_batched = is_draw or any(each in samples.batched for each in samples.needs[var])
            (samples.batched if is_batched else samples.repeated)[var] = share
        elif is_draw or any(each in samples.batched or each in samples.mixed for each in read):
            samples.mixed[var] = value
    return samples


def batch_of(func: relax.Function) -> int:
    """Return the batch size of a function: the first extent of its largest input."""
    largest = max(_inputs(func), key=bytes_of, default=None)
    return shape_of(largest)[0] if largest is not None and shape_of(largest) else 1


def _inputs(func: relax.Function) -> list[relax.Var]:
    inputs = func.params[: int(func.attrs.get("num_input", 0)) if func.attrs else 0]
    return [param for param in inputs if param.name != RANDOM]


Found = tuple[Selection, Collection[relax.Var]]
"""First sample's part of a result, and the operands of which it needs only the first sample's part."""


def _share(binding: relax.VarBinding, samples: BatchAxis) -> Found | None:
    """Find the part of a result that needs only the first sample's part of all batched operands; None if there is
    none."""
    value = binding.value
    if isinstance(value, relax.TupleGetItem | relax.Var):
        source = value.tuple_value if isinstance(value, relax.TupleGetItem) else value
        share = samples.share(source)
        return None if share is None else (share, [source])
    if not isinstance(value, relax.Call) or op_name(value) in CALLS:
        return None
    of = value.args[0] if op_name(value) == "relax.split" else binding.var
    if not isinstance(of.ty, relax.TensorType | relax.TupleType):
        return None
    if op_name(value) in REPEATS and samples.batch > 1 and _repeats(value, samples):
        return Selection(0, 0, 1), []
    for axis, extent in enumerate(_first_shape(of)):
        if extent % samples.batch == 0:
            share = Selection(axis, 0, extent // samples.batch)
            needed = _needed(value, share, samples)
            if needed:
                return share, needed
    return None


def _drawn(draw: relax.Call, batch: int) -> Found | None:
    """Find the first sample's share of random numbers; None if they do not come in equal shares."""
    share, rest = divmod(int(draw.attrs["count"]), batch)
    return None if rest else (Selection(0, 0, share), [])


def _first_shape(var: Expr) -> tuple[int, ...]:
    """Return the shape of a tensor, or of the first of a tuple's."""
    first = var.ty if isinstance(var.ty, relax.TensorType) else var.ty.fields[0]
    return tuple(int(extent) for extent in first.shape)


def _repeats(value: relax.Call, samples: BatchAxis) -> bool:
    """Return whether an operator of ``REPEATS`` repeats its value for each sample."""
    shape = shape_of(value)
    if shape[:1] != (samples.batch,):
        return False
    if op_name(value) == "relax.full":
        return True
    source = shape_of(value.args[0])
    return value.args[0] not in samples.batched and (len(source) < len(shape) or source[0] == 1)


def _needed(value: relax.Call, share: Selection, samples: BatchAxis) -> Collection[relax.Var] | None:
    """Return the operands of which ``share`` of the result needs only the first sample's part; None if it needs more of
    a batched one."""
    name = op_name(value)
    if kind_of(value) is Kind.RESHAPE:  # rows stay contiguous
        rows = shape_of(value.args[0])[:1]
        is_kept = rows and samples.share(value.args[0]) == Selection(0, 0, rows[0] // samples.batch)
        return [value.args[0]] if share.axis == 0 and is_kept else None
    if name == "relax.broadcast_to":
        axis = share.axis - (len(shape_of(value)) - len(shape_of(value.args[0])))
        return [value.args[0]] if axis >= 0 and samples.share(value.args[0]) == share.along(axis) else None
    found = reads(value, share)
    if found is None:
        return None
    needed, whole = set(), set()
    for index, _, arg in operands(value):
        if found[index] is None:
            whole.add(arg)
        elif samples.share(arg) == found[index]:
            needed.add(arg)
        else:
            return None
    reads_all = any(arg in samples.batched or arg in needed for arg in whole if isinstance(arg, relax.Var))
    return None if reads_all else needed
