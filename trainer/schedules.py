"""Schedules: floats as functions of the epoch, so that resuming needs nothing but its number.

Epochs count from 0.  ``fraction`` is how much of the epoch is done after the step at hand, in
(0, 1]: only the warm-up looks at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from logitstore.errors import UnknownName


def step_factor(epoch: int, *, milestones: Sequence[int], gamma: float) -> float:
    """gamma to the number of milestones reached: milestone 60 acts from the 61st epoch on."""
    return float(gamma ** sum(epoch >= milestone for milestone in milestones))


def cosine_factor(epoch: int, *, epochs: int) -> float:
    """Half a cosine from 1 at epoch 0 towards 0 at ``epochs``  (SGDR, arXiv:1608.03983, eq. 5)."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def warmup_factor(position: float, *, warmup_epochs: int) -> float:
    """Linear from 0 to 1 over the first epochs; ``position`` is epoch + fraction."""
    return 1.0 if position >= warmup_epochs else position / warmup_epochs


def learning_rate(
    epoch: int,
    fraction: float,
    *,
    base: float,
    epochs: int,
    schedule: str,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    warmup_epochs: int = 0,
) -> float:
    """The learning rate of one step.

    The warm-up multiplies ``base``; the cosine runs over the epochs after it, milestones count from
    the first epoch of all.
    """
    if schedule not in SCHEDULES:
        raise UnknownName.among("schedule", schedule, SCHEDULES)
    after = max(epoch - warmup_epochs, 0)
    factor = SCHEDULES[schedule](epoch, after, epochs - warmup_epochs, milestones, gamma)
    return base * factor * warmup_factor(epoch + fraction, warmup_epochs=warmup_epochs)


SCHEDULES: dict[str, Callable[[int, int, int, Sequence[int], float], float]] = {
    "constant": lambda epoch, after, span, milestones, gamma: 1.0,
    "step": lambda epoch, after, span, milestones, gamma: step_factor(
        epoch, milestones=milestones, gamma=gamma
    ),
    "cosine": lambda epoch, after, span, milestones, gamma: cosine_factor(after, epochs=span),
}
