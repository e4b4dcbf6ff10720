"""METHODS.md says of each method what the code does: its needs, its defaults and its formula."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import logitstore.trainer as trainer
from logitstore.trainer.methods.table import METHODS, hyper_parameters, make_method

TEXT = (Path(trainer.__file__).parent / "METHODS.md").read_text()
OF_ALL = {"standardize", "stop_kd_at"}
"""Hyper-parameters of every method with a teacher; they are off, and not in the table."""


def row(name: str) -> tuple[str, str]:
    """Needs and defaults of a method in the first table."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, _, needs, defaults, _ = line.split("|")
    return needs.strip(), defaults.strip()


@pytest.mark.parametrize("name", METHODS)
def test_the_table_s_defaults_are_the_code_s(name: str) -> None:
    stated = re.sub(r" \(.*\)", "", row(name)[1])
    pairs = [part.split() for part in stated.split(", ") if " " in part]
    values = hyper_parameters(make_method(name, {}))
    expected = {key: value for key, value in values.items() if key not in OF_ALL}
    assert {key: type(expected[key])(value) for key, value in pairs} == expected


@pytest.mark.parametrize("name", METHODS)
def test_the_table_s_needs_are_the_code_s(name: str) -> None:
    needs, kind = row(name)[0], METHODS[name]
    assert ("store" in needs) == kind.needs_teacher
    assert ("one label" in needs) == kind.one_label
    assert ("whole batches" in needs) == kind.per_batch


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ce"}))
def test_every_method_has_a_formula(name: str) -> None:
    (section,) = re.findall(rf"^### [^\n]*`{name}`.*?(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    assert "```math" in section or "that of `kd`" in section
    assert "arXiv" in section or "same paper" in section


def test_files_that_the_document_names_are_there() -> None:
    root = Path(trainer.__file__).resolve().parent.parent
    names = re.findall(r"`((?:trainer|tests)/[\w/]+\.\w+)`", TEXT)
    assert len(names) > 4
    for name in names:
        assert (root / name).is_file(), name
