"""The device of a run, its random generators, and what makes its arithmetic repeatable."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from logitstore.errors import InputError
from logitstore.precompute.inference import pick_device


def training_device(name: str | None, precision: str) -> torch.device:
    """The device asked for, or a GPU if there is one; InputError if it cannot do ``precision``."""
    device = pick_device(name)
    if device.type == "cpu" and precision != "fp32":
        raise InputError(
            f"precision {precision!r} needs a GPU and there is none here: use --precision fp32"
        )
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """torch's generators seeded for this run; afterwards the caller's are as they were."""
    gpus = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would also seed the GPUs that are not saved here.
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Only kernels of cuDNN that give the same bits each time; afterwards the caller's choice."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak since ``reproducible`` began, or this process's largest size so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
