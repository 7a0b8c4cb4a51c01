"""Measures a training step of a plain TVM build (`pock_train`, then `pock_schedule`) beside that of `pock.compile`.

    python bench/plain_tvm.py build DIR [--model mobilenetv2 --batch 1] [--unscheduled] [--permuted]
    python bench/plain_tvm.py time DIR [--rounds 10]

Building takes minutes, timing seconds. All sides train every parameter with SGD and the same data, in turns of a few
steps on the same threads; their first losses must agree. `--unscheduled` also builds without `pock_schedule`: this step
takes seconds. `--permuted` stores trained weights as they are read (`store_permuted=True`).
"""

from __future__ import annotations

import math
import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from step_models import NETWORKS, exported

STATISTICS = ("running", "num_batches")
"""Parts of the names of buffers, which no step trains."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def build(
    directory: Path, model: str = "mobilenetv2", batch: int = 1, unscheduled: bool = False, permuted: bool = False
) -> None:
    """Build all sides."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    import pock_tvm as pock
    from pock_tvm.compiler.targets import resolve_target

    network, target = NETWORKS[model], resolve_target("host")
    directory.mkdir(parents=True, exist_ok=True)
    program = exported(model, batch)
    options = {"scheme": pock.Scheme.full(), "loss": network.loss, "optimizer": pock.SGD(), "check": False}
    pock.compile(program, **options).save(directory / "ours.pock")
    mod = from_exported_program(program, keep_params_as_input=True, unwrap_unit_return_tuple=True)
    mod, values = relax.frontend.detach_params(mod)
    names = [param.name for param in mod["main"].params][int(mod["main"].attrs["num_input"]) :]
    trained = [name for name in names if not any(part in name for part in STATISTICS)]
    mod = relax.get_pipeline("pock_train", train=trained, loss=network.loss, store_permuted=permuted)(mod)
    stored = mod["train_step"].attrs.get("stored", {})
    arrays = [_as_stored(value.numpy(), stored.get(name)) for name, value in zip(names, values["main"], strict=True)]
    (directory / "parameters.pickle").write_bytes(pickle.dumps((model, batch, arrays)))
    if unscheduled:
        tvm.compile(mod, target).export_library(str(directory / "unscheduled.so"))
    scheduled = relax.get_pipeline("pock_schedule", target=target)(mod)
    tvm.compile(scheduled, target, tir_pipeline="pock_schedule").export_library(str(directory / "scheduled.so"))


def _as_stored(array: np.ndarray, layout: Any) -> np.ndarray:
    if layout is None:
        return array
    shape, axes = ([int(each) for each in part] for part in layout)
    return np.ascontiguousarray(array.reshape(shape).transpose(axes))


@app.command(name="time")
def measure(directory: Path, rounds: Annotated[int, typer.Option(min=1)] = 10) -> None:
    """Time all sides, in turns, and print medians."""
    import pock_tvm as pock

    model, batch, arrays = pickle.loads((directory / "parameters.pickle").read_bytes())
    inputs, target = NETWORKS[model].data(batch)
    x = tuple(inputs.values()) if len(inputs) > 1 else next(iter(inputs.values()))
    trainer = pock.Trainer(directory / "ours.pock")
    sides: dict[str, Callable[[], float]] = {"pock.compile": lambda: float(trainer.step(x, target, lr=0.0))}
    for path in sorted(directory.glob("*.so")):
        sides[path.stem] = _step(path, [*inputs.values(), target, *arrays, np.zeros(1, "float32")])
    losses = [step() for step in sides.values()]
    if not all(math.isclose(loss, losses[0], rel_tol=1e-3) for loss in losses):
        raise ValueError(f"the sides' losses differ: {losses}")
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, step in list(sides.items())[:: 1 if turn % 2 else -1]:
            for _ in range(1 if name == "unscheduled" else 3):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
    ours = statistics.median(times["pock.compile"])
    for name, each in times.items():
        median = statistics.median(each)
        print(f"{model}, batch {batch}, {name}: {1e3 * median:.2f} ms, {median / ours:.2f} x")


def _step(path: Path, arrays: list[np.ndarray]) -> Callable[[], float]:
    """A step of a built module, and its loss."""
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    arguments, function = [tvm.runtime.tensor(array) for array in arrays], machine["train_step"]
    return lambda: float(function(*arguments)[0].numpy())


if __name__ == "__main__":
    app()
