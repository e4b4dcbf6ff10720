"""Checkpoint activations: a block keeps its input alone and runs again in the backward pass.

Chen et al. 2016, arXiv:1604.06174.  One more forward pass buys the memory of all that the blocks
computed.  The second run is the same as the first: same dropout, same autocast, and the buffers as
they were, of which it changes copies only, so that BatchNorm counts every batch once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from logitstore.errors import InputError

Forward = Callable[..., Any]
Buffers = list[tuple[nn.Module, str, Tensor]]


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Recompute the model's blocks inside; its parameters, names and hooks stay as they are.

    InputError for a model without parts, or one whose blocks do not do the same a second time.
    """
    replaced = _replacements(model)
    if not replaced:
        raise InputError("--recompute: this student has no parts to recompute: drop --recompute")
    before = [(module, vars(module).get("forward")) for module, _ in replaced]
    for module, forward in replaced:
        vars(module)["forward"] = forward
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, CheckpointError) or "inplace operation" in str(error)):
            raise
        raise InputError(
            f"--recompute: a block of this student cannot run twice "
            f"({str(error).splitlines()[0]}): drop --recompute"
        ) from error
    finally:
        for module, original in before:
            del vars(module)["forward"]
            if original is not None:
                vars(module)["forward"] = original


def _replacements(model: nn.Module) -> list[tuple[nn.Module, Forward]]:
    """Return the modules to recompute, each with the forward that does so."""
    blocks = _blocks(model)
    if blocks:
        return [(block, _recomputing(block.forward, [block])) for block in blocks]
    if _is_chain(model):
        return [(model, _in_sections(model))]
    return [
        (child, _in_sections(child) if _is_chain(child) else _recomputing(child.forward, [child]))
        for child in model.children()
        if _has(child.parameters())
    ]


def _blocks(module: nn.Module, listed: bool = False) -> list[nn.Module]:
    """Return the modules in a Sequential or ModuleList that have children themselves.

    Several such blocks inside a block are taken instead of it: the smaller the blocks, the less is
    alive while one is recomputed.
    """
    container = isinstance(module, (nn.Sequential, nn.ModuleList))
    inner = [block for child in module.children() for block in _blocks(child, container)]
    whole = listed and not container and _has(module.children()) and len(inner) < 2
    return [module] if whole else inner


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _in_sections(chain: nn.Module) -> Forward:
    """Return the forward of a chain of n simple layers in about sqrt(n) recomputed sections.

    A section begins with a layer that has parameters: an in-place activation would overwrite the
    input that the section keeps.
    """
    layers = list(chain.children())
    sections: list[list[nn.Module]] = [[]]
    for layer in layers:
        if len(sections[-1]) >= isqrt(len(layers)) and _has(layer.parameters()):
            sections.append([])
        sections[-1].append(layer)
    runs = [_recomputing(nn.Sequential(*section), section) for section in sections]

    def forward(value: Tensor) -> Tensor:
        for run in runs:
            value = run(value)
        return value

    return forward


def _recomputing(run: Forward, modules: Sequence[nn.Module]) -> Forward:
    def forward(*values: Any, **keywords: Any) -> Any:
        # A list or dict may have changed when the backward pass comes back to it.
        changeable = any(isinstance(value, (list, dict)) for value in (*values, *keywords.values()))
        if changeable or not torch.is_grad_enabled():
            return run(*values, **keywords)
        return checkpoint(
            partial(run, **keywords),
            *values,
            use_reentrant=False,
            context_fn=partial(_contexts, modules),
        )

    return forward


def _contexts(
    modules: Sequence[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first run and of the second; they are made before the first."""
    copies = [(owner, name, buffer.clone()) for owner, name, buffer in _buffers(modules)]
    return nullcontext(), _with_buffers(copies)


def _buffers(modules: Sequence[nn.Module]) -> Buffers:
    return [
        (owner, name, buffer)
        for module in modules
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]


@contextmanager
def _with_buffers(copies: Buffers) -> Iterator[None]:
    """Put these tensors in the place of the modules' buffers."""
    owned = [(owner, name, getattr(owner, name)) for owner, name, _ in copies]
    try:
        for owner, name, copy in copies:
            setattr(owner, name, copy)
        yield
    finally:
        for owner, name, buffer in owned:
            setattr(owner, name, buffer)


def _has(entries: Iterator[Any]) -> bool:
    return next(entries, None) is not None
