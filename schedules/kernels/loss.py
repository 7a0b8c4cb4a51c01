"""Cross-entropy and its gradient from logits, without storing probabilities."""

from __future__ import annotations

from tvm import te, tirx

from .functions import exp


def cross_entropy(logits: te.Tensor, labels: te.Tensor, *, ignore_index: int, label_smoothing: float) -> te.Tensor:
    """Compute ``-sum_c target[c] * log softmax(logits)[c]`` of each row; 0 for the label ``ignore_index``.

    ``logits``: float [rows, classes]; ``labels``: integers [rows]; result: float [rows]. The target is 1 - smoothing +
    smoothing / classes at the label and smoothing / classes elsewhere, as in ``torch.nn.CrossEntropyLoss``.
    """
    rows, classes = (int(extent) for extent in logits.shape)
    largest, total = _exp_sum(logits)
    log_total = te.compute((rows,), lambda row: tirx.log(total(row)), name="log_total")
    zero = tirx.const(0, logits.dtype)

    def surprise(row: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        """Compute ``-log softmax``. The largest logit is subtracted first, or it would round the rest away."""
        return log_total(row) - (logits(row, c) - largest(row))

    def at_label(row: tirx.Expr) -> tirx.Expr:
        return tirx.if_then_else(_counts(labels, row, ignore_index), surprise(row, labels(row)), zero)

    if not label_smoothing:
        return te.compute((rows,), at_label, name="cross_entropy")
    c = te.reduce_axis((0, classes), name="c")
    uniform = te.compute((rows,), lambda row: te.sum(surprise(row, c), axis=c), name="uniform")
    share = tirx.const(label_smoothing / classes, logits.dtype)
    rest = tirx.const(1 - label_smoothing, logits.dtype)
    return te.compute(
        (rows,),
        lambda row: tirx.if_then_else(
            _counts(labels, row, ignore_index), rest * at_label(row) + share * uniform(row), zero
        ),
        name="cross_entropy",
    )


def cross_entropy_gradient(
    logits: te.Tensor, labels: te.Tensor, grad: te.Tensor, *, ignore_index: int, label_smoothing: float
) -> te.Tensor:
    """Compute ``d logits[row, c] = (softmax(logits)[row, c] - target[row, c]) * grad[row]``; ``grad``: float [rows]."""
    rows, classes = (int(extent) for extent in logits.shape)
    largest, total = _exp_sum(logits)
    zero, one = tirx.const(0, logits.dtype), tirx.const(1, logits.dtype)
    scale = te.compute((rows,), lambda row: one / total(row), name="scale")
    share = tirx.const(label_smoothing / classes, logits.dtype)
    hit = tirx.const(1 - label_smoothing + label_smoothing / classes, logits.dtype)

    def place_of(row: tirx.Expr) -> tirx.Expr:
        """Return the label in 32 bits, of which a vector compares more; -1 for one beyond the classes."""
        end = tirx.const(classes, labels.dtype)
        return tirx.Select(labels(row) < end, tirx.Cast("int32", labels(row)), tirx.const(-1, "int32"))

    place = te.compute((rows,), place_of, name="place")
    # An ignored row has gradient 0, or NaN where a probability is NaN.
    weight = te.compute(
        (rows,), lambda row: tirx.Select(_counts(labels, row, ignore_index), grad(row), zero), name="weight"
    )

    def d_logits(row: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        target = tirx.Select(place(row) == tirx.Cast("int32", c), hit, share)
        return (exp(logits(row, c) - largest(row)) * scale(row) - target) * weight(row)

    return te.compute((rows, classes), d_logits, name="cross_entropy_gradient")


def _counts(labels: te.Tensor, row: tirx.Expr, ignore_index: int) -> tirx.Expr:
    return labels(row) != tirx.const(ignore_index, labels.dtype)


def _exp_sum(logits: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
    """Compute the largest logit of each row, and the sum of ``e ** (logit - largest)``."""
    rows, classes = (int(extent) for extent in logits.shape)
    a, b = te.reduce_axis((0, classes), name="a"), te.reduce_axis((0, classes), name="b")
    largest = te.compute((rows,), lambda row: te.max(logits(row, a), axis=a), name="largest")
    total = te.compute((rows,), lambda row: te.sum(exp(logits(row, b) - largest(row)), axis=b), name="exp_sum")
    return largest, total
