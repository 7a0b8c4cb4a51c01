"""Parameter records: one a parameter, from the front end to the manifest, filled in phase by phase."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.compiler import pipeline
from pock_tvm.compiler.phases import Phases
from pock_tvm.compiler.training_options import Training
from pock_tvm.frontend import Model, load_model
from pock_tvm.schemes.scheme import with_trained
from tests.pock_tvm.networks import small
from tests.relay_passes.modules import BUILDER

SCHEME = pock.Scheme({"blocks.0.conv2.weight": [0, 3], "blocks.1.*": "full", "head.weight": "full"})


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(small(4))


@pytest.fixture(scope="module")
def program(model: Model) -> pock.Program:
    options: dict[str, Any] = {"optimizer": pock.AdamW(), "accumulate": 2, "batch_norm": "batch"}
    return pock.compile(model, scheme=SCHEME, build=False, **options)


def test_each_phase_adds_to_the_records(model: Model) -> None:
    trained = SCHEME.resolve(model)
    training = Training(trained, optimizer=pock.SGD(momentum=0.9).kernel, batch_norm="batch", accumulate=2)
    phases = Phases(model.module, parameters=with_trained(model.parameters, trained))
    own = list(model.parameters)

    training = pipeline.canonicalise_forward(phases, training)
    assert list(phases.parameters) == own
    permuted = {name for name, record in phases.parameters.items() if record.layout is not None}
    assert permuted == {f"blocks.{name}.weight" for name in ("0.conv2", "1.conv1", "1.conv2")} | {"head.weight"}
    conv = phases.parameters["blocks.0.conv2.weight"]
    assert conv.trained == {"axis": 1, "indices": [0, 3]}, "the record keeps PyTorch's layout"
    assert conv.layout is not None and conv.layout.axes == (2, 3, 1, 0)

    pipeline.differentiate(phases, training)
    states = {name: record for name, record in phases.parameters.items() if name not in own}
    assert {record.origin for record in states.values()} == {"optimizer", "gradient_sum"}
    assert {(record.of, record.slot) for record in states.values()} == {
        (name, slot) for name in trained for slot in ("momentum_buffer", "")
    }
    statistics = [name for name, record in phases.parameters.items() if record.trained == "statistics"]
    assert statistics == [f"blocks.{block}.bn.running_{which}" for block in (0, 1) for which in ("mean", "var")], (
        "training updates them without a gradient"
    )

    pipeline.order_kernels(phases, training, BUILDER)
    prepared = {name: record for name, record in phases.parameters.items() if name not in {*own, *states}}
    assert prepared and {record.origin for record in prepared.values()} == {"prepared"}


def test_records_describe_what_the_entry_points_read(program: pock.Program) -> None:
    records = program.parameters
    others = {"x", "target", "rates", "counted"}
    for entry, description in program.manifest["entries"].items():
        for tensor in description["table"]:
            if tensor["name"] in others or tensor["name"].startswith(("constant.", "result.")):
                continue
            record = records[tensor["name"]]
            shape = record.shape if entry == "prepare" else record.store(np.empty(record.shape)).shape
            assert (list(shape), record.dtype) == (tensor["shape"], tensor["dtype"]), (entry, record.name)
    results = [each for each in program.manifest["entries"]["prepare"]["table"] if each["name"].startswith("result.")]
    prepared = [(list(each.shape), each.dtype) for each in records.values() if each.origin == "prepared"]
    assert prepared == [(each["shape"], each["dtype"]) for each in results]


def test_state_has_the_shape_of_what_is_trained(program: pock.Program) -> None:
    records = program.parameters
    states = [record for record in records.values() if record.is_state]
    assert {record.of for record in states} == set(program.trained)
    for state in states:
        owner = records[state.of]
        if owner.trained == "full":
            assert state.shape == owner.store(np.empty(owner.shape)).shape, state.name
        else:
            axis, indices = owner.trained["axis"], owner.trained["indices"]
            assert state.nbytes == owner.nbytes // owner.shape[axis] * len(indices), state.name


def test_records_come_back_from_a_file(model: Model, program: pock.Program, tmp_path) -> None:
    program.save(tmp_path / "p.pock")
    again = pock.Program.load(tmp_path / "p.pock").parameters
    assert again == program.parameters and list(again) == list(program.parameters)
    for name, record in again.items():
        assert json.loads(json.dumps(record.to_json())) == program.manifest["parameters"][name]
        if record.is_weight:
            np.testing.assert_array_equal(record.initial, model.parameters[name].initial, name)
        else:
            assert record.initial is None
