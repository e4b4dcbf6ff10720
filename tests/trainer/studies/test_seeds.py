"""Figures over seeds: how they are written, and when a gain is more than chance."""

from __future__ import annotations

from dataclasses import asdict
from statistics import mean, stdev

import pytest
from scipy.stats import ttest_rel

from logitstore.trainer.studies.seeds import Gain, OverSeeds, paired


def with_moments(middle: float, deviation: float, n: int) -> Gain:
    """Return a gain of this mean and standard deviation."""
    unit = [i - (n - 1) / 2 for i in range(n)]
    return Gain(tuple(middle + deviation * value / stdev(unit) for value in unit))


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (with_moments(2.49, 1.0, 3), "shows"),  # Student's t: 4.303 standard errors
        (with_moments(2.48, 1.0, 3), "does not show"),
        (with_moments(1.25, 1.0, 5), "shows"),  # 2.776
        (with_moments(-1.0, 1.0, 3), "does not show"),
        (with_moments(-3.0, 1.0, 3), "reversed"),
        (with_moments(0.0, 0.0, 3), "does not show"),
        (Gain((9.0,)), "cannot be judged"),
    ],
)
def test_an_effect_shows_beyond_what_one_case_in_twenty_shows_by_chance(
    gain: Gain, verdict: str
) -> None:
    assert gain.verdict == verdict
    assert gain.significant == (verdict == "shows")


def test_a_gain_is_paired_by_seed_and_judged_as_the_paired_t_test_judges() -> None:
    after, before = (0.81, 0.84, 0.83), (0.80, 0.80, 0.81)
    gain = paired(after, before)
    assert gain.mean == pytest.approx(mean(after) - mean(before))
    assert gain.deviation == pytest.approx(stdev([0.01, 0.04, 0.02]))
    assert gain.significant == (ttest_rel(after, before).pvalue < 0.05)
    with pytest.raises(ValueError, match="shorter"):
        paired(after, before[:2])


def test_a_cell_is_mean_and_deviation_and_a_gain_has_a_sign() -> None:
    shares = OverSeeds((0.9711, 0.9753))
    assert shares.cell(2, percent=True) == "97.32 ± 0.30"
    assert OverSeeds((0.51239,)).cell(4) == "0.5124"
    assert paired((0.9, 0.8), (0.8, 0.8)).cell(1, percent=True) == "+5.0 ± 7.1"
    assert Gain((-2.0,)).cell(1) == "-2.0"


def test_the_figures_are_in_a_summary_as_json_holds_them() -> None:
    assert asdict(OverSeeds((1.0, 3.0))) == {
        "values": (1.0, 3.0),
        "mean": 2.0,
        "deviation": pytest.approx(2**0.5),
    }
