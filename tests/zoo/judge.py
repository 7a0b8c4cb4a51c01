"""Judges a row: exports, compiles and trains it for one step by a full and by a sparse scheme, beside PyTorch."""

from __future__ import annotations

import re
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pock_tvm as pock
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from tests.numeric.parity import Batch, assert_steps

from .row import Network, Row, drawn, network_of

LR = 1e4
"""Of the one step: so large that no update drowns in the rounding of its weight."""
TIMED_SECONDS = 0.3
"""Time that the steps of ours and of PyTorch's are repeated for, each."""
SCHEMES = ("full", "sparse")
RIGHT, REFUSED, UNEXPORTED, WRONG, CRASH = "right", "refused", "not exportable", "WRONG", "CRASH"
FAULTS = (WRONG, CRASH)


@dataclass(frozen=True)
class Outcome:
    """The verdicts on a row."""

    name: str
    verdicts: dict[str, str]
    """By scheme."""
    reason: str = ""
    expected: bool = True
    """Whether it is right by every scheme, or refused for the row's reason."""
    parameters: int = 0
    operators: list[str] = field(default_factory=list)
    """ATen's operators in the exported graph, without overloads."""
    ours_ms: float | None = None
    eager_ms: float | None = None
    """Best time of a full step, in ms; rough, on a machine that does other things."""
    seconds: float = 0.0


def judge(row: Row) -> Outcome:
    """Judge a row; exceptions of any kind are verdicts."""
    start = time.perf_counter()
    network = network_of(row)
    example = [torch.from_numpy(array) for array in drawn(row, np.random.default_rng(0))]
    found: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    try:
        exported = torch.export.export(network, tuple(example), strict=False)
    except Exception as error:
        return _failed(row, dict.fromkeys(SCHEMES, UNEXPORTED), error, found, start)
    found["operators"] = operators_of(exported.graph)
    verdicts: dict[str, str] = {}
    try:
        model = load_model(exported)
        for name, scheme in (("full", pock.Scheme.full()), ("sparse", sparse_scheme(model))):
            program = pock.compile(model, scheme=scheme, optimizer=pock.SGD(), loss=row.loss, check=False)
            assert_steps(program, exported, lambda rng: [_batch(row, network, rng)], torch.optim.SGD, LR)
            verdicts[name] = RIGHT
            if name == "full":
                found["ours_ms"], found["eager_ms"] = step_times(program, network, row)
    except Exception as error:
        kind = REFUSED if isinstance(error, pock.PockError) else WRONG if isinstance(error, AssertionError) else CRASH
        return _failed(row, dict.fromkeys(SCHEMES, kind) | verdicts, error, found, start)
    return Outcome(row.name, verdicts, "", not row.why_refused, **found, seconds=time.perf_counter() - start)


def _failed(row: Row, verdicts: dict[str, str], error: Exception, found: dict[str, Any], start: float) -> Outcome:
    reason = " ".join(str(error).split())[:400]
    is_expected = REFUSED in verdicts.values() and bool(row.why_refused and re.search(f"(?i){row.why_refused}", reason))
    if CRASH in verdicts.values():
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {reason}"
    return Outcome(row.name, verdicts, reason, is_expected, **found, seconds=time.perf_counter() - start)


def sparse_scheme(model: Any) -> pock.Scheme:
    """Train all biases, the head, and half of the channels of every second weight from the first on."""
    structure = structure_of(model)
    weights = sorted(structure.channels, key=structure.first_use.__getitem__)[::2]
    return pock.Scheme(pock.Scheme.bias_only(model).rules | dict.fromkeys(weights, 0.5))  # the last match counts


def operators_of(graph: torch.fx.Graph) -> list[str]:
    """ATen's operators of a graph, without overloads, sorted."""
    targets = {node.target for node in graph.nodes if node.op == "call_function"}
    names = {target.name() for target in targets if isinstance(target, torch._ops.OpOverload)}
    return sorted({name.removeprefix("aten::").split(".")[0].rstrip("_") for name in names})


def _batch(row: Row, network: Network, rng: np.random.Generator) -> Batch:
    inputs = drawn(row, rng)
    if row.loss == "output":
        return inputs, None
    with torch.no_grad():
        shape = network(*map(torch.from_numpy, inputs)).shape
    return inputs, rng.standard_normal(shape).astype("float32")


def step_times(program: pock.Program, network: Network, row: Row) -> tuple[float, float]:
    """The best times of a step of ours and of PyTorch's, in ms, taken in turns."""
    inputs, target = _batch(row, network, np.random.default_rng(0))
    trainer = pock.Trainer(program)
    tensors = [torch.from_numpy(array) for array in inputs]
    wanted = None if target is None else torch.from_numpy(target)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)

    def ours() -> None:
        trainer.step(inputs, target, lr=0.0)

    def eager() -> None:
        optimizer.zero_grad()
        result = network(*tensors)
        (result if wanted is None else torch.nn.functional.mse_loss(result, wanted)).backward()
        optimizer.step()

    best = {ours: np.inf, eager: np.inf}
    until = time.perf_counter() + 2 * TIMED_SECONDS
    while time.perf_counter() < until or np.inf in best.values():
        for step in best:
            start = time.perf_counter()
            step()
            best[step] = min(best[step], 1e3 * (time.perf_counter() - start))
    return best[ours], best[eager]
