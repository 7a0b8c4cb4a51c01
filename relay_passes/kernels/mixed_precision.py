"""Mixed precision: what lies between kernels is stored in 16 bits, and products multiply numbers of 16 bits."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import IRModule, relax, te, tirx, topi

from schedules.kernels import comes_scheduled

from ..ir import CALLS, Expr, bindings_of, op_name, operands, results_of, returned, rewrite, update_function
from .lift_frozen import PREPARE, prepared_name
from .narrow_kernel import WIDE, narrow_kernel, operands_of_products, sums_of

FEWEST_ELEMENTS = 1024
"""Elements of the smallest value that is narrowed: smaller ones take no memory, and may scale all gradients."""


@tvm.transform.module_pass(opt_level=0, name="MixedPrecision")
@dataclass(frozen=True)
class MixedPrecision:
    """Store values in a type of 16 bits, and round the factors of products to it. All arithmetic stays in float32.

    In: functions of ``call_tir`` on fused kernels, and ``prepare`` (:class:`LiftFrozen`). Out: the same, in which

    - results of kernels are of ``dtype``, except for sums (statistics of norms, losses, gradients of biases), what an
      update reads (gradients of parameters), what a function returns, small values, and what is computed from inputs
      and constants alone, such as masks of the lowest number;
    - ``frozen`` parameters that products read are of ``dtype``: ``prepare`` converts them;
    - the factors of products are rounded to ``dtype``, also those that are stored in float32, such as trained weights.
      Products are summed in float32.

    So norms, softmax, losses and updates are computed in float32, and trained weights exist once, in float32: they are
    the master weights of Micikevicius et al., Mixed Precision Training (ICLR 2018, section 3.1).
    """

    functions: Sequence[str]
    frozen: Sequence[str]
    dtype: str

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        kernels = _Kernels(mod, self.dtype)
        prepare = _Prepare(mod[PREPARE], self.dtype)
        values = [_Values(mod[name], kernels, prepare.fields) for name in self.functions]
        constant = {*self.frozen, *prepare.fields}
        kept = {name for each in values for name in each.kept_parameters()}
        read = {name: None for each in values for name in each.parameters_of_products()}
        narrow = {name: prepare.narrowed(name) for name in read if name in constant and name not in kept}
        functions = [each.rewritten(narrow) for each in values]
        changed = dict(zip(self.functions, functions, strict=True)) | {PREPARE: prepare.function()}
        mod = IRModule(kernels.functions() | prepare.kernels, attrs=mod.attrs)
        for name, func in changed.items():
            mod = update_function(mod, name, func)
        return relax.transform.DeadCodeElimination([*self.functions, PREPARE])(mod)


Value = tuple[relax.Var, int]
"""A tensor: a parameter or the variable of the call that makes it, and its position among the call's results."""


@dataclass
class _Values:
    """The tensors of a function, and which of them are narrowed."""

    func: relax.Function
    kernels: _Kernels
    constants: Collection[str]
    """Names of the parameters that hold what ``prepare`` returns."""

    def __post_init__(self) -> None:
        inputs = self.func.params[: int(self.func.attrs["num_input"])]
        constants = [param for param in self.func.params if param.name in self.constants]
        self.given: set[Value] = {(param, 0) for param in (*inputs, *constants)}
        """Inputs, constants, and what kernels without products compute from them alone."""
        self.behind: dict[relax.Var, list[Value]] = {param: [(param, 0)] for param in self.func.params}
        self.made: dict[Value, relax.TensorType] = {}
        """Results of kernels that may be narrowed."""
        self.kept: set[Value] = set()
        """Tensors that something other than a kernel reads, or that an update does."""
        self.factors: set[Value] = set()
        """Tensors that products read as factors."""
        for binding in bindings_of(self.func):
            self._visit(binding.var, binding.value)
        self.kept.update(value for expr in returned(self.func) for value in self._tensors(expr))
        self.narrow = {value for value, ty in self.made.items() if value not in self.kept and _is_worth(ty)}

    def _visit(self, var: relax.Var, value: Expr) -> None:
        name = op_name(value)
        if name in CALLS:
            kernel, args = value.args[0], list(value.args[1].fields)
            results = var.ty.fields if isinstance(var.ty, relax.TupleType) else [var.ty]
            self.behind[var] = [(var, index) for index in range(len(results))]
            if name == "relax.call_tir_inplace":
                self.kept.update(tensor for arg in args for tensor in self._tensors(arg))
                return
            sums, factors = self.kernels.sums(kernel), self.kernels.factors(kernel)
            if not factors and all(value in self.given for arg in args for value in self._tensors(arg)):
                self.given.update(self.behind[var])
                return
            self.made.update(((var, index), ty) for index, ty in enumerate(results) if len(args) + index not in sums)
            for position in factors:
                if position < len(args):
                    self.factors.update(self._tensors(args[position]))
        elif name == "relax.reshape" or isinstance(value, relax.Var):
            source = value.args[0] if isinstance(value, relax.Call) else value
            self.behind[var] = self._tensors(source)
        elif isinstance(value, relax.TupleGetItem):
            self.behind[var] = [self._tensors(value.tuple_value)[value.index]]
        elif isinstance(value, relax.Tuple):
            self.behind[var] = [tensor for part in value.fields for tensor in self._tensors(part)]
        else:
            self.behind[var] = [(var, 0)]
            self.kept.update(tensor for _, _, arg in operands(value) for tensor in self._tensors(arg))

    def _tensors(self, expr: Expr) -> list[Value]:
        """Return the tensors that an expression is, or holds."""
        return self.behind.get(expr, []) if isinstance(expr, relax.Var) else []

    def parameters_of_products(self) -> Iterator[str]:
        """Yield the float32 parameters that products read as factors."""
        yield from (param.name for param in self._parameters(self.factors) if _is_wide(param.ty))

    def kept_parameters(self) -> Iterator[str]:
        """Yield the parameters that stay as they are."""
        yield from (param.name for param in self._parameters(self.kept))

    def _parameters(self, values: set[Value]) -> list[relax.Var]:
        return [param for param in self.func.params if (param, 0) in values]

    def rewritten(self, narrow: Mapping[str, relax.Var]) -> relax.Function:
        """Return the function with narrow values, and with parameters in place of those that ``narrow`` names."""
        env = {param: _renewed(narrow[param.name]) for param in self.func.params if param.name in narrow}

        def visit(_builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            name = op_name(value)
            if name not in CALLS:
                return value
            kernel, args = value.args[0], list(value.args[1].fields)
            types = list(value.ty_args[0].fields) if isinstance(value.ty_args[0], relax.TupleType) else [*value.ty_args]
            chosen = [at for at, arg in enumerate(args) if _dtype(arg.ty) == self.kernels.dtype]
            for index in range(len(types)):
                if (var, index) in self.narrow:
                    chosen.append(len(args) + index)
                    types[index] = relax.TensorType(types[index].shape, self.kernels.dtype)
            made = types[0] if len(types) == 1 else relax.TupleType(types)
            call = [self.kernels.narrowed(kernel, chosen), *value.args[1:]]
            return relax.Call(value.op, call, value.attrs, [made])

        params = [env.get(param, param) for param in self.func.params]
        return rewrite(self.func, visit, params=params, env=env)


@dataclass
class _Kernels:
    """The kernels of a module, and their narrowed forms."""

    mod: IRModule
    dtype: str
    made: dict[tuple[str, tuple[int, ...]], tuple[tvm.ir.GlobalVar, tirx.PrimFunc]] = field(default_factory=dict)

    def factors(self, kernel: tvm.ir.GlobalVar) -> set[int]:
        """Return the operands that products of a kernel read as factors, by position."""
        return operands_of_products(self.mod[kernel])

    def sums(self, kernel: tvm.ir.GlobalVar) -> set[int]:
        """Return the results of a kernel that are sums, or may be, by position among all operands."""
        func = self.mod[kernel]
        return set(range(len(func.params))) if comes_scheduled(func) else sums_of(func)

    def narrowed(self, kernel: tvm.ir.GlobalVar, positions: Sequence[int]) -> tvm.ir.GlobalVar:
        """Return a kernel with narrow operands at some positions."""
        func = self.mod[kernel]
        if not positions and not operands_of_products(func):
            return kernel
        key = kernel.name_hint, tuple(positions)
        if key not in self.made:
            var = tvm.ir.GlobalVar("_".join(["narrow", *map(str, positions), kernel.name_hint]))
            self.made[key] = var, narrow_kernel(func, positions, self.dtype)
            relax.expr._update_type(var, self.made[key][1].ty)
        return self.made[key][0]

    def functions(self) -> dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc]:
        """Return all functions of the module, and the narrowed kernels."""
        return dict(self.mod.functions.items()) | dict(self.made.values())


class _Prepare:
    """The function ``prepare``, with results that are converted."""

    def __init__(self, func: relax.Function, dtype: str) -> None:
        self._func = func
        self._dtype = dtype
        self._results = returned(func)
        self.fields = {prepared_name(at): at for at in range(len(self._results))}
        """Positions of the results, by the parameters that hold them."""
        self._converted: list[int] = []
        self._added: list[relax.Var] = []
        self.kernels: dict[tvm.ir.GlobalVar, tirx.PrimFunc] = {}
        """Kernels that convert."""

    def narrowed(self, name: str) -> relax.Var:
        """Return a parameter that holds, narrowed, what the parameter ``name`` of the other functions holds."""
        if name in self.fields:
            at = self.fields[name]
            source = self._results[at]
            self._converted.append(at)
        else:
            (source,) = (param for param in self._func.params if param.name == name)
            at = len(self._results) + len(self._added)
            self._added.append(source)
        return relax.Var(prepared_name(at), relax.TensorType(source.ty.shape, self._dtype))

    def function(self) -> relax.Function:
        """Return the function."""

        def converted(builder: relax.BlockBuilder, body: Expr) -> Expr:
            fields = results_of(builder, body)
            for at in self._converted:
                fields[at] = builder.emit(self._call(fields[at]))
            return relax.Tuple([*fields, *(builder.emit(self._call(param)) for param in self._added)])

        return rewrite(self._func, result=converted)

    def _call(self, value: Expr) -> relax.Call:
        """Return a call of a kernel that converts a tensor."""
        x = te.placeholder(list(value.ty.shape), WIDE, "x")
        kernel = te.create_prim_func([x, topi.cast(x, self._dtype)], index_dtype_override="int64")
        var = tvm.ir.GlobalVar(f"convert_{len(self.kernels)}")
        relax.expr._update_type(var, kernel.ty)
        self.kernels[var] = kernel
        return relax.call_tir(var, [value], relax.TensorType(value.ty.shape, self._dtype))


def _renewed(param: relax.Var) -> relax.Var:
    """Return a variable of the same name and type: functions share none."""
    return relax.Var(param.name, param.ty)


def _is_worth(ty: relax.TensorType) -> bool:
    """Return whether a tensor is narrowed if nothing speaks against it. A number a row is not: it scales the row."""
    shape = [int(extent) for extent in ty.shape]
    return _is_wide(ty) and len(shape) > 1 and shape[-1] > 1 and math.prod(shape) >= FEWEST_ELEMENTS


def _is_wide(ty: relax.TensorType) -> bool:
    return _dtype(ty) == WIDE


def _dtype(ty: relax.TensorType) -> str:
    return str(ty.dtype.dtype)
