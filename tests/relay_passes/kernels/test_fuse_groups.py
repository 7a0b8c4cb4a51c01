import numpy as np
import pytest
import tvm
from tvm import relax, te, tirx

from relay_passes import FuseGroups

OPERANDS = 12


def chain() -> tvm.IRModule:
    """Products with one operand after the other, each through tanh."""
    builder = relax.BlockBuilder()
    operands = [relax.Var(f"x{at}", relax.TensorType((4, 8), "float32")) for at in range(OPERANDS)]
    with builder.function("main", operands):
        with builder.dataflow():
            value = operands[0]
            for operand in operands[1:]:
                product = builder.emit_te(
                    lambda a, b: te.compute(a.shape, lambda i, j: a[i, j] * b[i, j], name="product"), value, operand
                )
                value = builder.emit_te(
                    lambda a: te.compute(a.shape, lambda i, j: te.tanh(a[i, j]), name="tanh"), product
                )
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    return builder.get()


def kernels(most: int, *longest: int) -> tvm.IRModule:
    passes = [relax.transform.AnnotateTIROpPattern(), FuseGroups(most, *longest), relax.transform.FuseTIR()]
    return tvm.transform.Sequential([*passes, relax.transform.DeadCodeElimination(["main"])])(chain())


def widths(mod: tvm.IRModule) -> list[int]:
    return [len(func.params) for func in mod.functions.values() if isinstance(func, tirx.PrimFunc)]


@pytest.mark.parametrize("most", [4, 6, 8])
def test_no_group_is_wider_than_a_device_binds(most):
    mod = kernels(most)
    assert max(widths(mod)) <= most
    assert len(widths(mod)) < 2 * (OPERANDS - 1), "nothing was fused"
    arrays = [np.random.default_rng(at).standard_normal((4, 8), "float32") for at in range(OPERANDS)]
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    expected = arrays[0]
    for array in arrays[1:]:
        expected = np.tanh(expected * array)
    found = machine["main"](*(tvm.runtime.tensor(array) for array in arrays))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_target_that_binds_enough_has_tvms_groups():
    assert widths(kernels(OPERANDS + 1)) == [OPERANDS + 1]


def test_groups_may_be_kept_short():
    assert max(widths(kernels(OPERANDS + 1, 1))) == 3
    assert 3 <= max(widths(kernels(OPERANDS + 1, 2))) < OPERANDS + 1


def test_a_kernel_that_is_too_wide_by_itself_stays():
    assert max(widths(kernels(2))) == 3
