"""Checks in call lists: which numbers they cover, what has been written before them, and the function that they call."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx

import pock_tvm as pock
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.device.library import CheckFailed
from pock_tvm.device.runtime import HostLibrary, load_library, pack_objects
from relay_passes.memory.call_list import NOTHING, CallList, Check, Place, Tensor, Workspace
from relay_passes.memory.lower_to_executor import executor
from schedules.kernels import finite
from tests.pock_tvm.networks import small, tokens

# ---- which numbers are checked ---------------------------------------------------------------------------------------

UPDATES = ("sgd_", "adam_", "assign_", "accumulate_")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in part": {"scheme": pock.Scheme({"*.bias": "full", "*.conv2.weight": 0.5})},
    "momentum": {"optimizer": pock.SGD(momentum=0.9), "batch_norm": "batch"},
    "clipped": {"optimizer": pock.Adam(), "clip_norm": 1.0, "batch_norm": "batch"},
    "accumulated": {"accumulate": 2, "batch_norm": "batch"},
    "accumulated and clipped": {"accumulate": 2, "clip_norm": 1.0},
    "micro-batches": {"micro_batches": 2, "accumulate": 2},
    "guarded steps": {"guard": "step", "batch_norm": "batch"},
    "guarded steps, accumulated": {"guard": "step", "accumulate": 2},
}
HOLDS_ALL = {"clipped", "accumulated", "accumulated and clipped", "micro-batches", "guarded steps"}


def compiled(options: dict[str, Any], exported: Any = None) -> dict[str, Any]:
    """The entry points of a program that is planned and not built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pock.PockWarning)
        program = pock.compile(exported or small(4), build=False, **options)
    return {name: entry for name, entry in program.manifest["entries"].items() if name.endswith("step")}


def unchecked(entry: dict[str, Any]) -> Iterator[str]:
    """What updates read from the arena and nothing has checked since it is in use there, by the plan of the arena."""
    arena, calls = len(entry["table"]), entry["calls"]
    for at, call in enumerate(calls):
        if not call[0].startswith(UPDATES):
            continue
        for place in call[1]:
            if place[0] != arena:
                continue
            first = max(
                first
                for _, offset, size, first, last in entry["arena_map"]
                if offset <= place[1] < offset + size and first <= at <= last
            )
            if not any(call[0] == "check" and place in call[1] for call in calls[first:at]):
                yield f"call {at}, {call[0]}, reads {place} unchecked"


@pytest.fixture(scope="module", params=OPTIONS)
def entries(request) -> tuple[str, dict[str, Any]]:
    return request.param, compiled(OPTIONS[request.param])


def test_every_update_reads_what_was_checked(entries) -> None:
    _, steps = entries
    for entry in steps.values():
        assert not list(unchecked(entry))
        for at, call in enumerate(entry["calls"]):
            if call[0] == "check" and call[4] == "gradient":
                broken = copy.deepcopy(entry)
                broken["calls"][at] = ["copy", [[0, 0], [0, 0]], 0]
                place = call[1][0]
                assert place[0] != len(entry["table"]) or list(unchecked(broken)), f"{call} is not missed"


def test_the_loss_comes_before_everything_that_is_written(entries) -> None:
    _, steps = entries
    for entry in steps.values():
        names = [call[0] for call in entry["calls"]]
        losses = [at for at, call in enumerate(entry["calls"]) if call[0] == "check" and call[4] == "loss"]
        updates = [at for at, name in enumerate(names) if name.startswith((*UPDATES, "clear_"))]
        assert losses[0] < updates[0]
        assert entry["calls"][losses[0]][-1] == NOTHING
        inputs = [call for call in entry["calls"] if call[0] == "check" and call[4] == "input"]
        assert inputs == entry["calls"][: len(inputs)] and {call[5] for call in inputs} - {"counted"} == {"x"}


def test_programs_that_hold_all_gradients_lose_nothing(entries) -> None:
    options, steps = entries
    checks = [call for entry in steps.values() for call in entry["calls"] if call[0] == "check"]
    assert any(call[6] == "state" for call in checks) == (options not in HOLDS_ALL | {"guarded steps, accumulated"})
    if options.startswith("guarded"):
        calls = steps["train_step"]["calls"]
        first = next(at for at, call in enumerate(calls) if call[0].startswith(UPDATES))
        late = [call for call in calls[first:] if call[0] == "check"]
        assert all(call[1][0][0] != len(steps["train_step"]["table"]) for call in late), "only sums are checked later"


def test_gradients_carry_pytorchs_names(entries) -> None:
    options, steps = entries
    named = {
        call[5] for call in steps["train_step"]["calls"] if call[0] == "check" and call[4] in ("gradient", "factor")
    }
    partly = options == "in part"
    assert named == {name for name, _ in _weights() if not partly or name.endswith((".bias", ".conv2.weight"))}
    statistics = {call[5] for call in steps["train_step"]["calls"] if call[0] == "check" and call[4] == "statistic"}
    own = {f"blocks.{block}.bn.running_{kind}" for block in (0, 1) for kind in ("mean", "var")}
    assert statistics == (own if OPTIONS[options].get("batch_norm") == "batch" else set())


def _weights() -> list[tuple[str, Any]]:
    return [(name, tensor) for name, tensor in small(4).named_parameters()]


def test_only_training_is_checked_and_only_floats() -> None:
    program = pock.compile(tokens(), build=False)
    for name, entry in program.manifest["entries"].items():
        checks = [call for call in entry["calls"] if call[0] == "check"]
        assert bool(checks) == (name == "train_step")
        assert not [call for call in checks if call[4] == "input"], "words are whole numbers"
    off = pock.compile(tokens(), build=False, guard="off")
    assert not any(call[0] == "check" for entry in off.manifest["entries"].values() for call in entry["calls"])


# ---- the function that is called -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=finite.BITS)
def checked(request) -> tuple[str, int, HostLibrary]:
    """A dtype, and an executor of two checks: of one number, and of many behind the first three."""
    dtype, count = request.param, 5 * finite.BLOCK + 7
    table = (Tensor("a", (1,), dtype), Tensor("b", (count + 3,), dtype))
    offset = 3 * tvm.DataType(dtype).itemsize
    checks = [(Place(0, 0), 1), (Place(1, offset), count), (Place(1, offset), 100)]
    calls = tuple(Check(place, size, dtype, "input", "x", NOTHING) for place, size in checks)
    entry = executor(CallList(table, calls, Workspace(0, 0, ()))).with_attr("global_symbol", "entry")
    return dtype, count, loaded({"entry": entry, finite.symbol(dtype): finite.all_finite(dtype)})


def loaded(functions: dict[str, tirx.PrimFunc]) -> HostLibrary:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "entry.o"
        tirx.build(tvm.IRModule(functions), target=resolve_target(None)).write_to_file(str(path), "o")
        return load_library(pack_objects({"entry.o": path.read_bytes()}))


def bits_of(dtype: str) -> tuple[type, int]:
    """The unsigned integer as wide as a dtype, and the bits of its infinity."""
    whole, exponent = finite.BITS[dtype]
    return np.dtype(f"u{whole}").type, exponent


def test_finite_numbers_pass(checked) -> None:
    dtype, count, library = checked
    whole, infinity = bits_of(dtype)
    sign = whole(1) << whole(8 * whole(0).itemsize - 1)
    a = np.array([infinity - 1], whole)  # the largest finite number
    b = np.random.default_rng(0).integers(0, infinity, count + 3, dtype=whole)  # of all sizes, denormal ones too
    b[::2] |= sign
    b[:3] = infinity  # outside
    library.run("entry", library.table([a.ctypes.data, b.ctypes.data, 0, 0]))


@pytest.mark.parametrize("value", ["infinity", "minus infinity", "quiet NaN", "signalling NaN", "NaN of all ones"])
def test_one_bad_number_is_found_wherever_it_is(checked, value) -> None:
    dtype, count, library = checked
    whole, infinity = bits_of(dtype)
    width = 8 * whole(0).itemsize
    bad = {
        "infinity": infinity,
        "minus infinity": infinity | 1 << width - 1,
        "quiet NaN": infinity | infinity >> 1,
        "signalling NaN": infinity | 1,
        "NaN of all ones": (1 << width) - 1,
    }[value]
    a, b = np.zeros(1, whole), np.zeros(count + 3, whole)
    table = library.table([a.ctypes.data, b.ctypes.data, 0, 0])
    a[0] = bad
    with pytest.raises(CheckFailed) as caught:
        library.run("entry", table)
    assert caught.value.position == 0
    a[0] = 0
    for at in (0, 31, 32, finite.BLOCK - 1, finite.BLOCK, 2 * finite.BLOCK + 5, count - 8, count - 1):
        b[3 + at] = bad
        with pytest.raises(CheckFailed) as caught:
            library.run("entry", table)
        assert caught.value.position == 1, at
        b[3 + at] = 0
    library.run("entry", table)
    b[2] = bad
    library.run("entry", table)


def test_an_executor_goes_on_after_a_check_that_failed(checked) -> None:
    """What one run found is not what the next finds."""
    dtype, count, library = checked
    whole, infinity = bits_of(dtype)
    a, b = np.array([infinity], whole), np.zeros(count + 3, whole)
    table = library.table([a.ctypes.data, b.ctypes.data, 0, 0])
    for _ in range(3):
        a[0] = infinity
        with pytest.raises(CheckFailed):
            library.run("entry", table)
        a[0] = 0
        library.run("entry", table)


FACTORS = [
    ([3.0, -2.0], [1.0, 4.0, 5.0], True),
    ([2.0**60, 1.0], [1.0, -(2.0**60)], True),
    ([2.0**60, 1.0], [2.0**66, 1.0], False),  # two terms reach 2^127
    ([1e30], [1e7], True),
    ([1e38, 0.0], [10.0, 1.0], False),
    ([0.0, np.inf], [0.0, 0.0], False),
    ([0.0, 0.0], [np.nan, 0.0], False),
]


@pytest.mark.parametrize("zeros", [0, 3 * finite.BLOCK + 5])
def test_factors_whose_products_may_overflow_are_found(zeros: int) -> None:
    for a, b, passes in FACTORS:
        arrays = [np.array([0.0] * zeros + a, "float32"), np.array(b, "float32")]
        table = tuple(Tensor(name, each.shape, "float32") for name, each in zip("ab", arrays, strict=True))
        check = Check(Place(0, 0), arrays[0].size, "float32", "factor", "w", NOTHING, (Place(1, 0), arrays[1].size))
        entry = executor(CallList(table, (check,), Workspace(0, 0, ()))).with_attr("global_symbol", "entry")
        library = loaded({"entry": entry, finite.ALL_FACTORS: finite.all_factors()})
        with contextlib.nullcontext() if passes else pytest.raises(CheckFailed):
            library.run("entry", library.table([*(each.ctypes.data for each in arrays), 0, 0]))
