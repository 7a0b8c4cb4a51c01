"""Candidates, and the schemes that train them."""

from __future__ import annotations

from pock_tvm.choosing.candidates import (
    biases_of,
    candidates,
    depth_of,
    scheme_of,
    weights_by_kind,
)
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from tests.pock_tvm.networks import small, tokens


def test_every_weight_and_every_number_of_biases_is_a_candidate() -> None:
    structure = structure_of(load_model(small(4)))
    found = candidates(structure, (0.125, 0.5, 1.0))
    biases = ["stem.bias"] + [f"blocks.{i}.{name}.bias" for i in (0, 1) for name in ("conv1", "bn", "conv2")]
    assert sorted(biases_of(structure)) == sorted(biases)
    assert [each.biases for each in found if not each.weight] == list(range(8))
    weights = {each.weight for each in found if each.weight}
    assert weights == {"stem.weight"} | {
        f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("conv1", "bn", "conv2")
    }
    # The scales of normalisation are trained whole.
    assert [each.ratio for each in found if each.weight == "blocks.0.bn.weight"] == [1.0]
    # Of 3 channels an eighth is 1, a half 2.
    assert [each.ratio for each in found if each.weight == "stem.weight"] == [0.125, 0.5, 1.0]
    assert [each.biases for each in candidates(structure, (1.0,), depths=2) if not each.weight] == [0, 4, 7]


def test_a_gradient_reaches_a_weight_as_soon_as_the_biases_behind_it_are_trained() -> None:
    model = load_model(small(4))
    structure = structure_of(model)
    assert depth_of(structure, "stem.weight") == 7
    assert depth_of(structure, "blocks.1.conv2.weight") == 1
    scheme = scheme_of(structure, 1, {"blocks.1.conv2.weight": 0.5})
    assert set(scheme.resolve(model)) == {"head.weight", "head.bias", "blocks.1.conv2.bias", "blocks.1.conv2.weight"}


def test_kinds_of_weights() -> None:
    structure = structure_of(load_model(small(4)))
    kinds = weights_by_kind(structure, candidates(structure, (0.125, 0.5)))
    assert {kind: len(weights.weights) for kind, weights in kinds.items()} == {"conv": 3, "1x1": 2, "scale": 2}
    assert kinds["conv"].ratios == {"stem.weight": 0.5, "blocks.0.conv2.weight": 0.5, "blocks.1.conv2.weight": 0.5}
    structure = structure_of(load_model(tokens()))
    kinds = weights_by_kind(structure, candidates(structure, (1.0,)))
    assert {kind: list(weights.ratios) for kind, weights in kinds.items()} == {
        "embedding": ["words.weight"],
        "other embedding": ["places.weight"],
        "linear": ["mix.weight"],
    }
