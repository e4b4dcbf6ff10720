"""Find shifts for the logits of classes that a student never saw.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 3: the soft targets of other images teach a
class that is missing from the transfer set, all but its bias, which is learned far too low.  The
paper chose the shift on the test set; here validation data choose it, or the class prior alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.errors import InputError
from logitstore.trainer.metrics import labelled

Floats = NDArray[np.float64]
Figures = Mapping[str, float | None]

_BEYOND = 1.0
"""Distance of a shift from the outermost breakpoint, beyond which no interval has a middle."""


def before_and_after(
    logits: ArrayLike, labels: NDArray[np.integer], classes: Sequence[int], shift: float | Floats
) -> dict[str, Figures] | None:
    """Return ``accuracy_on`` without and with the shift of some classes; None without labels."""
    if not (labels >= 0).any():
        return None
    return {
        "before": accuracy_on(logits, labels, classes),
        "after": accuracy_on(shifted(logits, classes, shift), labels, classes),
    }


def accuracy_on(logits: ArrayLike, labels: ArrayLike, classes: Sequence[int]) -> Figures:
    """Count ``samples``, ``errors`` and ``top1`` of labelled logits (N, C), and of some classes.

    ``class_top1`` is None if no sample is of these classes.
    """
    values, known = labelled(logits, labels)
    wrong, of_classes = values.argmax(axis=1) != known, np.isin(known, classes)
    count, errors = int(of_classes.sum()), int(wrong[of_classes].sum())
    return {
        "samples": len(known),
        "errors": int(wrong.sum()),
        "top1": float((~wrong).mean()),
        "class_samples": count,
        "class_errors": errors,
        "class_top1": 1 - errors / count if count else None,
    }


def shifted(logits: ArrayLike, classes: Sequence[int], shift: float | Floats) -> Floats:
    """Return logits (N, C) with ``shift`` (one for all, or (k,)) added to k classes, in float64."""
    moved = np.array(logits, np.float64)
    moved[:, list(classes)] += shift
    return moved


def correct_by_validation(logits: ArrayLike, labels: ArrayLike, classes: Sequence[int]) -> float:
    """Return the shift of some classes' logits with the highest accuracy.

    Accuracy changes only where, for a sample, the best of these classes overtakes the best other
    one, so every interval between such shifts is tried.  Of the best intervals the one nearest to
    0 counts: the shift is 0 if 0 lies in it, else its middle (1 inside it at either end).
    InputError if no labelled sample is of these classes, or none of another.
    """
    values, known = labelled(logits, labels)
    of_classes = np.isin(known, classes)
    if not of_classes.any() or of_classes.all():
        raise InputError(
            f"{'no' if not of_classes.any() else 'every'} labelled sample is of class "
            f"{','.join(map(str, classes))}: nothing tells how far to shift its logits; give other "
            "data, or use --by prior"
        )
    gaps, gains = _breakpoints(values, known, classes)
    points, inverse = np.unique(gaps, return_inverse=True)
    if len(points) == 0:
        return 0.0
    # After points[i] another (gains of points[0..i]) samples are right than far below all.
    shift = _nearest_best(points, np.concatenate([[0], np.bincount(inverse, gains).cumsum()]))
    moved = shifted(values, classes, shift)
    gained = (moved.argmax(axis=1) == known).sum() - (values.argmax(axis=1) == known).sum()
    return shift if gained else 0.0


def _breakpoints(
    values: Floats, known: NDArray[np.int64], classes: Sequence[int]
) -> tuple[Floats, Floats]:
    """Return the shifts at which a sample becomes right (1) or wrong (-1) as the shift grows."""
    inside = np.isin(np.arange(values.shape[1]), classes)
    best_inside = np.flatnonzero(inside)[values[:, inside].argmax(axis=1)]
    best_outside = np.flatnonzero(~inside)[values[:, ~inside].argmax(axis=1)]
    rows = np.arange(len(values))
    gaps = values[rows, best_outside] - values[rows, best_inside]
    gains = (best_inside == known).astype(np.float64) - (best_outside == known)
    return gaps[gains != 0], gains[gains != 0]


def _nearest_best(points: Floats, right: Floats) -> float:
    """Return the shift; ``points`` (n,) rise, ``right`` (n + 1,) is below, between and above."""
    low, high = np.append(-np.inf, points), np.append(points, np.inf)
    distance = np.maximum(np.maximum(low, -high), 0.0)
    distance[right < right.max()] = np.inf
    chosen = int(distance.argmin())
    if low[chosen] < 0 < high[chosen]:
        return 0.0
    if np.isinf(low[chosen]):
        return float(high[chosen] - _BEYOND)
    if np.isinf(high[chosen]):
        return float(low[chosen] + _BEYOND)
    return float((low[chosen] + high[chosen]) / 2)


def correct_by_prior(logits: ArrayLike, prior: ArrayLike, classes: Sequence[int]) -> Floats:
    """Return the shift (k,) of k classes' logits (N, C) at which their mean probability is right.

    Right is what ``prior`` says, the shares of all classes (C,); no label is used.  The shift
    minimises mean log sum exp(z + b) - prior · b, which is convex; the mean probabilities are right
    to 1e-10.
    InputError for a prior that is none, or leaves nothing to the other classes.
    """
    values, shares = np.asarray(logits, np.float64), np.asarray(prior, np.float64)
    chosen = list(classes)
    target = shares[chosen] if shares.shape == values.shape[1:] else np.zeros(0)
    usable = len(target) and np.isfinite(shares).all() and (shares >= 0).all()
    if not usable or (target <= 0).any() or not 0 < target.sum() < 1:
        raise InputError(
            f"prior {', '.join(f'{share:g}' for share in target) or shares.shape} of class "
            f"{', '.join(map(str, chosen))}: expected a share above 0 for each corrected class, "
            f"below 1 in all, of {values.shape[1]} classes"
        )
    others = np.delete(values, chosen, axis=1)
    top = others.max(axis=1, keepdims=True)
    # All other classes keep their logits: to the corrected ones they are one class, at logit 0.
    relative = values[:, chosen] - top - np.log(np.exp(others - top).sum(axis=1, keepdims=True))
    return _matched(relative, target)


def _matched(relative: Floats, target: Floats) -> Floats:
    """Return the shift (k,) at which the mean probabilities are ``target`` (k,)."""
    from scipy.optimize import minimize, root  # takes a second

    def gradient(shift: Floats) -> Floats:
        excess: Floats = _predicted(relative, shift)[1].mean(axis=0) - target
        return excess

    def curvature(shift: Floats) -> Floats:
        p = _predicted(relative, shift)[1]
        matrix: Floats = np.diag(p.mean(axis=0)) - p.T @ p / len(p)
        return matrix

    start = np.log(target) - np.log(_predicted(relative, 0.0)[1].mean(axis=0))
    near = minimize(
        lambda shift: _predicted(relative, shift)[0].mean() - target @ shift,
        start,
        jac=gradient,
        hess=curvature,
        method="trust-exact",
        options={"gtol": 1e-10},
    )
    # Near the minimum the values differ by less than rounding: there the gradient alone tells more.
    shift: Floats = root(gradient, near.x, jac=curvature, tol=1e-13).x
    return shift


def _predicted(relative: Floats, shift: float | Floats) -> tuple[Floats, Floats]:
    """Return log(1 + sum exp(z)) (N,) and probabilities (N, k), with z = relative + shift."""
    moved = relative + shift
    total = np.logaddexp(0.0, np.logaddexp.reduce(moved, axis=1))
    return total, np.exp(moved - total[:, None])
