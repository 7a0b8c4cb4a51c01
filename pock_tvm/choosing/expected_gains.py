"""From measured gains, noisy and of runs of different lengths, to what each candidate may be expected to bring."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.stats import spearmanr

from .candidates import Candidate, Together
from .contributions import Contributions, Gain


def expected_gains(found: Contributions) -> dict[Candidate, float]:
    """What each candidate may be expected to bring, in points: numbers of biases over the head, weights over biases.

    Measured gains where there are any, else shares of what kinds of weights brought, else first-order scores. A gain
    of the longest runs is drawn towards their mean as far as seeds disagree. Of what was stopped early, a number of
    biases is judged by its neighbours, and a weight by what gains of such short runs came to in longer ones. What
    failed once is left out.
    """
    if not found.runs:
        return _of_kinds(found) if found.kinds else dict(found.scores)
    return _of_biases(found) | _of_weights(found)


def _of_kinds(found: Contributions) -> dict[Candidate, float]:
    """Of each weight its share, by size, of what its kind brought over all biases; nothing of a kind that failed.

    A part of a weight, or of the biases, brings the root of what it is of the whole, as in first-order scores
    (:mod:`pock_tvm.choosing.first_order`). All weights of a kind are therefore best trained in equal parts, which
    brings more on held-out data than parts by those scores (MiniLM on SST-2 and TREC): within a kind they say more of
    how large a gradient is than of what is learned by it.
    """
    gains = gains_of_kinds(found)
    whole = max((each.biases for each in found.costs), default=0)
    biases = gains.get(Together(whole, ()))
    if biases is None:
        return {Candidate(0): 0.0} if HEAD in gains else {}
    numbers = [each for each in found.costs if each.biases and not each.weight]
    expected = {Candidate(0): 0.0} | {each: biases.mean * math.sqrt(each.biases / whole) for each in numbers}
    for kind, gain in gains.items():
        sizes = {weight: _size(found, weight) for weight in kind.shares}
        points = max(0.0, gain.mean - biases.mean) / max(1, sum(sizes.values()))
        expected |= {
            each: points * sizes[each.weight] * math.sqrt(each.ratio / kind.shares[each.weight])
            for each in found.costs
            if each.weight in kind.shares
        }
    return expected


def _size(found: Contributions, weight: str) -> int:
    """Of how many numbers a weight is; of an embedding those that the data reads."""
    shape = found.fingerprint[weight]["shape"]
    return math.prod([len(found.rows[weight]), *shape[1:]] if weight in found.rows else shape)


HEAD = Together(0, ())
"""What gains of kinds are over."""


def gains_of_kinds(found: Contributions) -> dict[Together, Gain]:
    """What the head, all biases, and all biases with all weights of each kind that never failed, bring over the
    head."""
    sets = {run.candidate for run in found.kinds if isinstance(run.candidate, Together)}
    ordered = sorted(sets, key=lambda each: (each.biases, each.weights))  # whichever was done first
    return found.gains(ordered, HEAD)


def _of_biases(found: Contributions) -> dict[Candidate, float]:
    head = Candidate(0)
    gains = found.gains(sorted(each for each in found.measured() if not each.weight), head)
    known = {head: 0.0} | _of_longest({each: gain for each, gain in gains.items() if each != head})
    steps = sorted(known)
    numbers, values = [each.biases for each in steps], [known[each] for each in steps]
    return {each: float(np.interp(each.biases, numbers, values)) for each in gains}


def _of_weights(found: Contributions) -> dict[Candidate, float]:
    base = found.base()
    weights = sorted(each for each in found.measured() if each.weight)  # whoever was done first
    gains, predictions = found.gains(weights, base), _predictions(found, weights, base)
    expected = _of_longest(gains)
    for each, gain in gains.items():
        if each not in expected:
            expected[each] = predictions[gain.epochs] * gain.mean
    return expected


def _of_longest(gains: Mapping[Candidate, Gain]) -> dict[Candidate, float]:
    """Of the longest runs: real gains are a normal distribution, of which each was measured with noise (empirical
    Bayes)."""
    longest = max((gain.epochs for gain in gains.values()), default=0.0)
    measured = {each: gain.mean for each, gain in gains.items() if gain.epochs == longest}
    if not measured:
        return {}
    noise = {each: _noise(gains) / gains[each].seeds for each in measured}
    center = statistics.mean(measured.values())
    real = max(0.0, statistics.mean((measured[each] - center) ** 2 - noise[each] for each in measured))
    expected = {}
    for each, gain in measured.items():
        trust = real / (real + noise[each]) if noise[each] else 1.0
        expected[each] = center + trust * (gain - center)
    return expected


def _noise(gains: Mapping[Candidate, Gain]) -> float:
    """The variance of a gain between seeds; nothing where there is one seed only."""
    spreads = [gain.spread**2 for gain in gains.values() if gain.spread is not None]
    return statistics.mean(spreads) if spreads else 0.0


def _predictions(found: Contributions, group: list[Candidate], base: Candidate) -> dict[float, float]:
    """For each length of runs by how much a gain of theirs is multiplied to predict that of the longest runs: by least
    squares over what ran in both."""
    lengths = sorted({run.epochs for run in found.runs if run.candidate in set(group)}, reverse=True)
    predictions = dict.fromkeys(lengths[:1], 1.0)
    for longer, shorter in itertools.pairwise(lengths):
        later, earlier = (_gains_at(found, group, base, epochs) for epochs in (longer, shorter))
        both = [
            (predictions[longer] * later[each], earlier[each]) for each in group if each in later and each in earlier
        ]
        square = sum(before**2 for _, before in both)
        slope = sum(after * before for after, before in both) / square if square else predictions[longer]
        predictions[shorter] = min(max(slope, 0.0), 1.0)
    return predictions


def _gains_at(found: Contributions, group: list[Candidate], base: Candidate, epochs: float) -> dict[Candidate, float]:
    """The gains of runs of just this length."""
    gains = found.gains([each for each in group if each != base], base, epochs)
    return {each: gain.mean for each, gain in gains.items() if gain.epochs == epochs}


PARTS = 6
"""Into how many parts the sum of all expected gains is cut, to measure what comes of so much together."""


def sets_together(found: Contributions) -> list[Together]:
    """Larger and larger sets of weights: those that are expected to bring most, each at the ratio at which it does,
    until their gains sum to each part of what all together are expected to bring."""
    base, expected = found.base(), expected_gains(found)
    best: dict[str, Candidate] = {}
    for each in sorted(expected, key=expected.__getitem__, reverse=True):
        if each.weight and expected[each] > 0:
            best.setdefault(each.weight, each)
    sums = list(itertools.accumulate(expected[each] for each in best.values()))
    counts = {
        next(at for at, sum_ in enumerate(sums, 1) if sum_ >= sums[-1] * part / PARTS - 1e-9)
        for part in range(1, PARTS + 1)
        if sums
    }
    pairs = [(each.weight, each.ratio) for each in best.values()]
    return [Together(base.biases, tuple(pairs[:count])) for count in sorted(counts)]


def tried_together(found: Contributions) -> list[tuple[Together, float, Gain]]:
    """Of each set of weights that was trained together, and never failed, the sum of what its parts are expected to
    bring over the base, and what it brought; the smallest first."""
    expected, base = expected_gains(found), found.base()
    sets = dict.fromkeys(run.candidate for run in found.trials if isinstance(run.candidate, Together))
    sums = {each: sum(expected[Candidate(base.biases, *pair)] for pair in each.weights) for each in sets}
    gains = found.gains(sets, base)
    return [(each, sums[each], gains[each]) for each in sorted(gains, key=sums.__getitem__)]


def enough(found: Contributions) -> float:
    """The sum of expected gains over the head beyond which more was worse when it was trained together; infinite where
    all that helps alone helps, or nothing was tried.

    Gains do not add up: what one piece learns another need not, and the more is trained, the sooner the samples are
    learned by heart. Sums that are as large stand for about as much, whatever they are made of.
    """
    if not found.trials:
        return math.inf
    biases = expected_gains(found)[found.base()]
    helped = [each for each in tried_together(found) if each[2].mean > 0]
    if not helped:
        return biases
    best, weights, _ = max(helped, key=lambda each: each[2].mean)
    everything = max(len(run.candidate.shares) for run in found.trials)
    return math.inf if len(best.weights) == everything else biases + weights


def rank_agreement(found: Contributions) -> dict[str, float]:
    """How well first-order scores rank candidates: Spearman's rank correlation with the gains of the shortest runs, in
    which all candidates took part, of ``biases`` and of ``weights``, where both are known and differ."""
    agreement = {}
    first = min((run.epochs for run in found.runs), default=0.0)
    numbers = {each: score for each, score in found.scores.items() if not each.weight and each.biases}
    weights = {replace(each, biases=found.base().biases): s for each, s in found.scores.items() if each.weight}
    for what, scores, base in (("biases", numbers, Candidate(0)), ("weights", weights, found.base())):
        pairs = [(scores[each], gain.mean) for each, gain in found.gains(scores, base, first).items()]
        if pairs and all(len(set(column)) > 1 for column in zip(*pairs, strict=True)):
            agreement[what] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return agreement
