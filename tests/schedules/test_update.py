"""What optimizers do to a parameter, or to a piece of it, against NumPy in double precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from pock_tvm.compiler.targets import resolve_target
from schedules.cpu import CpuTarget
from schedules.decisions import DEFAULTS, Decisions
from schedules.gpu import gpu_target
from schedules.gpu.text import code
from schedules.kernels.update import Layout, adam, assign, clear, sgd
from schedules.target import Target
from tests.schedules.kernels import TARGETS, assert_close, built, doubles, noise

CHANNELS = [4, 0, 2]
LAYOUTS = {
    "number": Layout((), "float32"),
    "one": Layout((1,), "float32"),
    "17": Layout((17,), "float32"),
    "3x33": Layout((3, 33), "float32"),
    "24x1x7": Layout((24, 1, 7), "float32"),
    "64x65": Layout((64, 65), "float32"),
    "3x3x16x128": Layout((3, 3, 16, 128), "float32"),
    "of 5": Layout((5,), "float32", 0, 3),
    "rows of 5x33": Layout((5, 33), "float32", 0, 3),
    "columns of 24x5": Layout((24, 5), "float32", 1, 3),
    "inputs of 3x3x5x17": Layout((3, 3, 5, 17), "float32", 2, 3),
    "outputs of 1x1x24x5": Layout((1, 1, 24, 5), "float32", 3, 3),
}
SGD: dict[str, Any] = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}
ADAM: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3, "weight_decay": 0.0, "decoupled": False}  # fmt: skip
LR, STEP, SPREAD = 0.1, 0.3, 1.25  # SPREAD: one over the root of Adam's correction


def sgd_reference(weight, gradient, buffer=None, *, momentum, dampening, nesterov, weight_decay) -> list:
    gradient = gradient + weight_decay * weight
    if buffer is None:
        return [weight - LR * gradient]
    buffer = momentum * buffer + (1 - dampening) * gradient
    return [weight - LR * (gradient + momentum * buffer if nesterov else buffer), buffer]


def adam_reference(weight, gradient, mean, square, *, beta1, beta2, epsilon, weight_decay, decoupled) -> list:
    if decoupled:
        weight = weight - LR * weight_decay * weight
    else:
        gradient = gradient + weight_decay * weight
    mean, square = beta1 * mean + (1 - beta1) * gradient, beta2 * square + (1 - beta2) * gradient**2
    return [weight - STEP * mean / (np.sqrt(square) * SPREAD + epsilon), mean, square]


CLIPPED = {"clip": [0.5]}
UPDATES: dict[str, tuple[Callable[..., tirx.PrimFunc], dict[str, Any], Callable[..., list], int, dict[str, list]]] = {
    "sgd": (sgd, SGD, sgd_reference, 1, {"rates": [LR]}),
    "sgd, decay, clipped": (sgd, SGD | {"weight_decay": 0.1}, sgd_reference, 1, {"rates": [LR]} | CLIPPED),
    "sgd, momentum": (sgd, SGD | {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}, sgd_reference, 2, {"rates": [LR, 0.8]}),
    "sgd, nesterov": (sgd, SGD | {"momentum": 0.9, "nesterov": True}, sgd_reference, 2, {"rates": [LR]} | CLIPPED),
    "adam": (adam, ADAM, adam_reference, 3, {"rates": [LR, STEP, SPREAD]}),
    "adam, decay": (adam, ADAM | {"weight_decay": 0.1}, adam_reference, 3, {"rates": [LR, STEP, SPREAD]}),
    "adamw": (adam, ADAM | {"weight_decay": 0.1, "decoupled": True}, adam_reference, 3, {"rates": [LR, STEP, SPREAD]} | CLIPPED),
    "assign": (assign, {"accumulate": False}, lambda _weight, value, *, accumulate: [value], 1, {}),
    "accumulate": (assign, {"accumulate": True}, lambda weight, value, *, accumulate: [weight + value], 1, {}),
    "clear": (clear, {}, lambda weight: [0 * weight], 0, {}),
}  # fmt: skip
"""Each with its options, how many operands it has, and its vectors."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", UPDATES)
def test_update(name: str, layout: str, target: Target) -> None:
    """Only the trained piece changes; the first operand is the gradient and the others are states, updated too."""
    _check(name, LAYOUTS[layout], {}, target)


@pytest.mark.parametrize("layout", ["3x33", "24x1x7", "3x3x16x128"])
@pytest.mark.parametrize("name", ["sgd, momentum", "sgd, nesterov", "adam, decay", "adamw"])
def test_update_that_scales_its_gradient(name: str, layout: str, target: Target) -> None:
    described = LAYOUTS[layout]
    _check(name, described, {"scale": np.linspace(-1, 2, described.shape[-1])}, target)


GPU_LAYOUTS = {
    "64x65": 4,
    "3x33": 1,
    "inputs of 3x3x5x17": 1,
    "outputs of 1x1x24x5": 1,
    "rows of 5x34": 2,
    "rows of 5x32": 4,
}


@pytest.mark.parametrize("layout", GPU_LAYOUTS)
@pytest.mark.parametrize("name", ["sgd, nesterov", "adamw"])
def test_gpus_update_vectors(name: str, layout: str) -> None:
    """As wide as everything is aligned, by default in CUDA alone."""
    shapes = {"rows of 5x34": (5, 34), "rows of 5x32": (5, 32)}
    described = Layout(shapes[layout], "float32", 0, 3) if layout in shapes else LAYOUTS[layout]
    build, options, _, _, vectors = UPDATES[name]
    func = build(described, **options, vectors={vector: len(values) for vector, values in vectors.items()})
    named, lanes = func.with_attr("global_symbol", "update"), GPU_LAYOUTS[layout]
    cuda = gpu_target(resolve_target("jetson-orin"))
    text = code.described(cuda.lower(cuda.schedule(named)), cuda.traits)["text"]
    wide = {1: set(), 2: {"float2"}, 4: {"float4"}}[lanes]
    assert set(re.findall(r"float[24]", text)) == wide
    assert ("lanes", lanes) in [(name, max(each.options)) for name, each in cuda.options(named).items()]
    for target in (TARGETS["opencl"], TARGETS["webgpu"]):
        _check(name, described, {}, target, {"lanes": lanes})


def test_parts_that_begin_between_vectors_have_narrower_ones() -> None:
    for part, lanes in (((1, 5), 1), ((2, 6), 2), ((4, 6), 2), ((4, 8), 4)):
        func = clear(Layout((8, 33), "float32", part=part)).with_attr("global_symbol", "update")
        assert max(gpu_target(resolve_target("jetson-orin")).options(func)["lanes"].options) == lanes


def _check(
    name: str, layout: Layout, scale: dict[str, np.ndarray], target: Target, decisions: Decisions = DEFAULTS
) -> None:
    build, options, reference, count, vectors = UPDATES[name]
    weight, *operands = noise(name, layout.shape, *[layout.piece] * count)
    for square in operands[2:]:
        square *= square
    piece = tuple(slice(None) if axis != layout.axis else CHANNELS for axis in range(weight.ndim))
    expected = doubles(weight)[0]
    wide = doubles(*operands)
    for factor in (*vectors.get("clip", []), *scale.values()):
        wide[0] = wide[0] * factor
    expected[piece], *states = reference(expected[piece], *wide, **options)
    given = vectors | scale
    lengths = {"vectors": {vector: len(values) for vector, values in given.items()}} if given else {}
    channels = [] if layout.axis is None else [np.array(CHANNELS, "int32")]
    built(target.schedule(build(layout, **options, **lengths), decisions), target)(
        weight, *operands, *(np.array(values, "float32") for values in given.values()), *channels
    )
    for actual, wanted in zip([weight, *operands[1:]], [expected, *states], strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize(
    ("shape", "part"), [((64, 65), (16, 48)), ((3, 33), (1, 2)), ((6, 256), (4, 6)), ((5,), (0, 3))]
)
@pytest.mark.parametrize("name", ["sgd", "sgd, momentum", "adamw"])
def test_update_of_a_part(name: str, shape: tuple[int, ...], part: tuple[int, int], target: Target) -> None:
    """Weight and states are whole, the gradient has the rows of the part: nothing else changes."""
    build, options, reference, count, vectors = UPDATES[name]
    layout = Layout(shape, "float32", part=part)
    weight, gradient, *states = noise(name, shape, layout.updated, *[shape] * (count - 1))
    for square in states[1:]:
        square *= square
    rows = slice(*part)
    expected = doubles(weight, *states)
    factor = vectors.get("clip", [1])[0]
    changed = reference(
        expected[0][rows], factor * doubles(gradient)[0], *(state[rows] for state in expected[1:]), **options
    )
    for whole, new in zip(expected, changed, strict=True):
        whole[rows] = new
    lengths = {vector: len(values) for vector, values in vectors.items()}
    given = (np.array(values, "float32") for values in vectors.values())
    built(target.schedule(build(layout, **options, vectors=lengths)), target)(weight, gradient, *states, *given)
    for actual, wanted in zip([weight, *states], expected, strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize(
    ("layout", "vectors", "tail"),
    [
        (Layout((3, 33), "float32"), True, 99),
        (Layout((3, 32), "float32"), True, 0),
        (Layout((3,), "float32"), False, 0),
        (Layout((64, 1000), "float32"), True, 0),
        (Layout((5, 33), "float32", 0, 3), True, 33),
    ],
    ids=["tail", "whole", "short", "large", "rows"],
)
def test_vectors_are_as_wide_as_those_of_the_cpu(layout: Layout, vectors: bool, tail: int, cpu: CpuTarget) -> None:
    """The tail of a row is a loop of its own, and a large parameter is updated on all cores."""
    lanes = cpu.traits.lanes
    script = re.sub(r"T\.int64\((\d+)\)", r"\1", cpu.schedule(clear(layout)).script())
    assert (f"T.vectorized({lanes})" in script) == vectors == ("T.vectorized" in script)
    assert (f"range({tail // lanes * lanes}, {tail})" in script) == bool(tail)
    assert ("T.parallel" in script) == (layout.shape[0] == 64)
