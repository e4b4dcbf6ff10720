"""Schedules are functions of the epoch: values at the points where they can be told by hand."""

from __future__ import annotations

import pytest

from logitstore.errors import UnknownName
from logitstore.trainer.schedules import learning_rate


def at(epoch: int, fraction: float = 1.0, **given: object) -> float:
    settings: dict[str, object] = {"base": 0.1, "epochs": 200, "schedule": "constant", **given}
    return learning_rate(epoch, fraction, **settings)  # type: ignore[arg-type]


def test_constant_stays() -> None:
    assert at(0) == at(199) == 0.1


def test_a_milestone_acts_from_its_epoch_on() -> None:
    steps = {"schedule": "step", "milestones": (60, 120, 160), "decay": 0.2}
    assert at(59, **steps) == 0.1
    assert at(60, **steps) == pytest.approx(0.02)
    assert at(120, **steps) == pytest.approx(0.004)
    assert at(199, **steps) == pytest.approx(0.0008)


def test_cosine_begins_at_the_base_halves_in_the_middle_and_never_rises() -> None:
    rates = [at(epoch, schedule="cosine") for epoch in range(200)]
    assert rates[0] == 0.1
    assert rates[100] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_warm_up_is_linear_over_steps_and_ends_at_the_base() -> None:
    assert at(0, 0.25, warmup_epochs=2) == pytest.approx(0.1 * 0.125)
    assert at(1, 0.5, warmup_epochs=2) == pytest.approx(0.075)
    assert at(1, 1.0, warmup_epochs=2) == 0.1
    assert at(2, 0.01, warmup_epochs=2) == 0.1


def test_cosine_runs_over_the_epochs_after_the_warm_up() -> None:
    warm = {"schedule": "cosine", "epochs": 12, "warmup_epochs": 2}
    assert at(2, **warm) == 0.1
    assert at(7, **warm) == pytest.approx(0.05)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cosine'"):
        at(0, schedule="cosin")
