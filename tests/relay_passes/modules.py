"""Relax modules to run passes on, and a way to run modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op as R

from pock_tvm.compiler import pipeline
from pock_tvm.compiler.kernel_builder import KernelBuilder
from pock_tvm.compiler.phases import Phases
from pock_tvm.compiler.training_options import Training
from pock_tvm.frontend import Model, load_model
from pock_tvm.schemes.scheme import with_trained
from relay_passes import ChooseKernels, NameKernels
from relay_passes.ir import bindings_of, op_name, shape_of
from relay_passes.ir.trained_part import plain_parts
from tests.pock_tvm.networks import small

BUILDER = KernelBuilder(
    tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512", "num-cores": 2})
)
TARGET = BUILDER.kernel_target


def function(
    params: dict[str, tuple[int, ...]], body: Callable[..., Any], dtype: str = "float32", inputs: int = 1
) -> tvm.IRModule:
    """A module whose ``main`` computes ``body(builder.emit, *params)``."""
    variables = [relax.Var(name, relax.TensorType(shape, dtype)) for name, shape in params.items()]
    builder = relax.BlockBuilder()
    with builder.function("main", variables, attrs={"num_input": inputs}):
        with builder.dataflow():
            output = builder.emit_output(body(builder.emit, *variables))
        builder.emit_func_output(output)
    return builder.get()


def operators(mod: tvm.IRModule, name: str = "main") -> list[str]:
    """The operators that a function calls, in order."""
    return [op_name(binding.value) for binding in bindings_of(mod[name]) if isinstance(binding.value, relax.Call)]


def run(mod: tvm.IRModule, *arrays: np.ndarray, name: str = "main") -> Any:
    """Run a function on arrays; on noise where none are given."""
    if not arrays:
        rng = np.random.default_rng(0)
        arrays = tuple(rng.standard_normal(shape_of(param)).astype("float32") for param in mod[name].params)
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    result = machine[name](*(tvm.runtime.tensor(np.asarray(array, order="C")) for array in arrays))
    return result.numpy() if isinstance(result, tvm.runtime.Tensor) else [part.numpy() for part in result]


def model() -> Model:
    """A small residual network."""
    return load_model(small(4))


def trained_phases(trained: dict[str, Any], **options: Any) -> Phases:
    """All phases of compiling the small network, each module kept."""
    imported = model()
    phases = Phases(imported.module, parameters=with_trained(imported.parameters, plain_parts(trained)))
    training = Training(trained, **options)
    pipeline.training_graph(phases, training)
    pipeline.order_kernels(phases, training, BUILDER)
    pipeline.plan(phases, training)
    return phases


def regression() -> tvm.IRModule:
    """``mean((x W + b - 1)^2)`` with W and b trained."""

    def body(emit, x, w, b):
        error = emit(emit(emit(R.matmul(x, w)) + b) - relax.const(1.0, "float32"))
        return emit(R.mean(emit(error * error)))

    return function({"x": (4, 3), "w": (3, 2), "b": (2,)}, body)


def kernels(mod: tvm.IRModule) -> tvm.IRModule:
    return NameKernels(["main"])(ChooseKernels(["main"], TARGET)(mod))


def random(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]
