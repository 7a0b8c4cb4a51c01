"""What a schedule is chosen by: traits of a CPU, register tiles, parts of a sum."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm.target import Target

from schedules.cpu import CpuTarget
from schedules.cpu.tile_cost import joined_lanes, tiles, vector_lanes, vector_sizes
from schedules.cpu.traits import CpuTraits, traits_of
from schedules.extents import parts
from schedules.kernels.conv2d import conv2d, conv2d_weight_gradient
from schedules.kernels.matmul import matmul
from tests.schedules.kernels import CPUS, LLVM, defined, noise

EXTENTS = st.integers(1, 300)
TN = {"transpose_a": True, "transpose_b": False}


@pytest.mark.parametrize(
    ("target", "lanes", "registers"),
    [
        ({"mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512"}, 16, 32),
        ({"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}, 8, 16),
        ({"mtriple": "x86_64-linux-gnu"}, 4, 16),
        ({"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}, 4, 32),
        ({"mtriple": "armv7l-linux-gnueabihf", "mattr": ["+neon"]}, 4, 16),
        ({"mtriple": "thumbv7em-unknown-none-eabihf", "mcpu": "cortex-m7"}, 1, 32),
        ({"mtriple": "riscv64-unknown-linux-gnu", "mcpu": "generic-rv64"}, 1, 32),
        ({"mtriple": "riscv64-unknown-linux-gnu", "mcpu": "generic-rv64", "mattr": ["+v"]}, 4, 32),
        ({"mtriple": "riscv64-unknown-linux-gnu", "mcpu": "spacemit-x60"}, 8, 32),
    ],
    ids=str,
)
def test_traits(target: dict[str, object], lanes: int, registers: int) -> None:
    traits = traits_of(Target({"kind": "llvm", "num-cores": 4} | target))
    assert (traits.lanes, traits.registers, traits.cores) == (lanes, registers, 4)


@given(rows=st.lists(EXTENTS, min_size=1, max_size=3), columns=EXTENTS, cpu=st.sampled_from(list(CPUS.values())))
def test_tiles_cover_everything_and_fit_into_registers(rows: list[int], columns: int, cpu: CpuTarget) -> None:
    traits = cpu.traits
    found = tiles(rows, columns, traits, breaks=True)
    assert found
    for tile in found:
        assert columns % tile.width == 0 and tile.lanes <= traits.lanes
        assert all(extent % part == 0 for extent, part in zip(rows, tile.rows, strict=True))
        assert tile.height * tile.vectors + tile.vectors + 1 <= traits.registers


def test_all_tiles_that_fit_are_offered() -> None:
    """60 rows, and three vectors of sixteen lanes."""
    heights = [(1,), (2,), (3,), (4,), (5,), (6,), (10,), (12,), (15,), (20,), (30,)]
    low = [tile for tile in heights if 3 * tile[0] + 3 + 1 <= 32]
    found = {(tile.rows, tile.width) for tile in tiles([60], 48, CpuTraits(lanes=16, registers=32, cores=2))}
    assert found == {(rows, 16) for rows in heights} | {(rows, 48) for rows in low}


def test_a_tile_is_cut_for_the_cores_only_where_parts_are_too_few() -> None:
    traits = CpuTraits(lanes=4, registers=32, cores=4, fma_ports=2, fma_latency=2, load_ports=2)
    (alone, *_), (shared, *_) = (tiles([3], 16, traits, parts) for parts in (1, 16))
    assert (alone.height, alone.width) == (3, 8)
    assert (shared.height, shared.width) == (3, 16)


def test_a_tile_has_several_taps_where_channels_are_few() -> None:
    """Three input by sixteen output channels are three multiply-adds of sixteen lanes: too few to hide their latency."""
    traits = CpuTraits(lanes=16, registers=32, cores=2)
    few, many = (tiles([3, 3, channels], 16, traits, 8)[0] for channels in (3, 16))
    assert few.height > 8
    assert many.rows[:2] == (1, 1)


def test_a_tile_is_high_where_the_second_cache_is_slow_beside_the_multiply_adds() -> None:
    slow, fast = (
        tiles([1024], 1024, CpuTraits(lanes=16, registers=32, cores=2, cache_stream=stream))[0] for stream in (32, 256)
    )
    assert (slow.height, slow.vectors) == (8, 2)
    assert (fast.height, fast.vectors) == (4, 4)


@pytest.mark.parametrize(("ports", "packs"), [(1, False), (2, True)])
def test_panels_are_packed_where_a_tile_is_done_before_its_next_line_is_there(ports: int, packs: bool) -> None:
    traits = CpuTraits(lanes=16, registers=32, cores=2, fma_ports=ports, load_ports=ports)
    offered = CpuTarget(traits, LLVM).options(defined(matmul, *noise("panels", (512, 64), (512, 1024)), **TN))
    assert offered["panels"].default == packs


@pytest.mark.parametrize(("columns", "once"), [(512, False), (1024, True)], ids=["one task a core", "two"])
def test_panels_are_packed_before_the_tasks_where_several_tasks_of_a_core_read_them(columns: int, once: bool) -> None:
    traits = CpuTraits(lanes=16, registers=32, cores=2, fma_ports=2, cache_bytes=1 << 20)
    offered = CpuTarget(traits, LLVM).options(defined(matmul, *noise("once", (512, 64), (512, columns)), **TN))
    assert offered["panels_at_once"].default == (4 if once else 0)


@pytest.mark.parametrize(
    ("kernel", "shapes", "packs"),
    [
        ("forward", ((1, 16, 16, 64), (1, 1, 64, 256)), True),
        ("forward", ((1, 16, 16, 64), (1, 1, 64, 64)), False),  # strips lie together
        ("forward", ((1, 16, 16, 64), (1, 1, 64, 192)), False),  # three strips for two cores
        ("forward", ((1, 16, 16, 16), (1, 1, 16, 256)), False),  # the first cache holds a strip
        ("forward", ((1, 8, 8, 64), (1, 1, 64, 256)), False),  # few rows
        ("forward", ((1, 14, 14, 256), (1, 1, 256, 1024)), False),  # high tiles
        ("weight", ((1, 16, 16, 256), (1, 16, 16, 256)), True),
        ("weight", ((1, 16, 16, 2048), (1, 16, 16, 256)), False),  # the second cache does not hold X
    ],
)
@pytest.mark.parametrize("ports", [1, 2])
def test_wide_cores_pack_what_they_would_wait_for(
    kernel: str, shapes: tuple[tuple[int, ...], ...], packs: bool, ports: int
) -> None:
    traits = CpuTraits(
        lanes=16, registers=32, cores=2, cache_bytes=2**20, fma_ports=ports, load_ports=ports, cache_stream=32 * ports
    )
    geometry = {"strides": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "groups": 1}
    of_weight = {"kernel_size": (1, 1)} if kernel == "weight" else {}
    function = conv2d_weight_gradient if kernel == "weight" else conv2d
    offered = CpuTarget(traits, LLVM).options(defined(function, *noise("pack", *shapes), **geometry, **of_weight))
    assert ("pack" in offered and offered["pack"].default) == (packs and ports == 2)


@pytest.mark.parametrize(
    ("images", "terms", "ports", "tile"),
    [
        (1, 24, 2, (1, 1, 2, 144)),
        (1, 24, 1, (1, 1, 8, 48)),  # no wide core
        (1, 64, 2, (1, 1, 8, 48)),  # computes for longer than it writes
        (0.25, 24, 2, (1, 1, 8, 48)),  # the second cache holds the results
    ],
)
def test_wide_cores_write_whole_rows_of_few_terms(images: float, terms: int, ports: int, tile: tuple[int, ...]) -> None:
    traits = CpuTraits(
        lanes=16, registers=32, cores=2, cache_bytes=2**20, fma_ports=ports, load_ports=ports, cache_stream=32 * ports
    )
    geometry = {"strides": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "groups": 1}
    x, w = noise("whole", (1, int(56 * images), 56, terms), (1, 1, terms, 144))
    offered = CpuTarget(traits, LLVM).options(defined(conv2d, x, w, **geometry))
    assert offered["tile"].default == tile


SIXTEEN = CpuTraits(lanes=8, registers=16, cores=4)
"""A core with AVX2."""


@pytest.mark.parametrize(
    ("rows", "columns", "tile"),
    [
        ([1, 14, 14], 576, (1, 2, 2, 24)),
        ([8, 7, 7], 192, (4, 1, 1, 24)),
        ([1, 56, 56], 144, (1, 1, 4, 24)),
        ([1, 14, 14], 256, (1, 2, 2, 16)),  # 14 pixels by one vector take all registers, and LLVM would spill
    ],
)
def test_few_registers_hold_blocks_of_pixels(rows: list[int], columns: int, tile: tuple[int, ...]) -> None:
    """Rows of 7 and 14 pixels as a whole leave a core with sixteen registers waiting for loads or results."""
    best = tiles(rows, columns, SIXTEEN, breaks=True)[0]
    assert (*best.rows, best.width) == tile


def test_many_registers_hold_whole_rows_of_pixels() -> None:
    assert tiles([1, 14, 14], 576, CpuTraits(lanes=16, registers=32, cores=4), breaks=True)[0].rows == (1, 1, 14)


@pytest.mark.parametrize(("rows", "columns", "whole"), [(1000, 1000, (1000, 1008)), (17, 200, (18, 208))])
def test_rows_and_columns_are_added_where_no_tile_of_those_wanted_suits(
    rows: int, columns: int, whole: tuple[int, int]
) -> None:
    layouts = CpuTarget(SIXTEEN, LLVM).layouts
    computed = layouts.computed_columns(rows, columns)
    assert (layouts.rounded_rows(rows, computed), computed) == whole
    assert layouts.computed_columns(1024, 1024) == 1024


@given(columns=EXTENTS)
def test_vectors_divide_the_columns(columns: int) -> None:
    lanes = vector_lanes(columns, 16)
    assert columns % lanes == 0 and lanes <= 16
    if columns % 16 == 0:
        assert lanes == joined_lanes(columns, 16) == 16


@pytest.mark.parametrize(
    ("columns", "lanes", "sizes"),
    [
        (24, 24, [16, 8]),
        (12, 12, [8, 4]),
        (33, 11, [11]),
        (40, 40, [16, 16, 8]),
        (120, 8, [8]),
        (32, 16, [16]),
        (8, 8, [8]),
        (7, 7, [7]),
    ],
)
def test_vectors_of_several_registers_take_the_fewest_instructions(columns: int, lanes: int, sizes: list[int]) -> None:
    assert joined_lanes(columns, 16) == lanes
    assert vector_sizes(lanes, 16) == sizes


@given(extents=st.lists(EXTENTS, min_size=1, max_size=3), want=st.integers(1, 64))
def test_parts_divide_their_axes_and_are_enough(extents: list[int], want: int) -> None:
    counts = parts(extents, want)
    assert all(extent % count == 0 for extent, count in zip(extents, counts, strict=True))
    assert math.prod(counts) >= want or counts == tuple(extents)
