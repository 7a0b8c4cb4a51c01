"""Places of a bundle's tensors: what is in use at the same time lies apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.compiler.footprint.plan import HEAD_BYTES, MEMORY, STEPS, Plan, plan_of
from pock_tvm.device.contract import nbytes
from relay_passes.analysis.live_ranges import INPUT

from ...deploying.bundles import CASES, compiled


def spans(program: pock.Program, plan: Plan, entry: str) -> list[tuple[str, int, int, int, int]]:
    """What lies in memory during a call of an entry point: name, first and last byte, first and last use."""
    description = program.manifest["entries"][entry]
    handed = {each["name"] for each in program.manifest["inputs"]} | {"target"}
    found = []
    for position, tensor in enumerate(description["table"]):
        name = f"{entry}/{tensor['name']}" if tensor["name"].startswith("result.") else tensor["name"]
        place = plan.places[name]
        if place.space != MEMORY:
            continue
        uses = [at for at, call in enumerate(description["calls"]) if position in [each for each, _ in call[1]]]
        last = max(uses, default=-1) if name in handed else len(description["calls"])
        found.append((name, place.offset, place.offset + nbytes(tensor) - 1, -1, last))
    for name, start, size, first, last in description["arena_map"]:
        if name.startswith(INPUT):  # told apart above, by its uses
            continue
        found.append((name, plan.memory.arena + start, plan.memory.arena + start + size - 1, first, last))
    return found


@pytest.mark.parametrize("target", ["host", "cortex-m7"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_in_use_lies_apart(name: str, target: str) -> None:
    program = compiled(name, target=target, build=target == "host")
    entries = program.manifest["entries"]
    prepared = {key: np.zeros(each.shape, each.dtype) for key, each in program.parameters.items()}
    plan = plan_of(program, prepared)
    for entry in set(STEPS) & set(entries):
        for one, other in itertools.combinations(spans(program, plan, entry), 2):
            meet = one[1] <= other[2] and other[1] <= one[2] and one[3] <= other[4] and other[3] <= one[4]
            assert not meet, (entry, one, other)
            assert one[1] >= HEAD_BYTES and max(one[2], other[2]) < plan.memory.size
    held = {region[0] for entry in entries.values() for region in entry["arena_map"] if region[0].startswith(INPUT)}
    assert bool(held) == (target == "cortex-m7"), "a microcontroller's arena is planned with its inputs"


def test_inputs_take_no_memory_of_their_own() -> None:
    program = compiled("batch statistics")
    plan = plan_of(program, {})
    image, arena = nbytes(program.manifest["inputs"][0]), program.memory()["arena"]
    assert arena > image
    assert plan.memory.size - plan.memory.arena < arena + image
