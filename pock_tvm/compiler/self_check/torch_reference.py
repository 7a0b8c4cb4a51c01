"""PyTorch as the reference: runs the exported program's own graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from ...device.losses import Loss
from ...frontend.custom_loss import CustomLoss
from ...frontend.draws import DRAWS
from ...frontend.torch_graph import has_regions
from ...frontend.torch_loss import value_of
from ...frontend.torch_precision import with_types
from ...frontend.torch_random import uses_draws
from .agreement import relative_difference
from .measured import Batch, Measured, Weights

RANDOM_DIFFERENCE = 1e-4
"""Relative difference of two runs above which a value is random: rounding stays below."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SINGLE_THREAD_FLOPS = 1e9
"""FLOPs of a forward pass below which one thread is used: synchronising more, on shared cores, costs more time than
they save."""
TRAINING_FLAG = 5
"""The position of ``training`` among the arguments of ``aten.batch_norm``."""


class TorchReference:
    """An exported program, run forward and backward on the host with given weights."""

    name = f"pytorch {torch.__version__.split('+')[0]}"

    def __init__(
        self,
        exported: ExportedProgram,
        aliases: dict[str, str],
        trained: list[str],
        loss: Loss,
        custom: CustomLoss | None,
        batch_norm: str,
        flops: float,
    ) -> None:
        self._exported = exported
        self._aliases = aliases
        self._trained = trained
        self._loss = loss
        self._custom = custom
        self._batch_norm = batch_norm
        self._draws = uses_draws(exported)
        self.gradients_are_derivatives = custom is None and not has_regions(exported.graph_module)
        self._graphs: dict[tuple[bool, bool], torch.fx.GraphModule] = {}
        self._threads = 1 if flops < SINGLE_THREAD_FLOPS else torch.get_num_threads()

    def measure(self, weights: Weights, batches: list[Batch], *, precise: bool = False) -> Measured:
        """Run one update; see :class:`pock_tvm.compiler.self_check.measured.Reference`."""
        with self._on_threads():
            return self._measure(weights, batches, precise)

    def _measure(self, weights: Weights, batches: list[Batch], precise: bool) -> Measured:
        tensors = self._tensors(weights, precise)
        training = self._batch_norm == "batch"
        outputs: list[torch.Tensor] = []
        if training or self._draws:  # inference has a graph of its own, or drops nothing
            DRAWS.training, DRAWS.step = False, 0
            with torch.no_grad():
                outputs = self._run(tensors, batches[0], precise)
        parameters = {name: tensors[name].requires_grad_() for name in self._trained}
        sums: dict[str, torch.Tensor | None] = dict.fromkeys(parameters)
        losses = []
        with torch.enable_grad():
            for step, batch in enumerate(batches):
                DRAWS.training, DRAWS.step = True, step
                results = self._run(tensors, batch, precise, training=training)
                outputs = outputs or [result.detach() for result in results]
                loss = self._loss_of(results, batch, precise)
                losses.append(float(loss.detach()))
                if not loss.requires_grad:
                    continue
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        before = sums[name]
                        part = gradient / len(batches) if len(batches) > 1 else gradient
                        sums[name] = part if before is None else before + part
        return Measured(
            tuple(map(_array, outputs)),
            tuple(losses),
            {name: None if total is None else _array(total) for name, total in sums.items()},
            self._statistics(tensors, weights) if training else {},
        )

    def _statistics(self, tensors: dict[str, torch.Tensor], weights: Weights) -> dict[str, np.ndarray]:
        """The floating-point buffers that the steps changed."""
        names = [name for name in self._exported.graph_signature.buffers if name in weights]
        now = {name: _array(tensors[name]) for name in names if tensors[name].is_floating_point()}
        return {name: array for name, array in now.items() if not np.array_equal(array, weights[name], equal_nan=True)}

    def random_layer(self, weights: Weights, batch: Batch) -> str | None:
        """The first layer whose value changes from run to run, if the outputs do."""
        with torch.no_grad(), torch.random.fork_rng(), self._on_threads():
            runs = []
            DRAWS.training = False
            for seed in (0, 1):
                torch.manual_seed(seed)
                tensors = self._tensors(weights, precise=False)
                runs.append(list(map(_array, self._run(tensors, batch, precise=False))))
            if not any(_is_random(*pair) for pair in zip(*runs, strict=True)):
                return None
        first, second = (self.layers(weights, batch, seed=seed) for seed in (0, 1))
        return next((name for name in first if _is_random(first[name], second[name])), "its outputs")

    def layers(self, weights: Weights, batch: Batch, *, precise: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
        """The last value of each layer by the module's path, or by the operator's name outside of modules."""
        DRAWS.training, DRAWS.step = False, 0
        recorder = _Recorder(self._graph(precise, training=False))
        with torch.no_grad(), torch.random.fork_rng(), self._on_threads():
            torch.manual_seed(seed)
            recorder.run(*self._arguments(self._tensors(weights, precise), batch, precise))
        return recorder.values

    @contextlib.contextmanager
    def _on_threads(self) -> Iterator[None]:
        original = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(original)

    # ---- the exported graph --------------------------------------------------------------------------------------

    def _run(
        self, tensors: dict[str, torch.Tensor], batch: Batch, precise: bool, *, training: bool = False
    ) -> list[torch.Tensor]:
        """Compute the outputs that are tensors. Running statistics in ``tensors``, the weights, are updated."""
        results = self._graph(precise, training)(*self._arguments(tensors, batch, precise))
        specs = self._exported.graph_signature.output_specs
        outputs = [result for spec, result in zip(specs, results, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
        return [output for output in outputs if isinstance(output, torch.Tensor)]

    def _graph(self, precise: bool, training: bool) -> torch.fx.GraphModule:
        if not (precise or training):
            return self._exported.graph_module
        if (precise, training) in self._graphs:
            return self._graphs[precise, training]
        graph = copy.deepcopy(self._exported.graph_module)
        for part in [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]:
            if precise:
                with_types(part, FLOATS, torch.float64)
            if training:
                _use_batch_statistics(part)
            part.recompile()
        self._graphs[precise, training] = graph
        return graph

    def _tensors(self, weights: Weights, precise: bool) -> dict[str, torch.Tensor]:
        """Copy the weights to tensors, one for tied weights."""
        owned = (torch.from_numpy(np.array(array)) for array in weights.values())
        return {name: _widened(tensor) if precise else tensor for name, tensor in zip(weights, owned, strict=True)}

    def _arguments(self, tensors: dict[str, torch.Tensor], batch: Batch, precise: bool) -> list[Any]:
        """List the graph's arguments: weights, constants, inputs, and inputs that the export made constant."""
        values: list[Any] = []
        given = iter(batch.inputs.values())
        constants = self._exported.constants | self._exported.state_dict
        for spec in self._exported.graph_signature.input_specs:
            if isinstance(spec.arg, ConstantArgument):
                values.append(spec.arg.value)
            elif spec.kind is InputKind.USER_INPUT:
                tensor = torch.from_numpy(np.array(next(given)))
                values.append(_widened(tensor) if precise else tensor)
            else:
                value = tensors.get(self._aliases.get(spec.target, spec.target))
                if value is None:
                    value = constants[spec.target]
                    value = value.detach().clone() if isinstance(value, torch.Tensor) else value
                    value = _widened(value) if precise else value
                values.append(value)
        return values

    def _loss_of(self, outputs: list[torch.Tensor], batch: Batch, precise: bool) -> torch.Tensor:
        if self._custom is not None:
            return value_of(self._custom, self._exported, outputs, batch.target, precise=precise)
        output, loss, functional = outputs[self._loss.output], self._loss, torch.nn.functional
        if batch.target is None:
            return output
        target = torch.from_numpy(np.array(batch.target))
        options = {"ignore_index": loss.ignore_index, "label_smoothing": loss.label_smoothing}
        if loss.kind == "cross_entropy":
            return functional.cross_entropy(output, target.long(), **options)
        if loss.kind == "causal_lm":
            return functional.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten().long(), **options)
        distance = {"mse": functional.mse_loss, "bce_with_logits": functional.binary_cross_entropy_with_logits}
        return distance[loss.kind](output, target.to(output.dtype))


class _Recorder(torch.fx.Interpreter):
    """An interpreter that records the last floating-point value of each layer."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, np.ndarray] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point():
            name = layer_of(n)
            self.values.pop(name, None)  # layers are ordered by their last values
            self.values[name] = _array(value)
        return value


def layer_of(node: torch.fx.Node) -> str:
    """The path of the module that a node belongs to, or the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    return (list(stack.values())[-1][0] if stack else "") or node.name


def _widened(tensor: Any) -> Any:
    return tensor.double() if isinstance(tensor, torch.Tensor) and tensor.dtype in FLOATS else tensor


def _use_batch_statistics(part: torch.fx.GraphModule) -> None:
    """Switch the batch norms of a graph that was exported for inference to training."""
    ops = torch.ops.aten
    for node in part.graph.nodes:
        if node.target is ops.batch_norm.default:
            node.update_arg(TRAINING_FLAG, True)
        elif node.target is ops._native_batch_norm_legit_no_training.default:
            node.target = ops._native_batch_norm_legit.default
            node.args = (*node.args[:TRAINING_FLAG], True, *node.args[TRAINING_FLAG:])


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return np.array(tensor.numpy())


def _is_random(first: np.ndarray, second: np.ndarray) -> bool:
    same = np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    return not same and (first.dtype.kind != "f" or relative_difference(first, second) > RANDOM_DIFFERENCE)
