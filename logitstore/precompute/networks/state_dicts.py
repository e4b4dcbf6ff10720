"""Load a state dict into a network, found under whatever prefix it stands.

Which of several networks in one state dict is meant is never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from logitstore.errors import InputError

_HARMLESS = "num_batches_tracked"
"""A count that inference does not use: older checkpoints lack it."""

_TRANSPARENT = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of names that wrappers of torch put anywhere in them."""

_LISTED = 5
"""Keys that a message names, at most."""

_DEEPEST = 64
"""Parts of a tensor's name that may be a prefix, at most."""


def load_into(
    model: nn.Module, state: Mapping[str, Tensor], where: str, key: str | None = None
) -> None:
    """Load a state dict, unwrapping ``module.``, ``_orig_mod.`` and the like.

    InputError lists the missing, unexpected and mis-shaped keys: the first five and how many; or
    the prefixes of the networks that fit, if there are several.  ``key`` is the entry of the
    checkpoint ``where`` that held the state.
    """
    expected = model.state_dict()
    state = unwrapped(state, expected, where, key)
    missing = [key for key in expected if key not in state and not key.endswith(_HARMLESS)]
    unexpected = [key for key in state if key not in expected]
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_LISTED])}{', …' if len(keys) > _LISTED else ''}"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("mis-shaped", misshaped),
        )
        if keys
    ]
    if problems:
        raise InputError(
            f"{where}: the checkpoint does not fit this architecture; {'; '.join(problems)}; check "
            "--arch (and the number of classes)"
        )
    model.load_state_dict({**expected, **state})


def unwrapped(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, key: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of the network whose state is ``expected``, without their prefix.

    InputError if several networks in the state fit and differ: it lists their prefixes.
    """
    state = _without_wrappers(state)
    state.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel
    needed = [name for name in expected if not name.endswith(_HARMLESS)]
    counts = _prefixes(state, set(needed))
    whole = sorted(prefix for prefix, count in counts.items() if count == len(needed))
    fitting = [prefix for prefix in whole if _fits(state, prefix, expected, needed)] or whole
    first, *others = fitting or sorted(counts, key=lambda p: (-counts[p], len(p), p)) or [""]
    if fitting and any(_differ(state, first, other, needed) for other in others):
        raise _several(where, key, fitting)
    return {n.removeprefix(first): value for n, value in state.items() if n.startswith(first)}


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the wrappers' parts of names, unless two names become one."""
    names = {}
    for name in state:
        short = name
        for part in _TRANSPARENT:
            short = short.replace(part, "")
        names[name] = short
    if len(set(names.values())) < len(names):
        return dict(state)
    return {names[name]: value for name, value in state.items()}


def _prefixes(state: Mapping[str, Tensor], needed: set[str]) -> Counter[str]:
    """Return each prefix under which names of the network stand, with how many do."""
    counts: Counter[str] = Counter()
    for name in state:
        start = 0
        for _ in range(_DEEPEST):
            if name[start:] in needed:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1
            if start == 0:
                break
    return counts


def _fits(
    state: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor], needed: list[str]
) -> bool:
    """Return whether all shapes fit but for the first side: the number of classes may differ."""
    return all(
        state[prefix + name].ndim == expected[name].ndim
        and state[prefix + name].shape[1:] == expected[name].shape[1:]
        for name in needed
    )


def _differ(state: Mapping[str, Tensor], one: str, other: str, needed: list[str]) -> bool:
    return any(not torch.equal(state[one + name], state[other + name]) for name in needed)


def _several(where: str, key: str | None, prefixes: list[str]) -> InputError:
    entry = "" if key is None else f"{key}."
    places = [f"{entry}{prefix}".removesuffix(".") for prefix in prefixes]
    inner = " or ".join(f"--weights-key {place}" for place in places if place)
    named = ", ".join(repr(prefix) if prefix else "the names as they are" for prefix in prefixes)
    return InputError(
        f"{where}: {len(prefixes)} networks in it fit this architecture, under the prefixes "
        f"{named}: choose one with {inner}"
    )
