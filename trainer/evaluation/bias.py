"""Correct a trained network's bias for classes that it never saw: ``logitstore correct-bias``.

The shift comes from ``shifts``; here it meets a run's network, its data and its weights file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitstore.errors import InputError
from logitstore.precompute.data.classes import class_numbers
from logitstore.reading.opening import open_store
from logitstore.storage.durable import refuse_place, write_file
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.source import Source
from logitstore.trainer.evaluation.shifts import (
    before_and_after,
    correct_by_prior,
    correct_by_validation,
    shifted,
)
from logitstore.trainer.evaluation.weights import Trained, find_trained
from logitstore.trainer.measure.network import Network, labels_of
from logitstore.trainer.run.checkpoint import pack_weights
from logitstore.trainer.run.result import CONFIG

UNIFORM = "uniform"

_CLOSE = 1e-3
"""Share of the largest logit by which the corrected network's logits may miss the shifted ones."""


def correct_bias(
    run_or_checkpoint: str | Path,
    data: str,
    classes: Sequence[str | int] = (),
    *,
    by: Literal["validation", "prior"] = "validation",
    prior: str | Sequence[float] = UNIFORM,
    test: str | None = None,
    out: str | Path | None = None,
    student: str | None = None,
    normalize: str | None = None,
    token: str | None = None,
    batch_size: int = 256,
    device: str | None = None,
    trust_run: bool = False,
) -> dict[str, Any]:
    """Find the shift of some classes' logits on ``data``, and measure it there and on ``test``.

    ``classes`` (names or numbers) are by default those that the run omitted.  ``by`` is
    ``correct_by_validation`` or ``correct_by_prior``; the latter's ``prior`` is ``uniform``, a
    store whose label shares count, or the shares of ``classes``, in this order.  ``test`` chooses
    nothing.  ``trust_run``: run the code that the run's own file names as its network or its data,
    which is refused otherwise.  ``out`` gets the weights with the shift added to the bias of the
    last linear layer.
    Returns ``classes`` (numbers), ``names``, ``shift`` (one for each), ``by``, ``data`` and
    ``test`` (figures before and after, None without labels or test data) and ``out``.  Raises
    InputError, NotFound or UnknownName.
    """
    target = None if out is None else _target(out)
    trained = find_trained(run_or_checkpoint, student, normalize, trust_run=trust_run)
    source = trained.source(data)
    network = trained.network(source, device, batch_size)
    numbers = _numbers(trained, source, classes)
    shares = _shares(prior, source, numbers, token) if by == "prior" else None
    last = None if target is None else last_linear(network.model, source.classes)
    measured_on = None if test is None else trained.source(test)
    logits, labels = network.logits(source), labels_of(source)
    if shares is None:
        shift = np.full(len(numbers), correct_by_validation(logits, labels, numbers))
    else:
        shift = correct_by_prior(logits, shares, numbers)
    names = source.dataset.class_names
    document: dict[str, Any] = {
        "classes": numbers,
        "names": [names[number] for number in numbers] if names else None,
        "shift": shift.tolist(),
        "by": by,
        "data": before_and_after(logits, labels, numbers, shift),
        "test": None,
        "out": None if target is None else str(target),
    }
    if measured_on is not None:
        tested, known = network.logits(measured_on), labels_of(measured_on)
        document["test"] = before_and_after(tested, known, numbers, shift)
    if target is not None and last is not None:
        _add(network, last, source, numbers, shift)
        _put(target, pack_weights(network.model))
    return document


def _put(target: Path, weights: bytes) -> None:
    """Write the weights, unless the file holds other ones, which may be a run's."""
    if target.is_file() and target.read_bytes() != weights:
        raise InputError(f"--out {target}: other weights are there: give another name")
    write_file(target, weights)


def last_linear(model: nn.Module, classes: int) -> nn.Linear:
    """Return the last linear layer with an output and a bias for each class.

    InputError if the network has none.
    """
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.Linear) and module.out_features == classes:
            if module.bias is None:
                break
            return module
    raise InputError(
        f"the network has no linear layer with {classes} outputs and a bias, to which a shift "
        "could be added: drop --out and add the shift to the logits"
    )


def _add(
    network: Network, last: nn.Linear, source: Source, numbers: list[int], shift: NDArray[Any]
) -> None:
    """Add the shift to the layer's bias, and check on a few samples that the logits follow."""
    few = replace(source, subset=source.samples()[:16])
    expected = shifted(network.logits(few), numbers, shift)
    with torch.no_grad():
        moved = torch.from_numpy(shift).to(last.bias.device, last.bias.dtype)
        last.bias[torch.tensor(numbers, device=last.bias.device)] += moved
    away = np.abs(network.logits(few) - expected).max()
    if not away <= _CLOSE * max(1.0, float(np.abs(expected).max())):
        raise InputError(
            "what comes after the network's last linear layer changes the shift on its way to the "
            "logits: drop --out and add the shift to the logits"
        )


def _numbers(trained: Trained, source: Source, classes: Sequence[str | int]) -> list[int]:
    if not classes and trained.run is not None:
        classes = TrainConfig.from_toml(trained.run / CONFIG).omit_classes
    if not classes:
        raise InputError(f"{trained.path}: no class was omitted here: say which with --class")
    names = source.dataset.class_names
    numbers = class_numbers(classes, names, source.classes, source.dataset.name)
    if len(numbers) == source.classes:
        raise InputError("--class: these are all classes: a shift of all logits changes nothing")
    return numbers


def _shares(
    prior: str | Sequence[float], source: Source, numbers: list[int], token: str | None
) -> NDArray[np.float64]:
    """Return the shares of all classes (C,), or 0 for others than ``numbers`` if not known."""
    if prior == UNIFORM:
        return np.full(source.classes, 1 / source.classes)
    if isinstance(prior, str):
        store = open_store(prior, token)
        known = store.labels[store.labels >= 0]
        names = source.dataset.class_names
        if store.meta.classes != source.classes or store.meta.class_names not in (None, names):
            raise InputError(f"--prior {prior}: that store has other classes than the network")
        if len(known) == 0:
            raise InputError(f"--prior {prior}: no sample there has a label")
        return np.bincount(known, minlength=source.classes) / len(known)
    if len(prior) != len(numbers):
        raise InputError(
            f"--prior: {len(prior)} shares for {len(numbers)} classes: give one for each --class"
        )
    shares = np.zeros(source.classes)
    shares[numbers] = prior
    return shares


def _target(out: str | Path) -> Path:
    path = Path(out)
    if path.suffix != ".safetensors":
        raise InputError(f"--out {out}: expected a name that ends in .safetensors")
    refuse_place(path)
    return path
