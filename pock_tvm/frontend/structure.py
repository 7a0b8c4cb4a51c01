"""Structure of a network, read from its graph: layers, block boundaries, and the role of each parameter."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import tvm
from tvm import relax

from relay_passes.analysis.macs import macs_of, multiplies_weight
from relay_passes.canonical.canonicalise import move_channels_last, unify_operators
from relay_passes.ir import Expr, bindings_of, op_name, operands, shape_of, used_vars
from relay_passes.operators.record import Kind, kind_of
from relay_passes.operators.registry import plain

from . import Model


@dataclass(frozen=True)
class Channels:
    """The input channels of a weight, in PyTorch's layout.

    A weight has ``count`` channels along ``axis``. In a depthwise weight a channel is a group: ``per_channel`` adjacent
    output channels along axis 0. The channels of an embedding are its rows: it is a linear layer on one-hot inputs.
    """

    axis: int
    count: int
    per_channel: int = 1
    read: tuple[int, ...] = ()
    """Rows of an embedding that the data reads, most frequent first, if known; ratios refer to these."""

    def count_at(self, ratio: float) -> int:
        """Return the number of channels that a ratio trains, rounded up."""
        return math.ceil(ratio * (len(self.read) or self.count) - 1e-9)

    def indices(self, channels: Sequence[int]) -> tuple[int, ...]:
        """Return the positions of channels along ``axis``."""
        return tuple(channel * self.per_channel + offset for channel in channels for offset in range(self.per_channel))

    def norms(self, weight: np.ndarray) -> np.ndarray:
        """Compute the L1 norm of each channel of a weight."""
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
    """Multiply-adds of one forward pass."""
    position: int
    """Index of its binding in the graph."""


@dataclass(frozen=True)
class Structure:
    """Layers and parameters of a network, in execution order. Positions are indices of bindings in the graph."""

    layers: tuple[Layer, ...]
    roles: dict[str, str]
    """Role of each parameter: ``weight``, ``bias``, ``scale``, ``embedding`` or ``other``."""
    channels: dict[str, Channels]
    """Input channels of the weights that can be trained in part."""
    first_use: dict[str, int]
    """Position at which each parameter is first read."""
    attentions: tuple[int, ...] = ()
    """Position of the first linear layer of each attention."""
    joins: tuple[int, ...] = ()
    """Positions at which two branches of activations are added: the ends of residual blocks."""
    look_ups: dict[str, str] = field(default_factory=dict)
    """For each embedding that an input of the network indexes, the name of that input."""

    def reading(self, rows: Mapping[str, Sequence[int]]) -> Structure:
        """Return the structure with ``read`` of embeddings set to these rows."""
        known = {name: replace(self.channels[name], read=tuple(rows[name])) for name in rows if name in self.channels}
        return replace(self, channels=self.channels | known)

    def head(self) -> Layer | None:
        """Return the last layer of the network; None without layers."""
        return max(self.layers, key=lambda layer: layer.position, default=None)

    def parameters_from(self, position: int) -> list[str]:
        """List the parameters first read at ``position`` or later."""
        return [name for name, at in self.first_use.items() if at >= position]

    def head_parameters(self) -> list[str]:
        """List the last layer's weight, which may be tied to an embedding, and the parameters first read behind it."""
        head = self.head()
        if head is None:
            return []
        return [head.weight, *(name for name in self.parameters_from(head.position) if name != head.weight)]

    def of_role(self, role: str) -> list[str]:
        """List the parameters of a role (``bias``, ``scale``, ``embedding``) in front of the head, by first use."""
        head = self.head_parameters()
        names = [name for name in self.first_use if self.roles.get(name) == role and name not in head]
        return sorted(names, key=self.first_use.__getitem__)


def inputs_of(func: relax.Function, count: int) -> dict[relax.Var, str]:
    """Map a network's inputs (its first ``count`` parameters), reshaped, cast or broadcast too, to their names."""
    names = {param: param.name for param in func.params[:count]}
    for binding in bindings_of(func):
        value = binding.value
        if (kind_of(value) is Kind.RESHAPE or op_name(value) in ("relax.astype", "relax.broadcast_to")) and value.args[
            0
        ] in names:
            names[binding.var] = names[value.args[0]]
    return names


_CACHE: weakref.WeakKeyDictionary[Model, Structure] = weakref.WeakKeyDictionary()


def structure_of(model: Model) -> Structure:
    """Read the structure of a model; cached by model."""
    if model not in _CACHE:
        canonical = tvm.transform.Sequential([*unify_operators(), *move_channels_last()])(model.module)
        _CACHE[model] = _Reader(model, canonical["main"]).read()
    return _CACHE[model]


@dataclass
class _Reader:
    model: Model
    func: relax.Function
    behind: dict[relax.Var, tuple[str, tuple[int | None, ...]]] = field(default_factory=dict)
    """For each view of a parameter, its name and the parameter's axis behind each axis of the view."""
    sources: dict[relax.Var, tuple[frozenset[int], bool]] = field(default_factory=dict)
    """For each activation, positions of the nearest layers before it, and whether a product of activations follows
    them."""

    def read(self) -> Structure:
        parameters = set(self.model.trainable)
        shapes = {name: self.model.parameters[name].shape for name in parameters}
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
                own = _channels(value, operand, shape_of(arg), axes, layer)
                if own is not None and own.per_channel == 1:
                    own = replace(own, count=shapes[name][own.axis])
                channels[name] = own if channels.get(name, own) == own else None
                by = inputs.get(value.args[1]) if op_name(value) == "relax.take" else None
                look_ups[name] = by if look_ups.get(name, by) == by else None
            self.sources[binding.var] = self._source(value, [layer.position for layer in layers[-1:]], position)
            if op_name(value) in ("relax.nn.softmax", "pock.safe_softmax"):
                nearest, is_attention = self.sources[binding.var]
                attentions += [min(nearest)] if is_attention and nearest else []
            if op_name(value) == "relax.add" and all(_is_activation(arg, self.behind) for arg in value.args):
                joins.append(position)
        usable = {name: own for name, own in channels.items() if own is not None}
        known = {name: by for name, by in look_ups.items() if by is not None and name in usable}
        return Structure(tuple(layers), roles, usable, first_use, tuple(attentions), tuple(joins), known)

    def _source(self, value: Expr, last_layer: list[int], position: int) -> tuple[frozenset[int], bool]:
        if last_layer == [position]:
            return frozenset(last_layer), False
        before = [self.sources[var] for var in used_vars(value) if var in self.sources]
        nearest = frozenset().union(*(positions for positions, _ in before))
        return nearest, op_name(value) == "pock.matmul" or any(multiplied for _, multiplied in before)

    def _is_view(self, binding: relax.VarBinding) -> bool:
        """Check for a view of a parameter (transpose, axes of extent 1 added or removed, the taps in depth of a volume
        joined with its channels), and record it."""
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
            if len(shape_of(source)) == 5 and shape == _with_depth_in_channels(shape_of(source)):
                self.behind[binding.var] = (parameter, (*axes[:2], *axes[3:]))
                return True
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


def _with_depth_in_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a volume's weight [O, C, T, R, S] as it is read: [O, C * T, R, S]."""
    outputs, channels, taps, *window = shape
    return (outputs, channels * taps, *window)


def _channels(
    value: relax.Call, operand: int, shape: tuple[int, ...], axes: tuple[int | None, ...], layer: Layer | None
) -> Channels | None:
    """Find the input channels of a weight at a use, along the parameter's own axis; None if it has none."""
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
        if len(shape) != 2:
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
