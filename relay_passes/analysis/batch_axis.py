"""What of a function treats the samples of a batch apart, and how it runs on a part of the batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from tvm import relax
from tvm.relax import op as R

from ..ir import CALLS, Expr, bindings_of, bytes_of, op_name, operands, shape_of, used_vars
from ..operators.record import Kind, kind_of
from ..operators.training import winograd_output
from .access import Selection, demands

REPEATS = ("relax.broadcast_to", "relax.full")
"""What makes the same again and again."""


@dataclass
class Samples:
    """The samples of the batch that a function runs on."""

    batch: int
    inputs: frozenset[relax.Var]
    """The inputs that have a row for each sample; the others all samples share."""
    apart: dict[relax.Var, Selection]
    """What treats the samples apart, with the first sample's share of it."""
    alike: dict[relax.Var, Selection] = field(default_factory=dict)
    """What is the same for each sample, and made of nothing that is apart, with one sample's share of it."""
    needs: dict[relax.Var, Collection[relax.Var]] = field(default_factory=dict)
    """For what is computed apart or alike the operands of which a share needs a share; of the others it needs all."""
    late: dict[relax.Var, Expr] = field(default_factory=dict)
    """What needs several samples of something that is apart, or anything late, by its value; in order."""

    def on_part(self, whole: relax.Var, call: Expr, count: int) -> Expr:
        """The operator that makes ``whole``, on one of ``count`` parts of the batch; ``call`` has there what it
        ``needs`` of that part."""
        name = op_name(call)
        is_reshape = kind_of(call) is Kind.RESHAPE
        if not is_reshape and name not in (*REPEATS, "pock.winograd_output"):
            return call
        shape = list(shape_of(whole))
        shape[(self.apart.get(whole) or self.alike[whole]).axis] //= count
        if name == "relax.full":
            return R.full(shape, call.args[1], call.attrs.dtype)
        if name == "relax.broadcast_to":
            return R.broadcast_to(call.args[0], shape)
        return R.reshape(call.args[0], shape) if is_reshape else winograd_output(*call.args, shape=tuple(shape))

    def share(self, var: Expr) -> Selection | None:
        """One sample's share of something that is apart or alike."""
        return (self.apart.get(var) or self.alike.get(var)) if isinstance(var, relax.Var) else None


def samples_of(func: relax.Function) -> Samples:
    """The samples of a dataflow function whose first parameters, as many as ``num_input`` says, are its inputs."""
    batch = batch_of(func)
    rows = frozenset(x for x in _inputs(func) if batch > 1 and shape_of(x)[:1] == (batch,))
    samples = Samples(batch, rows, dict.fromkeys(rows, Selection(0, 0, 1)))
    for binding in bindings_of(func):
        var, value = binding.var, binding.value
        read = used_vars(value)
        found = None if any(each in samples.late for each in read) else _share(binding, samples)
        if found is not None:
            share, samples.needs[var] = found
            is_apart = any(each in samples.apart for each in samples.needs[var])
            (samples.apart if is_apart else samples.alike)[var] = share
        elif any(each in samples.apart or each in samples.late for each in read):
            samples.late[var] = value
    return samples


def batch_of(func: relax.Function) -> int:
    """How many samples a function runs on: the first extent of its largest input."""
    largest = max(_inputs(func), key=bytes_of, default=None)
    return shape_of(largest)[0] if largest is not None and shape_of(largest) else 1


def _inputs(func: relax.Function) -> list[relax.Var]:
    return list(func.params[: int(func.attrs.get("num_input", 0)) if func.attrs else 0])


Found = tuple[Selection, Collection[relax.Var]]
"""The first sample's share of a result, and the operands of which it needs the first sample's share."""


def _share(binding: relax.VarBinding, samples: Samples) -> Found | None:
    """The share of a result that needs no more than the first sample's of all that is apart; None if there is none."""
    value = binding.value
    if isinstance(value, relax.TupleGetItem | relax.Var):
        source = value.tuple_value if isinstance(value, relax.TupleGetItem) else value
        share = samples.share(source)
        return None if share is None else (share, [source])
    if not isinstance(value, relax.Call) or op_name(value) in CALLS:
        return None
    of = value.args[0] if op_name(value) == "relax.split" else binding.var
    if not isinstance(of.ty, relax.TensorType):
        return None
    if op_name(value) in REPEATS and samples.batch > 1 and _repeats(value, samples):
        return Selection(0, 0, 1), []
    for axis, extent in enumerate(shape_of(of)):
        if extent % samples.batch == 0:
            share = Selection(axis, 0, extent // samples.batch)
            needed = _needed(value, share, samples)
            if needed:
                return share, needed
    return None


def _repeats(value: relax.Call, samples: Samples) -> bool:
    """Whether a value is the same for each sample because it was made so."""
    shape = shape_of(value)
    if shape[:1] != (samples.batch,):
        return False
    if op_name(value) == "relax.full":
        return True
    source = shape_of(value.args[0])
    return value.args[0] not in samples.apart and (len(source) < len(shape) or source[0] == 1)


def _needed(value: relax.Call, share: Selection, samples: Samples) -> Collection[relax.Var] | None:
    """The operands of which a share of the result needs the first sample's share, if that is all that it needs of what
    is apart."""
    name = op_name(value)
    if kind_of(value) is Kind.RESHAPE:  # rows behind one another stay so
        rows = shape_of(value.args[0])[:1]
        is_kept = rows and samples.share(value.args[0]) == Selection(0, 0, rows[0] // samples.batch)
        return [value.args[0]] if share.axis == 0 and is_kept else None
    if name == "relax.broadcast_to":
        axis = share.axis - (len(shape_of(value)) - len(shape_of(value.args[0])))
        return [value.args[0]] if axis >= 0 and samples.share(value.args[0]) == share.along(axis) else None
    found = demands(value, share)
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
    return None if any(arg in samples.apart or arg in needed for arg in whole if isinstance(arg, relax.Var)) else needed
