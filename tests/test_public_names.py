"""The names for people's own code: all there, listed, and loaded only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import logitstore
import logitstore.trainer as trainer

PROMISED = [
    *("open_store", "prepare_reading", "LogitDataset", "with_logits", "losses", "metrics"),
    *("train", "TrainConfig", "evaluate", "__version__"),
]
"""What DESIGN.md names, but load_student, which is still to come."""


@pytest.mark.parametrize("name", logitstore.__all__)
def test_every_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(logitstore, name) is not None
    assert name in dir(logitstore)


def test_the_promised_names_are_among_them() -> None:
    assert set(PROMISED) <= set(logitstore.__all__)


@pytest.mark.parametrize("name", trainer.__all__)
def test_a_name_of_the_trainer_resolves_and_is_the_same_thing(name: str) -> None:
    assert name in dir(trainer)
    assert getattr(trainer, name) is not None
    if name in logitstore.__all__:
        assert getattr(trainer, name) is getattr(logitstore, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'opn_store'"):
        logitstore.opn_store  # noqa: B018  # the access is what is tested


def test_listing_the_names_loads_nothing() -> None:
    code = (
        "import sys, logitstore; dir(logitstore); logitstore.__version__; "
        "print([name for name in ('torch', 'numpy', 'zarr', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
