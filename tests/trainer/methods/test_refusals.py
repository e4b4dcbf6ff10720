"""What a method refuses when it is made, before any work starts."""

from __future__ import annotations

from typing import Any

import pytest

from logitstore.errors import InputError, UnknownName
from logitstore.trainer.methods.table import make_method


def test_what_a_method_does_not_have_is_refused_with_those_that_do() -> None:
    with pytest.raises(UnknownName, match=r"unknown method 'kb': did you mean 'kd'\?"):
        make_method("kb", {})
    known = "'ce' has no epsilon: drop --epsilon, or use --method label-smoothing"
    with pytest.raises(InputError, match=known):
        make_method("ce", {"epsilon": 0.1})
    with pytest.raises(InputError, match="drop --kd-warmup, or use --method dkd or tckd or nckd"):
        make_method("kd", {"kd_warmup": 5})
    with pytest.raises(InputError, match="'kd' has no warp: drop --warp"):
        make_method("kd", {"warp": 9.0})


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("kd", {"temperature": 0.0}),
        ("kd", {"temperature": float("nan")}),
        ("kd", {"temperature": float("inf")}),
        ("kd", {"ce_weight": -0.1}),
        ("kd", {"stop_kd_at": -1}),
        ("kd", {"stop_kd_at": 2.5}),
        ("dkd", {"kd_warmup": -1}),
        ("ttm", {"gamma": 0.0}),
        ("label-smoothing", {"epsilon": 1.1}),
        ("tf-kd-reg", {"correct": 1.0}),
        ("tf-kd-reg", {"variant": "papr"}),
        ("ps-kd", {"alpha": 1.1}),
        ("ps-kd", {"history": 0}),
        ("ps-kd", {"past": "cleen"}),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(given))):
        make_method(name, given)


@pytest.mark.parametrize("name", ["kd", "tf-kd-reg", "dist"])
def test_two_weights_of_zero_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="ce_weight and kd_weight are both 0"):
        make_method(name, {"ce_weight": 0.0, "kd_weight": 0.0})
