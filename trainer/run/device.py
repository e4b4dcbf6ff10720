"""Choose a run's device, seed its generators, make it repeatable, and cap its memory."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from logitstore.errors import InputError
from logitstore.precompute.networks.forward import pick_device
from logitstore.text import parse_size
from logitstore.trainer.config.checks import needs_gpu


def training_device(name: str | None, precision: str) -> torch.device:
    """Return the named device, else a GPU if there is one; InputError without ``precision``."""
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
    """Seed torch's generators for this run; afterwards the caller's are as they were."""
    gpus = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        seed_generators(seed, device)
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and the device's; torch.manual_seed would seed every GPU's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Use only cuDNN kernels that give the same bits each time; afterwards the caller's choice."""
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
    """Return the GPU's peak bytes since ``reproducible`` began, or the process's largest size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def peak_reserved(device: torch.device) -> int | None:
    """Return the most bytes that the GPU's allocator held, with its cache; None on the CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


class Budget:
    """The bytes that this process may hold on a GPU, its CUDA context included.

    PyTorch can cap its allocator only; the context (driver, libraries, loaded kernels) lies outside
    and grows when a kernel is first used.  Its share is what is in use on the GPU less what the
    allocator has reserved and what ``others`` held before this process had a context.
    """

    def __init__(self, device: torch.device, text: str, others: int) -> None:
        self.limit, self.context = parse_size("memory_limit", text), 0
        self._device, self._text, self._others = device, text, others

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Cap the allocator inside; InputError if the context leaves nothing to it."""
        torch.cuda.empty_cache()
        before = torch.cuda.get_per_process_memory_fraction(self._device)
        self.tighten()
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(before, self._device)

    def tighten(self) -> None:
        """Measure the context's share, and leave the rest of the budget to the allocator."""
        free, total = torch.cuda.mem_get_info(self._device)
        fraction = self.fraction(free, total, torch.cuda.memory_reserved(self._device))
        torch.cuda.set_per_process_memory_fraction(fraction, self._device)

    def fraction(self, free: int, total: int, reserved: int) -> float:
        """Return the allocator's share of a GPU with ``total`` bytes."""
        self.context = max(0, total - free - reserved - self._others)
        if self.context >= self.limit:
            raise InputError(
                f"--memory-limit {self._text}: the CUDA context, and what other processes took "
                f"since, hold {self.context:,} bytes already: raise the limit"
            )
        return min(1.0, (self.limit - self.context) / total)


def budgeted_device(
    name: str | None, precision: str, limit: str | None
) -> tuple[torch.device, Budget | None]:
    """Return the device of ``training_device``, and its budget if a GPU is limited."""
    if limit is None:
        return training_device(name, precision), None
    fresh = not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    used = memory_in_use() if fresh else {}
    device = training_device(name, precision)
    if device.type != "cuda":
        raise needs_gpu(limit)
    uuid = torch.cuda.get_device_properties(device).uuid
    return device, Budget(device, limit, used.get(f"GPU-{uuid}", 0))


def memory_in_use() -> dict[str, int]:
    """Return the bytes in use on each GPU by its UUID; {} where the driver cannot be asked."""
    query = ["nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        pairs = [line.split(", ") for line in done.stdout.splitlines()]
        return {uuid: int(mebibytes) << 20 for uuid, mebibytes in pairs}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
