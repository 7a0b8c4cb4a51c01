"""Static estimates of CUDA kernels: what a warp executes of PTX, and cycles that grow with the work."""

from __future__ import annotations

import pytest
import tvm

import pock_tvm as pock
from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.tuning.static import ptx
from pock_tvm.tuning.static.loops import NoEstimateError
from pock_tvm.tuning.static.measure import StaticMeasure
from schedules.gpu.text import cubin
from schedules.gpu.traits import traits_of
from schedules.kernels.matmul import matmul
from tests.schedules.kernels import defined, noise
from tests.schedules.test_decisions import PLAIN

ORIN = resolve_target("jetson-orin")
needs_nvrtc = pytest.mark.skipif(cubin.nvrtc() is None, reason="needs nvidia-cuda-nvrtc-cu12")
TEXT = """
.visible .entry other(
	.param .u64 other_param_0
)
{
	ret;

}
.visible .entry kernel(
	.param .u64 kernel_param_0
)
.maxntid 64, 1, 1
{
	.reg .pred 	%p<13>;
	ld.param.u64 	%rd1, [kernel_param_0];
	mov.u32 	%r1, %tid.x;
	setp.gt.s32 	%p1, %r1, GUARD;
	@%p1 bra 	$L__BB0_4;
	mov.b32 	%r2, -6;
$L__BB0_2:
	ld.global.nc.v4.f32 	{%f1, %f2, %f3, %f4}, [%rd1];
	ex2.approx.ftz.f32 	%f5, %f1;
	{ st.shared.b16 	[tile], %h1;
}
	add.s32 	%r2, %r2, 2;
	setp.ne.s32 	%p2, %r2, END;
	@%p2 bra 	$L__BB0_2;
	cp.async.cg.shared.global [%r6], [%rd12], 16, %r7;
	cp.async.commit_group;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
		{%f1, %f2, %f3, %f4},
		{%r4, %r5, %r6, %r7}, {%r8, %r9}, {%f1, %f2, %f3, %f4};
$L__BB0_4:
	ret;

}
"""


def costs(guard: str = "40", end: str = "4") -> dict[str, int]:
    functions = ptx.functions_of(TEXT.replace("GUARD", guard).replace("END", end))
    assert list(functions) == ["other", "kernel"]
    return dict(ptx.warp_costs(functions["kernel"], (8, 1, 1), (64, 1, 1)))


def test_what_a_warp_executes() -> None:
    # From -6 by twos to 4: five times three instructions on data and two on the counter. Then four on matrices.
    moved = {"global": 5 * 16 + 16, "shared": 5 * 2 + 16}
    assert costs() == {"instructions": 1 + 5 * 5 + 4, **moved, "special": 5, "matrix": 1}
    assert costs(end="14")["special"] == 10
    assert costs(guard="31") == {"instructions": 1}  # thread 32 is past the guard


def test_loops_without_a_known_end_have_no_estimate() -> None:
    with pytest.raises(NoEstimateError, match="depends on data"):
        costs(end="%r9")
    with pytest.raises(NoEstimateError, match="too often"):
        costs(end="3")


def test_a_guard_on_data_counts_what_it_guards() -> None:
    assert costs(guard="%r9") == costs()


def matrices(rows: int) -> tvm.tirx.PrimFunc:
    x, weight = noise("static", (rows, 512), (512, 512))
    return defined(matmul, x, weight, **PLAIN).with_attr("global_symbol", "kernel")


@needs_nvrtc
def test_estimates_grow_with_the_work_and_respect_the_units() -> None:
    func, machine, traits = matrices(512), kernel_target(ORIN), traits_of(ORIN)
    default = {name: choice.decided for name, choice in machine.options(func).items()}
    (large,) = StaticMeasure(ORIN).measure(tvm.ir.save_json(func), str(ORIN), [default])
    small, bad = StaticMeasure(ORIN).measure(tvm.ir.save_json(matrices(256)), str(ORIN), [default, {"none": 1}])
    assert large.speedup == pytest.approx(1, rel=0.01) and large.seconds is not None and small.seconds is not None
    assert 1.7 < large.seconds / small.seconds < 2.3
    assert large.seconds > 512**3 / traits.peak
    assert bad.seconds is None and str(bad.failure).startswith("cannot be built: ")


@needs_nvrtc
def test_small_register_tiles_are_estimated_slower() -> None:
    func, machine = matrices(128), kernel_target(ORIN)
    tiles = machine.options(func)["tile"].options
    points = [machine.options(func, {"tile": tile}) for tile in (tiles[0], tiles[-1])]
    decisions = [{name: choice.decided for name, choice in point.items()} for point in points]
    small, large = StaticMeasure(ORIN).measure(tvm.ir.save_json(func), str(ORIN), decisions)
    assert small.seconds is not None and large.seconds is not None and small.seconds > 2 * large.seconds


def test_without_a_compiler_the_way_out_is_told(monkeypatch) -> None:
    monkeypatch.setattr(cubin, "nvrtc", lambda: None)
    monkeypatch.setattr(cubin.shutil, "which", lambda _: None)
    with pytest.raises(pock.PockError, match=r"pip install 'pock-tvm\[cuda\]'"):
        StaticMeasure(ORIN)
