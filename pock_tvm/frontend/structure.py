"""Reads the structure of a network off its graph: layers, blocks, and what each parameter is for."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import tvm
from tvm import relax

from relay_passes.analysis.macs import macs_of, multiplies_weight
from relay_passes.canonical.canonicalise import canonicalise
from relay_passes.ir import Expr, bindings_of, op_name, operands, shape_of, used_vars
from relay_passes.operators.record import Kind, kind_of
from relay_passes.operators.registry import plain

from . import Model


@dataclass(frozen=True)
class Channels:
    """The input channels of a weight, as PyTorch lays the weight out.

    A ratio trains some of ``count`` channels along ``axis``. In a depthwise weight a channel is a group:
    ``per_channel`` output channels next to each other along axis 0. Those of an embedding are its rows: it is a linear
    layer that reads one of so many inputs.
    """

    axis: int
    count: int
    per_channel: int = 1
    read: tuple[int, ...] = ()
    """Of an embedding, where the data is known, the rows that it reads, most often read first: no other is trained."""

    def count_at(self, ratio: float) -> int:
        """Return the number of channels that a ratio trains, rounded up."""
        return math.ceil(ratio * (len(self.read) or self.count) - 1e-9)

    def indices(self, channels: Sequence[int]) -> tuple[int, ...]:
        """The positions along ``axis`` that belong to the given channels."""
        return tuple(channel * self.per_channel + offset for channel in channels for offset in range(self.per_channel))

    def norms(self, weight: np.ndarray) -> np.ndarray:
        """The L1 norm of each channel of a weight."""
        along = np.abs(np.moveaxis(weight, self.axis, 0)).reshape(weight.shape[self.axis], -1).sum(axis=1)
        return along.reshape(self.count, self.per_channel).sum(axis=1)


@dataclass(frozen=True)
class Layer:
    """A product with a weight: a convolution or a linear layer."""

    weight: str
    kind: str
    """``1x1``, ``conv``, ``depthwise`` or ``linear``."""
    kernel: tuple[int, int]
    macs: int
    """Multiplications of one forward pass."""
    position: int
    """Where in the graph it runs."""


@dataclass(frozen=True)
class Structure:
    """What a network is made of, in the order in which it runs."""

    layers: tuple[Layer, ...]
    roles: dict[str, str]
    """For each parameter: weight, bias, scale, embedding or other."""
    channels: dict[str, Channels]
    """The input channels of every weight that can be trained in part."""
    first_use: dict[str, int]
    """Where in the graph each parameter is first read."""
    attentions: tuple[int, ...] = ()
    """Where in the graph the first linear layer of each attention runs."""
    joins: tuple[int, ...] = ()
    """Where in the graph two branches of activations are added: the ends of residual blocks."""
    look_ups: dict[str, str] = field(default_factory=dict)
    """For each embedding in which an input of the network is looked up the name of that input."""

    def reading(self, rows: Mapping[str, Sequence[int]]) -> Structure:
        """The same, for data that reads these rows of embeddings, most often read first."""
        known = {name: replace(self.channels[name], read=tuple(rows[name])) for name in rows if name in self.channels}
        return replace(self, channels=self.channels | known)

    def head(self) -> Layer | None:
        """The last layer of the network; None where nothing is multiplied by a weight."""
        return max(self.layers, key=lambda layer: layer.position, default=None)

    def parameters_from(self, position: int) -> list[str]:
        """The parameters first read at ``position`` or later."""
        return [name for name, at in self.first_use.items() if at >= position]

    def head_parameters(self) -> list[str]:
        """The weight of the last layer, which may be tied to an embedding, and everything first read behind it."""
        head = self.head()
        if head is None:
            return []
        return [head.weight, *(name for name in self.parameters_from(head.position) if name != head.weight)]

    def of_role(self, role: str) -> list[str]:
        """The parameters of a role (``bias``, ``scale``, ``embedding``) in front of the head, in the order of their
        first use."""
        head = self.head_parameters()
        found = [name for name in self.first_use if self.roles.get(name) == role and name not in head]
        return sorted(found, key=self.first_use.__getitem__)


def inputs_of(func: relax.Function, count: int) -> dict[relax.Var, str]:
    """The names of a network's inputs, its first ``count`` parameters, for each of them in whatever shape or type."""
    found = {param: param.name for param in func.params[:count]}
    for binding in bindings_of(func):
        value = binding.value
        if (kind_of(value) is Kind.RESHAPE or op_name(value) in ("relax.astype", "relax.broadcast_to")) and value.args[
            0
        ] in found:
            found[binding.var] = found[value.args[0]]
    return found


_KNOWN: weakref.WeakKeyDictionary[Model, Structure] = weakref.WeakKeyDictionary()


def structure_of(model: Model) -> Structure:
    """The structure of a model; one that is known is not read again."""
    if model not in _KNOWN:
        _KNOWN[model] = _Reader(model, tvm.transform.Sequential(canonicalise())(model.module)["main"]).read()
    return _KNOWN[model]


@dataclass
class _Reader:
    model: Model
    func: relax.Function
    behind: dict[relax.Var, tuple[str, tuple[int | None, ...]]] = field(default_factory=dict)
    """For each view of a parameter its name, and which of the parameter's axes each axis of the view is."""
    sources: dict[relax.Var, tuple[frozenset[int], bool]] = field(default_factory=dict)
    """For each activation the positions of the nearest layers before it, and whether activations were multiplied
    since."""

    def read(self) -> Structure:
        parameters = set(self.model.parameters)
        self.behind = {
            param: (param.name, tuple(range(len(shape_of(param)))))
            for param in self.func.params
            if param.name in parameters
        }
        inputs = inputs_of(self.func, len(self.model.inputs))
        layers: list[Layer] = []
        channels: dict[str, Channels | None] = {}
        look_ups: dict[str, str | None] = {}
        roles: dict[str, str] = {}
        first_use: dict[str, int] = {}
        attentions, joins = [], []
        for position, binding in enumerate(bindings_of(self.func)):
            value = binding.value
            for var in used_vars(value):
                if var in self.behind:
                    first_use.setdefault(self.behind[var][0], position)
            if self._is_view(binding):
                continue
            for operand, _, arg in operands(value):
                if not isinstance(arg, relax.Var) or arg not in self.behind:
                    continue
                name, axes = self.behind[arg]
                roles.setdefault(name, _role(value, operand))
                layer = self._layer(value, operand, name, position)
                if layer is not None:
                    layers.append(layer)
                found = _channels(value, operand, shape_of(arg), axes, layer)
                channels[name] = found if channels.get(name, found) == found else None
                by = inputs.get(value.args[1]) if op_name(value) == "relax.take" else None
                look_ups[name] = by if look_ups.get(name, by) == by else None
            self.sources[binding.var] = self._source(value, [layer.position for layer in layers[-1:]], position)
            if op_name(value) in ("relax.nn.softmax", "pock.safe_softmax"):
                nearest, is_attention = self.sources[binding.var]
                attentions += [min(nearest)] if is_attention and nearest else []
            if op_name(value) == "relax.add" and all(_is_activation(arg, self.behind) for arg in value.args):
                joins.append(position)
        usable = {name: found for name, found in channels.items() if found is not None}
        known = {name: by for name, by in look_ups.items() if by is not None and name in usable}
        return Structure(tuple(layers), roles, usable, first_use, tuple(attentions), tuple(joins), known)

    def _source(self, value: Expr, last_layer: list[int], position: int) -> tuple[frozenset[int], bool]:
        if last_layer == [position]:
            return frozenset(last_layer), False
        before = [self.sources[var] for var in used_vars(value) if var in self.sources]
        nearest = frozenset().union(*(positions for positions, _ in before))
        return nearest, op_name(value) == "pock.matmul" or any(multiplied for _, multiplied in before)

    def _is_view(self, binding: relax.VarBinding) -> bool:
        """Follow a parameter through transposes and added axes."""
        value = binding.value
        name = op_name(value)
        if kind_of(value) is not Kind.RESHAPE and name != "relax.permute_dims" and not isinstance(value, relax.Var):
            return False
        source = value if isinstance(value, relax.Var) else value.args[0]
        if source not in self.behind:
            return False
        parameter, axes = self.behind[source]
        if name == "relax.permute_dims":
            order = plain(value.attrs.axes) or tuple(reversed(range(len(axes))))
            self.behind[binding.var] = (parameter, tuple(axes[axis] for axis in order))
        elif kind_of(value) is Kind.RESHAPE:
            before = [axis for axis, extent in zip(axes, shape_of(source), strict=True) if extent != 1]
            longer = iter(before)
            shape = shape_of(binding.var)
            if [extent for extent in shape if extent != 1] != [extent for extent in shape_of(source) if extent != 1]:
                return False
            self.behind[binding.var] = (parameter, tuple(None if extent == 1 else next(longer) for extent in shape))
        else:
            self.behind[binding.var] = self.behind[source]
        return True

    def _layer(self, value: relax.Call, operand: int, name: str, position: int) -> Layer | None:
        if operand != 1 or not multiplies_weight(value):
            return None
        weight, macs = shape_of(value.args[1]), macs_of(value)
        if op_name(value) == "pock.matmul":
            return Layer(name, "linear", (1, 1), macs, position)
        kernel = (weight[0], weight[1])
        if op_name(value) == "pock.conv2d_data_gradient":
            return Layer(name, "conv", kernel, macs, position)
        depthwise = weight[2] == 1 and int(value.attrs.groups) > 1
        return Layer(name, "depthwise" if depthwise else "1x1" if kernel == (1, 1) else "conv", kernel, macs, position)


def _channels(
    value: relax.Call, operand: int, shape: tuple[int, ...], axes: tuple[int | None, ...], layer: Layer | None
) -> Channels | None:
    """The input channels of a weight where it is read, along its own axis; None where there are none."""
    if op_name(value) == "relax.take" and operand == 0 and len(shape) == 2 and value.attrs.axis is not None:
        axis = int(value.attrs.axis) % 2
        own = axes[axis]
        return None if own is None else Channels(own, shape[axis])
    if layer is None or op_name(value) == "pock.conv2d_data_gradient":
        return None
    if layer.kind == "depthwise":
        groups = int(value.attrs.groups)
        return None if axes[3] is None else Channels(axes[3], groups, shape[3] // groups)
    if layer.kind == "linear":
        axis = len(shape) - (1 if value.attrs["transpose_b"] else 2)
        if len(shape) != 2 or value.attrs["transpose_a"]:
            return None
    else:
        axis = 2
    own = axes[axis]
    return None if own is None else Channels(own, shape[axis])


def _role(value: relax.Call, operand: int) -> str:
    name = op_name(value)
    if operand == 1 and multiplies_weight(value):
        return "weight"
    if name in ("relax.take", "relax.index_tensor"):
        return "embedding"
    if name == "relax.nn.batch_norm":
        return {1: "scale", 2: "bias"}.get(operand, "other")
    if name in ("relax.add", "relax.subtract"):
        return "bias"
    return "scale" if name == "relax.multiply" else "other"


def _is_activation(arg: Expr, behind: dict[relax.Var, tuple[str, tuple[int | None, ...]]]) -> bool:
    return isinstance(arg, relax.Var) and arg not in behind and len(shape_of(arg)) > 1
