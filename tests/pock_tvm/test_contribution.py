"""Contributions: what is measured, how gains are read, the file, and executors that lose workers."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.choosing.analysis import rungs
from pock_tvm.choosing.candidates import (
    Candidate,
    WeightSet,
    biases_of,
    candidates,
    depth_of,
    scheme_of,
    weights_by_kind,
)
from pock_tvm.choosing.contributions import Contributions
from pock_tvm.choosing.costs import Cost
from pock_tvm.choosing.expected_gains import expected_gains, gain_cap, growing_sets, kind_gains, rank_agreement
from pock_tvm.choosing.first_order import first_order_scores, score
from pock_tvm.choosing.runs import Run
from pock_tvm.choosing.worker import measure
from pock_tvm.choosing.workers import Workers
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from pock_tvm.reports.page import write_report
from tests.pock_tvm.networks import Small, small, tokens

HEAD = Candidate(0)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> pock.Task:
    """``Small`` on images whose class is their brightest corner."""
    root = tmp_path_factory.mktemp("task")
    torch.export.save(small(), root / "net.pt2")
    rng = np.random.default_rng(0)
    for part, count in (("train", 64), ("val", 40)):
        y = rng.integers(0, 4, count)
        x = rng.standard_normal((count, 3, 8, 8)).astype("float32")
        for image, label in zip(x, y, strict=True):
            image[:, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1.5
        np.savez(root / f"{part}.npz", x=x, y=y)
    paths = (str(root / "net.pt2"), str(root / "train.npz"), str(root / "val.npz"))
    return pock.Task(*paths, pock.Recipe(2, 0.05), batch=8, ratios=(0.25, 1.0), seeds=2)


@pytest.fixture(scope="module")
def analysed(task, tmp_path_factory) -> Contributions:
    return pock.analyze(task, tmp_path_factory.mktemp("analysed") / "c.json")


def by_run(found: Contributions) -> dict:
    return {(run.candidate, run.epochs, run.seed): run.score for run in (*found.runs, *found.trials)}


# ---- what is measured ------------------------------------------------------------------------------------------------


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


# ---- embeddings ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> pock.Task:
    """``Tokens`` on sentences that use each word up to 12 twice as often as the one before; the number of odd ones
    tells the class."""
    root = tmp_path_factory.mktemp("sentences")
    torch.export.save(tokens(), root / "net.pt2")
    rng = np.random.default_rng(0)
    chances = 2.0 ** np.arange(13)
    for part, count in (("train", 64), ("val", 40)):
        words = rng.choice(13, (count, 6), p=chances / chances.sum())
        np.savez(root / f"{part}.npz", words=words, y=(words % 2).sum(1) // 3)
    paths = (str(root / "net.pt2"), str(root / "train.npz"), str(root / "val.npz"))
    return pock.Task(*paths, pock.Recipe(16, 0.1), ratios=(0.25, 1.0), seeds=1)


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


def test_scores_know_the_rows_that_are_read(sentences, tmp_path) -> None:
    found = score(sentences, tmp_path / "c.json")
    some, every = (found.scores[Candidate(1, "words.weight", ratio)] for ratio in (0.25, 1.0))
    assert 0 < some < every
    assert score(sentences, tmp_path / "c.json").scores == found.scores


# ---- kinds of weights ------------------------------------------------------------------------------------------------


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


def test_weights_share_by_size_what_their_kind_brought(task, tmp_path) -> None:
    task = replace(task, recipe=replace(task.recipe, epochs=10))
    found = pock.analyze_kinds(task, tmp_path / "c.json")
    assert Contributions.load(tmp_path / "c.json").kinds == found.kinds
    assert found.finished
    assert not found.runs
    structure = structure_of(load_model(task.model, batch=8))
    kinds = list(weights_by_kind(structure, candidates(structure, task.ratios)).values())
    assert {(run.candidate, run.epochs, run.seed) for run in found.kinds} == set(
        itertools.product([WeightSet(0, ()), WeightSet(7, ()), *kinds], [10], [0, 1])
    )
    gains, expected = kind_gains(found), expected_gains(found)
    assert set(expected) == set(candidates(structure, task.ratios))
    assert not found.scores
    assert expected[HEAD] == 0
    biases = gains[WeightSet(7, ())].mean
    assert expected[Candidate(7)] == pytest.approx(biases)
    assert expected[Candidate(3)] == pytest.approx(biases * (3 / 7) ** 0.5)
    for kind in kinds:
        own = {each: gain for each, gain in expected.items() if each.weight in kind.ratios}
        brought = sum(own[Candidate(7, weight, ratio)] for weight, ratio in kind.weights)
        assert brought == pytest.approx(max(0.0, gains[kind].mean - biases))
        shares = [
            gain / (np.prod(found.fingerprint[each.weight]["shape"]) * each.ratio**0.5) for each, gain in own.items()
        ]
        assert shares == pytest.approx([shares[0]] * len(shares))
    assert pock.search(found).choice.gain > 0
    write_report(found, tmp_path / "r.html")
    # What was interrupted goes on, and comes to the same.
    replace(found, kinds=found.kinds[:5], finished=False).save(tmp_path / "d.json")
    again = pock.analyze_kinds(task, tmp_path / "d.json")
    assert len(again.kinds) == len(found.kinds)
    assert expected_gains(again) == expected


def small_task(folder: Path, net: torch.nn.Module) -> pock.Task:
    """Of which of the first three of six numbers is the largest."""
    torch.export.save(torch.export.export(net.eval(), (torch.randn(4, 6),)), folder / "n.pt2")
    x = np.random.default_rng(0).standard_normal((24, 6)).astype("float32")
    for part, some in (("train", x[:16]), ("val", x[16:])):
        np.savez(folder / f"{part}.npz", x=some, y=some[:, :3].argmax(1))
    paths = (str(folder / "n.pt2"), str(folder / "train.npz"), str(folder / "val.npz"))
    return pock.Task(*paths, pock.Recipe(4, 0.1), ratios=(1.0,), seeds=1)


class Wrapped(torch.nn.Module):
    """Three layers; ``behind`` comes after the first."""

    def __init__(self, behind: Callable[[torch.Tensor], torch.Tensor], *, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(6, 6, bias=bias)
        self.second = torch.nn.Linear(6, 8, bias=bias)
        self.head = torch.nn.Linear(8, 3, bias=bias)
        self.behind = behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(self.behind(self.first(x)))))


def test_of_a_network_without_biases_the_head_is_trained_once(tmp_path) -> None:
    found = pock.analyze_kinds(small_task(tmp_path, Wrapped(torch.relu, bias=False)), tmp_path / "c.json")
    linear = WeightSet(0, (("first.weight", 1.0), ("second.weight", 1.0)))
    assert {run.candidate for run in found.kinds} == {WeightSet(0, ()), linear}
    assert len(found.kinds) == 2
    assert set(expected_gains(found)) == {HEAD, Candidate(0, "first.weight"), Candidate(0, "second.weight")}


def test_kinds_leave_out_what_no_gradient_reaches(tmp_path) -> None:
    task = small_task(tmp_path, Wrapped(lambda x: torch.cumprod(x, 1), bias=True))
    found = pock.analyze_kinds(task, tmp_path / "c.json")
    assert {run.candidate for run in found.kinds} == {
        WeightSet(0, ()), WeightSet(1, ()), WeightSet(1, (("second.weight", 1.0),))
    }  # fmt: skip
    assert set(expected_gains(found)) == {HEAD, Candidate(1), Candidate(1, "second.weight")}
    assert "first.bias" not in pock.search(found, memory=1e6).scheme.rules


def test_a_kind_that_failed_is_never_chosen(task) -> None:
    head, biases, good, bad = (
        WeightSet(0, ()),
        WeightSet(7, ()),
        WeightSet(7, (("a", 1.0),)),
        WeightSet(7, (("b", 1.0),)),
    )
    runs = [Run(each, 1, 0, score) for each, score in ((head, 50.0), (biases, 60.0), (good, 64.0), (bad, None))]
    pieces = [HEAD, Candidate(7), Candidate(7, "a", 0.25), Candidate(7, "a"), Candidate(7, "b")]
    weights = {"a": {"shape": [6, 4]}, "b": {"shape": [2]}}
    found = Contributions(task, weights, "", costs=dict.fromkeys(pieces, Cost(1)), kinds=runs)
    assert expected_gains(found) == {HEAD: 0, Candidate(7): 10, Candidate(7, "a", 0.25): 2, Candidate(7, "a"): 4}
    found.kinds = [replace(run, score=None) if run.candidate == biases else run for run in runs]
    assert expected_gains(found) == {HEAD: 0}
    # Of an analysis that was interrupted, or of a head that failed, only what is known can be chosen.
    found.kinds = runs[:1]
    assert expected_gains(found) == {HEAD: 0}
    found.kinds = [replace(run, score=None) if run.candidate == head else run for run in runs]
    assert expected_gains(found) == {}
    # What biases spoil is no gain of the weights that are trained with them.
    found.kinds = [replace(run, score=10.0) if run.candidate == biases else run for run in runs]
    assert expected_gains(found)[Candidate(7)] == -40


def test_a_run_is_the_fine_tuning_that_a_user_would_do(task, analysed, tmp_path) -> None:
    candidate = next(run.candidate for run in analysed.runs if run.candidate.weight and run.epochs == 2)
    exported = torch.export.load(task.model)
    scheme = scheme_of(structure_of(load_model(exported, batch=8)), candidate.biases, candidate.ratios)
    program = pock.compile(exported, scheme=scheme, optimizer=pock.SGD(momentum=0.9), batch=8)
    trainer, rng = pock.Trainer(program), np.random.default_rng(1)
    with np.load(task.data) as data:
        x, y = data["x"], data["y"]
    for epoch in range(2):
        order = rng.permutation(64)
        for step in range(8):
            rate = 0.05 * (1 + np.cos(np.pi * (8 * epoch + step) / 16)) / 2
            trainer.step(x[order[8 * step : 8 * step + 8]], y[order[8 * step : 8 * step + 8]], lr=rate)
    with np.load(task.validation) as data:
        logits, labels = trainer.predict(data["x"]), data["y"]
    run = analysed.run_of(candidate, 2, 1)
    assert run.score == pytest.approx(100 * (logits.argmax(1) == labels).mean())
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert run.loss == pytest.approx(float(loss), rel=1e-5)
    memory = program.memory()
    assert analysed.costs[candidate].memory == memory["arena"] + memory["optimizer_state"]


# ---- resuming, and who works -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
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


def test_no_scheduler_answers() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(pock.PockError, match="no Dask scheduler answers"):
        Workers("tcp://127.0.0.1:9")


def dies_once(flag: Path, number: int) -> int:
    if number == 2 and not flag.exists():
        flag.touch()
        os._exit(9)
    time.sleep(0.05)
    return number * number


def always_dies(_number: int) -> None:
    os._exit(9)


def refuses(number: int) -> None:
    raise pock.PockError(f"no {number}")


def test_the_run_of_a_dead_worker_is_repeated(tmp_path) -> None:
    jobs = [(tmp_path / "flag", number) for number in range(6)]
    with Workers(count=2) as pool:
        assert dict(pool.run(dies_once, jobs)) == {n: n * n for n in range(6)}
    assert (tmp_path / "flag").exists()


def test_the_run_of_a_dead_dask_worker_is_repeated(tmp_path) -> None:
    distributed = pytest.importorskip("distributed")
    jobs = [(tmp_path / "flag", number) for number in range(6)]
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Workers(cluster.scheduler_address) as pool,
    ):
        assert dict(pool.run(dies_once, jobs)) == {n: n * n for n in range(6)}
    assert (tmp_path / "flag").exists()


def test_workers_that_always_die_are_given_up() -> None:
    with Workers(count=1) as pool, pytest.raises(pock.PockError, match="all workers died"):
        list(pool.run(always_dies, [(1,)]))


def test_a_fault_of_the_user_is_passed_on() -> None:
    with Workers(count=1) as pool, pytest.raises(pock.PockError, match="no 7"):
        list(pool.run(refuses, [(7,)]))


# ---- gains -----------------------------------------------------------------------------------------------------------


def contributions(task: pock.Task, runs: list[tuple[Any, ...]]) -> Contributions:
    """Of runs, each a candidate, epochs, a seed, a score, and perhaps a loss."""
    made = [Run(*run) for run in runs]
    return Contributions(task, {}, "", made, {run.candidate: Cost(1.0) for run in made})


def test_gains_are_compared_seed_by_seed_at_the_same_length(task) -> None:
    one = Candidate(3)
    runs = [
        (HEAD, 1, 0, 10.0),
        (HEAD, 2, 0, 50.0),
        (HEAD, 2, 1, 60.0),
        (one, 1, 0, 90.0),
        (one, 2, 0, 53.0),
        (one, 2, 1, 61.0),
    ]
    gain = contributions(task, runs).gain(one, HEAD)
    assert (gain.mean, gain.spread, gain.seeds, gain.epochs) == (2.0, pytest.approx(2**0.5), 2, 2)
    assert contributions(task, runs).gain(one, HEAD, within=1).mean == 80.0


def test_what_failed_once_is_never_chosen(task) -> None:
    one, other = Candidate(1), Candidate(2)
    runs = [(HEAD, 1, 0, 50.0), (one, 1, 0, 60.0), (other, 1, 0, 99.0), (other, 1, 1, None)]
    found = contributions(task, runs)
    assert found.gain(other, HEAD) is None
    assert set(expected_gains(found)) == {HEAD, one}
    assert found.base() == one


def test_weights_are_compared_to_the_best_number_of_biases(task) -> None:
    runs = [(HEAD, 2, 0, 50.0), (Candidate(1), 2, 0, 60.0), (Candidate(2), 2, 0, 55.0), (Candidate(3), 1, 0, 90.0)]
    assert contributions(task, runs).base() == Candidate(1)
    assert contributions(task, [*runs, (Candidate(2, "w"), 1, 0, 1.0)]).base() == Candidate(2)


def test_short_runs_count_as_much_as_their_gains_came_to_later(task) -> None:
    base = Candidate(1)
    kept, dropped = Candidate(1, "a"), Candidate(1, "b")
    runs = [(HEAD, e, 0, 0.0) for e in (1, 2)] + [(base, e, 0, 0.0) for e in (1, 2)]
    runs += [(kept, 1, 0, 8.0), (kept, 2, 0, 2.0), (dropped, 1, 0, 4.0)]
    gains = expected_gains(contributions(task, runs))
    assert gains[kept] == pytest.approx(2.0)
    assert gains[dropped] == pytest.approx(1.0)  # 4 of 8, which came to 2


def test_noise_is_drawn_towards_the_mean_of_its_like(task) -> None:
    rng = np.random.default_rng(0)
    runs = [(HEAD, 1, seed, 50.0) for seed in range(3)] + [(Candidate(1), 1, seed, 50.0) for seed in range(3)]
    weights = [Candidate(1, f"w{index}") for index in range(30)]
    runs += [(weight, 1, seed, 50 + float(rng.normal())) for weight in weights for seed in range(3)]
    found = contributions(task, runs)
    raw = np.array([found.gain(weight, Candidate(1)).mean for weight in weights])
    drawn = np.array([expected_gains(found)[weight] for weight in weights])
    assert drawn.std() < 0.5 * raw.std()
    assert drawn.mean() == pytest.approx(raw.mean(), abs=0.01)
    assert (drawn > 0.5).sum() == 0 < (raw > 0.5).sum()


def test_losses_tell_gains_where_accuracy_is_noisy(task) -> None:
    rng = np.random.default_rng(0)
    weights = [Candidate(1, f"w{index}") for index in range(30)]
    real = rng.normal(size=30)
    runs: list[tuple[Any, ...]] = [(HEAD, 1, 0, 50.0, 1.0), (Candidate(1), 1, 0, 50.0, 1.0)]
    runs += [
        (weight, 1, 0, 50 + gain + float(rng.normal()), 1 - 0.02 * gain + 0.004 * float(rng.normal()))
        for weight, gain in zip(weights, real, strict=True)
    ]
    gains = expected_gains(contributions(task, runs))
    assert np.abs([gains[weight] for weight in weights] - real).mean() < 0.4  # points; of accuracy it is 0.8
    of_accuracy = expected_gains(contributions(task, [run[:4] for run in runs]))
    assert np.abs([of_accuracy[weight] for weight in weights] - real).mean() > 0.6


def test_losses_that_tell_nothing_are_left_out(task) -> None:
    one, other = Candidate(1), Candidate(2)
    runs = [(HEAD, 1, 0, 50.0, 1.0), (one, 1, 0, 60.0, 1.1), (other, 1, 0, 55.0, 1.0)]
    assert expected_gains(contributions(task, runs)) == {HEAD: 0.0, one: 10.0, other: 5.0}


def tried(task: pock.Task, came_to: list[float | None]) -> Contributions:
    """Six weights of 10 points each over the one bias, which brings 5, and the scores of ever more of them together."""
    weights = [Candidate(1, name) for name in "abcdef"]
    runs = [(HEAD, 2, 0, 45.0), (Candidate(1), 2, 0, 50.0), *((weight, 2, 0, 60.0) for weight in weights)]
    found = contributions(task, runs)
    found.trials += [Run(each, 2, 0, score) for each, score in zip(growing_sets(found), came_to, strict=True)]
    return found


def test_larger_and_larger_sets_of_the_best_weights_are_tried(task) -> None:
    runs = [(HEAD, 2, 0, 50.0), (Candidate(1, "a", 0.5), 2, 0, 58.0), (Candidate(1, "a"), 2, 0, 56.0)]
    runs += [(Candidate(1), 2, 0, 50.0), (Candidate(1, "b"), 2, 0, 52.0), (Candidate(1, "c"), 2, 0, 49.0)]
    sets = growing_sets(contributions(task, runs))
    assert sets == [WeightSet(1, (("a", 0.5),)), WeightSet(1, (("a", 0.5), ("b", 1.0)))]
    assert growing_sets(contributions(task, runs[:1])) == []


@pytest.mark.parametrize(
    ("came_to", "is_enough"),
    [
        ((60.0, 65.0, 70.0, 69.0, 68.0, 60.0), 35.0),
        ((60.0, 65.0, 70.0, 71.0, 72.0, 73.0), np.inf),
        ((49.0, 48.0, 47.0, 46.0, 45.0, 44.0), 5.0),
        ((60.0, 65.0, 70.0, None, None, None), 35.0),
    ],
)
def test_a_search_needs_no_more_than_what_helped_together(task, came_to, is_enough) -> None:
    assert gain_cap(tried(task, list(came_to))) == pytest.approx(is_enough)


# ---- the quick mode --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "momentum": 0.9}, {"kind": "adam"}])
def test_scores_are_those_of_pytorchs_gradients(task, optimizer) -> None:
    task = replace(task, optimizer=optimizer)
    found = first_order_scores(task)
    torch.manual_seed(0)
    model = Small().eval()
    model.load_state_dict(torch.export.load(task.model).state_dict)
    with np.load(task.data) as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    order = np.random.default_rng(0).permutation(64)
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for step in range(8):
        chosen = order[8 * step : 8 * step + 8]
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        for name, parameter in model.named_parameters():
            squares[name] += parameter.grad**2 / 8
    rates = {name: square.sqrt() if optimizer["kind"] == "adam" else square for name, square in squares.items()}
    weight = "blocks.1.conv2.weight"
    channels = model.get_parameter(weight).detach().abs().sum((0, 2, 3)).topk(2).indices
    assert found[Candidate(7, weight, 0.25)] == pytest.approx(float(rates[weight][:, channels].sum() ** 0.5), rel=1e-3)
    assert found[Candidate(7, weight)] == pytest.approx(float(rates[weight].sum() ** 0.5), rel=1e-3)
    assert found[Candidate(1)] == pytest.approx(float(rates["blocks.1.conv2.bias"].sum() ** 0.5), rel=1e-3)
    assert found[HEAD] == 0


def test_scores_stand_beside_what_was_measured(task, analysed, tmp_path) -> None:
    analysed.save(tmp_path / "c.json")
    found = score(task, tmp_path / "c.json")
    assert by_run(found) == by_run(analysed)
    assert set(found.scores) == set(candidates(structure_of(load_model(task.model, batch=8)), task.ratios))


def test_ranks_are_those_of_the_runs_that_all_took_part_in(task) -> None:
    weights = [Candidate(1, name) for name in "abcd"]
    runs = [(HEAD, 1, 0, 0.0), (Candidate(1), 1, 0, 0.0), (Candidate(1), 2, 0, 0.0), (weights[0], 2, 0, -50.0)]
    runs += [(weight, 1, 0, 10.0 - number) for number, weight in enumerate(weights)]
    found = contributions(task, runs)
    found.scores |= {Candidate(7, weight.weight): 4.0 - number for number, weight in enumerate(weights)}
    assert rank_agreement(found) == {"weights": pytest.approx(1.0)}
    found.scores |= {Candidate(7, weight.weight): 1.0 * number for number, weight in enumerate(weights)}
    assert rank_agreement(found) == {"weights": pytest.approx(-1.0)}


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_recorded(task, tmp_path) -> None:
    recipe = replace(task.recipe, lr=1e30)
    structure = structure_of(load_model(task.model, batch=8))
    result = measure(replace(task, recipe=recipe), scheme_of(structure, 7, {}).rules, 1, 0, tmp_path)
    assert result.score is None


def test_validation_samples_among_the_training_samples_are_told(task, tmp_path) -> None:
    with np.load(task.data) as data:
        np.savez(tmp_path / "val.npz", x=data["x"][:10], y=data["y"][:10])
    said: list[str] = []
    score(replace(task, validation=str(tmp_path / "val.npz")), tmp_path / "c.json", warn=said.append)
    assert "10 of 10 validation samples are training samples too" in said[0]


def test_contributions_of_another_model_are_refused(task, analysed) -> None:
    torch.manual_seed(1)
    exported = torch.export.export(Small().eval(), (torch.randn(8, 3, 8, 8),))
    with pytest.raises(pock.PockError, match="of another model: 'stem.weight' had other values"):
        analysed.check_model(load_model(exported))
    torch.manual_seed(0)  # the same weights up to the head
    exported = torch.export.export(Small(7).eval(), (torch.randn(8, 3, 8, 8),))
    with pytest.raises(pock.PockError, match=r"'head.weight' had the shape \(5, 8\), and has \(7, 8\) here"):
        analysed.check_model(load_model(exported))


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


def test_another_graph_of_the_same_weights_is_another_model(analysed) -> None:
    class Other(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).tanh()

    torch.manual_seed(0)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(Other().eval(), (torch.randn(4, 3, 8, 8),), dynamic_shapes=dynamic)
    with pytest.raises(pock.PockError, match="its operators were others"):
        analysed.check_model(load_model(exported, batch=8))


def test_an_output_without_a_folder_is_refused_at_once(task, tmp_path) -> None:
    with pytest.raises(pock.PockError, match="there is no folder"):
        pock.analyze(task, tmp_path / "none" / "c.json")


def test_a_damaged_file_is_refused(tmp_path) -> None:
    (tmp_path / "c.json").write_text('{"format": "pock-contributions/1"')
    with pytest.raises(pock.PockError, match="holds no contributions"):
        Contributions.load(tmp_path / "c.json")
    with pytest.raises(pock.PockError, match="'pock analyze' makes one"):
        Contributions.load(tmp_path / "none.json")
