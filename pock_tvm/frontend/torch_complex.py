"""Takes complex numbers out of a decomposed graph: each becomes two real tensors, for its two parts."""

from __future__ import annotations

import cmath
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from relay_passes.ir import first_line

from ..errors import ModelError
from . import fourier
from .fourier import Pair
from .torch_nodes import short_name, sources_of, where

aten = torch.ops.aten

Rule = Callable[..., Any]
"""Computes an operator on pairs; called with the operator, then with its arguments."""

RULES: dict[str, Rule] = {}
"""By the name of PyTorch's operator, without overload."""


def is_complex(value: Any) -> bool:
    """Check for a tensor of complex numbers, or a list with one."""
    return any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in pytree.tree_leaves(value))


def in_real_numbers(exported: ExportedProgram) -> torch.fx.GraphModule | None:
    """Rewrite the graph of a decomposed program; None if it has no complex numbers.

    Constants may stay complex: their parts are taken, and folded later.

    Raises
    ------
    ModelError
        A parameter, an input or a result is complex, or an operator on complex numbers has no rule.
    """
    values = pytree.tree_leaves([node.meta.get("val") for node in exported.graph.nodes])
    mode = next((value.fake_mode for value in values if is_complex(value)), None)
    if mode is None:
        return None
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    module = torch.fx.GraphModule(exported.graph_module, torch.fx.Graph())
    env: dict[Any, Any] = {}
    needed = set(sources_of([exported.graph.output_node()]))
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            env[node] = module.graph.node_copy(node)
            if is_complex(node.meta.get("val")):
                _check_is_constant(specs[node.name], node.meta["val"].dtype)
                env[node] = _written(module.graph, node, lambda x: Pair(x.real, x.imag), [env[node]], mode)
        elif node not in needed:  # an assertion
            continue
        elif node.target is operator.getitem and isinstance(env[node.args[0]], tuple | list):
            env[node] = env[node.args[0]][node.args[1]]
        elif is_complex(node.meta.get("val")) or any(isinstance(env[source], Pair) for source in node.all_input_nodes):
            env[node] = _by_rule(module.graph, node, env, mode)
        else:
            env[node] = module.graph.node_copy(node, env.__getitem__)
    module.recompile()
    return module


def _check_is_constant(spec: Any, dtype: torch.dtype) -> None:
    if spec.kind is InputKind.USER_INPUT:
        raise ModelError(
            f"input '{spec.arg.name}' is complex, and programs have real inputs: give its parts along a last axis, and "
            "call torch.view_as_complex in the model"
        )
    if spec.kind is InputKind.PARAMETER:
        raise ModelError(
            f"parameter '{spec.target}' is complex, and programs have real parameters: hold its parts along a last "
            "axis (torch.view_as_real), and call torch.view_as_complex in the model"
        )
    if spec.kind is InputKind.BUFFER and dtype is not torch.complex64:
        raise ModelError(f"buffer '{spec.target}' holds {dtype}, and files hold torch.complex64: convert it")


def _by_rule(graph: torch.fx.Graph, node: Any, env: dict[Any, Any], mode: FakeTensorMode) -> Any:
    """Compute a node by its rule."""
    if node.op == "output":
        raise ModelError(
            "the model returns complex numbers, and programs have real results: return torch.view_as_real of them"
        )
    rule = RULES.get(short_name(node))
    if rule is None:
        raise ModelError(f"{where(node)} computes with complex numbers, for which it has no rule: use real ones")
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs), is_leaf=lambda leaf: isinstance(leaf, torch.fx.Node))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.fx.Node)]
    given, pairs = pytree.tree_flatten([env[leaves[place]] for place in places])

    def compute(*tensors: Tensor) -> Any:
        for place, value in zip(places, pytree.tree_unflatten(tensors, pairs), strict=True):
            leaves[place] = value
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return rule(node.target, *args, **kwargs)

    try:
        return _written(graph, node, compute, given, mode)
    except (TypeError, ValueError, RuntimeError) as error:  # arguments that the rule does not know
        raise ModelError(
            f"{where(node)} computes with complex numbers in a way that its rule does not know: {first_line(error)}"
        ) from error


def _written(
    graph: torch.fx.Graph, node: Any, compute: Callable[..., Any], inputs: list[Any], mode: FakeTensorMode
) -> Any:
    """Trace a function of tensors, and write its operators into a graph, as parts of ``node``."""
    structure: list[Any] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        results, spec = pytree.tree_flatten(compute(*tensors))
        structure.append(spec)
        return results

    with mode:
        traced = make_fx(flat)(*(source.meta["val"] for source in inputs))
    copies: dict[Any, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True))
    for part in traced.graph.nodes:
        if part.op == "call_function":
            copies[part] = graph.node_copy(part, copies.__getitem__)
            copies[part].meta |= {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    (output,) = traced.graph.find_nodes(op="output")
    return pytree.tree_unflatten([copies[result] for result in output.args[0]], structure[0])


# ---- rules -----------------------------------------------------------------------------------------------------------


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of some operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _pair(x: Any) -> Pair:
    """See numbers as complex ones."""
    if isinstance(x, Pair):
        return x
    return Pair(x, torch.zeros_like(x)) if isinstance(x, Tensor) else Pair(x.real, x.imag)


def _apart(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Do the same with both parts. Real numbers among complex ones have the imaginary part 0."""

    def part(index: int) -> Any:
        def of(value: Any) -> Any:
            is_value = isinstance(value, Pair) or (isinstance(value, Tensor) and value.is_floating_point())
            return _pair(value)[index] if is_value else value

        return op(*pytree.tree_map(of, args, is_leaf=lambda leaf: isinstance(leaf, Pair)), **kwargs)

    real, imag = part(0), part(1)
    return Pair(real, imag) if isinstance(real, Tensor) else [Pair(*both) for both in zip(real, imag, strict=True)]


for _name in (
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice", "select",
    "split", "split_with_sizes", "chunk", "unbind", "flip", "roll", "unfold", "repeat", "diagonal", "diag_embed",
    "index", "index_select", "gather", "cat", "stack", "where", "copy", "slice_scatter", "select_scatter", "index_put",
    "_unsafe_index_put", "_unsafe_index", "alias", "clone", "detach", "stop_gradient", "lift_fresh_copy", "sum", "mean",
    "cumsum", "neg", "tril", "triu",
):  # fmt: skip
    RULES[_name] = _apart


@rule("add", "sub")
def _sum(op: Any, x: Any, y: Any, **kwargs: Any) -> Pair:
    x, y = _pair(x), _pair(y)
    return Pair(op(x.real, y.real, **kwargs), op(x.imag, y.imag, **kwargs))


@rule("mul", "mm", "bmm", "matmul", "mv", "dot", "linear")
def _product(op: Any, x: Any, y: Any, bias: Any = None) -> Pair:
    """A product of two factors, at most one of which is real."""
    if not isinstance(x, Pair | complex):
        result = Pair(op(x, _pair(y).real), op(x, _pair(y).imag))
    elif not isinstance(y, Pair | complex):
        result = Pair(op(_pair(x).real, y), op(_pair(x).imag, y))
    else:
        x, y = _pair(x), _pair(y)
        result = Pair(op(x.real, y.real) - op(x.imag, y.imag), op(x.real, y.imag) + op(x.imag, y.real))
    return result if bias is None else _sum(aten.add.Tensor, result, bias)


@rule("addmm", "baddbmm")
def _product_and_sum(op: Any, bias: Any, x: Any, y: Any, beta: complex = 1, alpha: complex = 1) -> Pair:
    product = _product(torch.matmul, x, y)
    return _sum(aten.add.Tensor, _product(torch.mul, bias, beta), _product(torch.mul, product, alpha))


@rule("reciprocal")
def _reciprocal(op: Any, x: Pair) -> Pair:
    square = x.real * x.real + x.imag * x.imag
    return Pair(x.real / square, -x.imag / square)  # NaN at 0, as in PyTorch


@rule("div")
def _quotient(op: Any, x: Any, y: Any) -> Pair:
    if isinstance(y, Pair):
        return _product(torch.mul, x, _reciprocal(op, y))
    if isinstance(y, complex):
        return _product(torch.mul, x, 1 / y)
    return Pair(x.real / y, x.imag / y)


@rule("pow")
def _power(op: Any, x: Any, exponent: Any) -> Pair:
    if isinstance(exponent, Pair | complex) or not isinstance(x, Pair):
        base = cmath.log(x) if isinstance(x, int | float | complex) else _log(op, _pair(x))
        return _exp(op, _product(torch.mul, exponent, base))
    if not isinstance(exponent, Tensor) and exponent in (1, 2, 3, 4):
        return functools.reduce(functools.partial(_product, torch.mul), [x] * int(exponent))
    if not isinstance(exponent, Tensor) and exponent == -1:
        return _reciprocal(op, x)
    return _polar(op, _abs(op, x) ** exponent, _angle(op, x) * exponent)


RULES |= {"square": lambda op, x: _power(op, x, 2), "sqrt": lambda op, x: _power(op, x, 0.5)}
RULES |= {"rsqrt": lambda op, x: _power(op, x, -0.5)}


@rule("sin")
def _sin(op: Any, x: Pair) -> Pair:
    return Pair(x.real.sin() * x.imag.cosh(), x.real.cos() * x.imag.sinh())


@rule("cos")
def _cos(op: Any, x: Pair) -> Pair:
    return Pair(x.real.cos() * x.imag.cosh(), -x.real.sin() * x.imag.sinh())


@rule("sinh")
def _sinh(op: Any, x: Pair) -> Pair:
    return Pair(x.real.sinh() * x.imag.cos(), x.real.cosh() * x.imag.sin())


@rule("cosh")
def _cosh(op: Any, x: Pair) -> Pair:
    return Pair(x.real.cosh() * x.imag.cos(), x.real.sinh() * x.imag.sin())


@rule("tanh")
def _tanh(op: Any, x: Pair) -> Pair:
    """``(sinh(2a) + i sin(2b)) / (cosh(2a) + cos(2b))``, divided by ``cosh(2a)``, which would overflow."""
    small = torch.exp(-2 * x.real.abs())
    share = 2 * small / (1 + small * small)  # 1 / cosh(2a)
    below = 1 + (2 * x.imag).cos() * share
    return Pair((2 * x.real).tanh() / below, (2 * x.imag).sin() * share / below)


@rule("tan")
def _tan(op: Any, x: Pair) -> Pair:
    turned = _tanh(op, Pair(-x.imag, x.real))
    return Pair(turned.imag, -turned.real)


@rule("sigmoid")
def _sigmoid(op: Any, x: Pair) -> Pair:
    half = _tanh(op, Pair(x.real / 2, x.imag / 2))
    return Pair((half.real + 1) / 2, half.imag / 2)


@rule("exp")
def _exp(op: Any, x: Pair) -> Pair:
    return _polar(op, x.real.exp(), x.imag)


@rule("log")
def _log(op: Any, x: Pair) -> Pair:
    return Pair(_abs(op, x).log(), _angle(op, x))


@rule("abs")
def _abs(op: Any, x: Pair) -> Tensor:
    """A norm, whose gradient at 0 is 0, as PyTorch's is."""
    return torch.linalg.vector_norm(torch.stack(x, -1), dim=-1)


@rule("linalg_vector_norm")
def _norm(op: Any, x: Pair, *args: Any, **kwargs: Any) -> Tensor:
    return op(_abs(op, x), *args, **kwargs)


@rule("angle")
def _angle(op: Any, x: Pair) -> Tensor:
    return torch.atan2(x.imag, x.real)


@rule("_conj", "_conj_physical", "conj_physical")
def _conjugate(op: Any, x: Pair) -> Pair:
    return Pair(x.real, -x.imag)


@rule("resolve_conj", "resolve_neg")
def _same(op: Any, x: Pair) -> Pair:
    return x


RULES |= {"real": lambda op, x: x.real, "imag": lambda op, x: x.imag}
RULES |= {"view_as_real": lambda op, x: torch.stack(x, -1), "view_as_complex": lambda op, x: Pair(*x.unbind(-1))}
RULES |= {"complex": lambda op, real, imag: Pair(real, imag)}


@rule("polar")
def _polar(op: Any, size: Tensor, angle: Tensor) -> Pair:
    return Pair(size * angle.cos(), size * angle.sin())


@rule("constant_pad_nd")
def _pad(op: Any, x: Pair, widths: Any, value: complex = 0) -> Pair:
    return Pair(op(x.real, widths, value.real), op(x.imag, widths, value.imag))


@rule("masked_fill")
def _fill_where(op: Any, x: Pair, mask: Tensor, value: Any) -> Pair:
    value = _pair(value)
    return Pair(torch.masked_fill(x.real, mask, value.real), torch.masked_fill(x.imag, mask, value.imag))


@rule("_to_copy")
def _converted(op: Any, x: Any, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    """Between real and complex numbers; of complex ones, real numbers keep the real part."""
    if dtype is None:
        return x
    if not dtype.is_complex:
        return op(x.real, dtype=dtype, **kwargs)
    return Pair(*(op(part, dtype=dtype.to_real(), **kwargs) for part in _pair(x)))


@rule("zeros", "ones", "full", "scalar_tensor", "zeros_like", "ones_like", "full_like", "new_zeros", "new_full")
def _made(op: Any, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    """Constants; ``dtype`` may be real where numbers are like complex ones."""
    number = args[-1] if isinstance(args[-1], complex) else 0
    args = tuple(arg.real if isinstance(arg, Pair | complex) else arg for arg in args)
    if dtype is not None and not dtype.is_complex:
        return op(*args, dtype=dtype, **kwargs)
    real = op(*args, dtype=dtype.to_real() if dtype else None, **kwargs)
    return Pair(real, torch.full_like(real, number.imag))


@rule("_fft_c2c")
def _complex_transform(op: Any, x: Pair, dims: Any, normalization: int, forward: bool) -> Pair:
    return fourier.to_complex(x, dims, normalization, forward)


@rule("_fft_r2c")
def _real_transform(op: Any, x: Tensor, dims: Any, normalization: int, onesided: bool) -> Pair:
    return fourier.from_real(x, dims, normalization, onesided)


@rule("_fft_c2r")
def _inverse_transform(op: Any, x: Pair, dims: Any, normalization: int, length: int) -> Tensor:
    return fourier.to_real(x, dims, normalization, length)
