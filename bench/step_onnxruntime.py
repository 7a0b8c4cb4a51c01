"""ONNX Runtime training 1.19 as a peer of `train_step.py`: the network exported to ONNX, with its training artifacts.

Batch norms are folded. Its optimizers have no momentum, so it does a little less than the others. The package is older
than the installed ONNX: files are written in the versions that it reads, with operators that it can differentiate.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.training import artifacts
from onnxruntime.training.api import CheckpointState, Module, Optimizer
from step_models import NETWORKS, arguments
from step_workers import LR, Job, System, folded, logits_of

OPERATORS, FILE_FORMAT = 15, 9
"""Versions of the operator set and of the file format that it reads."""


class Logits(torch.nn.Module):
    """A network that takes its inputs by position and returns what the loss reads."""

    def __init__(self, network: torch.nn.Module, names: list[str], shifted: bool) -> None:
        super().__init__()
        self.network, self.names, self.shifted = network, names, shifted

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Logits, [N, classes]."""
        args, kwargs = arguments(self.network, dict(zip(self.names, inputs, strict=True)))
        logits = logits_of(self.network(*args, **kwargs))
        return logits[:, :-1].flatten(0, 1) if self.shifted else logits


class OnnxRuntime(System):
    """A training session of ONNX Runtime."""

    def __init__(self, job: Job) -> None:
        net = NETWORKS[job["model"]]
        inputs, target = net.data(job["batch"])
        shifted = net.loss == "causal_lm"
        self._inputs = list(inputs.values())
        self._target = (target[:, 1:].flatten() if shifted else target).astype(np.int64)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        network = net.build()
        trained = folded(network, set(job["trained"]), tensors)
        if job["model"] == "mcunet":  # its batch size is symbolic, and the exporter needs a number
            network = torch.export.export(network, tuple(tensors.values())).module(check_guards=False)
        with tempfile.TemporaryDirectory() as folder:
            self._start(Path(folder), Logits(network, list(tensors), shifted), tensors, trained, job["threads"])
        self.info = {}

    def _start(
        self, folder: Path, network: torch.nn.Module, tensors: dict[str, Any], trained: set[str], threads: int
    ) -> None:
        torch.onnx.export(
            network,
            tuple(tensors.values()),
            str(folder / "network.onnx"),
            input_names=list(tensors),
            output_names=["logits"],
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            opset_version=OPERATORS,
            dynamo=False,
        )
        graph = onnx.load(folder / "network.onnx")
        names = [tensor.name for tensor in graph.graph.initializer]
        learned = [name for name in names if name.removeprefix("network.") in trained]
        if len(learned) < len(trained):
            raise ValueError(f"of {len(trained)} trained parameters only {len(learned)} were exported")
        artifacts.generate_artifacts(
            graph,
            requires_grad=learned,
            frozen_params=[name for name in names if name not in learned],
            loss=artifacts.LossType.CrossEntropyLoss,
            optimizer=artifacts.OptimType.SGD,
            artifact_directory=folder,
        )
        files = {name: str(folder / f"{name}_model.onnx") for name in ("training", "eval", "optimizer")}
        for path in files.values():
            file = onnx.load(path)
            file.ir_version = FILE_FORMAT
            onnx.save(file, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
        self._module = Module(files["training"], state, files["eval"], session_options=options)
        self._optimizer = Optimizer(files["optimizer"], self._module)
        self._optimizer.set_learning_rate(LR)
        self._module.train()

    def step(self) -> float:
        """Forward, backward, update."""
        loss = float(self._module(*self._inputs, self._target))
        self._optimizer.step()
        self._module.lazy_reset_grad()
        return loss
