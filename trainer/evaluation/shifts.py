"""Classes that a student never sees, and the bias that makes up for it afterwards.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 3: the soft targets of other images teach a
class that is missing from the transfer set, all but its bias, which is learned far too low.  The
paper tuned that on the test set; here a validation set does it, or no label at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.errors import InputError

Floats = NDArray[np.float64]


Figures = Mapping[str, float | None]


_BEYOND = 1.0
"""How far a shift goes beyond the outermost breakpoint, where no interval has a middle."""


_GRADIENT, _STEPS, _HALVINGS = 1e-10, 200, 60


def accuracy_on(logits: ArrayLike, labels: ArrayLike, classes: Sequence[int]) -> Figures:
    """``samples``, ``errors`` and ``top1`` of labelled logits (N, C); the same of some classes.

    ``class_top1`` is None without a sample of these.
    """
    values, known = _labelled(logits, labels)
    wrong, own = values.argmax(axis=1) != known, np.isin(known, classes)
    count, errors = int(own.sum()), int(wrong[own].sum())
    return {
        "samples": len(known),
        "errors": int(wrong.sum()),
        "top1": float((~wrong).mean()),
        "class_samples": count,
        "class_errors": errors,
        "class_top1": 1 - errors / count if count else None,
    }


def shifted(logits: ArrayLike, classes: Sequence[int], shift: float | Floats) -> Floats:
    """Logits (N, C) with ``shift`` (one for all, or (k,)) added to k classes, float64."""
    moved = np.array(logits, np.float64)
    moved[:, list(classes)] += shift
    return moved


def correct_by_validation(
    logits: ArrayLike, labels: ArrayLike, classes: Sequence[int]
) -> tuple[float, dict[str, Figures]]:
    """One shift of some classes' logits with the highest accuracy; figures ``before``, ``after``.

    Accuracy changes only where, for a sample, the best of these classes overtakes the best other
    one, so every interval between such shifts is looked at.  Of the best intervals the one nearest
    to 0 counts: the shift is 0 if that lies in it, else its middle (1 inside it at either end).
    InputError if no labelled sample is of these classes, or none of another.
    """
    values, known = _labelled(logits, labels)
    own = np.isin(known, classes)
    if not own.any() or own.all():
        raise InputError(
            f"{'no' if not own.any() else 'every'} labelled sample is of class "
            f"{','.join(map(str, classes))}: nothing tells how far to shift its logits; give other "
            "data, or use --by prior"
        )
    gaps, gains = _breakpoints(values, known, classes)
    points, inverse = np.unique(gaps, return_inverse=True)
    shift = 0.0
    if len(points):
        # After points[i] another (gains of points[0..i]) samples are right than far below all.
        right = np.concatenate([[0], np.bincount(inverse, gains).cumsum()])
        shift = _nearest_best(points, right)
    before = accuracy_on(values, known, classes)
    after = accuracy_on(shifted(values, classes, shift), known, classes)
    if after["top1"] == before["top1"]:
        return 0.0, {"before": before, "after": before}
    return shift, {"before": before, "after": after}


def _breakpoints(
    values: Floats, known: NDArray[np.int64], classes: Sequence[int]
) -> tuple[Floats, Floats]:
    """Where each sample that can be right becomes right (1) or wrong (-1) as the shift grows."""
    inside = np.isin(np.arange(values.shape[1]), classes)
    best_own = np.flatnonzero(inside)[values[:, inside].argmax(axis=1)]
    best_other = np.flatnonzero(~inside)[values[:, ~inside].argmax(axis=1)]
    rows = np.arange(len(values))
    gaps = values[rows, best_other] - values[rows, best_own]
    gains = (best_own == known).astype(np.float64) - (best_other == known)
    return gaps[gains != 0], gains[gains != 0]


def _nearest_best(points: Floats, right: Floats) -> float:
    """The shift, given rising breakpoints (n,) and the score below, between and above (n + 1,)."""
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
    """A shift (k,) of k classes' logits (N, C) after which their mean probability is the prior's.

    No label is used.  ``prior`` (C,) are shares of all classes.  The shift minimises
    mean log sum exp(z + b) - prior · b, which is convex, by Newton's method: the mean
    probabilities are right to 1e-10.  InputError for a prior that is none, or leaves nothing to the
    other classes.
    """
    values, shares = np.asarray(logits, np.float64), np.asarray(prior, np.float64)
    chosen = list(classes)
    wanted = shares[chosen] if shares.shape == values.shape[1:] else np.zeros(0)
    usable = len(wanted) and np.isfinite(shares).all() and (shares >= 0).all()
    if not usable or (wanted <= 0).any() or not 0 < wanted.sum() < 1:
        raise InputError(
            f"prior {', '.join(f'{share:g}' for share in wanted) or shares.shape} of class "
            f"{', '.join(map(str, chosen))}: expected a share above 0 for each corrected class, "
            f"below 1 in all, of {values.shape[1]} classes"
        )
    others = np.delete(values, chosen, axis=1)
    top = others.max(axis=1, keepdims=True)
    # All other classes keep their logits: to the corrected ones they are one class, at logit 0.
    relative = values[:, chosen] - top - np.log(np.exp(others - top).sum(axis=1, keepdims=True))
    return _matched(relative, wanted)


def _matched(relative: Floats, wanted: Floats) -> Floats:
    shift: Floats = np.log(wanted) - np.log(_predicted(relative, 0.0)[1].mean(axis=0))
    for _ in range(_STEPS):
        value, p = _predicted(relative, shift)
        gradient = p.mean(axis=0) - wanted
        if np.abs(gradient).max() <= _GRADIENT:
            break
        curvature = np.diag(p.mean(axis=0)) - p.T @ p / len(p)
        step = np.linalg.lstsq(curvature, -gradient, rcond=None)[0]
        now, slope = value.mean() - wanted @ shift, float(gradient @ step)
        for _ in range(_HALVINGS):
            trial = _predicted(relative, shift + step)[0].mean() - wanted @ (shift + step)
            if trial <= now + 1e-4 * slope:
                break
            step, slope = step / 2, slope / 2
        shift = shift + step
    return shift


def _predicted(relative: Floats, shift: float | Floats) -> tuple[Floats, Floats]:
    """log(1 + sum exp(z)) (N,) and the classes' probabilities (N, k), z = relative + shift."""
    moved = relative + shift
    total = np.logaddexp(0.0, np.logaddexp.reduce(moved, axis=1))
    return total, np.exp(moved - total[:, None])


def _labelled(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    values, known = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if not (known >= 0).any():
        raise InputError("no sample has a label: there is nothing to measure")
    return values[known >= 0], known[known >= 0]
