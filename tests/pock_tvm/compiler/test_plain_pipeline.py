"""TVM's pipeline ``pock_schedule``: our schedules in a plain TVM build."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from tvm import IRModule, relax, te, tirx, topi
from tvm.relax.frontend.torch import from_exported_program
from tvm.target import Target

import pock_tvm as pock
from pock_tvm.compiler.database import Database, Tuned, kernel_key
from pock_tvm.compiler.rebuild import definitions_of
from pock_tvm.compiler.targets import kernel_target, resolve_target
from relay_passes.errors import PassError
from relay_passes.kernels.schedule_kernels import SCHEDULED
from schedules.gpu.text.cubin import machine_code

HOST = resolve_target("host")


class Network(torch.nn.Module):
    """Two convolutions, one of them depthwise, a norm, and a product of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = torch.nn.Conv2d(3, 17, 3, padding=1), torch.nn.Conv2d(17, 17, 3, 2, groups=17)
        self.norm, self.head = torch.nn.LayerNorm(17), torch.nn.Linear(17, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(torch.relu(self.conv(x))).flatten(2)
        return self.head(self.norm((y @ y.transpose(1, 2)).softmax(-1).mean(1)))


def imported(x: torch.Tensor, **options):
    network = Network().eval()
    exported = torch.export.export(network, (x,), **options)
    mod = from_exported_program(exported, keep_params_as_input=True, unwrap_unit_return_tuple=True)
    mod, params = relax.frontend.detach_params(mod)
    return network, mod, [param.numpy() for param in params["main"]]


def scheduled(mod: IRModule, target: Target = HOST, **options) -> IRModule:
    return relax.get_pipeline("pock_schedule", target=target, **options)(mod)


def kernels(mod: IRModule) -> dict[str, bool]:
    """Whether each kernel has a schedule of ours."""
    functions = {var.name_hint: func for var, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}
    return {name: SCHEDULED in func.attrs for name, func in functions.items()}


def called(mod: IRModule, name: str, *arrays: np.ndarray) -> list[np.ndarray]:
    """The results of a function, and its arguments after the call."""
    machine = relax.VirtualMachine(tvm.compile(mod, HOST, tir_pipeline="pock_schedule"), tvm.cpu())
    arguments = [tvm.runtime.tensor(array) for array in arrays]
    results = machine[name](*arguments)
    results = [results] if isinstance(results, tvm.runtime.Tensor) else list(results)
    return [each.numpy() for each in (*results, *arguments)]


def test_a_training_step_is_that_of_an_unscheduled_build() -> None:
    x, labels = torch.randn(3, 3, 7, 7), np.array([1, 0, 6])
    _, mod, params = imported(x)
    trained = [param.name for param in mod["main"].params[1:]]
    mod = relax.get_pipeline("pock_train", train=trained, optimizer={"kind": "sgd"})(mod)
    arguments = (x.numpy(), labels, *params, np.array([0.5], "float32"))
    ours = scheduled(mod)
    assert all(kernels(ours).values())
    for mine, tvms in zip(called(ours, "train_step", *arguments), called(mod, "train_step", *arguments), strict=True):
        np.testing.assert_allclose(mine, tvms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [None, 5])
def test_modules_of_another_front_end_keep_their_results(batch: int | None) -> None:
    """Without ``batch`` the shape is static; else it is symbolic, and TVM's own kernels compute what depends on it."""
    shapes = {} if batch is None else {"dynamic_shapes": {"x": {0: torch.export.Dim("n", min=2)}}}
    x = torch.randn(batch or 3, 3, 7, 7)
    network, mod, params = imported(x, **shapes)
    ours = scheduled(mod)
    assert all(kernels(ours).values()) == (batch is None)
    expected = network.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(called(ours, "main", x.numpy(), *params)[0], expected, rtol=1e-4, atol=1e-5)


def a_product(rows: int, columns: int, terms: int) -> tirx.PrimFunc:
    a, b = te.placeholder((rows, terms), name="a"), te.placeholder((terms, columns), name="b")
    return te.create_prim_func([a, b, topi.nn.matmul(a, b)]).with_attr("global_symbol", "product")


def test_a_product_of_another_front_end_has_a_register_tile_on_the_stack() -> None:
    mod = scheduled(IRModule({"product": a_product(33, 64, 17)}))
    assert "vectorized" in mod["product"].script()
    built = tvm.compile(mod, HOST, tir_pipeline="pock_schedule")
    assert "TVMBackendAllocWorkspace" not in built.mod.inspect_source("ll")
    a, b = (np.random.default_rng(0).standard_normal(shape).astype("float32") for shape in ((33, 17), (17, 64)))
    a[3, 2] = np.inf
    result = tvm.runtime.tensor(np.zeros((33, 64), "float32"))
    built["product"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), result)
    np.testing.assert_allclose(result.numpy(), a.astype("float64") @ b, rtol=1e-5, atol=1e-5)


def test_decisions_are_asked_for_and_followed() -> None:
    mod = IRModule({"product": a_product(32, 64, 16)})
    small = scheduled(mod, decisions_of=lambda func: {"tile": (1, 16)})
    assert not tvm_ffi.structural_equal(small["product"], scheduled(mod)["product"])
    with pytest.raises(PassError, match="product.*no option"):
        scheduled(mod, decisions_of=lambda func: {"tile": (5, 16)})


def test_records_of_a_database_are_followed(tmp_path) -> None:
    """A record of a kernel of ``pock.compile``: the plain build has the same kernel."""
    exported = torch.export.export(torch.nn.Linear(24, 48), (torch.randn(33, 24),))
    definitions = definitions_of(pock.compile(exported, loss="mse", check=False))
    machine, database = kernel_target(HOST), Database(tmp_path, HOST)
    for definition in definitions.values():
        func = tvm.ir.load_json(definition)
        options = machine.options(func)
        if "tile" in options:
            decisions = {"tile": options["tile"].options[-1]}
            database.choose(kernel_key(func), Tuned(decisions, 1.5), machine.schedule(func, decisions))
    mod = from_exported_program(exported, keep_params_as_input=True, unwrap_unit_return_tuple=True)
    mod, _ = relax.frontend.detach_params(mod)
    mod = relax.get_pipeline("pock_train", train=["p_weight"], loss="mse", store_permuted=True)(mod)
    ours, tuned = scheduled(mod), scheduled(mod, database=tmp_path)
    assert any(not tvm_ffi.structural_equal(ours[name], tuned[name]) for name in kernels(ours))


def test_what_came_scheduled_stays() -> None:
    func = a_product(8, 16, 4)
    ours = scheduled(IRModule({"product": func.with_attr("tirx.is_scheduled", True)}))
    assert kernels(ours) == {"product": False}
    assert tvm_ffi.structural_equal(ours["product"].body, func.body, map_free_vars=True)


@pytest.mark.parametrize("dialect", ["opencl", "cuda", "metal", "webgpu"])
def test_texts_for_gpus(dialect: str) -> None:
    target = resolve_target(dialect).with_host("llvm")
    ours = scheduled(IRModule({"product": a_product(33, 64, 17)}), target)
    assert all(kernels(ours).values())
    built = tvm.compile(ours, target, tir_pipeline="pock_schedule")
    (text,) = (device.inspect_source() for device in built.mod.imports)
    if dialect == "opencl":
        compiled_by_pocl(text)
    elif dialect == "cuda":
        assert machine_code(text, "sm_87").startswith(b"\x7fELF")
    assert "product_kernel" in text


def test_a_training_step_for_opencl() -> None:
    _, mod, _ = imported(torch.randn(3, 3, 9, 9))
    mod = relax.get_pipeline("pock_train", train=[mod["main"].params[-2].name])(mod)
    target = resolve_target("opencl").with_host("llvm")
    ours = scheduled(mod, target)
    assert all(kernels(ours).values())
    (host,) = tvm.compile(ours, target, tir_pipeline="pock_schedule").mod.imports
    compiled_by_pocl("\n".join(device.inspect_source() for device in host.imports))


def compiled_by_pocl(text: str) -> None:
    cl = pytest.importorskip("pyopencl")
    cl.Program(cl.create_some_context(interactive=False), text).build()
