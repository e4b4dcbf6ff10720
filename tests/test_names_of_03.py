"""The names that people use of version 0.3.0 are all there, and called in the same way.

``data/v0.3/names.json`` was read off that version: the parameters of its public functions, each
with its kind, under the import names of today, the options of its commands, and the
hyper-parameters of its methods.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import typer

from logitstore.cli import app
from logitstore.cli.settings import SettingsCommand
from logitstore.trainer.methods.table import METHODS

NAMES = json.loads((Path(__file__).parent / "data/v0.3/names.json").read_bytes())
KINDS = {"POSITIONAL_OR_KEYWORD": "either"}


@pytest.mark.parametrize("name", NAMES["parameters"])
def test_a_public_function_takes_what_it_took(name: str) -> None:
    parameters = inspect.signature(resolve_name(name)).parameters.values()
    today = [(each.name, KINDS.get(each.kind.name, each.kind.name.lower())) for each in parameters]
    before = list(NAMES["parameters"][name].items())
    in_order = [each for each in before if each[1] != "keyword_only"]
    assert today[: len(in_order)] == in_order
    assert set(before) <= set(today)
    new = [each for each in parameters if each.name not in NAMES["parameters"][name]]
    assert [each.name for each in new if each.default is inspect.Parameter.empty] == []


@pytest.mark.parametrize("command", NAMES["options"])
def test_a_command_has_the_options_that_it_had(command: str) -> None:
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    today = {flag for param in found.params for flag in (*param.opts, *param.secondary_opts)}
    if isinstance(found, SettingsCommand):
        settings = [option for part in found.options_by_heading().values() for option in part]
        today |= {flag for option in settings for flag in (option.flag, option.off)}
    assert set(NAMES["options"][command]) - today == set()


@pytest.mark.parametrize("method", NAMES["methods"])
def test_a_method_has_the_hyper_parameters_that_it_had(method: str) -> None:
    assert set(NAMES["methods"][method]) <= set(METHODS[method].__dataclass_fields__)
