"""Machine code of CUDA kernels, without a GPU."""

from __future__ import annotations

import shutil

import pytest
from tvm import te

import pock_tvm as pock
from pock_tvm.compiler.kernel_builder import KernelBuilder
from pock_tvm.compiler.targets import resolve_target
from schedules.gpu.text import cubin

TEXT = """
#ifdef __CUDACC_RTC__
#include <cuda/std/cstdint>
#include <cuda/std/type_traits>
using cuda::std::int64_t;
namespace std { using cuda::std::is_same; }
#else
#include <cstdint>
#endif
%s
extern "C" __global__ void twice(float* x, int64_t* n) { if (threadIdx.x < n[0]) x[threadIdx.x] *= 2; }
"""
needs_nvrtc = pytest.mark.skipif(cubin.nvrtc() is None, reason="needs nvidia-cuda-nvrtc-cu12")


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_53", "sm_72", "sm_87", "sm_90", "sm_90a"])
def test_nvrtc_knows_old_gpus_and_new_ones(architecture: str) -> None:
    code = cubin.machine_code(TEXT % "", architecture)
    assert code.startswith(b"\x7fELF") and b"twice" in code
    assert code == cubin.machine_code(TEXT % "", architecture), "the same text gives the same code"


SPILLING = """
extern "C" __global__ void __launch_bounds__(64) many(float* x) {
  float sums[200];
  #pragma unroll
  for (int i = 0; i < 200; ++i) sums[i] = x[i];
  for (int k = 1; k < x[0]; ++k) {
    #pragma unroll
    for (int i = 0; i < 200; ++i) sums[i] = sums[i] * x[k] + sums[(i + 1) % 200];
  }
  #pragma unroll
  for (int i = 0; i < 200; ++i) x[i * 64 + threadIdx.x] = sums[i];
}
"""


@needs_nvrtc
def test_spills_are_found_in_what_the_compiler_says() -> None:
    text = (TEXT % SPILLING).replace("__launch_bounds__(64)", "__launch_bounds__(64, 8)")
    assert cubin.SPILLS.search(cubin._compiled(text, "sm_87")[1])
    free = (TEXT % SPILLING).replace("__launch_bounds__(64)", "__launch_bounds__(64, 1)")
    assert not cubin.SPILLS.search(cubin._compiled(free, "sm_87")[1])
    assert cubin.with_one_block(TEXT % SPILLING) == free


@pytest.mark.parametrize("spilled", [0, 8])
def test_only_what_spills_is_compiled_again(spilled: int, monkeypatch) -> None:
    said = f"{spilled} bytes stack frame, {spilled} bytes spill stores, {2 * spilled} bytes spill loads"
    monkeypatch.setattr(cubin, "_compiled", lambda text, _: (text.encode(), said))
    code = cubin.machine_code("void __launch_bounds__(64) a() {}", "sm_87")
    assert code == (b"void __launch_bounds__(64, 1) a() {}" if spilled else b"void __launch_bounds__(64) a() {}")


@needs_nvrtc
def test_ptx_is_text_that_ends() -> None:
    code = cubin.machine_code(TEXT % "", "compute_75")
    assert b".target sm_75" in code and code.endswith(b"\0"), "the driver reads a string"


@needs_nvrtc
@pytest.mark.parametrize("header", ["cuda_fp16.h", "cuda_bf16.h"])
def test_16_bits_find_their_headers(header: str) -> None:
    assert cubin.machine_code(TEXT % f"#include <{header}>", "sm_87").startswith(b"\x7fELF")


@needs_nvrtc
def test_the_first_error_is_told() -> None:
    with pytest.raises(ValueError, match='identifier "nothing" is undefined'):
        cubin.machine_code(TEXT % "__device__ int x = nothing;", "sm_87")
    with pytest.raises(ValueError, match="invalid value for --gpu-architecture"):
        cubin.machine_code(TEXT % "", "sm_12")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_stands_in(monkeypatch) -> None:
    monkeypatch.setattr(cubin, "nvrtc", lambda: None)
    assert cubin.machine_code(TEXT % "", "sm_87").startswith(b"\x7fELF")
    assert cubin.machine_code(TEXT % "", "compute_87").endswith(b"\0")
    with pytest.raises(ValueError, match="undefined"):
        cubin.machine_code(TEXT % "__device__ int x = nothing;", "sm_87")


def test_without_a_compiler_the_way_out_is_told(monkeypatch) -> None:
    monkeypatch.setattr(cubin, "nvrtc", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("POCK_CACHE", "off")
    a = te.placeholder((3,), "float32", "a")
    func = te.create_prim_func([a, te.compute((3,), lambda at: a[at] + 1)]).with_attr("global_symbol", "added")
    with pytest.raises(pock.PockError, match=r"pip install 'pock-tvm\[cuda\]'") as error:
        KernelBuilder(resolve_target("jetson-orin")).codes([func], {})
    assert "report the fault" not in str(error.value)
