"""Pack weights and checkpoints as safetensors bytes, without pickle, and restore them.

A checkpoint is one file with all that a resumed run needs: model with buffers, optimiser, random
states, the epoch's sums so far, and in its header the position and the gradient scaler.  The run's
folder writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from logitstore.errors import Damaged, InputError
from logitstore.precompute.networks.state_dicts import load_into
from logitstore.trainer.run.learner import Learner
from logitstore.trainer.run.predictions import PastPredictions

FORMAT_VERSION = 1

_HEADER = "logitstore"  # one entry only: safetensors writes several in no fixed order


class Position(NamedTuple):
    """The next step of a run; epoch and step count from 0."""

    epoch: int
    step: int


def pack_weights(model: nn.Module) -> bytes:
    """Return a model's state dict as safetensors bytes, which plain ``load_file`` reads."""
    return save(_state(model))


def pack(
    learner: Learner,
    position: Position,
    sums: Tensor | None,
    past: PastPredictions | None = None,
) -> bytes:
    """Return a checkpoint's bytes; ``sums`` are the epoch's running sums, None between epochs.

    ``past`` are the predictions that the method learns from, None if it does not.
    """
    tensors = {f"model.{key}": value for key, value in _state(learner.model).items()}
    for number, entries in learner.optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                tensors[f"optimizer.{number}.{name}"] = _plain(value)
    tensors["random.cpu"] = torch.random.get_rng_state()
    if learner.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(learner.device)
    if sums is not None:
        tensors["sums"] = _plain(sums)
    if past is not None:
        tensors["past"] = past.codes
    header = {
        "format": FORMAT_VERSION,
        "epoch": position.epoch,
        "step": position.step,
        "scaler": learner.scaler.state_dict(),
    }
    return save(tensors, {_HEADER: json.dumps(header, sort_keys=True)})


def restore(
    path: Path, learner: Learner, past: PastPredictions | None = None
) -> tuple[Position, Tensor | None]:
    """Load a checkpoint into the learner, ``past`` and random states; return (position, sums).

    Damaged if the file is not whole; InputError if it is of another network, or lacks the past
    predictions that are needed.
    """
    header, tensors = _read(path)
    if header["format"] != FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {header['format']}, this version reads {FORMAT_VERSION}: "
            "resume with the version that began the run, or use another --out"
        )
    load_into(learner.model, _under("model.", tensors), str(path))
    if past is not None:
        _fill(past, tensors.get("past"), path)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer.", tensors).items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
    learner.scaler.load_state_dict(header["scaler"])
    torch.random.set_rng_state(tensors["random.cpu"])
    if learner.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], learner.device)
    sums = tensors.get("sums")
    place = Position(header["epoch"], header["step"])
    return place, None if sums is None else sums.to(learner.device)


def _fill(past: PastPredictions, codes: Tensor | None, path: Path) -> None:
    if codes is None or codes.shape != past.codes.shape:
        has = "no past predictions" if codes is None else f"past predictions {tuple(codes.shape)}"
        raise InputError(
            f"{path}: has {has}, the method learns from {tuple(past.codes.shape)} (epochs, "
            "samples, classes): bring the run's own checkpoint back, or remove the run (or use "
            "another --out) to train from the start"
        )
    past.codes.copy_(codes)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"{path}: not a whole checkpoint ({error}); use another --out, or remove the file to "
            "train from the start"
        ) from None


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict on the CPU; tied weights get separate memory, too."""
    state = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"the student's state {key!r} is a {type(value).__name__}, not a tensor: it cannot "
                "be saved without pickle"
            )
    return {key: _plain(value) for key, value in state.items()}


def _plain(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
