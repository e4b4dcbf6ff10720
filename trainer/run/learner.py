"""Make what learns in a run: a student with its first weights, its optimiser and its scaler."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, AdamW, Optimizer

from logitstore.errors import InputError
from logitstore.precompute.networks.checkpoints import load_weights
from logitstore.precompute.networks.state_dicts import load_into, unwrapped
from logitstore.precompute.networks.teachers import find_teachers
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.run.folder import weights_file


class Learner(NamedTuple):
    """All that changes while a student learns."""

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    device: torch.device


def make_learner(config: TrainConfig, model: nn.Module, device: torch.device) -> Learner:
    """Put the model on its device, with its optimiser and, for fp16, its gradient scaler."""
    model.to(device).train()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{config.student}: this student has no weights to train")
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = SGD(
            model.parameters(),
            lr=config.base_lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    else:
        optimizer = AdamW(
            model.parameters(),
            lr=config.base_lr,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
        )
    scaler = GradScaler(device.type, enabled=config.precision == "fp16")
    return Learner(model, optimizer, scaler, device)


def initial_weights(place: str) -> Path:
    """Return the weights file that a run's folder or a checkpoint means; NotFound without one."""
    path = weights_file(Path(place))
    find_teachers([str(path)])
    return path


def begin_with(model: nn.Module, weights: Path) -> list[str]:
    """Load a checkpoint into a model; its last layer stays as it is where the shape differs.

    Returns a note if it does.  InputError lists what else does not fit.
    """
    fresh = model.state_dict()
    taken = load_weights(weights)
    state = unwrapped(taken.state, fresh, f"--init {weights}", taken.key)
    name, last = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ][-1]
    keys = [f"{name}.{key}" if name else key for key in last.state_dict()]
    differs = any(key in state and state[key].shape != fresh[key].shape for key in keys)
    if differs:
        state |= {key: fresh[key] for key in keys}
    load_into(model, state, f"--init {weights}")
    if not differs:
        return []
    return [f"{weights}: its last layer, {name or 'the only one'}, has another shape: begun afresh"]
