"""Files of exported programs that would run code: refused, or read without it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch
from torch.utils._sympy import functions

import pock_tvm as pock
from pock_tvm.errors import ModelError
from pock_tvm.frontend import load_model
from pock_tvm.frontend.symbolic import checked_expression
from tests.pock_tvm.networks import small

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
ROOT = "net/"


class Attack:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "net.pt2"
    torch.export.save(small(), path)
    return path


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "ran"


def changed(source: Path, folder: Path, **changes) -> Path:
    """Copy an archive with some members replaced or added: bytes, or a function of a JSON member's content."""
    target = folder / "changed.pt2"
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        members = {name.removeprefix(ROOT): before.read(name) for name in before.namelist()}
        for name, change in changes["members"].items():
            if callable(change):
                content = json.loads(members[name])
                change(content)
                change = json.dumps(content).encode()
            members[name] = change
        for name, data in members.items():
            after.writestr(f"{ROOT}{name}", data)
    return target


def torch_saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def code(marker: Path) -> str:
    return f"__import__('os').mkdir({str(marker)!r})"


def pickled_weight(marker: Path) -> dict:
    def change(config) -> None:
        config["config"]["head.weight"] |= {"use_pickle": True, "path_name": "weight_99"}

    return {WEIGHTS: change, "data/weights/weight_99": torch_saved(Attack(marker))}


def pickled_constant(marker: Path, name: str = "tensor_0") -> dict:
    def change(config) -> None:
        config["config"]["c"] = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}

    return {
        "data/constants/model_constants_config.json": change,
        f"data/constants/{name}": pickle.dumps(Attack(marker)) if "obj" in name else torch_saved(Attack(marker)),
    }


def in_model(change) -> dict:
    return {MODEL: change}


def graph(model) -> dict:
    return model["graph_module"]["graph"]


def first_symbol(model, text: str) -> None:
    meta = next(iter(graph(model)["tensor_values"].values()))
    meta["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


def spec(model, text: str, kind: str = "out_spec") -> None:
    model["graph_module"]["module_call_graph"][0]["signature"][kind] = text


def node_named(model, text: str) -> None:
    node = graph(model)["nodes"][0]
    name = node["outputs"][0]["as_tensor"]["name"]
    replaced = json.loads(json.dumps(graph(model)).replace(json.dumps(name), json.dumps(text)))
    model["graph_module"]["graph"] = replaced


ENUM = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
LEAF = {"type": None, "context": None, "children_spec": []}

ATTACKS = {
    "a pickled weight": (pickled_weight, "weight 'head.weight' is pickled"),
    "a pickled constant": (pickled_constant, "constant 'c' is pickled"),
    "a pickled object": (lambda marker: pickled_constant(marker, "opaque_obj_0"), "constant 'c' is an object"),
    "a script object": (lambda marker: pickled_constant(marker, "custom_obj_0"), "constant 'c' is an object"),
    "weights of an old form": (
        lambda marker: {"data/weights/model.pt": torch_saved(Attack(marker))},
        "'data/weights/model.pt' is pickled",
    ),
    "an expression": (
        lambda marker: in_model(lambda model: first_symbol(model, code(marker))),
        "is more than arithmetic",
    ),
    "an expression behind an honest one": (
        lambda marker: in_model(lambda model: first_symbol(model, f"Max(Integer(2), {code(marker)})")),
        "is more than arithmetic",
    ),
    "a symbol of a strange name": (
        lambda marker: in_model(lambda model: first_symbol(model, f'Symbol("{code(marker)}")')),
        "is more than arithmetic",
    ),
    "a power without end": (
        lambda _: in_model(lambda model: first_symbol(model, "Pow(Integer(10), Integer(10000000000))")),
        "is more than arithmetic",
    ),
    "a symbol that is counted up to": (
        lambda _: in_model(lambda model: model["range_constraints"].update({"u99999999999": {"min_val": 0, "max_val": 9}})),
        "is no name of a dimension",
    ),
    "a name that is code": (
        lambda marker: in_model(lambda model: node_named(model, f"y = {code(marker)}")),
        "could be code",
    ),
    "an operator that is none": (
        lambda _: in_model(lambda model: graph(model)["nodes"][0].update(target="torch.hub.load")),
        "the graph calls 'torch.hub.load'",
    ),
    "an operator that reads files": (
        lambda _: in_model(lambda model: graph(model)["nodes"][0].update(target="torch.ops.aten.from_file.default")),
        "the graph calls",
    ),
    "a module among the outputs": (
        lambda _: in_model(
            lambda model: spec(model, json.dumps([1, {"type": "builtins.dict", "context": f"[{ENUM}]", "children_spec": [LEAF]}]))
        ),
        "outputs are described by more than plain keys",
    ),
    "a factory among the outputs": (
        lambda _: in_model(
            lambda model: spec(
                model,
                json.dumps(
                    [
                        1,
                        {
                            "type": "collections.defaultdict",
                            "context": {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []},
                            "children_spec": [],
                        },
                    ]
                ),
            )
        ),
        "outputs are described by more than plain keys",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_that_would_run_code_is_refused(attack: str, honest, tmp_path, marker) -> None:
    make, match = ATTACKS[attack]
    path = changed(honest, tmp_path, members=make(marker))
    with pytest.raises(ModelError, match=match) as caught:
        load_model(path, batch=2)
    assert "\n" not in str(caught.value)
    assert "trust=True" in str(caught.value)
    assert not marker.exists()


def test_the_attacks_of_these_tests_work_on_pytorch_itself(honest, tmp_path) -> None:
    """Else they would prove nothing."""
    for number, attack in enumerate(("a pickled weight", "an expression", "weights of an old form")):
        marker, folder = tmp_path / f"ran{number}", tmp_path / f"{number}"
        folder.mkdir()
        path = changed(honest, folder, members=ATTACKS[attack][0](marker))
        with pytest.raises(Exception):  # noqa: B017 - the attack's result is no tensor
            torch.export.load(path)
        assert marker.exists(), attack


def test_what_a_program_does_not_need_is_left_out(honest, tmp_path, marker) -> None:
    extra = {
        "data/sample_inputs/model.pt": torch_saved(Attack(marker)),
        "data/aotinductor/model/evil.so": b"\x7fELF",
        "models/other.json": b"{}",
        MODEL: lambda model: model.update(guards_code=[code(marker)]),
    }
    path = changed(honest, tmp_path, members=extra)
    model, plain = load_model(path, batch=2), load_model(honest, batch=2)
    assert not marker.exists()
    assert model.inputs == plain.inputs
    for name, array in plain.weights.items():
        np.testing.assert_array_equal(model.weights[name], array)
    assert load_model(honest, batch=2, trust=True).inputs == plain.inputs


def test_a_trusted_file_is_read_as_it_is(honest, tmp_path, marker) -> None:
    path = changed(honest, tmp_path, members={"data/sample_inputs/model.pt": torch_saved((Attack(marker),))})
    with pytest.raises(pock.PockError):
        pock.compile(path, batch=2, trust=True, build=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s31', positive=True, integer=True)",
        "Add(Integer(-1), Mul(Integer(2), Symbol('s0', positive=True, integer=True)))",
        "Max(Integer(1), Symbol('u0', integer=True))",
        "Min(8, s0 // 2 + 3)",
        "FloorDiv(Symbol('s1', integer=True), Integer(2))",
        "Pow(Symbol('s1', integer=True), Integer(-1))",
        "StrictLessThan(Symbol('s1', integer=True), Integer(20))",
        "FloatTrueDiv(Float('2.0', precision=53), s0)",
        "-s0",
    ],
)
def test_arithmetic_is_read(text: str) -> None:
    names = vars(functions)
    assert sympy.sympify(checked_expression(text), locals=dict(names)) == sympy.sympify(text, locals=dict(names))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "s0.__class__", "().__class__", "[1][0]", "lambda: 0", "(x := 1)", "f'{s0}'", "exec('1')",
        "Symbol(exec)", "Symbol('a b')", "Max(**{})", "Max(*s0)", "__debug__", "1 if s0 else 2", "s0 ** s0", "2 ** 1000",
        "2 ** 16 ** 16", "9" * 30, "'text'", "1.5j", "sym\u0131", "1;2", "", "(" * 90 + "1" + ")" * 90 + "+", "eval('1')(2)",
        "Integer(open('x'))", "Add(Symbol('x', commutative=exec('1')))", None, 3,
    ],
)  # fmt: skip
def test_more_than_arithmetic_is_refused(text) -> None:
    with pytest.raises(ValueError):
        checked_expression(text)


def test_bombs_and_lies_are_refused(honest, tmp_path) -> None:
    def larger(config) -> None:
        config["config"]["head.weight"]["tensor_meta"]["sizes"] = [{"as_int": 2**36}]

    def deep(model) -> None:
        model["graph_module"]["metadata"] = {}
        value = model
        for _ in range(200):
            value["deep"] = {}
            value = value["deep"]

    for members, match in (
        ({WEIGHTS: larger}, "has 68719476736 elements"),
        ({MODEL: deep}, "nested deeper"),
        ({MODEL: b"{"}, "cannot be read"),
        ({WEIGHTS: b"[]"}, "cannot be read"),
    ):
        with pytest.raises(ModelError, match=match):
            load_model(changed(honest, tmp_path, members=members), batch=2)
    bomb = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/models/model.json", b"[" + b"0," * 2**22 + b"0]")
    with pytest.raises(ModelError, match="its members take"):
        load_model(bomb)
    os.mkfifo(tmp_path / "pipe.pt2")
    with pytest.raises(ModelError, match="no regular file"):
        load_model(tmp_path / "pipe.pt2")
