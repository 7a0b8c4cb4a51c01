"""Tasks and an analysis that several files look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.choosing import analysis, eight_bits
from pock_tvm.choosing.analysis import planned_costs
from pock_tvm.choosing.candidates import candidates
from pock_tvm.choosing.contributions import Contributions
from pock_tvm.choosing.fingerprint import fingerprint
from pock_tvm.choosing.runs import Run
from pock_tvm.choosing.workers import Workers
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from tests.pock_tvm.networks import small, tokens


class Here(Workers):
    """Does in this process what processes of this machine would, which load PyTorch first."""

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        if self._client is not None:
            yield from super().run(function, jobs)
        else:
            yield from ((number, function(*job)) for number, job in enumerate(jobs))


@pytest.fixture(scope="session", autouse=True)
def here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "Workers", Here)
        patch.setattr(eight_bits, "Workers", Here)
        yield


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def analysed(task, tmp_path_factory, here) -> Contributions:
    """By workers, as users have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "Workers", Workers)
        return pock.analyze(task, tmp_path_factory.mktemp("analysed") / "c.json")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def found(tmp_path_factory) -> Contributions:
    """Contributions of ``Small`` with gains made up, and costs as planned."""
    root = tmp_path_factory.mktemp("search")
    torch.export.save(small(), root / "net.pt2")
    task = pock.Task(str(root / "net.pt2"), "train", "val", pock.Recipe(1), batch=8, ratios=(0.5, 1.0))
    model = load_model(task.model, batch=8)
    everything = candidates(structure_of(model), task.ratios)
    rng = np.random.default_rng(0)
    base = everything[0]
    runs = []
    for each in everything:
        score = (
            50.0 if each == base else 50 + each.biases / 7 + each.ratio * float(rng.uniform(0, 3)) * bool(each.weight)
        )
        runs += [Run(each, 1, seed, score + 0.1 * seed) for seed in range(2)]
    costs = planned_costs(task, everything)
    return Contributions(task, fingerprint(model), "", runs, costs)
