"""Recurrent layers, unrolled over time.

The products of the input with its weight are one matrix product for all steps. A layer's weights are ``W`` [directions,
gates * hidden, inputs], ``R`` [directions, gates * hidden, hidden] and ``B`` [directions, 2 * gates * hidden]: the
biases of the input's product, then those of the recurrent one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, shape_of

from .products import check_type
from .registry import Known, Node, converter, refuse

DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
"""Whether each direction of a layer runs from the end."""
ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {"relu": R.nn.relu, "sigmoid": R.sigmoid, "tanh": R.tanh}


@dataclass(frozen=True)
class _Weights:
    """The weights of one direction, transposed for products of rows."""

    of_input: Expr
    """[inputs, gates * hidden]"""
    recurrent: Expr
    """[hidden, gates * hidden]"""
    input_bias: Expr
    recurrent_bias: Expr


@dataclass(frozen=True)
class _Layer:
    """A recurrent layer over a sequence ``x`` [steps, batch, inputs]."""

    node: Node
    x: Expr
    operands: tuple[Expr, Expr, Expr | None]
    """``W``, ``R`` and ``B``."""
    from_end: Sequence[bool]
    batch_first: bool

    @property
    def hidden(self) -> int:
        return shape_of(self.operands[1])[2]

    def weights(self, direction: int) -> _Weights:
        """Return the weights of a direction."""
        w, r, b = self.operands
        of_input, recurrent = (
            self.node.emit(R.permute_dims(part(self.node, operand, direction), [1, 0])) for operand in (w, r)
        )
        gates = shape_of(recurrent)[1]
        if b is None:
            zeros = self.node.emit(R.zeros((gates,), dtype_of(w)))
            return _Weights(of_input, recurrent, zeros, zeros)
        both = part(self.node, b, direction)
        biases = (self.node.emit(R.strided_slice(both, [0], [start], [start + gates])) for start in (0, gates))
        return _Weights(of_input, recurrent, *biases)

    def state(self, given: Expr | None, direction: int) -> Expr:
        """Return the initial state [batch, hidden] of a direction; zeros by default."""
        if given is None:
            return self.node.emit(R.zeros((shape_of(self.x)[1], self.hidden), dtype_of(self.x)))
        return part(self.node, given, direction, axis=1 if self.batch_first else 0)

    def steps(self, projected: Expr, direction: int) -> list[Expr]:
        """Split the input's products [steps, batch, …] into those of each step, in the order in which they run."""
        count, *rest = shape_of(projected)
        pieces = [projected]
        if count > 1:
            whole = self.node.emit(R.split(projected, count, axis=0))
            pieces = [self.node.emit(relax.TupleGetItem(whole, index)) for index in range(count)]
        steps = [self.node.emit(R.reshape(piece, rest)) for piece in pieces]
        return steps[::-1] if self.from_end[direction] else steps

    def results(self, outputs: Sequence[Sequence[Expr]], *states: Sequence[Expr]) -> list[Expr]:
        """Join the outputs of all steps and the last states, of all directions, as ONNX orders their axes."""
        in_time = [each[::-1] if back else each for each, back in zip(outputs, self.from_end, strict=True)]
        rows = [self.node.emit(R.stack(list(each), axis=0)) for each in in_time]
        y = self.node.emit(R.stack(rows, axis=1))
        last = [self.node.emit(R.stack(list(each), axis=1 if self.batch_first else 0)) for each in states]
        return [self.node.emit(R.permute_dims(y, [2, 0, 1, 3])) if self.batch_first else y, *last]


def part(node: Node, x: Expr, index: int, axis: int = 0) -> Expr:
    """Return one position of an axis of ``x``, without that axis."""
    shape = shape_of(x)
    if shape[axis] > 1:
        x = node.emit(R.strided_slice(x, [axis], [index], [index + 1]))
    return node.emit(R.reshape(x, (*shape[:axis], *shape[axis + 1 :])))


def _layer(
    node: Node,
    x: Expr,
    operands: tuple[Expr, Expr, Expr | None],
    lengths: Known | None,
    direction: str,
    clip: float | None,
    layout: int,
) -> _Layer:
    check_type(x)
    refuse(direction not in DIRECTIONS, f"its attribute 'direction' is '{direction}'")
    refuse(clip is not None, "its attribute 'clip' is not supported")
    if layout:
        x = node.emit(R.permute_dims(x, [1, 0, 2]))
    steps = shape_of(x)[0]
    refuse(
        lengths is not None and (lengths != steps).any(),
        f"its input 'sequence_lens' has other lengths than all {steps} steps; give it sequences of one length",
    )
    return _Layer(node, x, operands, DIRECTIONS[direction], bool(layout))


def _check_activations(layer: _Layer, given: Sequence[str] | None, usual: Sequence[str]) -> None:
    wanted = [name for _ in layer.from_end for name in usual]
    refuse(given is not None and list(given) != wanted, f"its attribute 'activations' is {given}, not {wanted}")


def _split(node: Node, gates: Expr, count: int) -> list[Expr]:
    """Split gates [batch, count * hidden] into each."""
    whole = node.emit(R.split(gates, count, axis=1))
    return [node.emit(relax.TupleGetItem(whole, index)) for index in range(count)]


def _projected(layer: _Layer, weights: _Weights, bias: Expr) -> Expr:
    """Multiply the whole sequence by the input's weight."""
    return layer.node.emit(R.add(layer.node.emit(R.matmul(layer.x, weights.of_input)), bias))


@converter("LSTM")
def lstm(
    node: Node,
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr | None = None,
    lengths: Known | None = None,
    hidden: Expr | None = None,
    cell: Expr | None = None,
    peepholes: Expr | None = None,
    *,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str,
    hidden_size: int | None = None,
    layout: int = 0,
) -> list[Expr]:
    """``c = f c + i tanh(g)``, ``h = o tanh(c)`` with gates i, o, f, g; peepholes add multiples of c to i, f and o."""
    layer = _layer(node, x, (w, r, b), lengths, direction, clip, layout)
    _check_activations(layer, activations, ["Sigmoid", "Tanh", "Tanh"])
    outputs, last_hidden, last_cell = [], [], []
    for index in range(len(layer.from_end)):
        weights = layer.weights(index)
        bias = node.emit(R.add(weights.input_bias, weights.recurrent_bias))
        h, c = layer.state(hidden, index), layer.state(cell, index)
        seen = _seen(node, None if peepholes is None else part(node, peepholes, index), layer.hidden)
        made = []
        for step in layer.steps(_projected(layer, weights, bias), index):
            gates = node.emit(R.add(step, node.emit(R.matmul(h, weights.recurrent))))
            to_input, to_output, to_forget, new = _split(node, gates, 4)
            i, f = (node.emit(R.sigmoid(seen(gate, c, at))) for gate, at in ((to_input, 0), (to_forget, 2)))
            written = node.emit(R.multiply(i, node.emit(R.tanh(new))))
            c = node.emit(R.add(node.emit(R.multiply(f, c)), written))
            o = node.emit(R.sigmoid(seen(to_output, c, 1)))
            h = node.emit(R.multiply(o, node.emit(R.tanh(c))))
            made.append(h)
        outputs.append(made)
        last_hidden.append(h)
        last_cell.append(c)
    return layer.results(outputs, last_hidden, last_cell)


def _seen(node: Node, peepholes: Expr | None, hidden: int) -> Callable[[Expr, Expr, int], Expr]:
    """Return a function that adds a multiple of the cell to a gate, by peepholes [3 * hidden]."""
    if peepholes is None:
        return lambda gate, cell, at: gate
    each = [node.emit(R.strided_slice(peepholes, [0], [at * hidden], [(at + 1) * hidden])) for at in range(3)]
    return lambda gate, cell, at: node.emit(R.add(gate, node.emit(R.multiply(each[at], cell))))


@converter("GRU")
def gru(
    node: Node,
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr | None = None,
    lengths: Known | None = None,
    hidden: Expr | None = None,
    *,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str,
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> list[Expr]:
    """``h = (1 - z) n + z h`` with gates z, r and the new value n, where r multiplies h, or with
    ``linear_before_reset`` the product with h, as in PyTorch."""
    layer = _layer(node, x, (w, r, b), lengths, direction, clip, layout)
    _check_activations(layer, activations, ["Sigmoid", "Tanh"])
    outputs, last = [], []
    for index in range(len(layer.from_end)):
        weights = layer.weights(index)
        bias = weights.input_bias
        if not linear_before_reset:
            bias = node.emit(R.add(bias, weights.recurrent_bias))
            of_gates, of_new = _gates_and_new(node, weights.recurrent, layer.hidden)
        h, made = layer.state(hidden, index), []
        for step in layer.steps(_projected(layer, weights, bias), index):
            if linear_before_reset:
                product = node.emit(R.matmul(h, weights.recurrent))
                recurrent = _split(node, node.emit(R.add(product, weights.recurrent_bias)), 3)
                given = _split(node, step, 3)
                z, reset = (node.emit(R.sigmoid(R.add(given[at], recurrent[at]))) for at in (0, 1))
                new = R.add(given[2], R.multiply(reset, recurrent[2]))
            else:
                given_gates, given_new = _gates_and_new(node, step, layer.hidden)
                gates = node.emit(R.sigmoid(R.add(given_gates, R.matmul(h, of_gates))))
                z, reset = _split(node, gates, 2)
                new = R.add(given_new, R.matmul(R.multiply(reset, h), of_new))
            n = node.emit(R.tanh(node.emit(new)))
            h = node.emit(R.add(n, R.multiply(z, R.subtract(h, n))))
            made.append(h)
        outputs.append(made)
        last.append(h)
    return layer.results(outputs, last)


def _gates_and_new(node: Node, x: Expr, hidden: int) -> list[Expr]:
    """Part columns [.., 3 * hidden] into those of a GRU's two gates, and those of its new value."""
    bounds = ((0, 2 * hidden), (2 * hidden, 3 * hidden))
    return [node.emit(R.strided_slice(x, [1], [start], [end])) for start, end in bounds]


@converter("RNN")
def rnn(
    node: Node,
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr | None = None,
    lengths: Known | None = None,
    hidden: Expr | None = None,
    *,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str,
    hidden_size: int | None = None,
    layout: int = 0,
) -> list[Expr]:
    """``h = f(x W + h R + b)`` with one activation a direction."""
    layer = _layer(node, x, (w, r, b), lengths, direction, clip, layout)
    names = [name.lower() for name in activations or ["Tanh"] * len(layer.from_end)][: len(layer.from_end)]
    refuse(not ACTIVATIONS.keys() >= set(names), f"its attribute 'activations' is {activations}")
    outputs, last = [], []
    for index, name in enumerate(names):
        weights = layer.weights(index)
        bias = node.emit(R.add(weights.input_bias, weights.recurrent_bias))
        h, made = layer.state(hidden, index), []
        for step in layer.steps(_projected(layer, weights, bias), index):
            h = node.emit(ACTIVATIONS[name](node.emit(R.add(step, R.matmul(h, weights.recurrent)))))
            made.append(h)
        outputs.append(made)
        last.append(h)
    return layer.results(outputs, last)
