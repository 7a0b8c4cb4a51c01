"""Scaled dot-product attention and its gradients.

Over leading axes that broadcast, ``S = mask(Q K^T * scale)``, ``P = softmax(S)``, ``O = P V``. P is never a result. The
forward kernel leaves two statistics of each row of S, from which the gradients compute P anew: its largest score m and
the inverse r of ``sum_j e ** (S_ij - m)``, so that ``P_ij = e ** (S_ij - m) * r``. (Dao, FlashAttention-2, 2023. There
they are one number, m - log r, which loses bits where m is large.)

Scores and sums are float32 (float64 of float64 operands).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from . import EXACT
from .functions import dtype_of, exp
from .matmul import broadcast_index, broadcast_shape

Operand = Any
"""Operand of a kernel: a ``te.Tensor`` of its definition, a ``tirx.Buffer`` of its loops."""


def attention(
    q: te.Tensor,
    k: te.Tensor,
    v: te.Tensor,
    masks: Sequence[te.Tensor],
    *,
    scale: float,
    masked: float,
    causal: bool,
    safe: bool,
) -> list[te.Tensor]:
    """Compute ``O`` (float [.., n, e]) and the statistics (as sums, [.., n, 2]).

    ``q``: float [.., n, d]. ``k``: float [.., m, d]. ``v``: float [.., m, e]. ``masks``: any number of [.., n, m], all
    of whose axes broadcast: floats, which are added to the scores in order, then booleans, where a score becomes
    ``masked`` if they are False. If ``causal``, the score of a key after its query becomes ``masked``, too. A row of
    -inf gives NaN, or 0 if ``safe``.
    """
    batch, (rows, columns) = batch_of(q, k, v, *masks), (q.shape[-2], k.shape[-2])
    rule = _rule("attention", scale=scale, masked=masked, causal=causal, safe=safe)
    products, scoring = _products(q, k, batch, "products", rule), Scoring(masks, scale, masked, causal)
    scores = te.compute(products.shape, lambda *at: scoring.score(products(*at), at), name="scores")
    a, b, j = (te.reduce_axis((0, columns), name=name) for name in "abj")
    largest = te.compute((*batch, rows), lambda *at: te.max(scores(*at, a), axis=a), name="largest")
    power = te.compute(scores.shape, lambda *at: exp(scores(*at) - largest(*at[:-1])), name="power")
    total = te.compute((*batch, rows), lambda *at: te.sum(power(*at, b), axis=b), name="total")
    inverse = te.compute((*batch, rows), lambda *at: inverse_of(total(*at), safe=safe), name="inverse")
    weighted = te.compute(
        (*batch, rows, v.shape[-1]),
        lambda *at: te.sum(power(*at[:-1], j) * number(v, (*at[:-2], j, at[-1])), axis=j),
        name="weighted",
        attrs=rule,
    )
    result = te.compute(
        weighted.shape, lambda *at: (weighted(*at) * inverse(*at[:-1])).astype(q.dtype), name="attention"
    )
    statistics = te.compute(
        (*batch, rows, 2),
        lambda *at: tirx.Select(at[-1] == 0, largest(*at[:-1]), inverse(*at[:-1])),
        name="statistics",
        attrs={EXACT: True},
    )
    return [result, statistics]


def attention_query_gradient(
    q: te.Tensor,
    k: te.Tensor,
    v: te.Tensor,
    masks: Sequence[te.Tensor],
    statistics: te.Tensor,
    grad: te.Tensor,
    along: te.Tensor,
    *,
    scale: float,
    masked: float,
    causal: bool,
) -> te.Tensor:
    """Compute ``dQ = dS K * scale`` (float [.., n, d], every leading axis in full) with
    ``dS = P * (dO V^T - along)``, which is 0 where a score is ``masked``.

    ``grad``: dO. ``along``: ``sum_e dO * O``, as sums, [.., n]. The others: see :func:`attention`.
    """
    rule = _rule("attention_query_gradient", scale=scale, masked=masked, causal=causal)
    scoring, batch = Scoring(masks, scale, masked, causal), batch_of(q, k, v, *masks)
    powers = _probabilities(q, k, scoring, statistics, batch, rule)
    scores = _score_gradient(powers, _products(grad, v, batch, "coming", rule), scoring, along)
    return _of_queries(scores, k, scale, rule)


def attention_key_gradient(
    q: te.Tensor,
    k: te.Tensor,
    v: te.Tensor,
    masks: Sequence[te.Tensor],
    statistics: te.Tensor,
    grad: te.Tensor,
    along: te.Tensor,
    *,
    scale: float,
    masked: float,
    causal: bool,
) -> te.Tensor:
    """Compute ``dK = dS^T Q * scale`` (float [.., m, d], every leading axis in full).

    Operands: see :func:`attention_query_gradient`.
    """
    rule = _rule("attention_key_gradient", scale=scale, masked=masked, causal=causal)
    scoring, batch = Scoring(masks, scale, masked, causal), batch_of(q, k, v, *masks)
    powers = _probabilities(q, k, scoring, statistics, batch, rule)
    scores = _score_gradient(powers, _products(grad, v, batch, "coming", rule), scoring, along)
    return _of_keys(scores, q, scale, rule)


def attention_value_gradient(
    q: te.Tensor,
    k: te.Tensor,
    masks: Sequence[te.Tensor],
    statistics: te.Tensor,
    grad: te.Tensor,
    *,
    scale: float,
    masked: float,
    causal: bool,
) -> te.Tensor:
    """Compute ``dV = P^T dO`` (float [.., m, e], every leading axis in full).

    Operands: see :func:`attention_query_gradient`.
    """
    rule = _rule("attention_value_gradient", scale=scale, masked=masked, causal=causal)
    scoring, batch = Scoring(masks, scale, masked, causal), batch_of(q, k, grad, *masks)
    powers = _probabilities(q, k, scoring, statistics, batch, rule)
    return _of_keys(powers, grad, 1.0, rule)


def attention_gradients(
    q: te.Tensor,
    k: te.Tensor,
    v: te.Tensor,
    masks: Sequence[te.Tensor],
    statistics: te.Tensor,
    grad: te.Tensor,
    *,
    scale: float,
    masked: float,
    causal: bool,
) -> list[te.Tensor]:
    """Compute dQ, dK and dV at once, each with every leading axis in full, with ``along = sum_j P * dO V^T``.

    Operands: see :func:`attention_query_gradient`.
    """
    rule = _rule("attention_gradients", scale=scale, masked=masked, causal=causal)
    scoring, batch = Scoring(masks, scale, masked, causal), batch_of(q, k, v, *masks)
    powers = _probabilities(q, k, scoring, statistics, batch, rule)
    coming = _products(grad, v, batch, "coming", rule)
    j = te.reduce_axis((0, k.shape[-2]), name="j")
    along = te.compute(powers.shape[:-1], lambda *at: te.sum(powers(*at, j) * coming(*at, j), axis=j), name="along")
    scores = _score_gradient(powers, coming, scoring, along)
    return [_of_queries(scores, k, scale, rule), _of_keys(scores, q, scale, rule), _of_keys(powers, grad, 1.0, rule)]


# ---- elements, as schedules write them, too --------------------------------------------------------------------------


def sums_of(dtype: str) -> str:
    """Return the type of scores, statistics and sums of operands of a type."""
    return "float64" if dtype == "float64" else "float32"


def batch_of(*operands: Operand) -> tuple[int, ...]:
    """Return the leading axes of operands [.., rows, columns], broadcast."""
    batch: tuple[int, ...] = ()
    for operand in operands:
        batch = broadcast_shape(list(batch), [int(extent) for extent in operand.shape[:-2]])
    return batch


def element(operand: Operand, at: Sequence[tirx.Expr]) -> tirx.Expr:
    """Return an element of an operand whose axes broadcast."""
    return operand[tuple(broadcast_index(list(at), operand.shape))]


def number(operand: Operand, at: Sequence[tirx.Expr]) -> tirx.Expr:
    """Return an element of an operand whose axes broadcast, in the type of sums."""
    return element(operand, at).astype(sums_of(operand.dtype))


@dataclass(frozen=True)
class Scoring:
    """How scores are made of products."""

    masks: Sequence[Operand]
    scale: float
    masked: float
    causal: bool

    @classmethod
    def of(cls, options: Mapping[str, Any], masks: Sequence[Operand]) -> Scoring:
        """Read it from the attributes of a kernel's products (:func:`_rule`)."""
        return cls(masks, float(options["scale"]), float(options["masked"]), bool(options["causal"]))

    def score(self, product: tirx.Expr, at: Sequence[tirx.Expr]) -> tirx.Expr:
        """Return the score at a position of S, of the product of its query and key."""
        score = product * tirx.const(self.scale, dtype_of(product))
        for mask in self._added():
            score = score + element(mask, at).astype(dtype_of(product))
        for kept in self._kept(at):
            score = tirx.Select(kept, score, tirx.const(self.masked, dtype_of(product)))
        return score

    def probability(self, product: tirx.Expr, statistics: Operand, at: Sequence[tirx.Expr]) -> tirx.Expr:
        """Return the softmax at a position of S."""
        *row, _ = at
        return exp(self.score(product, at) - element(statistics, (*row, 0))) * element(statistics, (*row, 1))

    def gradient(self, grad: tirx.Expr, at: Sequence[tirx.Expr]) -> tirx.Expr:
        """Return the gradient of a product, without the factor ``scale``, of its score's."""
        for kept in self._kept(at):
            grad = tirx.Select(kept, grad, tirx.const(0, dtype_of(grad)))
        return grad

    def _added(self) -> list[Operand]:
        return [mask for mask in self.masks if mask.dtype != "bool"]

    def _kept(self, at: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        """Return the conditions on which a score is not ``masked``."""
        before = [at[-1] <= at[-2]] if self.causal else []
        return before + [element(mask, at) for mask in self.masks if mask.dtype == "bool"]


def inverse_of(total: tirx.Expr, *, safe: bool) -> tirx.Expr:
    """Return 1 / ``total``; 0 for a total of 0 if ``safe``."""
    zero, one = (tirx.const(value, dtype_of(total)) for value in (0, 1))
    return tirx.Select(total == zero, zero, one / total) if safe else one / total


# ---- parts of definitions --------------------------------------------------------------------------------------------


def _rule(name: str, **options: float) -> dict[str, Any]:
    """Return the attributes of a kernel's products: the name of its schedule, and what that has to know."""
    return {"schedule_rule": f"pock.{name}", **options}


def _products(a: te.Tensor, b: te.Tensor, batch: Sequence[int], name: str, rule: Mapping[str, Any]) -> te.Tensor:
    """Compute ``A B^T``."""
    d = te.reduce_axis((0, a.shape[-1]), name="d")
    return te.compute(
        (*batch, a.shape[-2], b.shape[-2]),
        lambda *at: te.sum(number(a, (*at[:-1], d)) * number(b, (*at[:-2], at[-1], d)), axis=d),
        name=name,
        attrs=rule,
    )


def _probabilities(
    q: te.Tensor,
    k: te.Tensor,
    scoring: Scoring,
    statistics: te.Tensor,
    batch: Sequence[int],
    rule: Mapping[str, Any],
) -> te.Tensor:
    products = _products(q, k, batch, "products", rule)
    return te.compute(
        products.shape, lambda *at: scoring.probability(products(*at), statistics, at), name="probabilities"
    )


def _score_gradient(powers: te.Tensor, coming: te.Tensor, scoring: Scoring, along: te.Tensor) -> te.Tensor:
    """Compute dS of P, dO V^T and the sums of rows that the softmax's gradient subtracts."""
    return te.compute(
        powers.shape,
        lambda *at: scoring.gradient(powers(*at) * (coming(*at) - element(along, at[:-1])), at),
        name="score_gradient",
    )


def _of_queries(weights: te.Tensor, operand: te.Tensor, factor: float, rule: Mapping[str, Any]) -> te.Tensor:
    """Compute ``W A`` times ``factor`` of weights [.., n, m] and an operand [.., m, d]."""
    *batch, rows, columns = weights.shape
    j = te.reduce_axis((0, columns), name="j")
    sums = te.compute(
        (*batch, rows, operand.shape[-1]),
        lambda *at: te.sum(weights(*at[:-1], j) * number(operand, (*at[:-2], j, at[-1])), axis=j),
        name="sums",
        attrs=rule,
    )
    return _scaled(sums, factor, operand.dtype)


def _of_keys(weights: te.Tensor, operand: te.Tensor, factor: float, rule: Mapping[str, Any]) -> te.Tensor:
    """Compute ``W^T A`` times ``factor`` of weights [.., n, m] and an operand [.., n, d]."""
    *batch, rows, columns = weights.shape
    i = te.reduce_axis((0, rows), name="i")
    sums = te.compute(
        (*batch, columns, operand.shape[-1]),
        lambda *at: te.sum(weights(*at[:-2], i, at[-2]) * number(operand, (*at[:-2], i, at[-1])), axis=i),
        name="sums",
        attrs=rule,
    )
    return _scaled(sums, factor, operand.dtype)


def _scaled(sums: te.Tensor, factor: float, dtype: str) -> te.Tensor:
    return te.compute(
        sums.shape, lambda *at: (sums(*at) * tirx.const(factor, dtype_of(sums(*at)))).astype(dtype), name="scaled"
    )
