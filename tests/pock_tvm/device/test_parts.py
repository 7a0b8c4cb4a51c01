"""Trained parts between PyTorch's layout and a program's."""

from __future__ import annotations

import numpy as np
import pytest

from pock_tvm.device.parameters import Layout, Parameter
from pock_tvm.device.parts import stored_part, unstored_part
from relay_passes.canonical.store_permuted import _stored_part
from relay_passes.ir.trained_part import TrainedPart


@pytest.mark.parametrize(
    "shape, layout, axis, indices, stored",
    [
        ((4, 3, 2, 5), Layout((4, 3, 2, 5), (2, 3, 1, 0)), 1, [0, 2], TrainedPart(2, (0, 2))),
        ((4, 1, 2, 5), Layout((4, 1, 2, 5), (2, 3, 1, 0)), 1, [0], TrainedPart(2, (0,))),
        ((4, 3, 2, 5, 1), Layout((4, 6, 5, 1), (2, 3, 1, 0)), 1, [0, 2], TrainedPart(2, (0, 1, 4, 5))),
    ],
    ids=["images", "one channel", "volumes, whose taps in depth join the channels"],
)
def test_channels_in_a_programs_layout(shape, layout, axis, indices, stored) -> None:
    assert _stored_part((layout.shape, layout.axes), TrainedPart(axis, tuple(indices)), shape) == stored
    owner = Parameter("weight", shape, "float32", trained={"axis": axis, "indices": indices}, layout=layout)
    whole = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    part = whole.take(indices, axis)
    found = stored_part(owner, part)
    np.testing.assert_array_equal(found, layout.store(whole).take(stored.indices, stored.axis))
    np.testing.assert_array_equal(unstored_part(owner, found), part)
