"""Baselines of the scheme search, on the same objective: PockEngine's evolution, and random search."""

from __future__ import annotations

import numpy as np

from pock_tvm.choosing.integer_program import Choice, Choices, total

POPULATION, KEPT, MUTATION = 64, 16, 0.1


def random_search(choices: Choices, evaluations: int, seed: int, **budgets: float) -> Choice | None:
    """The best of ``evaluations`` random choices, among those within the budgets."""
    rng = np.random.default_rng(seed)
    return _best([_choice(choices, _random(choices, rng)) for _ in range(evaluations)], budgets)


def evolution(choices: Choices, evaluations: int, seed: int, **budgets: float) -> Choice | None:
    """The best of ``evaluations`` choices by evolutionary search (MICRO 2023, section 3.2).

    Half of a generation are mutations of the best choices before, half crossovers of two.
    """
    rng = np.random.default_rng(seed)
    genes = [_random(choices, rng) for _ in range(min(POPULATION, evaluations))]
    known = [(each, _choice(choices, each)) for each in genes]
    while len(known) < evaluations:
        fit = [(gene, choice) for gene, choice in known if _is_feasible(choice, budgets)]
        parents = [gene for gene, _ in sorted(fit, key=lambda pair: -pair[1].gain)[:KEPT]] or [_least(choices)]
        for at in range(min(POPULATION, evaluations - len(known))):
            one, other = (parents[int(rng.integers(len(parents)))] for _ in range(2))
            mask = rng.random(len(one)) < (MUTATION if at % 2 else 0.5)
            child = np.where(mask, _random(choices, rng) if at % 2 else other, one)
            known.append((child, _choice(choices, child)))
    return _best([choice for _, choice in known], budgets)


def _random(choices: Choices, rng: np.random.Generator) -> np.ndarray:
    """Draw a gene: an index into the numbers of biases, then for each weight 0 (frozen) or a ratio (from 1)."""
    # Choices within a budget freeze most weights, so the share of trained weights is drawn first.
    share = rng.random()
    gene = [int(rng.integers(len(choices.biases)))]
    for weight in choices.weights.values():
        gene.append(int(rng.integers(1, len(weight.options) + 1)) if rng.random() < share else 0)
    return np.array(gene)


def _least(choices: Choices) -> np.ndarray:
    return np.zeros(1 + len(choices.weights), int)


def _choice(choices: Choices, gene: np.ndarray) -> Choice:
    """Decode a gene."""
    pairs = zip(gene[1:], choices.weights.items(), strict=True)
    weights = {name: sorted(weight.options)[at - 1] for at, (name, weight) in pairs if at}
    return total(choices, sorted(choices.biases)[gene[0]], weights)


def _is_feasible(choice: Choice, budgets: dict[str, float]) -> bool:
    return all(getattr(choice, name) <= budget for name, budget in budgets.items())


def _best(candidates: list[Choice], budgets: dict[str, float]) -> Choice | None:
    feasible = [choice for choice in candidates if _is_feasible(choice, budgets)]
    return max(feasible, key=lambda choice: choice.gain, default=None)
