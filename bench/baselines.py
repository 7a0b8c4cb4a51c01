"""What others search schemes with, on the same objective: PockEngine's evolution, and random choice."""

from __future__ import annotations

import numpy as np

from pock_tvm.choosing.integer_program import Choice, Choices, total

POPULATION, KEPT, MUTATION = 64, 16, 0.1


def random_search(choices: Choices, evaluations: int, seed: int, **budgets: float) -> Choice | None:
    """The best of so many random choices that hold the budgets."""
    rng = np.random.default_rng(seed)
    found = [_choice(choices, _random(choices, rng)) for _ in range(evaluations)]
    return _best(found, budgets)


def evolution(choices: Choices, evaluations: int, seed: int, **budgets: float) -> Choice | None:
    """The best of so many choices, bred from the best ones before (MICRO 2023, section 3.2): half of a generation are
    mutations, half crossings of two."""
    rng = np.random.default_rng(seed)
    genes = [_random(choices, rng) for _ in range(min(POPULATION, evaluations))]
    known = [(each, _choice(choices, each)) for each in genes]
    while len(known) < evaluations:
        fit = [(gene, choice) for gene, choice in known if _holds(choice, budgets)]
        parents = [gene for gene, _ in sorted(fit, key=lambda pair: -pair[1].gain)[:KEPT]] or [_least(choices)]
        for at in range(min(POPULATION, evaluations - len(known))):
            one, other = (parents[int(rng.integers(len(parents)))] for _ in range(2))
            mask = rng.random(len(one)) < (MUTATION if at % 2 else 0.5)
            child = np.where(mask, _random(choices, rng) if at % 2 else other, one)
            known.append((child, _choice(choices, child)))
    return _best([choice for _, choice in known], budgets)


def _random(choices: Choices, rng: np.random.Generator) -> np.ndarray:
    """A gene: an index of a number of biases, then for each weight 0 (frozen) or 1 and up (a ratio)."""
    # Most weights are frozen in what fits a budget: how many is drawn first.
    share = rng.random()
    gene = [int(rng.integers(len(choices.biases)))]
    for weight in choices.weights.values():
        gene.append(int(rng.integers(1, len(weight.options) + 1)) if rng.random() < share else 0)
    return np.array(gene)


def _least(choices: Choices) -> np.ndarray:
    return np.zeros(1 + len(choices.weights), int)


def _choice(choices: Choices, gene: np.ndarray) -> Choice:
    """What a gene stands for."""
    pairs = zip(gene[1:], choices.weights.items(), strict=True)
    weights = {name: sorted(weight.options)[at - 1] for at, (name, weight) in pairs if at}
    return total(choices, sorted(choices.biases)[gene[0]], weights)


def _holds(choice: Choice, budgets: dict[str, float]) -> bool:
    return all(getattr(choice, name) <= budget for name, budget in budgets.items())


def _best(found: list[Choice], budgets: dict[str, float]) -> Choice | None:
    held = [choice for choice in found if _holds(choice, budgets)]
    return max(held, key=lambda choice: choice.gain, default=None)
