"""Compiles PyTorch's own operator samples (OpInfo) and compares one training step with eager PyTorch.

    python scripts/opinfo.py [--part 1/4] [--only softmax] [--samples 1] [--json out.json]

Every differentiable entry of ``op_db`` becomes networks around the operator, one for each of its first three samples
that have a gradient and no empty tensor (programs have none). Their operands are in turn parameters, and inputs times a
parameter. A verdict on each:

right    loss and every update equal PyTorch's
skipped  ``torch.export`` or eager PyTorch cannot
draws    its program draws random numbers, which are not PyTorch's
refused  a ``PockError`` that names the operator, or the loss where PyTorch's own is not finite
mute     a ``PockError`` that does not
WRONG    the loss ("forward") or an update only ("backward") differs
CRASH    any other exception, the death of the process, or no answer in time

The table says of each entry how many of the zoo's graphs contain its operator (``tests/zoo/operators.json``, where
that has been written), and whether it is one of PyTorch's core operators. A summary counts the entries of which every
sample is right: those of either kind, the others, and the families that no network of this field trains through.

Exits with 1 where anything is mute, wrong or crashes. Needs ``expecttest``, as PyTorch's samples do.
"""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.export import decomp_utils, exported_program
from torch.utils import _pytree as pytree

SECONDS = 180.0
"""Time limit of one operator, in seconds."""
TOLERANCE = 1e-3
"""Largest relative error of a loss or an update."""
WEIGHT_ROUNDING = 5e-7
"""Further error of an update relative to its weight's norm: the rounding of the updated weight."""
ZOO = Path(__file__).resolve().parents[1] / "tests" / "zoo" / "operators.json"
"""How many of the zoo's graphs contain each operator."""
FAMILIES = re.compile(
    r"(linalg|fft|special|sparse|masked|signal)\.|_?fft|i?stft|cholesky|svd|\bqr\b|geqrf|ormqr|\blu\b|lu_|triangular_solve|"
    r"pinverse|logdet|slogdet|\bdet\b|matrix_exp|inverse|lobpcg|\beig|complex|polar|real|imag|conj|angle|resolve_|H\b|"
    r"to_sparse|erfinv|erfc|lgamma|digamma|polygamma|mvlgamma|\bi0\b|igamma|sinc|cholesky_solve|householder"
)
"""Entries that no network of this field trains through: decompositions, Fourier transforms, special functions, complex
and sparse numbers."""
VERDICTS = ("right", "skipped", "draws", "refused", "mute", "WRONG", "CRASH")
FAULTS = VERDICTS[4:]


@dataclass(frozen=True)
class Outcome:
    """The verdict on one sample."""

    operator: str
    sample: int
    verdict: str
    reason: str = ""
    operators: tuple[str, ...] = ()
    """ATen's operators in its graph, without overloads and those that :class:`Around` adds."""


class Around(torch.nn.Module):
    """A network that sums an operator's results, with a weight of its own for each element, so that any error shows.

    Operands with a gradient are parameters, or (``scaled``) inputs times a parameter of ones; other tensors are inputs.
    The first input is a factor of 1, since a program needs an input.
    """

    def __init__(self, operator: Any, sample: Any, scaled: bool) -> None:
        super().__init__()
        leaves, self.spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        self.operator, self.leaves = operator, list[Any](leaves)
        self.inputs = [torch.ones(1)]
        for position, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor):
                continue
            parameter = None
            if leaf.requires_grad:
                value = leaf.detach().clone()
                parameter = torch.nn.Parameter(torch.ones_like(value) if scaled else value)
                self.register_parameter(f"operand{position}", parameter)
            self.leaves[position] = (position, parameter is not None, scaled or parameter is None)
            if scaled or parameter is None:
                self.inputs.append(leaf.detach().clone())

    def forward(self, factor: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """The weighted sum, times the factor."""
        given = iter(inputs)
        leaves = []
        for leaf in self.leaves:
            if isinstance(leaf, tuple):
                position, trained, read = leaf
                value = next(given) if read else None
                if trained:
                    parameter = getattr(self, f"operand{position}")
                    value = parameter if value is None else value * parameter
                leaf = value
            leaves.append(leaf)
        first, args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        results = [leaf for leaf in pytree.tree_leaves(self.operator(first, *args, **kwargs)) if _is_tensor(leaf)]
        total = functools.reduce(torch.add, (_weighted(result, factor.dtype) for result in results))
        return (total * factor).sum()


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _weighted(result: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if result.is_complex():
        result = torch.view_as_real(result.resolve_conj())
    places = torch.arange(result.numel(), dtype=dtype).reshape(result.shape)
    return (result.to(dtype) * torch.cos(places)).sum()


# ---- one sample ------------------------------------------------------------------------------------------------------


def step_of_torch(network: Around, dtype: torch.dtype) -> tuple[float, dict[str, np.ndarray]]:
    """Compute loss and gradients with eager PyTorch."""
    network = network.to(dtype)
    inputs = [tensor.to(dtype) if tensor.dtype == torch.float32 else tensor for tensor in network.inputs]
    network.zero_grad()
    loss = network(*inputs)
    loss.backward()
    grads = {name: p.grad.double().numpy().copy() for name, p in network.named_parameters() if p.grad is not None}
    network.to(torch.float32)
    return float(loss), grads


def judge(network: Around) -> tuple[str, str, tuple[str, ...]]:
    """The verdict on one network, why, and the operators in its graph."""
    try:
        loss, grads = step_of_torch(network, torch.float32)
        if not grads:
            return "skipped", "no gradient", ()
    except Exception as error:
        return "skipped", f"eager PyTorch: {_line(error)}", ()
    try:
        exported = torch.export.export(network, tuple(network.inputs))
    except Exception as error:
        return "skipped", f"torch.export: {_line(error)}", ()
    return *compared(network, exported, loss, grads), tuple(sorted(_aten(exported.graph)))


def compared(network: Around, exported: Any, loss: float, grads: dict[str, np.ndarray]) -> tuple[str, str]:
    """The verdict on an exported network, and why."""
    import pock_tvm as pock
    from pock_tvm.device.random import RANDOM

    statistics = "batch" if _normalizes_by_batch(exported.graph) else "frozen"
    try:
        program = pock.compile(exported, loss="output", batch_norm=statistics, check=False)
        if program.tensor(RANDOM) is not None:
            return "draws", ""
        trainer = pock.Trainer(program)
        ours = trainer.step([tensor.numpy() for tensor in network.inputs], lr=1.0)
        updates = {
            name: parameter.detach().double().numpy() - trainer.weights()[name]
            for name, parameter in network.named_parameters()
        }
    except pock.NonFiniteError as error:
        return ("WRONG" if np.isfinite(loss) else "refused"), _line(error)
    except pock.PockError as error:
        return ("refused" if _names_operator(exported, str(error)) else "mute"), _line(error)
    except Exception as error:
        return "CRASH", f"{type(error).__name__} in {_place(error)}: {_line(error)}"
    fault = difference(network, ours, updates, loss, grads)
    if fault:  # nothing is wrong if PyTorch's own single precision differs as much from double precision
        try:
            loss, grads = step_of_torch(network, torch.float64)
        except Exception as error:
            return "WRONG", f"{fault} (no float64 reference: {_line(error)})"
        fault = difference(network, ours, updates, loss, grads) and fault
    return ("WRONG", fault) if fault else ("right", "")


def _normalizes_by_batch(graph: torch.fx.Graph) -> bool:
    """Whether a graph has a batch norm in training mode."""
    aten = torch.ops.aten
    kinds = (aten.batch_norm.default, aten.native_batch_norm.default, aten._native_batch_norm_legit.default)
    return any(node.args[5] for node in graph.nodes if node.target in kinds)


def difference(
    network: Around, ours: float, updates: dict[str, np.ndarray], loss: float, grads: dict[str, np.ndarray]
) -> str:
    """Describe what differs from PyTorch; empty where nothing does."""
    if not np.isclose(ours, loss, rtol=TOLERANCE, atol=1e-5, equal_nan=True):
        return f"forward: loss {ours:.6g}, not {loss:.6g}"
    if not np.isfinite(loss):
        return ""
    for name, parameter in network.named_parameters():
        update = updates[name]
        wanted = grads.get(name, np.zeros_like(update))
        before = parameter.detach().double().numpy()
        finite_before = np.isfinite(before)  # an update of an infinite weight does not show
        update, wanted, before = update[finite_before], wanted[finite_before], before[finite_before]
        if not np.array_equal(np.isfinite(update), np.isfinite(wanted)):
            return f"backward: {name} is finite in other places than PyTorch's"
        finite = np.isfinite(wanted)
        rounding = WEIGHT_ROUNDING * np.linalg.norm(before) + 1e-6
        distance = np.linalg.norm((update - wanted)[finite]) - rounding
        size = np.linalg.norm(wanted[finite])
        if distance > TOLERANCE * size:
            return f"backward: the update of {name} differs by {distance:.2g}, of {size:.2g}"
    return ""


def _names_operator(exported: Any, message: str) -> bool:
    """Whether a refusal names an operator: in those words, or by a name of the exported or the decomposed graph."""
    if re.search(r"operator '[\w.:]+'", message):
        return True
    words = set(re.findall(r"\w+", message))
    return bool(words & _operators(exported.graph)) or bool(words & _operators(exported.run_decompositions().graph))


def _operators(graph: torch.fx.Graph) -> set[str]:
    """The names of operators and nodes of a graph, except those that :class:`Around` adds."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    names = {node.name for node in nodes} | {getattr(node.target, "__name__", "").split(".")[0] for node in nodes}
    return names - {"add", "mul", "sum"}


def _aten(graph: torch.fx.Graph) -> set[str]:
    """ATen's operators of a graph, without overloads and those that :class:`Around` adds."""
    targets = {node.target for node in graph.nodes if node.op == "call_function"}
    names = {target.name() for target in targets if isinstance(target, torch._ops.OpOverload)}
    return {name.removeprefix("aten::").split(".")[0].rstrip("_") for name in names} - AROUND


AROUND = {"add", "mul", "sum", "cos", "arange", "reshape", "to"}
"""Operators of :class:`Around`."""


def _place(error: BaseException) -> str:
    """The innermost line of this project that an exception went through."""
    root = Path(__file__).resolve().parents[1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(root)]
    return f"{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# ---- all of them -----------------------------------------------------------------------------------------------------


def differentiable() -> dict[str, Any]:
    """PyTorch's entries that have a gradient in float32, by name."""
    from torch.testing._internal.common_methods_invocations import op_db

    entries = [entry for entry in op_db if entry.supports_autograd and torch.float32 in entry.dtypes]
    return {".".join(filter(None, (entry.name, entry.variant_test_name))): entry for entry in entries}


def networks(entry: Any, count: int) -> Iterator[Around]:
    """Make networks around the first samples of an entry, with parameters and scaled inputs in turn."""
    samples = []
    for sample in entry.sample_inputs("cpu", torch.float32, requires_grad=True):
        leaves = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
        tensors = [leaf for leaf in leaves if _is_tensor(leaf)]
        if any(tensor.requires_grad for tensor in tensors) and all(tensor.numel() for tensor in tensors):
            samples.append(sample)
        if len(samples) == count:
            break
    for turn in range(count if samples else 0):
        yield Around(entry.op, samples[min(turn, len(samples) - 1)], scaled=turn % 2 == 1)


def work(names: list[str], count: int, results: Connection) -> None:
    """Judge entries in a worker process, sending the outcomes of each."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    # Each import lists all of PyTorch's operators again, which takes a second and never changes here.
    for module in (exported_program, decomp_utils):
        module._collect_all_valid_cia_ops = functools.cache(module._collect_all_valid_cia_ops)
    entries = differentiable()
    for name in names:
        torch.manual_seed(0)
        try:
            outcomes = [Outcome(name, turn, *judge(each)) for turn, each in enumerate(networks(entries[name], count))]
        except Exception as error:
            outcomes = [Outcome(name, 0, "skipped", f"its samples: {_line(error)}")]
        results.send(outcomes)


def judged(names: list[str], count: int) -> Iterator[list[Outcome]]:
    """Yield the outcomes of each entry. A process that dies or hangs loses the current entry alone."""
    context = multiprocessing.get_context("spawn")
    pending = list(names)
    while pending:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(pending, count, sender))
        process.start()
        sender.close()
        try:
            while pending:
                if not receiver.poll(SECONDS):
                    yield [Outcome(pending.pop(0), 0, "CRASH", f"no answer in {SECONDS:.0f} s")]
                    break
                outcomes = receiver.recv()
                del pending[0]
                yield outcomes
        except EOFError:
            process.join()
            yield [Outcome(pending.pop(0), 0, "CRASH", f"the process died with code {process.exitcode}")]
        process.kill()
        process.join()


KINDS = ("in the zoo or PyTorch's core", "others", "families that no network trains through")
"""Kinds of entries."""


def operator_of(entry: str, operators: set[str]) -> str:
    """The operator of an entry: by its name among those of its graphs, else the only one there."""
    words = entry.split(".")
    found = {"_".join(words[at:to]) for at in range(len(words)) for to in range(at + 1, len(words) + 1)} & operators
    return max(found, key=len) if found else next(iter(operators)) if len(operators) == 1 else ""


def is_core(operator: str) -> bool:
    """Whether an operator is one of PyTorch's core operators."""
    packet = getattr(torch.ops.aten, operator, None) if operator else None
    return packet is not None and any(
        torch.Tag.core in getattr(packet, overload).tags for overload in packet.overloads()
    )


def main(
    part: Annotated[str, typer.Option(help="Which part of the entries, such as 1/4.")] = "1/1",
    only: Annotated[list[str] | None, typer.Option(help="Entries by name; all by default.")] = None,
    samples: Annotated[int, typer.Option(help="How many samples of each.")] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Where to write every outcome.")] = None,
) -> None:
    """Compile PyTorch's operator samples and compare a step with eager PyTorch."""
    index, count = (int(number) for number in part.split("/"))
    names = [name for name in differentiable() if not only or name in only][index - 1 :: count]
    console = Console(width=160 if not sys.stdout.isatty() else None)
    outcomes: list[Outcome] = []
    started = time.perf_counter()
    for of_one in judged(names, samples):
        outcomes += of_one
        for outcome in of_one:
            if outcome.verdict != "right":
                line = f"{outcome.operator} ({outcome.sample}): {outcome.verdict}: {outcome.reason}"
                console.print(line, markup=False, soft_wrap=True)
    table = Table("operator", "zoo's graphs", "core", *VERDICTS)
    graphs = json.loads(ZOO.read_text()) if ZOO.exists() else None
    kinds: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for name in names:
        own = [outcome for outcome in outcomes if outcome.operator == name]
        counts = Counter(outcome.verdict for outcome in own)
        operator = operator_of(name, {each for outcome in own for each in outcome.operators})
        used, core = (graphs or {}).get(operator, 0), is_core(operator)
        cells = ["?" if graphs is None else str(used or ""), "core" if core else ""]
        table.add_row(name, *cells, *(str(counts[verdict] or "") for verdict in VERDICTS))
        if counts.keys() - {"skipped", "draws"}:
            kind = KINDS[2] if FAMILIES.search(name) and not used else KINDS[0] if used or core else KINDS[1]
            kinds[kind].append(not counts.keys() - {"right", "skipped", "draws"})
    total = Counter(outcome.verdict for outcome in outcomes)
    table.add_section()
    table.add_row("all", "", "", *(str(total[verdict]) for verdict in VERDICTS))
    console.print(table)
    for kind, right in kinds.items():
        console.print(f"{kind}: {sum(right)} of {len(right)} entries right")
    console.print(f"{len(names)} entries, {len(outcomes)} samples, {time.perf_counter() - started:.0f} s")
    if to is not None:
        to.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    if any(total[verdict] for verdict in FAULTS):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
