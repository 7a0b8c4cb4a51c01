"""The JSON file beside a model: names of classes, with or without preprocessing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pock_tvm.errors import DataError
from pock_tvm.training.beside import Preprocessing, classes_beside


def test_either_of_both_will_do(tmp_path) -> None:
    assert classes_beside(tmp_path / "net.pt2") is None
    (tmp_path / "net.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    assert classes_beside(tmp_path / "net.pt2") == ["cat", "dog"]
    assert Preprocessing.beside(tmp_path / "net.pt2") is None
    (tmp_path / "net.json").write_text(json.dumps({"mean": [0.5], "std": [0.25]}))
    assert classes_beside(tmp_path / "net.pt2") is None
    assert Preprocessing.beside(tmp_path / "net.pt2") == Preprocessing((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"classes": "cat"}, "should hold classes as a list of names"),
        ({"classes": ["cat", 1]}, "should hold classes as a list of names"),
        ({"classes": ["cat", "a\nb", "a\nb"]}, r"names a class twice: 'a\\nb'"),
        ({"labels": []}, "should hold mean and std, or classes, by name"),
        ([], "should hold mean and std, or classes, by name"),
    ],
)
def test_names_that_are_none_are_refused_in_one_line(tmp_path, content: Any, complaint: str) -> None:
    (tmp_path / "net.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=complaint) as error:
        classes_beside(tmp_path / "net.pt2")
    assert "\n" not in str(error.value)
