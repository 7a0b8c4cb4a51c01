"""Takes the quantisation out of exported programs (PT2E): a program in float, and the scales that it stated.

``quantize_pt2e`` of ``torch.ao`` and torchao puts ``quantized_decomposed`` operators into a graph: integer weights that
are turned into floats, and pairs that round a value. The weights become parameters. The pairs become
``pock_tvm.stated_scale``, which computes nothing.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from ..errors import ModelError
from .torch_nodes import where

if not hasattr(torch.ops.pock_tvm, "stated_scale"):
    _library = torch.library.Library("pock_tvm", "FRAGMENT")
    _library.define("stated_scale(Tensor x, float scale, int zero) -> Tensor")
    _library.impl("stated_scale", lambda x, scale, zero: x.clone(), "CompositeExplicitAutograd")
    torch.library.register_autograd("pock_tvm::stated_scale", lambda _context, dy: (dy, None, None), lib=_library)
STATED_SCALE = torch.ops.pock_tvm.stated_scale.default

QUANTIZE = ("quantize_per_tensor", "quantize_per_channel")
DEQUANTIZE = ("dequantize_per_tensor", "dequantize_per_channel")
BYTES = {torch.uint8: 0, torch.int8: 128}
"""Types of eight bits, with what is added to have unsigned ones."""
PRODUCTS = ("conv1d", "conv2d", "conv3d", "convolution", "linear", "addmm", "mm", "matmul")


def is_quantized(exported: ExportedProgram) -> bool:
    """Check whether a program holds operators of quantisation."""
    return any(_name(node) is not None for node in exported.graph.nodes)


def in_float(exported: ExportedProgram) -> tuple[ExportedProgram, dict[str, np.ndarray]]:
    """Return a program with bound dimensions in float, and the scales of its weights by parameter: [C_out] or [1].

    A weight is called like the bias of its layer, if that has one; PT2E keeps no names of weights.

    Raises
    ------
    ModelError
        It is quantised in a way that is not one scale a tensor or channel, in eight bits.
    """
    module = exported.module(check_guards=False)
    scales = _Removal(module).run()
    values = [
        torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
        for spec, node in zip(exported.graph_signature.input_specs, exported.graph.nodes, strict=False)
        if spec.kind is InputKind.USER_INPUT
    ]
    args, kwargs = pytree.tree_unflatten(values, exported.call_spec.in_spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, args, kwargs, strict=False), scales


def _name(node: Any) -> str | None:
    """Return the name of an operator of quantisation; None for all others."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    library, _, name = node.target.name().partition("::")
    return name.partition(".")[0] if library in ("quantized_decomposed", "torchao", "quantized") else None


class _Removal:
    def __init__(self, module: torch.fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.scales: dict[str, np.ndarray] = {}
        self.weights: dict[Any, str] = {}
        """Parameters that replaced integers, by what turned these into floats."""

    def run(self) -> dict[str, np.ndarray]:
        for node in list(self.graph.nodes):
            name = _name(node)
            if name is None:
                continue
            if name not in (*QUANTIZE, *DEQUANTIZE):
                raise ModelError(
                    f"{where(node)} is not one scale a tensor or a channel, fixed, in eight bits: programs keep no "
                    "others. Quantise statically with such scales, or export the model in float"
                )
            if name in DEQUANTIZE:
                self._take_out(node)
        self.graph.eliminate_dead_code()
        rest = next((node for node in self.graph.nodes if _name(node) is not None), None)
        if rest is not None:
            raise ModelError(
                f"{where(rest)} makes integers that {where(next(iter(rest.users)))} reads: programs compute in float "
                "between quantised layers. Export the model in float"
            )
        self.graph.lint()
        self.module.recompile()
        self.module.delete_all_unused_submodules()
        return self.scales

    def _take_out(self, node: Any) -> None:
        """Replace what turns integers into floats: of a weight by a parameter, else by the value that was rounded."""
        source = node.args[0]
        if all(_is_constant(each) for each in node.all_input_nodes):
            self._check_type(node, weight=True)
            self._replace_weight(node)
            return
        if _name(source) not in QUANTIZE:
            raise ModelError(
                f"{where(node)} reads integers that {where(source)} computed: programs compute in float between "
                "quantised layers. Export the model in float"
            )
        if _name(node) != "dequantize_per_tensor" or _name(source) != "quantize_per_tensor":
            raise ModelError(f"{where(source)} has a scale for each channel of a value: programs have one for all")
        self._check_type(node)
        values = [self._number(each) for each in source.args[1:3]]
        if values != [self._number(each) for each in node.args[1:3]]:
            raise ModelError(f"{where(node)} has another scale than {where(source)}, which made its integers")
        scale, zero = values
        x = source.args[0]
        for user in list(node.users):
            if user.op == "output":
                user.replace_input_with(node, x)
        if node.users:
            with self.graph.inserting_before(node):
                mark = self.graph.call_function(STATED_SCALE, (x, scale, int(zero) + BYTES[node.args[5]]))
            mark.meta = dict(node.meta)
            node.replace_all_uses_with(mark)
        self.graph.erase_node(node)

    def _check_type(self, node: Any, *, weight: bool = False) -> None:
        dtype = node.args[5 if _name(node) == "dequantize_per_tensor" else 6]
        low, high = node.args[3:5] if _name(node) == "dequantize_per_tensor" else node.args[4:6]
        if weight and dtype is torch.int32:  # a bias
            return
        if dtype not in BYTES or high - low < 200:
            raise ModelError(
                f"{where(node)} has integers from {low} to {high} of type {dtype}: programs have eight bits. Quantise "
                "with eight, or export the model in float"
            )

    def _known(self, node: Any) -> torch.Tensor:
        """Compute a node whose operands are weights or constants."""
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.module).detach()
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self._known)
        return node.target(*args, **kwargs)

    def _number(self, value: Any) -> float:
        """Return a scale or a zero point, given as a number or as a constant tensor."""
        if not isinstance(value, torch.fx.Node):
            return float(value)
        if not _is_constant(value):
            raise ModelError(
                f"{where(value)} computes a scale from the data: programs keep fixed scales. Quantise statically, or "
                "export the model in float"
            )
        return float(self._known(value))

    def _replace_weight(self, node: Any) -> None:
        key = (node.target, *map(str, node.args))
        if key not in self.weights:
            self.weights[key] = next(self._names(node))
            _set(self.module, self.weights[key], torch.nn.Parameter(self._known(node).contiguous()))
        name = self.weights[key]
        if _is_bytes(node):
            scale = node.args[1]
            found = self._known(scale) if isinstance(scale, torch.fx.Node) else torch.tensor(scale)
            self.scales[name] = found.double().reshape(-1).numpy()
        with self.graph.inserting_before(node):
            weight = self.graph.get_attr(name)
        node.replace_all_uses_with(weight)
        self.graph.erase_node(node)

    def _names(self, node: Any) -> Iterator[str]:
        """Yield names of a weight: that beside its layer's bias, then that of its integers, with a number if taken."""
        for user in node.users:
            operands = [each for each in user.args if isinstance(each, torch.fx.Node)]
            short = getattr(user.target, "__name__", "").partition(".")[0]
            if short in PRODUCTS and len(operands) == 3:
                biases = [each for each in operands if each.op == "get_attr" and each.target.endswith("bias")]
                beside = [f"{each.target.removesuffix('bias')}weight" for each in biases if each is not node]
                yield from (name for name in beside if not _has_float(self.module, name))
        source = node
        while source.op != "get_attr":
            source = source.args[0]
        yield source.target


def _is_constant(node: Any) -> bool:
    """Check for weights, constants, and what operators of quantisation make of these."""
    if node.op == "get_attr":
        return True
    return _name(node) in (*QUANTIZE, *DEQUANTIZE) and all(map(_is_constant, node.all_input_nodes))


def _is_bytes(node: Any) -> bool:
    return any(dtype in BYTES for dtype in node.args if isinstance(dtype, torch.dtype))


def _has_float(module: torch.nn.Module, name: str) -> bool:
    try:
        return bool(operator.attrgetter(name)(module).is_floating_point())
    except AttributeError:
        return False


def _set(module: torch.nn.Module, path: str, parameter: torch.nn.Parameter) -> None:
    """Give a module a parameter by its path, in place of what is there."""
    *owners, name = path.split(".")
    for owner in owners:
        if not hasattr(module, owner):
            module.add_module(owner, torch.nn.Module())
        module = getattr(module, owner)
    if hasattr(module, name):
        delattr(module, name)
    module.register_parameter(name, parameter)
