"""Begin a student with weights that are there: ``--init CKPT|RUN``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from logitstore.precompute.teachers import load_into, load_weights, unwrapped
from trainer.trained import find_trained


def initial_weights(place: str, student: str) -> Path:
    """The weights file that a run's folder or a checkpoint means; NotFound if there is none."""
    return find_trained(place, student).path


def begin_with(model: nn.Module, weights: Path) -> list[str]:
    """Load a checkpoint into a model; its last layer stays as it is where the shape differs.

    Returns a note if it does.  InputError lists what else does not fit.
    """
    wanted = model.state_dict()
    state = unwrapped(load_weights(weights)[0], set(wanted))
    name, last = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ][-1]
    keys = [f"{name}.{key}" if name else key for key in last.state_dict()]
    fresh = any(key in state and state[key].shape != wanted[key].shape for key in keys)
    if fresh:
        state |= {key: wanted[key] for key in keys}
    load_into(model, state, f"--init {weights}")
    if not fresh:
        return []
    return [f"{weights}: its last layer, {name or 'the only one'}, has another shape: begun afresh"]
