"""From measured gains, noisy and of runs of different lengths, to what each candidate may be expected to bring."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace

from scipy.stats import spearmanr

from .contribution import Candidate, Contributions, Gain


def expected_gains(found: Contributions) -> dict[Candidate, float]:
    """What each candidate may be expected to bring, in points: numbers of biases over the head, weights over biases.

    Measured gains where there are any, else first-order scores. A gain of shorter runs counts as much as such gains
    came to in longer ones; one that seeds disagree about is drawn towards the mean of its like, less a standard error:
    gains that noise explains as well add up to nothing when many pieces are trained together. What failed once is left
    out.
    """
    if not found.runs:
        return dict(found.scores)
    base = found.base()
    numbers = [candidate for candidate in found.costs if not candidate.weight]
    weights = [candidate for candidate in found.costs if candidate.weight]
    return _expected(found, numbers, Candidate(0)) | _expected(found, weights, base)


def _expected(found: Contributions, group: list[Candidate], base: Candidate) -> dict[Candidate, float]:
    gains = {each: gain for each in group if (gain := found.gain(each, base)) is not None}
    scales = _scales(found, group, base)
    # Gains of the same share of a weight are of a kind.
    kinds = {each: each.ratio if each.weight else None for each in gains}
    scaled = {each: gain.mean * scales[gain.epochs] for each, gain in gains.items()}
    noise = _noise(gains)
    means = {
        kind: statistics.mean(scaled[each] for each in gains if kinds[each] == kind) for kind in set(kinds.values())
    }
    rest = {each: scaled[each] - means[kinds[each]] for each in gains}
    measured = {each: noise / gain.seeds * scales[gain.epochs] ** 2 for each, gain in gains.items()}
    real = max(0.0, statistics.mean([value**2 - measured[each] for each, value in rest.items()])) if rest else 0.0
    expected = {}
    for each in gains:
        # A normal distribution of real gains, of which each was measured with noise (empirical Bayes).
        trust = real / (real + measured[each]) if measured[each] else 1.0
        doubt = math.sqrt(trust * measured[each])
        expected[each] = means[kinds[each]] + trust * rest[each] - doubt
    return expected | ({base: 0.0} if base in expected else {})


def _noise(gains: Mapping[Candidate, Gain]) -> float:
    """The variance of a gain between seeds; nothing where there is one seed only."""
    spreads = [gain.spread**2 for gain in gains.values() if gain.spread is not None]
    return statistics.mean(spreads) if spreads else 0.0


def _scales(found: Contributions, group: list[Candidate], base: Candidate) -> dict[float, float]:
    """For each length of runs what a gain of theirs comes to in the longest: by least squares over what ran in both."""
    lengths = sorted({run.epochs for run in found.runs if run.candidate in set(group)}, reverse=True)
    scales = dict.fromkeys(lengths[:1], 1.0)
    for longer, shorter in itertools.pairwise(lengths):
        both = [
            (after.mean, before.mean)
            for each in group
            if (after := found.gain(each, base, longer)) is not None
            and after.epochs == longer
            and (before := found.gain(each, base, shorter)) is not None
            and before.epochs == shorter
        ]
        square = sum(before**2 for _, before in both)
        slope = sum(after * before for after, before in both) / square if square else 1.0
        scales[shorter] = scales[longer] * min(max(slope, 0.0), 1.0)
    return scales


def rank_agreement(found: Contributions) -> dict[str, float]:
    """How well first-order scores rank candidates: Spearman's rank correlation with the measured gains, of ``biases``
    and of ``weights``, where both are known."""
    agreement = {}
    numbers = {each: score for each, score in found.scores.items() if not each.weight and each.biases}
    weights = {replace(each, biases=found.base().biases): s for each, s in found.scores.items() if each.weight}
    for what, scores, base in (("biases", numbers, Candidate(0)), ("weights", weights, found.base())):
        pairs = [(s, gain.mean) for each, s in scores.items() if (gain := found.gain(each, base)) is not None]
        if len(pairs) > 2:
            agreement[what] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return agreement
