"""Schemes: what a person writes, what it means for a model, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.errors import SchemeError
from pock_tvm.frontend import load_model
from pock_tvm.schemes.scheme import with_trained
from tests.pock_tvm.networks import Small, small, tokens


@pytest.fixture(scope="module")
def model():
    return load_model(small(4))


def test_the_last_match_wins(model) -> None:
    scheme = pock.Scheme({"*": "frozen", "*.bias": "full", "blocks.[0-9].*.bias": "frozen", "blocks.1.conv2.*": "full"})
    assert list(scheme.resolve(model)) == ["stem.bias", "blocks.1.conv2.weight", "blocks.1.conv2.bias", "head.bias"]


def test_what_nothing_matches_is_frozen(model) -> None:
    assert pock.Scheme({"head.bias": "full"}).resolve(model) == {"head.bias": None}


@pytest.mark.parametrize(("ratio", "count"), [(1 / 8, 1), (0.3, 3), (0.5, 4), (0.51, 5), (1.0, 8)])
def test_a_ratio_trains_the_channels_of_largest_norm(model, ratio: float, count: int) -> None:
    piece = pock.Scheme({"blocks.0.conv2.weight": ratio}).resolve(model)["blocks.0.conv2.weight"]
    if count == 8:
        assert piece is None
        return
    axis, channels = piece
    norms = np.abs(model.weights["blocks.0.conv2.weight"]).sum(axis=(0, 2, 3))
    assert axis == 1
    assert set(channels) == set(np.argsort(-norms)[:count])


def test_a_ratio_of_a_depthwise_weight_trains_groups() -> None:
    exported = torch.export.export(torch.nn.Conv2d(4, 8, 3, groups=4), (torch.randn(1, 4, 5, 5),))
    axis, indices = pock.Scheme({"weight": [1, 3]}).resolve(exported)["weight"]
    assert (axis, indices) == (0, (2, 3, 6, 7))


def test_a_ratio_of_an_embedding_trains_its_first_rows() -> None:
    exported = tokens()
    assert pock.Scheme({"words.weight": 0.26}).resolve(exported)["words.weight"] == (0, tuple(range(11)))
    assert pock.Scheme({"words.weight": [7, 2]}).resolve(exported)["words.weight"] == (0, (2, 7))
    assert pock.Scheme({"words.weight": 1.0}).resolve(exported)["words.weight"] is None
    with pytest.raises(SchemeError, match="'words.weight' has 40 rows; there is no row 40"):
        pock.Scheme({"words.weight": [40]}).resolve(exported)


def test_a_scheme_fills_in_what_is_trained(model) -> None:
    scheme = pock.Scheme({"*.conv2.weight": [1, 3], "head.*": "full"})
    records = with_trained(model.parameters, scheme.resolve(model))
    assert list(records) == list(model.parameters)
    some = {"axis": 1, "indices": [1, 3]}
    assert {name: record.trained for name, record in records.items() if record.trained != "frozen"} == {
        "blocks.0.conv2.weight": some, "blocks.1.conv2.weight": some, "head.weight": "full", "head.bias": "full",
    }  # fmt: skip
    assert all(record.trained == "frozen" for record in model.parameters.values()), "the model's own records stay"


def test_named_schemes(model) -> None:
    def trained(scheme: pock.Scheme) -> set[str]:
        return set(scheme.resolve(model))

    head = {"head.weight", "head.bias"}
    assert trained(pock.Scheme.full()) == set(model.trainable)
    assert trained(pock.Scheme.head_only(model)) == head
    assert trained(pock.Scheme.bias_only(model)) == {name for name in model.trainable if name.endswith("bias")} | head
    assert trained(pock.Scheme.bias_only(model, last=2)) == {"blocks.1.bn.bias", "blocks.1.conv2.bias"} | head
    assert trained(pock.Scheme.bias_only(model, last=0)) == head
    assert trained(pock.Scheme.last_layers(model, 2)) == {"blocks.1.conv2.weight", "blocks.1.conv2.bias"} | head
    assert trained(pock.Scheme.pockengine(model)) == {
        "blocks.1.conv1.weight", "blocks.1.conv1.bias", "blocks.1.bn.bias", "blocks.1.conv2.bias",
    } | head  # fmt: skip


def test_requires_grad_is_a_scheme() -> None:
    module = Small()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("blocks.1"))
    expected = [name for name, _ in module.named_parameters() if name.startswith("blocks.1")]
    exported = torch.export.export(module.eval(), (torch.randn(1, 3, 8, 8),))
    for source in (module, exported):
        assert sorted(pock.Scheme.from_requires_grad(source).resolve(exported)) == sorted(expected)


def test_a_scheme_is_a_file(model, tmp_path) -> None:
    scheme = pock.Scheme({"*": "frozen", "*.bias": "full", "head.weight": 0.5, "stem.weight": [2, 0]})
    scheme.save(tmp_path / "scheme.json")
    assert json.loads((tmp_path / "scheme.json").read_text())["*.bias"] == "full"
    loaded = pock.Scheme.load(tmp_path / "scheme.json")
    assert loaded == scheme
    assert loaded.resolve(model) == scheme.resolve(model)


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ({"head.weigth": "full"}, "'head.weigth' names no parameter of the model; the nearest are head.weight"),
        ({"head.weight": 0.0}, "ratio 0.0 is outside"),
        ({"head.weight": 1.5}, "ratio 1.5 is outside"),
        ({"head.weight": -1}, "outside"),
        ({"head.weight": "half"}, "'half' is neither"),
        ({"head.weight": True}, "is neither"),
        ({"head.weight": []}, "different indices"),
        ({"head.weight": [1, 1]}, "different indices"),
        ({"head.weight": [8]}, "has 8 input channels; there is no channel 8"),
        ({"head.bias": 0.5}, "'head.bias' cannot be trained in part: it is a bias"),
        ({"blocks.0.bn.weight": 0.5}, "it is a scale"),
    ],
)
def test_faults_are_named(model, rules: dict, complaint: str) -> None:
    with pytest.raises(SchemeError) as error:
        pock.Scheme(rules).resolve(model)
    assert complaint in str(error.value)


def test_a_file_that_is_no_scheme_is_refused(tmp_path) -> None:
    file = tmp_path / "scheme.json"
    for content in ("{", "[1]", "3"):
        file.write_text(content)
        with pytest.raises(SchemeError, match="scheme"):
            pock.Scheme.load(file)


def test_the_published_scheme_of_mcunet(shared_data) -> None:
    path = shared_data / "models" / "mcunet-5fps-flowers12.pt2"
    rules = pock.Scheme.pockengine(path).rules
    weights = {name: what for name, what in rules.items() if name.endswith("weight")}
    assert weights == {
        "blocks.7.layers.0.conv.weight": 1.0,
        "blocks.8.layers.0.conv.weight": 1.0,
        "blocks.9.layers.0.conv.weight": 0.5,
        "blocks.10.layers.0.conv.weight": 1.0,
        "classifier.weight": "full",
    }
    biases = {name for name in rules if name.endswith("bias")}
    assert biases == {f"blocks.{b}.layers.{i}.conv.bias" for b in range(7, 14) for i in range(3)} | {"classifier.bias"}


def test_a_repr_fits_a_line() -> None:
    assert repr(pock.Scheme({"*": "frozen", "*.bias": "full"})) == "Scheme({'*': 'frozen', '*.bias': 'full'})"
    shown = repr(pock.Scheme({"*": "frozen", "head.weight": list(range(1000))}))
    assert len(shown) <= 120
    assert shown.startswith("Scheme({'*': 'frozen', 'head.weight': [0, 1, 2,")
    assert shown.endswith(" …})")
