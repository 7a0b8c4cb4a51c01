"""Finds the products of the frozen prefix that can be computed in eight bits, and what stands between them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tvm import relax

from schedules.kernels.quantized import WORD

from ..ir import Expr, bindings_of, constant_vars, is_float, op_name, returned, shape_of, used_vars
from ..ir.places import places_of
from ..operators import training  # noqa: F401 - the records of its operators
from ..operators.random import DRAWS
from ..operators.registry import plain

CONVOLUTION, DEPTHWISE, MATMUL, MEAN = "conv2d", "depthwise", "matmul", "mean"


@dataclass(frozen=True)
class Layer:
    """A product with a frozen weight, and what is fused with it; or a mean of what such a layer computes."""

    name: str
    """Path of the module that owns the weight, or computes the mean."""
    parameter: str
    """Parameter that the weight is made of, the largest if of several; empty of a mean."""
    kind: str
    product: relax.Var
    x: relax.Var
    weight: Expr | None
    """None of a mean."""
    result: relax.Var
    """Value behind bias, residual and activation."""
    bias: relax.Var | None = None
    other: relax.Var | None = None
    """Residual that is added, behind the bias."""
    inside: tuple[relax.Var, ...] = ()
    """Values between product and result."""


@dataclass
class FrozenPrefix:
    """Layers of a function that can be computed in eight bits."""

    layers: dict[relax.Var, Layer] = field(default_factory=dict)
    """By the product."""
    floats: dict[str, str] = field(default_factory=dict)
    """Layers of the prefix that stay float, with the reason."""
    eight_bits: set[relax.Var] = field(default_factory=set)
    """Values that layers read: they are stored in eight bits."""
    in_float: set[relax.Var] = field(default_factory=set)
    """Those of them that others read, too."""

    def requantizes(self, layer: Layer) -> bool:
        """Return whether a layer's result is stored in eight bits."""
        return layer.result in self.eight_bits


def frozen_prefix(
    func: relax.Function, trained: Collection[str], excluded: Mapping[str, str] = MappingProxyType({})
) -> FrozenPrefix:
    """Analyse a dataflow function in canonical form: channels last, batch norms folded.

    The prefix are the values that depend on an input (the first ``num_input`` parameters), on no ``trained`` parameter
    and on no number that a step draws, which calibration does not see. No gradient passes there. ``excluded``: layers
    that stay float, with the reason.
    """
    return _Analysis(func, trained, excluded).prefix()


class _Analysis:
    def __init__(self, func: relax.Function, trained: Collection[str], excluded: Mapping[str, str]) -> None:
        self.bindings = bindings_of(func)
        self.places = places_of(func)
        self.excluded = excluded
        self.results = {each for each in returned(func) if isinstance(each, relax.Var)}
        self.readers: dict[relax.Var, list[relax.VarBinding]] = defaultdict(list)
        for binding in self.bindings:
            for var in used_vars(binding.value):
                self.readers[var].append(binding)
        inputs = list(func.params[: int(func.attrs["num_input"])])
        frozen = [each.name for each in func.params if each not in inputs and each.name not in trained]
        self.constant = constant_vars(func, frozen)
        self.roots: dict[relax.Var, frozenset[relax.Var]] = {
            param: frozenset([param]) for param in func.params if param in self.constant
        }
        for binding in self.bindings:
            if binding.var in self.constant:
                read = used_vars(binding.value)
                self.roots[binding.var] = frozenset().union(*(self.roots[each] for each in read))
        reached = set(inputs)
        late = {each for each in func.params if each.name in trained}
        for binding in self.bindings:
            read = used_vars(binding.value)
            if op_name(binding.value) in DRAWS or any(each in late for each in read):
                late.add(binding.var)
            elif any(each in reached for each in read):
                reached.add(binding.var)
        self.early = reached - set(inputs) | {each for each in inputs if is_float(each)}

    def prefix(self) -> FrozenPrefix:
        """Find the layers, and what stays float."""
        found = FrozenPrefix()
        claimed: set[relax.Var] = set()
        for binding in reversed(self.bindings):  # of two products that are added, the later adds the other
            if binding.var not in self.early or not self._has_weight(binding.value):
                continue
            name, parameter = self._names(binding)
            kind, why = self._kind(binding.value)
            why = self.excluded.get(name, why)
            if why:
                found.floats[name] = why
            else:
                found.layers[binding.var] = self._layer(name, parameter, kind, binding, claimed)
        found.layers = dict(reversed(found.layers.items()))
        found.floats = dict(reversed(found.floats.items()))
        self._leave_odd_channels(found)
        self._mark_stored(found)
        self._add_means(found)
        self._mark_in_float(found)
        return found

    def _has_weight(self, value: Expr) -> bool:
        if op_name(value) not in ("relax.nn.conv2d", "pock.matmul") or not is_float(value):
            return False
        weight = value.args[1]
        is_constant = isinstance(weight, relax.Var) and weight in self.constant
        return is_constant and isinstance(value.args[0], relax.Var) and value.args[0] in self.early

    def _names(self, product: relax.VarBinding) -> tuple[str, str]:
        """Return the path of the module that owns a product's weight, and the largest parameter that it is made of."""
        weights = self.roots[product.value.args[1]]
        largest = max(weights, key=lambda each: math.prod(shape_of(each)), default=None)
        if largest is None:
            return self.places[product.var].layer, ""
        return largest.name.rpartition(".")[0] or largest.name, largest.name

    def _kind(self, call: relax.Call) -> tuple[str, str]:
        """Return a product's kind, or why it stays float."""
        if op_name(call) == "pock.matmul":
            is_plain = not (call.attrs["transpose_a"] or call.attrs["transpose_b"]) and len(shape_of(call.args[1])) == 2
            return MATMUL, "" if is_plain else "its weight is not one matrix"
        if (call.attrs.data_layout, call.attrs.kernel_layout) != ("NHWC", "HWIO"):
            return CONVOLUTION, "its channels are not last"
        *_, per_group, columns = shape_of(call.args[1])
        groups = int(call.attrs.groups)
        if groups == 1:
            return CONVOLUTION, ""
        is_depthwise = per_group == 1 and groups == columns
        return DEPTHWISE, "" if is_depthwise else "it is a convolution in groups, and not depthwise"

    def _layer(self, name: str, parameter: str, kind: str, binding: relax.VarBinding, claimed: set[relax.Var]) -> Layer:
        x, weight = binding.value.args
        chain, bias, other = [binding.var], None, None
        following = self._only_reader(chain[-1], claimed)
        if following is not None and (vector := self._bias_of(following.value, chain[-1])) is not None:
            bias = vector
            chain.append(following.var)
            following = self._only_reader(chain[-1], claimed)
        if following is not None and (residual := self._residual_of(following.value, chain[-1])) is not None:
            other = residual
            chain.append(following.var)
            following = self._only_reader(chain[-1], claimed)
        if following is not None and _is_clip(following.value):
            chain.append(following.var)
        claimed.update(chain)
        return Layer(name, parameter, kind, binding.var, x, weight, chain[-1], bias, other, tuple(chain[1:-1]))

    def _only_reader(self, var: relax.Var, claimed: set[relax.Var]) -> relax.VarBinding | None:
        """Return the binding that alone reads a value, unless it is another layer's or behind the prefix."""
        readers = self.readers[var]
        if len(readers) != 1 or var in self.results:
            return None
        (reader,) = readers
        return reader if reader.var in self.early and reader.var not in claimed else None

    def _bias_of(self, value: Expr, sums: relax.Var) -> relax.Var | None:
        """Return the vector that is added to ``sums``."""
        if op_name(value) != "relax.add":
            return None
        other = value.args[1] if value.args[0].same_as(sums) else value.args[0]
        if not isinstance(other, relax.Var) or other not in self.constant:
            return None
        *outer, columns = shape_of(other) or (1,)
        return other if math.prod(outer) == 1 and columns == shape_of(sums)[-1] else None

    def _residual_of(self, value: Expr, own: relax.Var) -> relax.Var | None:
        if op_name(value) != "relax.add":
            return None
        left, right = value.args
        other = right if left.same_as(own) else left
        fits = isinstance(other, relax.Var) and other in self.early and not other.same_as(own)
        return other if fits and shape_of(other) == shape_of(own) and shape_of(own)[-1] % WORD == 0 else None

    def _leave_odd_channels(self, found: FrozenPrefix) -> None:
        """Leave layers float that read what layers compute, of a number of channels that is no multiple of a word: only
        what is quantised from float is padded."""
        results = {each.result for each in found.layers.values()}
        for product, layer in list(found.layers.items()):
            is_odd = shape_of(layer.x)[-1] % WORD != 0
            if is_odd and (layer.x in results or layer.kind == DEPTHWISE):
                del found.layers[product]
                found.floats[layer.name] = f"its input channels are no multiple of {WORD}"

    def _mark_stored(self, found: FrozenPrefix) -> None:
        """Find the values to store in eight bits."""
        eight = found.eight_bits
        eight.update(each.x for each in found.layers.values())
        before = -1
        while before != len(eight):
            before = len(eight)
            eight.update(
                each.other for each in found.layers.values() if each.other is not None and found.requantizes(each)
            )
            eight.update(
                binding.value.args[0]
                for binding in self.bindings
                if binding.var in eight and _is_pooling(binding.value)
            )

    def _add_means(self, found: FrozenPrefix) -> None:
        """Add the means of values that are stored in eight bits, or that a layer can store so for the mean alone.

        A layer with a residual can if that is stored in eight bits anyway: for a mean alone, the residuals of all
        blocks of a transformer would be rounded.
        """
        eight, layers = found.eight_bits, {each.result: each for each in found.layers.values()}
        for binding in self.bindings:
            if binding.var not in self.early or not _is_global_mean(binding.value):
                continue
            x = binding.value.args[0]
            layer = layers.get(x)
            is_alone = len(self.readers[x]) == 1 and x not in self.results
            if x in eight or (layer is not None and is_alone and (layer.other is None or layer.other in eight)):
                place = self.places[binding.var]
                name = place.layer or place.operator
                if name in self.excluded:
                    found.floats[name] = self.excluded[name]
                else:
                    found.layers[binding.var] = Layer(name, "", MEAN, binding.var, x, None, binding.var)
                    eight.add(x)

    def _mark_in_float(self, found: FrozenPrefix) -> None:
        """Find the values in eight bits that others read, too."""
        eight = found.eight_bits
        inside = {
            (each.other, var)
            for each in found.layers.values()
            if found.requantizes(each)
            for var in (*each.inside, each.result)
        }
        for var in eight:
            others = [
                binding
                for binding in self.readers[var]
                if binding.var not in found.layers
                and (var, binding.var) not in inside
                and not (_is_pooling(binding.value) and binding.var in eight)
            ]
            if others or var in self.results:
                found.in_float.add(var)


def _is_pooling(value: Expr) -> bool:
    """Return whether a value is a maximum of windows, which eight bits keep."""
    return op_name(value) == "relax.nn.max_pool2d" and str(value.attrs.layout) == "NHWC"


def _is_global_mean(value: Expr) -> bool:
    """Return whether a value is the mean over all axes between the first and the last, of whole words of channels."""
    if op_name(value) != "relax.mean" or not is_float(value) or value.attrs.axis is None:
        return False
    extents = shape_of(value.args[0])
    axes = sorted(axis % len(extents) for axis in plain(value.attrs.axis))
    return axes == list(range(1, len(extents) - 1)) and bool(axes) and extents[-1] % WORD == 0


def _is_clip(value: Expr) -> bool:
    """Return whether a value is clipped to a range around 0, which the range of its eight bits implies."""
    name = op_name(value)
    if name == "relax.nn.relu":
        return True
    if name == "pock.hardtanh":
        return float(value.attrs["low"]) <= 0 <= float(value.attrs["high"])
    if name == "relax.clip":
        low, high = (float(plain(each.value if hasattr(each, "value") else each)) for each in value.args[1:])
        return low <= 0 <= high
    return False
