"""The report."""

from __future__ import annotations

import json

import pock_tvm as pock
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from pock_tvm.reports.page import choice_of, write_report


def test_the_report_needs_nothing_else(found, tmp_path) -> None:
    chosen = pock.search(found, memory=2**17)
    write_report(found, tmp_path / "r.html", scheme=chosen.scheme, memory=2**17, pictures=tmp_path / "pictures")
    text = (tmp_path / "r.html").read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text
    for weight in chosen.choice.weights:
        assert weight in text
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "contributions.png",
        "fronts.png",
        "scheme.png",
    }


def test_a_scheme_is_recognised_as_the_choice_that_made_it(found, tmp_path) -> None:
    chosen = pock.search(found, memory=2**17)
    chosen.scheme.save(tmp_path / "scheme.json")
    structure = structure_of(load_model(found.task.model, batch=8))
    read = choice_of(pock.Scheme.load(tmp_path / "scheme.json"), chosen.choices, structure)
    assert (read.biases, read.weights) == (chosen.choice.biases, chosen.choice.weights)
    assert json.loads((tmp_path / "scheme.json").read_text())["*"] == "frozen"
    assert choice_of(pock.Scheme({"*": "full"}), chosen.choices, structure) is None
    assert choice_of(pock.Scheme({"*.bias": "full"}), chosen.choices, structure) is None
