"""PyTorch as the reference: the exported program's own module runs the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from ..losses import Loss
from .agreement import relative_difference
from .measured import Batch, Measured, Weights

RANDOM = 1e-4
"""Relative difference of two runs from which on a value is random: no rounding does that."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
TRAINING_FLAG = 5
"""The position of ``training`` among the arguments of ``aten.batch_norm``."""


class TorchReference:
    """Runs an exported program forward and backward, on the host and with weights that are given."""

    name = f"pytorch {torch.__version__.split('+')[0]}"

    def __init__(
        self, exported: ExportedProgram, aliases: dict[str, str], trained: list[str], loss: Loss, batch_norm: str
    ) -> None:
        self._exported = exported
        self._aliases = aliases
        self._trained = trained
        self._loss = loss
        self._batch_norm = batch_norm

    def measure(self, weights: Weights, batches: list[Batch], *, precise: bool = False) -> Measured:
        """One update; see :class:`pock_tvm.self_check.measured.Reference`."""
        module = self._module(weights, precise)
        outputs = None
        if self._batch_norm == "batch":  # inference has a graph of its own
            with torch.no_grad():
                outputs = _tensors(self._run(module, batches[0], precise))
            module = self._module(weights, precise)
            _use_batch_statistics(module)
        parameters = {name: module.get_parameter(name) for name in self._trained}
        sums: dict[str, torch.Tensor | None] = dict.fromkeys(parameters)
        losses = []
        with torch.enable_grad():
            for batch in batches:
                results = _tensors(self._run(module, batch, precise))
                outputs = outputs or [result.detach() for result in results]
                loss = self._loss_of(results, batch)
                losses.append(float(loss.detach()))
                if not loss.requires_grad:
                    continue
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, found, strict=True):
                    if gradient is not None:
                        before = sums[name]
                        part = gradient / len(batches) if len(batches) > 1 else gradient
                        sums[name] = part if before is None else before + part
        buffers = dict(module.named_buffers(remove_duplicate=False))
        return Measured(
            tuple(_array(output) for output in outputs or []),
            tuple(losses),
            {name: None if total is None else _array(total) for name, total in sums.items()},
            {name: _array(buffers[name]) for name in weights if name in buffers},
        )

    def random_layer(self, weights: Weights, batch: Batch) -> str | None:
        """The first layer whose value changes from run to run, if the outputs do."""
        module = self._module(weights, precise=False)
        with torch.no_grad(), torch.random.fork_rng():
            runs = []
            for seed in (0, 1):
                torch.manual_seed(seed)
                runs.append([_array(output) for output in _tensors(self._run(module, batch, precise=False))])
            if not any(_is_random(*pair) for pair in zip(*runs, strict=True)):
                return None
        first, second = (self.layers(weights, batch, seed) for seed in (0, 1))
        return next((name for name in first if _is_random(first[name], second[name])), "its outputs")

    def layers(self, weights: Weights, batch: Batch, seed: int = 0) -> dict[str, np.ndarray]:
        """The last value of each layer by the module's path; what stands in no module goes by the operator's name."""
        module = self._module(weights, precise=False)
        recorder = _Recorder(module)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            recorder.run(*self._leaves(batch, precise=False), enable_io_processing=False)
        return recorder.values

    # ---- the module --------------------------------------------------------------------------------------------------

    def _module(self, weights: Weights, precise: bool) -> torch.fx.GraphModule:
        """The exported module with weights of its own: in double precision if ``precise``, tied ones tied."""
        module = self._exported.module(check_guards=False)
        graphs = [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
        for part in graphs:
            _prepare(part, precise)
        for name, old in [*module.named_parameters(remove_duplicate=False), *_tensor_attributes(module)]:
            owner = self._aliases.get(name, name)
            tensor = torch.from_numpy(np.array(weights[owner])) if owner in weights else old.detach().clone()
            if precise and tensor.is_floating_point():
                tensor = tensor.double()
            trained = owner in self._trained and isinstance(old, torch.nn.Parameter)
            new = torch.nn.Parameter(tensor, requires_grad=trained) if isinstance(old, torch.nn.Parameter) else tensor
            _set(module, name, new)
        for alias, owner in self._aliases.items():
            _set(module, alias, _get(module, owner))
        return module

    def _leaves(self, batch: Batch, precise: bool) -> list[Any]:
        """The arguments of the module, flat: tensors, and what the export made constant."""
        leaves: list[Any] = []
        for spec in self._exported.graph_signature.input_specs:
            if spec.kind is not InputKind.USER_INPUT:
                continue
            if isinstance(spec.arg, ConstantArgument):
                leaves.append(spec.arg.value)
                continue
            tensor = torch.from_numpy(np.array(batch.inputs[spec.arg.name]))
            leaves.append(tensor.double() if precise and tensor.is_floating_point() else tensor)
        return leaves

    def _run(self, module: torch.fx.GraphModule, batch: Batch, precise: bool) -> Any:
        args, kwargs = pytree.tree_unflatten(self._leaves(batch, precise), self._exported.call_spec.in_spec)
        return module(*args, **kwargs)

    def _loss_of(self, outputs: list[torch.Tensor], batch: Batch) -> torch.Tensor:
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
    """Runs a graph and keeps the last floating-point value of each layer."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, np.ndarray] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point():
            name = layer_of(n)
            self.values.pop(name, None)  # its place is that of its last value
            self.values[name] = _array(value)
        return value


def layer_of(node: torch.fx.Node) -> str:
    """The path of the module that a node stands in, or the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    return (list(stack.values())[-1][0] if stack else "") or node.name


def _prepare(part: torch.fx.GraphModule, precise: bool) -> None:
    """Drop what insists on the types of the export and, for double precision, what asks for less."""

    def widened(value: Any) -> Any:
        return torch.float64 if precise and isinstance(value, torch.dtype) and value in FLOATS else value

    for node in list(part.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            part.graph.erase_node(node)
        elif node.op == "call_function":
            node.args = torch.fx.node.map_aggregate(node.args, widened)
            node.kwargs = torch.fx.node.map_aggregate(node.kwargs, widened)
    part.recompile()


def _use_batch_statistics(module: torch.fx.GraphModule) -> None:
    """Turn the batch norms of a graph that was exported for inference to those of training."""
    ops = torch.ops.aten
    for part in module.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in part.graph.nodes:
            if node.target is ops.batch_norm.default:
                node.update_arg(TRAINING_FLAG, True)
            elif node.target is ops._native_batch_norm_legit_no_training.default:
                node.target = ops._native_batch_norm_legit.default
                node.args = (*node.args[:TRAINING_FLAG], True, *node.args[TRAINING_FLAG:])
        part.recompile()


def _tensor_attributes(module: torch.fx.GraphModule) -> list[tuple[str, torch.Tensor]]:
    """Buffers, and tensors that are plain attributes."""
    found = dict(module.named_buffers(remove_duplicate=False))
    for node in module.graph.nodes:
        value = _get(module, node.target) if node.op == "get_attr" else None
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
            found[node.target] = value
    return list(found.items())


def _get(module: torch.nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def _set(module: torch.nn.Module, name: str, value: Any) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, value)


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return np.array(tensor.numpy())


def _is_random(first: np.ndarray, second: np.ndarray) -> bool:
    same = np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    return not same and (first.dtype.kind != "f" or relative_difference(first, second) > RANDOM)
