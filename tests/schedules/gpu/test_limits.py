"""The validator of kernels' texts, tried on texts as they are and on texts that break a limit."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tvm
from tvm import te, tirx

from schedules.gpu import gpu_target
from schedules.gpu.lower import Launch
from schedules.gpu.schedule import RULES
from schedules.gpu.text.limits import OverLimit, check, faults
from schedules.gpu.traits import DIALECTS
from schedules.kernels import GUARDED

TARGETS = {
    "cuda": {"kind": "cuda", "arch": "sm_80"},
    "metal": {"kind": "metal"},
    "opencl": {"kind": "opencl"},
    "webgpu": {"kind": "webgpu"},
}
BARRIERS = {
    "cuda": "__syncthreads();",
    "metal": "threadgroup_barrier(mem_flags::mem_threadgroup);",
    "opencl": "barrier(CLK_LOCAL_MEM_FENCE);",
    "webgpu": "workgroupBarrier();",
}


def target_of(dialect):
    return gpu_target(tvm.target.Target(TARGETS[dialect]))


def sums(rows=3, terms=1000):
    """Long sums, which the threads of a block share."""
    x = te.placeholder((rows, terms), "float32", "layer.0/x")
    k = te.reduce_axis((0, terms), "k")
    y = te.compute((rows,), lambda i: te.sum(x[i, k], axis=k), name="vertex")
    return te.create_prim_func([x, y]).with_attr("global_symbol", "sums_1")


def built(func, dialect):
    target = target_of(dialect)
    code = json.loads(target.code(target.schedule(func)))
    return code["text"], [
        Launch(symbol, tuple(grid), tuple(block), tuple(map(tuple, operands)))
        for symbol, grid, block, operands in code["launches"]
    ]


def found(text, launches, dialect):
    return list(faults(text, launches, target_of(dialect).traits))


@pytest.mark.parametrize("attrs", [{}, {GUARDED: True}])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_texts_have_no_faults(dialect, attrs):
    text, launches = built(sums().with_attrs(attrs), dialect)
    assert BARRIERS[dialect].split("(")[0] in text
    assert found(text, launches, dialect) == []
    check(text, launches, target_of(dialect).traits)


def declared(dialect, name, kind="float", extent=16384):
    """A declaration of memory that a block shares."""
    wgsl = {"float": "f32", "half": "f16", "uint": "u32", "float4": "vec4<f32>"}[kind]
    return {
        "cuda": f"  __shared__ alignas(64) {kind} {name}[{extent}];",
        "metal": f"  threadgroup {kind} {name}[{extent}];",
        "opencl": f"  __local {kind} {name}[{extent}];",
        "webgpu": f"var<workgroup> {name} : array<{wgsl}, {extent}>;",
    }[dialect]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind, extent", [("float", 16384), ("float4", 4096), ("half", 32768)])
def test_shared_memory_is_counted(dialect, kind, extent):
    text, launches = built(sums(), dialect)
    (fault,) = found(text + declared(dialect, "tile", kind, extent), launches, dialect)
    assert "shares 6" in fault


@pytest.mark.parametrize("dialect", DIALECTS)
def test_shared_memory_of_texts_is_found(dialect):
    text, launches = built(sums(), dialect)
    (fault,) = faults(text, launches, dataclasses.replace(target_of(dialect).traits, shared_bytes=0))
    assert re.search(r" shares [1-9]\d* bytes", fault)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_threads_blocks_and_buffers_are_counted(dialect):
    text, (launch,) = built(sums(), dialect)
    most = target_of(dialect).traits.arguments
    cases = {
        "threads a block": dataclasses.replace(launch, block=(1, 2048, 1)),
        "threads along": dataclasses.replace(launch, block=(1, 1, 2048)),
        "blocks along": dataclasses.replace(launch, grid=(1, 2**33, 1)),
        "its launch gives": dataclasses.replace(launch, operands=(*launch.operands, (5, 0))),
        "has no function": dataclasses.replace(launch, symbol="other"),
    }
    for words, changed in cases.items():
        assert any(words in fault for fault in found(text, [changed], dialect)), words
    many = {
        "cuda": ("float* __restrict__ v_layer", [f"float* __restrict__ b{at}, " for at in range(most)]),
        "metal": ("device float* v_layer", [f"device float* b{at} [[ buffer({at + 9}) ]],\n  " for at in range(most)]),
        "opencl": ("__global float* restrict", [f"__global float* restrict b{at}, " for at in range(most)]),
        "webgpu": (
            "@group(0)", [f"@group(0) @binding({at + 9}) var<storage, read_write> b{at} : array<f32>;\n" for at in range(most)],
        ),
    }  # fmt: skip
    before, added = many[dialect]
    place = text.rindex(before)
    wide = text[:place] + "".join(added) + text[place:]
    assert any(f"binds {most + 2} buffers" in fault for fault in found(wide, [launch], dialect))


@pytest.mark.parametrize(
    "dialect, written, lacking",
    [
        ("webgpu", "  let a : i64 = 0i;", "i64"),
        ("webgpu", "var<private> a : array<u8, 4>;", "u8"),
        ("webgpu", "  let a : f32 = inff;", "inff"),
        ("metal", "  double a = 0;", "double"),
        ("opencl", "  long double a = 0;", "long double"),
        ("cuda", "  long double a = 0;", "long double"),
    ],
)
def test_types_that_a_dialect_lacks(dialect, written, lacking):
    text, launches = built(sums(), dialect)
    assert any(f"'{lacking}'" in fault for fault in found(f"{text}\n{written}\n", launches, dialect))


@pytest.mark.parametrize(
    "dialect, written, name",
    [
        ("webgpu", "  let target : i32 = 0i;", "target"),
        ("webgpu", "  let __a : i32 = 0i;", "__a"),
        ("webgpu", "@group(0) @binding(7) var<storage, read_write> layer/x : array<f32>;", "layer/x"),
        ("metal", "  float vertex = 0;", "vertex"),
        ("opencl", "  int global = 0;", "global"),
        ("cuda", "  int template = 0;", "template"),
    ],
)
def test_names_that_a_dialect_does_not_take(dialect, written, name):
    text, launches = built(sums(), dialect)
    assert any(f"'{name}' is" in fault for fault in found(f"{text}\n{written}\n", launches, dialect))


LANES = {
    "cuda": "((int)threadIdx.x)",
    "metal": "((int)threadIdx)",
    "opencl": "(convert_int(get_local_id(0)))",
    "webgpu": "i32(threadIdx.x)",
}
BLOCKS = {
    "cuda": "((int)blockIdx.x)",
    "metal": "((int)blockIdx)",
    "opencl": "(convert_int(get_group_id(0)))",
    "webgpu": "i32(blockIdx.x)",
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "lines, is_refused",
    [
        ("if (LANE < 3) {\nBARRIER\n}", True),
        ("if (LANE < 3) {\nx[0] = 1;\n} else {\nBARRIER\n}", True),
        ("if (LANE < 3) {\nx[0] = 1;\n}\nBARRIER", False),
        ("if (LANE < 3) { return; }\nBARRIER", True),
        ("if (BLOCK < 3) { return; }\nBARRIER", False),
        ("if (BLOCK < 3) {\nBARRIER\n}", False),
        ("FOR(k, 4) {\nBARRIER\n}", False),
        ("FOR(k, 4) {\nFOR(l, (k + 1)) {\nBARRIER\n}\n}", False),
        ("FOR(k, LANE) {\nBARRIER\n}", True),
        ("while (true) {\nif (!(BLOCK < 3)) { break; }\nBARRIER\n}", False),
        ("while (true) {\nif (!(LANE < 3)) { break; }\nBARRIER\n}", True),
        ("LET(a, (BLOCK + 1))\nif (a < 3) {\nBARRIER\n}", False),
        ("LET(a, (LANE + 1))\nif (a < 3) {\nBARRIER\n}", True),
        ("if (x[LANE] < 3) {\nBARRIER\n}", True),
        ("x[0] = 1;\nif (x[0] < 3) {\nBARRIER\n}", True),
    ],
)
def test_barriers_are_reached_by_all_threads(dialect, lines, is_refused):
    if dialect == "webgpu":
        head = (
            "//---\n// Function: f\n//---\n@group(0) @binding(0) var<storage, read_write> x : array<f32>;\nfn f(\n) {\n"
        )
        loop, let = r"for (var \1 : i32 = 0; \1 < \2; \1++) {", r"let \1 : i32 = \2;"
    else:
        kernel = {"cuda": "__global__ void", "metal": "kernel void", "opencl": "__kernel void"}[dialect]
        head = f"{kernel} f(float* x) {{\n"
        loop, let = r"for (int \1 = 0; \1 < \2; ++\1) {", r"int \1 = \2;"
    for word, text in (("LANE", LANES), ("BLOCK", BLOCKS), ("BARRIER", BARRIERS)):
        lines = lines.replace(word, text[dialect])
    lines = re.sub(r"FOR\((\w+), (.*)\) \{", loop, lines)
    lines = re.sub(r"LET\((\w+), (.*)\)$", let, lines, flags=re.MULTILINE)
    text = f"{head}{lines}\n}}\n"
    launch = Launch("f", (1, 1, 1), (32, 1, 1), ((0, 0),))
    assert [("barrier" in fault) for fault in found(text, [launch], dialect)] == [True] * is_refused


@pytest.mark.parametrize("dialect", ["cuda", "metal", "opencl"])
def test_a_flag_that_no_thread_writes_is_the_same_for_all(dialect):
    kernel = {"cuda": "__global__ void", "metal": "kernel void", "opencl": "__kernel void"}[dialect]
    text = f"{kernel} f(float* x, int* failed) {{\nif (failed[0] == 0) {{\n{BARRIERS[dialect]}\nx[0] = 1;\n}}\n}}\n"
    assert found(text, [Launch("f", (1, 1, 1), (32, 1, 1), ((0, 0), (-1, 0)))], dialect) == []


def wasteful(sch, block, traits, choices):
    """A schedule whose threads are more than a device has."""
    loop = sch.fuse(*sch.get_loops(block))
    outer, inner = sch.split(loop, [None, 4096])
    sch.bind(outer, "blockIdx.x")
    sch.bind(inner, "threadIdx.x")


def test_a_kernel_over_a_limit_takes_the_fallback_and_says_so(monkeypatch):
    x = te.placeholder((10000,), "float32", "x")
    y = te.compute((10000,), lambda i: x[i] * 2.0, name="y", attrs={"schedule_rule": "wasteful"})
    func = te.create_prim_func([x, y]).with_attr("global_symbol", "twice_1")
    monkeypatch.setitem(RULES, "wasteful", wasteful)
    target = target_of("webgpu")
    code = json.loads(target.code(target.schedule(func)))
    assert code["fallback"] == "twice_1_kernel has 4096 threads a block, of 256"
    ((_, _, block, _),) = code["launches"]
    assert block == [256, 1, 1]
    assert "fallback" not in json.loads(target.code(target.schedule(sums())))


def test_a_kernel_that_no_schedule_makes_fit_is_refused():
    inputs = [te.placeholder((16,), "float32", f"x{at}") for at in range(9)]
    y = te.compute((16,), lambda i: sum(x[i] for x in inputs), name="y")
    func = te.create_prim_func([*inputs, y]).with_attr("global_symbol", "many_1")
    with pytest.raises(OverLimit, match="many_1_kernel binds 10 buffers, of 8 that a device has"):
        built(func, "webgpu")
    built(func, "metal")


@pytest.mark.parametrize("dtype", ["uint64", "float64"])
def test_wgsl_refuses_what_it_has_no_words_for(dtype):
    x = te.placeholder((16,), dtype, "x")
    y = te.compute((16,), lambda i: x[i] + tirx.const(1, dtype), name="y")
    with pytest.raises(OverLimit, match=f"WGSL has no {dtype}"):
        built(te.create_prim_func([x, y]).with_attr("global_symbol", "plus_1"), "webgpu")


def in_vectors(sch, block, traits, choices):
    """A schedule that WGSL has no types for."""
    outer, lane, inner = sch.split(sch.fuse(*sch.get_loops(block)), [None, 64, 4])
    sch.bind(outer, "blockIdx.x")
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(inner)


@pytest.mark.parametrize("dtype, is_known", [("int64", False), ("uint8", True), ("float32", True)])
def test_vectors_of_long_numbers_take_the_fallback(dtype, is_known, monkeypatch):
    x = te.placeholder((1024,), dtype, "x")
    y = te.compute((1024,), lambda i: x[i] + tirx.const(1, dtype), name="y", attrs={"schedule_rule": "in_vectors"})
    func = te.create_prim_func([x, y]).with_attr("global_symbol", "plus_1")
    monkeypatch.setitem(RULES, "in_vectors", in_vectors)
    target = target_of("webgpu")
    code = json.loads(target.code(target.schedule(func)))
    assert ("vec4" in code["text"]) == is_known
    assert ("no vectors of numbers" in code.get("fallback", "")) != is_known


def test_half_precision_is_kept():
    x = te.placeholder((64,), "float16", "x")
    y = te.compute((64,), lambda i: x[i] * tirx.const(2, "float16"), name="y")
    text, _ = built(te.create_prim_func([x, y]).with_attr("global_symbol", "twice_1"), "webgpu")
    assert text.count("array<f16>") == 2
    assert "enable f16;" in text


def test_large_grids_are_spread():
    x = te.placeholder((65536 * 256 + 1,), "float32", "x")
    y = te.compute(x.shape, lambda i: x[i] * 2.0, name="y")
    text, (launch,) = built(te.create_prim_func([x, y]).with_attr("global_symbol", "twice_1"), "webgpu")
    assert launch.grid == (32769, 1, 2)
    assert ">= 65537u" in text


def test_numbers_keep_all_their_digits():
    x = te.placeholder((16,), "float32", "x")
    value = float(np.float32(0.1234567891))
    y = te.compute((16,), lambda i: x[i] * tirx.const(value, "float32"), name="y")
    text, _ = built(te.create_prim_func([x, y]).with_attr("global_symbol", "scaled_1"), "webgpu")
    assert f"bitcast<f32>({np.float32(value).view('uint32')}u)" in text
