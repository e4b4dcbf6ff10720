"""Settings as options: made of fields, with their types, defaults and texts, and parsed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import pytest

from logitstore.errors import InputError, UnknownName
from logitstore.options import Written, options_of, parse_options
from logitstore.trainer.config.fields import Settings, hyper_parameter_options, options_by_heading
from logitstore.trainer.methods.table import hyper_parameter_types


@dataclass(frozen=True, kw_only=True)
class Cake:
    layers: int
    """How many."""
    icing: Literal["sugar", "cream"] | None = "sugar"
    """What is
    on top."""
    fruits: Annotated[tuple[str, ...], Written("FRUIT,…", "fruit", repeats=True)] = ()
    cuts: tuple[int, ...] | Literal["none"] | None = None
    warm: bool = False
    weight: float = 0.5


def parse(*arguments: str) -> dict[str, Any]:
    return parse_options(arguments, options_of(Cake))


def parse_hyper_parameters(arguments: list[str]) -> dict[str, Any]:
    return parse_options(arguments, hyper_parameter_options())


def test_a_field_gives_its_option_s_name_type_default_and_help() -> None:
    assert [option.record() for option in options_of(Cake)] == [
        ("--layers <int>", "How many."),
        ("--icing sugar|cream", "What is on top.  [default: sugar]"),
        ("--fruit FRUIT,…", ""),
        ("--cuts <tuple>|none", ""),
        ("--warm / --no-warm", ""),
        ("--weight <float>", "[default: 0.5]"),
    ]


def test_values_come_back_as_the_field_s_type() -> None:
    assert parse("--layers", "3", "--icing=cream", "--warm", "--weight", "-1") == {
        "layers": 3,
        "icing": "cream",
        "warm": True,
        "weight": -1.0,
    }
    assert parse("--no-warm", "--layers=1", "--layers", "2") == {"warm": False, "layers": 2}
    assert parse("--fruit", "fig, plum", "--fruit", "pear") == {"fruits": ("fig", "plum", "pear")}
    assert parse("--cuts", "1,5") == {"cuts": (1, 5)}
    assert parse("--cuts", "1,5", "--cuts", "2") == {"cuts": (2,)}
    assert parse("--cuts", "none") == {"cuts": "none"}
    with pytest.raises(InputError, match=r"--cuts '1,x': expected whole numbers .* or none"):
        parse("--cuts", "1,x")


def test_every_setting_is_an_option_once_and_has_a_help() -> None:
    options = [option for part in options_by_heading().values() for option in part]
    assert sorted(option.field for option in options) == sorted(f.name for f in fields(Settings))
    assert len({option.flag for option in options}) == len(options)
    assert [option.flag for option in options if not option.help] == []


def test_a_hyper_parameter_s_help_says_what_it_means_to_each_method() -> None:
    helps = {option.field: option.help for option in hyper_parameter_options()}
    assert helps.keys() == hyper_parameter_types().keys()
    assert helps["ce_weight"] == "Weight of the cross-entropy with the labels."
    assert "dkd: Weight of TCKD" in helps["alpha"]
    assert "ps-kd: Trust in the past" in helps["alpha"]


def test_every_hyper_parameter_is_an_option() -> None:
    given = parse_hyper_parameters(
        [
            *("--temperature", "2", "--kd-weight=0.5", "--standardize", "--stop-kd-at", "9"),
            *("--variant", "code", "--kd-warmup", "3"),
        ]
    )
    assert given == {
        "temperature": 2.0,
        "kd_weight": 0.5,
        "standardize": True,
        "stop_kd_at": 9,
        "variant": "code",
        "kd_warmup": 3,
    }
    assert parse_hyper_parameters(["--no-standardize"]) == {"standardize": False}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--temperature"], "--temperature needs a value"),
        (["--temperature", "hot"], "--temperature 'hot': expected a number"),
        (["--kd-warmup", "1.5"], "--kd-warmup '1.5': expected a whole number"),
        (["--variant", "codex"], "expected paper or code"),
        (["--standardize=yes"], "--standardize takes no value"),
        (["digits"], "'digits': unexpected argument"),
    ],
)
def test_a_flag_that_cannot_be_read_says_why(arguments: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_hyper_parameters(arguments)


def test_an_unknown_flag_is_answered_with_a_near_one() -> None:
    with pytest.raises(UnknownName, match="did you mean '--temperature'"):
        parse_hyper_parameters(["--temprature", "4"])
    with pytest.raises(UnknownName, match="did you mean '--epochs'"):
        parse_options(["--epoch", "4"], [], ["--epochs"])
    with pytest.raises(UnknownName, match="--no-temperature"):
        parse_hyper_parameters(["--no-temperature"])
