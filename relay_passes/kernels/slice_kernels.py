"""Runs kernels that pass large values to each other for a part of the batch after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import tvm
from tvm import IRModule, relax, tirx

from schedules.extents import divisors

from ..analysis.batch_axis import batch_of
from ..ir import Expr, assemble, bindings_of, bytes_of, is_kept, op_name, shape_of, update_function, used_vars
from ..operators.aliases import join, part
from .part_of_kernel import part_of_kernel

START = 256 * 2**10
"""Cost of starting a kernel, as bytes of memory traffic that take as long."""


@tvm.transform.module_pass(opt_level=0, name="SliceKernels")
@dataclass(frozen=True)
class SliceKernels:
    """Run chains of kernels whose values no cache holds once for each slice of the batch.

    In, out: a dataflow function of ``call_tir``, ``call_tir_inplace``, views and tuples, whose first ``num_input`` (an
    attribute) parameters are the inputs. Two kernels that read the same large value, or of which one reads what the
    other has written, take it from memory twice. A slice of it stays in a cache, so the kernels of a chain run for one
    slice after the other. What the rest of the function reads is joined, each part written in its place. Kernels that
    need the whole batch, such as the sum of partial weight gradients, come before or after the chain. Each kernel does
    the arithmetic that it did before, in the same order.

    ``cached`` are the bytes that a cache may hold of one value. A slice has rows, along the first two axes of each
    result, for all ``cores``. Number of slices: that which saves most traffic, less the kernel starts and the weights
    that each slice reads again; one where that is not positive.
    """

    cached: int
    cores: int
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        counts = divisors(batch_of(func))[1:]
        best = max((_Slicing(mod, func, self, count) for count in counts), key=lambda each: each.saved, default=None)
        return mod if best is None or not best.saved else best.module(self.function)


class _Piece(NamedTuple):
    """A kernel that can run for a slice."""

    binding: relax.VarBinding
    kernel: tirx.PrimFunc
    """The kernel for a slice."""
    cut: list[Expr]
    """Operands of which it reads a slice."""
    whole: list[Expr]
    """Other operands."""


@dataclass
class _Chain:
    """Bindings around kernels that run in slices."""

    pieces: list[_Piece] = field(default_factory=list)
    before: list[relax.VarBinding] = field(default_factory=list)
    after: list[relax.VarBinding] = field(default_factory=list)
    late: set[relax.Var] = field(default_factory=set)
    """Values that are made ``after``."""

    @property
    def made(self) -> set[relax.Var]:
        """Results of the kernels."""
        return {piece.binding.var for piece in self.pieces}

    @property
    def touched(self) -> set[Expr]:
        """Operands and results of the kernels that are read or written slice by slice."""
        return {each for piece in self.pieces for each in (*piece.cut, piece.binding.var)}

    def in_order(self) -> list[relax.VarBinding]:
        """Return its bindings, with all kernels side by side."""
        return [*self.before, *(piece.binding for piece in self.pieces), *self.after]


class _Slicing:
    """A function whose chains run in ``count`` slices."""

    def __init__(self, mod: IRModule, func: relax.Function, options: SliceKernels, count: int) -> None:
        self.mod, self.func, self.count = mod, func, count
        self.cached, self.cores = options.cached, options.cores
        self._parts: dict[tvm.ir.GlobalVar, tuple[tirx.PrimFunc, list[int]] | None] = {}
        self.chains = [self._plain_unless_it_pays(chain) for chain in self._found()]
        self.saved = sum(map(self._saved, self.chains))

    def module(self, name: str) -> IRModule:
        """Return the module with the function in slices, and the kernels of slices."""
        kernels = relax.BlockBuilder(self.mod)
        bindings: list[relax.VarBinding] = []
        for chain in self.chains:
            bindings += [*chain.before, *self._sliced(kernels, chain, self._joined(chain)), *chain.after]
        kept = [binding.var for binding in bindings if is_kept(binding.var)]
        new = assemble(self.func.params, bindings, self.func.body.body, self.func.attrs, kept)
        return update_function(kernels.get(), name, new)

    def _joined(self, chain: _Chain) -> set[relax.Var]:
        """Return the results of a chain that anything but its slices reads."""
        read = set(used_vars(self.func.body.body))
        for other in self.chains:
            read.update(var for each in (*other.before, *other.after) for var in used_vars(each.value))
            for piece in other.pieces:
                read.update(piece.whole if other is chain else used_vars(piece.binding.value))
        return chain.made & read

    def _found(self) -> Iterator[_Chain]:
        """Share out the bindings of the function among chains, in order."""
        chain = _Chain()
        for binding in bindings_of(self.func):
            read = used_vars(binding.value)
            is_late = any(var in chain.late for var in read)
            piece = self._piece(binding)
            if piece is not None and chain.pieces and (is_late or chain.made.intersection(piece.whole)):
                yield chain  # its results are whole from here on
                chain, is_late = _Chain(), False
            if piece is not None and not is_late and (not chain.pieces or chain.touched.intersection(piece.cut)):
                chain.pieces.append(piece)
            elif chain.pieces and (
                is_late or chain.made.intersection(read) or op_name(binding.value) == "relax.call_tir_inplace"
            ):
                chain.after.append(binding)
                chain.late.add(binding.var)
            else:
                chain.before.append(binding)
        yield chain

    def _piece(self, binding: relax.VarBinding) -> _Piece | None:
        """Return a kernel's call as one that can run in slices, if it reads or writes a value that no cache holds."""
        value = binding.value
        if op_name(value) != "relax.call_tir" or len(value.args) != 2 or isinstance(binding.var.ty, relax.TupleType):
            return None
        kernel, operands = value.args[0], list(value.args[1].fields)
        rows = math.prod(shape_of(binding.var)[:2]) // self.count
        if max(map(bytes_of, (*operands, binding.var))) <= self.cached or rows < self.cores:
            return None
        if kernel not in self._parts:
            self._parts[kernel] = part_of_kernel(self.mod[kernel], self.count)
        found = self._parts[kernel]
        if found is None:
            return None
        func, positions = found
        cut = [each for at, each in enumerate(operands) if at in positions]
        whole = [each for at, each in enumerate(operands) if at not in positions]
        is_large = max(map(bytes_of, (*cut, binding.var))) > self.cached
        return _Piece(binding, func, cut, whole) if is_large and not set(cut) & set(whole) else None

    def _plain_unless_it_pays(self, chain: _Chain) -> _Chain:
        """Return a chain, without its kernels if slices of it cost more than they save."""
        return chain if self._saved(chain) > 0 else _Chain(before=chain.in_order())

    def _saved(self, chain: _Chain) -> float:
        """Return the memory traffic that slices save, in bytes, less what they cost."""
        uses: dict[Expr, int] = {}
        for piece in chain.pieces:
            for each in dict.fromkeys((*piece.cut, piece.binding.var)):
                uses[each] = uses.get(each, 0) + 1
        fits = [each for each in uses if self.cached < bytes_of(each) <= self.count * self.cached]
        again = sum(START + sum(map(bytes_of, piece.whole)) for piece in chain.pieces)
        return sum((uses[each] - 1) * bytes_of(each) for each in fits) - (self.count - 1) * again

    def _sliced(self, kernels: relax.BlockBuilder, chain: _Chain, joined: set[relax.Var]) -> Iterator[relax.VarBinding]:
        """Yield the kernels of a chain for each slice, and the values ``joined`` of slices."""
        names: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar] = {}
        parts: dict[relax.Var, list[relax.Var]] = {var: [] for var in joined}
        for index in range(self.count):
            own: dict[Expr, relax.Var] = {}
            for piece in chain.pieces:
                kernel = piece.binding.value.args[0]
                if kernel not in names:
                    names[kernel] = kernels.add_func(piece.kernel, kernel.name_hint)
                for each in piece.cut:
                    if each not in own:
                        view = kernels.normalize(part(each, index=index, count=self.count))
                        own[each] = relax.DataflowVar(getattr(each, "name", "part"), view.ty)
                        yield relax.VarBinding(own[each], view)
                arguments = [own[each] if each in piece.cut else each for each in piece.binding.value.args[1].fields]
                operands, result = relax.Tuple(arguments), self._type(piece.binding.var)
                call = kernels.normalize(relax.op.call_tir(names[kernel], operands, result))
                var = relax.DataflowVar(piece.binding.var.name, call.ty)
                own[piece.binding.var] = var
                yield relax.VarBinding(var, call)
                if piece.binding.var in parts:
                    parts[piece.binding.var].append(var)
        for var, made in parts.items():
            yield relax.VarBinding(var, kernels.normalize(join(relax.Tuple(made))))

    def _type(self, var: relax.Var) -> relax.TensorType:
        first, *others = shape_of(var)
        return relax.TensorType((first // self.count, *others), str(var.ty.dtype.dtype))
