"""Analyses: which runs are made, resumed, and refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.choosing.analysis import rungs
from pock_tvm.choosing.candidates import (
    candidates,
    scheme_of,
)
from pock_tvm.choosing.contributions import Contributions
from pock_tvm.choosing.expected_gains import growing_sets
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from pock_tvm.reports.page import write_report
from tests.pock_tvm.choosing.measurements import by_run


def test_rungs_train_fewer_for_longer(task, analysed) -> None:
    assert rungs(task) == [(0.5, 1), (1.0, 2), (2, 2)]
    weights = [run for run in analysed.runs if run.candidate.weight]
    everything = [
        each for each in candidates(structure_of(load_model(task.model, batch=8)), task.ratios) if each.weight
    ]
    count = [len({run.candidate for run in weights if run.epochs == epochs}) for epochs, _ in rungs(task)]
    assert count == [len(everything), -(-len(everything) // 3), -(-count[1] // 3)]
    assert set(analysed.costs) >= {run.candidate for run in analysed.runs}
    base = analysed.base()
    assert all(analysed.run_of(base, run.epochs, run.seed) for run in weights)
    sets = growing_sets(analysed)
    assert sets
    assert {(run.candidate, run.epochs, run.seed) for run in analysed.trials} == set(
        itertools.product(sets, [2], [0, 1])
    )


def test_of_an_embedding_those_rows_are_candidates_that_the_data_reads_most(sentences, tmp_path) -> None:
    with np.load(sentences.data) as data:
        counts = np.bincount(data["words"].ravel(), minlength=40)
    read = np.flatnonzero(counts)
    assert len(read) < 14
    found = pock.analyze(sentences, tmp_path / "c.json")
    assert [counts[row] for row in found.rows["words.weight"]] == sorted(counts[read], reverse=True)
    assert Contributions.load(tmp_path / "c.json").rows == found.rows
    ratios = {each.weight: [] for each in found.measured() if each.weight}
    for each in sorted(each for each in found.measured() if each.weight):
        ratios[each.weight].append(each.ratio)
    assert ratios == dict.fromkeys(("words.weight", "places.weight", "mix.weight"), [0.25, 1.0])
    model = load_model(sentences.model)
    structure = structure_of(model).reading(found.rows)
    some, every = (scheme_of(structure, 1, {"words.weight": ratio}).resolve(model) for ratio in (0.25, 1.0))
    most = found.rows["words.weight"][: -(-len(read) // 4)]
    assert some["words.weight"] == (0, tuple(sorted(most)))
    assert every["words.weight"] == (0, tuple(read))
    # Places are not looked up by an input: of them the first rows are trained.
    assert scheme_of(structure, 1, {"places.weight": 0.25}).resolve(model)["places.weight"] == (0, (0, 1, 2, 3))
    words = replace(found.base(), weight="words.weight")
    assert found.gains([words], found.base())[words].mean > 0
    chosen = pock.search(found)
    assert chosen.scheme.rules["words.weight"] in (sorted(most), read.tolist())
    layers = pock.compile(torch.export.load(sentences.model), scheme=chosen.scheme, build=False).manifest["layers"]
    shares = {layer["name"]: layer["weight"] for layer in layers if layer["kind"] == "embedding"}
    assert shares["words"] == f"{len(chosen.scheme.rules['words.weight'])}/40"
    write_report(found, tmp_path / "r.html", scheme=chosen.scheme)
    assert "words.weight at " in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_killed_analysis_goes_on_where_it_was(task, analysed, tmp_path, share) -> None:
    output = tmp_path / "c.json"
    runs = analysed.runs[: int(share * len(analysed.runs))]
    done = {run.candidate for run in runs}
    Contributions(task, analysed.fingerprint, analysed.data, runs, {c: analysed.costs[c] for c in done}).save(output)
    found = pock.analyze(task, output)
    assert found.runs[: len(runs)] == runs
    assert len(found.runs) + len(found.trials) == len(by_run(found))  # nothing is done twice
    assert by_run(Contributions.load(output)) == by_run(found) == by_run(analysed)
    assert found.costs == analysed.costs
    assert list(tmp_path.iterdir()) == [output]


def test_dask_finds_the_same(task, analysed, tmp_path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        found = pock.analyze(task, tmp_path / "c.json", scheduler=cluster.scheduler_address)
    assert by_run(found) == by_run(analysed)
    assert found.costs == analysed.costs


def test_an_output_of_another_analysis_is_refused(task, analysed, tmp_path) -> None:
    analysed.save(tmp_path / "c.json")
    before = (tmp_path / "c.json").read_bytes()
    with pytest.raises(pock.PockError, match="was measured with seeds 2, not 3"):
        pock.analyze(replace(task, seeds=3), tmp_path / "c.json")
    assert (tmp_path / "c.json").read_bytes() == before


def test_other_data_are_another_analysis(task, analysed, tmp_path) -> None:
    analysed.save(tmp_path / "c.json")
    with np.load(task.data) as data:
        np.savez(tmp_path / "train.npz", x=data["x"], y=np.roll(data["y"], 1))
    with pytest.raises(pock.PockError, match="was measured on other data"):
        pock.analyze(replace(task, data=str(tmp_path / "train.npz")), tmp_path / "c.json")


def test_an_output_without_a_folder_is_refused_at_once(task, tmp_path) -> None:
    with pytest.raises(pock.PockError, match="there is no folder"):
        pock.analyze(task, tmp_path / "none" / "c.json")
