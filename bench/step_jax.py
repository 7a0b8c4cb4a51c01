"""JAX as a peer of `train_step.py`: the exported network, operator by operator, jitted with its gradient and update.

Covers the operators of image networks. Batch norms are folded; the layouts are XLA's fastest on a CPU (NHWC, HWIO).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from step_models import NETWORKS, arguments
from step_workers import LR, MOMENTUM, Job, System, folded

Array = jax.Array


def conv2d(
    x: Array,
    w: Array,
    bias: Array | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Array:
    """A convolution; the weight is HWIO."""
    y = lax.conv_general_dilated(
        x,
        w,
        stride,
        [(p, p) for p in padding],
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y if bias is None else y + bias


def max_pool2d(x: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] = (0, 0)) -> Array:
    """Max pooling."""
    pads = [(0, 0), *((p, p) for p in padding), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *kernel, 1), (1, *stride, 1), pads)


def pad(x: Array, widths: Sequence[int], mode: str = "constant", value: float = 0.0) -> Array:
    """Padding of height and width by a constant; ``widths`` as PyTorch gives them, the last axis first."""
    left, right, top, bottom = widths
    return jnp.pad(x, [(0, 0), (top, bottom), (left, right), (0, 0)], mode, constant_values=value)


def mean(x: Array, axes: Sequence[int], keepdim: bool = False) -> Array:
    """The mean over height and width."""
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise NotImplementedError(f"a mean over {axes}")
    return x.mean((1, 2), keepdims=keepdim)


OPERATORS: dict[str, Callable[..., Array]] = {
    "aten.conv2d.default": conv2d,
    "aten.max_pool2d.default": max_pool2d,
    "aten.pad.default": pad,
    "aten.mean.dim": mean,
    "aten.adaptive_avg_pool2d.default": lambda x, size: x.mean((1, 2), keepdims=True),  # to one pixel
    "aten.flatten.using_ints": lambda x, start: x.reshape(len(x), -1),  # of one pixel: the layout does not matter
    "aten.linear.default": lambda x, w, b: x @ w.T + b,
    "aten.hardtanh.default": jnp.clip,
    "aten.relu.default": jax.nn.relu,
    "aten.add.Tensor": jnp.add,
    "aten.add_.Tensor": jnp.add,
    "aten.dropout_.default": lambda x, p, train: x,
}


class Jax(System):
    """The network in JAX."""

    def __init__(self, job: Job) -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])  # XLA starts a thread for each
        net = NETWORKS[job["model"]]
        inputs, target = net.data(job["batch"])
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        model = net.build()
        trained = folded(model, set(job["trained"]), tensors)
        graph = torch.export.export(model, *arguments(model, tensors), strict=False)
        for node in graph.graph.nodes:
            if node.op == "call_function" and str(node.target) not in OPERATORS:
                raise NotImplementedError(f"bench/step_jax.py has no {node.target}")
        weights = {name: _layout(tensor.detach().numpy(), (2, 3, 1, 0)) for name, tensor in graph.state_dict.items()}
        self._frozen = {name: array for name, array in weights.items() if name not in trained}
        self._weights = {name: array for name, array in weights.items() if name in trained}
        self._momentum = jax.tree.map(jnp.zeros_like, self._weights)
        self._data = [_layout(array, (0, 2, 3, 1)) for array in inputs.values()], jnp.asarray(target)
        step = jax.jit(_training_step(graph), donate_argnums=(0, 1))
        self._step = step.lower(self._weights, self._momentum, self._frozen, *self._data).compile()
        self.info: dict[str, Any] = {}

    def step(self) -> float:
        """One call of the compiled step."""
        results = self._step(self._weights, self._momentum, self._frozen, *self._data)
        self._weights, self._momentum, loss = jax.block_until_ready(results)
        return float(loss)

    def train_bytes(self) -> int:
        """The momentum, and XLA's temporaries."""
        momentum = sum(array.nbytes for array in self._momentum.values())
        return momentum + self._step.memory_analysis().temp_size_in_bytes


def _layout(array: Any, axes: tuple[int, ...]) -> Array:
    return jnp.asarray(array.transpose(axes) if array.ndim == 4 else array)


def _training_step(graph: torch.export.ExportedProgram) -> Callable[..., Any]:
    """One step of SGD with momentum on the cross-entropy of the network's output."""
    targets = {spec.arg.name: spec.target for spec in graph.graph_signature.input_specs}

    def network(weights: dict[str, Array], inputs: Sequence[Array]) -> Array:
        values, unused = {}, iter(inputs)
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(unused) if targets[node.name] is None else weights[targets[node.name]]
            elif node.op == "call_function":
                args = torch.fx.map_arg(node.args, values.__getitem__)
                values[node] = OPERATORS[str(node.target)](*args)
            else:
                return values[node.args[0][0]]
        raise ValueError("the graph has no output")

    def loss(trained: Any, frozen: Any, inputs: Any, target: Any) -> Array:
        scores = jax.nn.log_softmax(network(trained | frozen, inputs))
        return -jnp.take_along_axis(scores, target[:, None], 1).mean()

    def step(trained: Any, momentum: Any, frozen: Any, inputs: Any, target: Any) -> tuple[Any, Any, Array]:
        value, gradients = jax.value_and_grad(loss)(trained, frozen, inputs, target)
        momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, gradients)
        return jax.tree.map(lambda w, m: w - LR * m, trained, momentum), momentum, value

    return step
