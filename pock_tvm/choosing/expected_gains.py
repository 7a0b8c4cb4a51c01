"""Expected gains: estimates from measured gains, which are noisy and come from runs of different lengths."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.stats import spearmanr

from .candidates import Candidate, WeightSet
from .contributions import Contributions
from .runs import Gain

HEAD = WeightSet(0, ())
"""Baseline of the gains of kinds: the head alone."""
SET_COUNT = 6
"""Number of weight sets that are trained together: one for each sixth of the sum of expected gains."""


def expected_gains(contributions: Contributions) -> dict[Candidate, float]:
    """Estimate the gain of each candidate, in points: numbers of biases over the head, weights over biases.

    Measured gains come first, else shares of the gains of kinds of weights, else first-order scores. Gains of the
    longest runs are shrunk towards their mean by the noise between seeds. For candidates that were stopped early, a
    number of biases is interpolated between its neighbours, and a weight's gain is multiplied by the ratio of long to
    short runs' gains. Candidates with a failed run are left out.
    """
    if not contributions.runs:
        return _gains_by_kind(contributions) if contributions.kinds else dict(contributions.scores)
    return _gains_of_biases(contributions) | _gains_of_weights(contributions)


def _gains_by_kind(contributions: Contributions) -> dict[Candidate, float]:
    """Split the gain of each kind, over all biases, among its weights in proportion to size; skip kinds that failed.

    On held-out data this beats splitting by first-order scores (MiniLM on SST-2 and TREC): within a kind those reflect
    the size of gradients more than what training them brings. At a ratio r a weight, or the biases, get the square root
    of r of the whole, as in first-order scores (:mod:`pock_tvm.choosing.first_order`), so that a search trains all
    weights of a kind at similar ratios.
    """
    gains = kind_gains(contributions)
    bias_count = max((each.biases for each in contributions.costs), default=0)
    biases = gains.get(WeightSet(bias_count, ()))
    if biases is None:
        return {Candidate(0): 0.0} if HEAD in gains else {}
    numbers = [each for each in contributions.costs if each.biases and not each.weight]
    expected = {Candidate(0): 0.0} | {each: biases.mean * math.sqrt(each.biases / bias_count) for each in numbers}
    for kind, gain in gains.items():
        sizes = {weight: _size(contributions, weight) for weight in kind.ratios}
        points = max(0.0, gain.mean - biases.mean) / max(1, sum(sizes.values()))
        expected |= {
            each: points * sizes[each.weight] * math.sqrt(each.ratio / kind.ratios[each.weight])
            for each in contributions.costs
            if each.weight in kind.ratios
        }
    return expected


def _size(contributions: Contributions, weight: str) -> int:
    """Count the elements of a weight; of an embedding only the rows that the data reads."""
    shape = contributions.fingerprint[weight]["shape"]
    return math.prod([len(contributions.rows[weight]), *shape[1:]] if weight in contributions.rows else shape)


def kind_gains(contributions: Contributions) -> dict[WeightSet, Gain]:
    """Compute the gains over the head of all biases, and of all biases with all weights of one kind; skip failures."""
    sets = {run.candidate for run in contributions.kinds if isinstance(run.candidate, WeightSet)}
    ordered = sorted(sets, key=lambda each: (each.biases, each.weights))  # independent of the order of runs
    return contributions.gains(ordered, HEAD)


def _gains_of_biases(contributions: Contributions) -> dict[Candidate, float]:
    head = Candidate(0)
    gains = contributions.gains(sorted(each for each in contributions.measured() if not each.weight), head)
    full_length = {head: 0.0} | _shrunk({each: gain for each, gain in gains.items() if each != head})
    steps = sorted(full_length)
    numbers, values = [each.biases for each in steps], [full_length[each] for each in steps]
    return {each: float(np.interp(each.biases, numbers, values)) for each in gains}


def _gains_of_weights(contributions: Contributions) -> dict[Candidate, float]:
    base = contributions.base()
    weights = sorted(each for each in contributions.measured() if each.weight)  # independent of the order of runs
    gains, factors = contributions.gains(weights, base), _length_factors(contributions, weights, base)
    expected = _shrunk(gains)
    for each, gain in gains.items():
        if each not in expected:
            expected[each] = factors[gain.epochs] * gain.mean
    return expected


def _shrunk(gains: Mapping[Candidate, Gain]) -> dict[Candidate, float]:
    """Shrink the gains of the longest runs towards their mean (empirical Bayes, normal prior and noise)."""
    longest = max((gain.epochs for gain in gains.values()), default=0.0)
    measured = {each: gain.mean for each, gain in gains.items() if gain.epochs == longest}
    if not measured:
        return {}
    noise = {each: _noise(gains) / gains[each].seeds for each in measured}
    center = statistics.mean(measured.values())
    variance = max(0.0, statistics.mean((measured[each] - center) ** 2 - noise[each] for each in measured))
    expected = {}
    for each, gain in measured.items():
        trust = variance / (variance + noise[each]) if noise[each] else 1.0
        expected[each] = center + trust * (gain - center)
    return expected


def _noise(gains: Mapping[Candidate, Gain]) -> float:
    """Pool the variance of gains between seeds; 0 with one seed."""
    spreads = [gain.spread**2 for gain in gains.values() if gain.spread is not None]
    return statistics.mean(spreads) if spreads else 0.0


def _length_factors(contributions: Contributions, group: list[Candidate], base: Candidate) -> dict[float, float]:
    """For each run length in epochs, fit the factor in [0, 1] from gains of such runs to those of the longest runs.

    Least squares over the candidates that ran at both lengths, from one length to the next.
    """
    lengths = sorted({run.epochs for run in contributions.runs if run.candidate in set(group)}, reverse=True)
    factors = dict.fromkeys(lengths[:1], 1.0)
    for longer, shorter in itertools.pairwise(lengths):
        long_gains, short_gains = (_gains_at(contributions, group, base, epochs) for epochs in (longer, shorter))
        pairs = [
            (factors[longer] * long_gains[each], short_gains[each])
            for each in group
            if each in long_gains and each in short_gains
        ]
        square = sum(short**2 for _, short in pairs)
        slope = sum(long * short for long, short in pairs) / square if square else factors[longer]
        factors[shorter] = min(max(slope, 0.0), 1.0)
    return factors


def _gains_at(
    contributions: Contributions, group: list[Candidate], base: Candidate, epochs: float
) -> dict[Candidate, float]:
    """Compute the gains of runs of exactly this length."""
    gains = contributions.gains([each for each in group if each != base], base, epochs)
    return {each: gain.mean for each, gain in gains.items() if gain.epochs == epochs}


def growing_sets(contributions: Contributions) -> list[WeightSet]:
    """Build weight sets of increasing size, to measure how gains add up.

    Weights are added by expected gain, largest first, each at its best ratio, until a set reaches one more
    ``SET_COUNT``-th of the sum of all expected gains.
    """
    base, expected = contributions.base(), expected_gains(contributions)
    best: dict[str, Candidate] = {}
    for each in sorted(expected, key=expected.__getitem__, reverse=True):
        if each.weight and expected[each] > 0:
            best.setdefault(each.weight, each)
    sums = list(itertools.accumulate(expected[each] for each in best.values()))
    counts = {
        next(at for at, sum_ in enumerate(sums, 1) if sum_ >= sums[-1] * part / SET_COUNT - 1e-9)
        for part in range(1, SET_COUNT + 1)
        if sums
    }
    pairs = [(each.weight, each.ratio) for each in best.values()]
    return [WeightSet(base.biases, tuple(pairs[:count])) for count in sorted(counts)]


def measured_sets(contributions: Contributions) -> list[tuple[WeightSet, float, Gain]]:
    """List the weight sets without a failed run: sum of the weights' expected gains over the base, and measured gain;
    smallest sum first."""
    expected, base = expected_gains(contributions), contributions.base()
    sets = dict.fromkeys(run.candidate for run in contributions.trials if isinstance(run.candidate, WeightSet))
    sums = {each: sum(expected[Candidate(base.biases, *pair)] for pair in each.weights) for each in sets}
    gains = contributions.gains(sets, base)
    return [(each, sums[each], gains[each]) for each in sorted(gains, key=sums.__getitem__)]


def gain_cap(contributions: Contributions) -> float:
    """Estimate the sum of expected gains over the head beyond which training more weights did not help.

    Gains do not add up: weights learn the same thing, and more trained weights overfit sooner. The cap is the summed
    gain of the best measured set; infinite if that is the largest, or nothing was measured. It is applied to any set
    with that sum, whatever its weights.
    """
    if not contributions.trials:
        return math.inf
    biases = expected_gains(contributions)[contributions.base()]
    helpful = [each for each in measured_sets(contributions) if each[2].mean > 0]
    if not helpful:
        return biases
    best, weights, _ = max(helpful, key=lambda each: each[2].mean)
    largest = max(len(run.candidate.ratios) for run in contributions.trials)
    return math.inf if len(best.weights) == largest else biases + weights


def rank_agreement(contributions: Contributions) -> dict[str, float]:
    """Compute Spearman's rank correlation of first-order scores with measured gains, for ``biases`` and ``weights``.

    The gains are those of the shortest runs, in which all candidates took part. A key is missing where scores or gains
    are unknown or all equal.
    """
    agreement = {}
    shortest = min((run.epochs for run in contributions.runs), default=0.0)
    base = contributions.base()
    numbers = {each: score for each, score in contributions.scores.items() if not each.weight and each.biases}
    weights = {replace(each, biases=base.biases): score for each, score in contributions.scores.items() if each.weight}
    for what, scores, reference in (("biases", numbers, Candidate(0)), ("weights", weights, base)):
        pairs = [(scores[each], gain.mean) for each, gain in contributions.gains(scores, reference, shortest).items()]
        if pairs and all(len(set(column)) > 1 for column in zip(*pairs, strict=True)):
            agreement[what] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return agreement
