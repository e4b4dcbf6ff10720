"""Join the processes that ``torchrun`` starts to the ranks of one run, and end them together.

When they fail, only the first rank that fails prints its error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from logitstore.errors import InputError, Unfinished
from logitstore.precompute.processes.ranks import ALONE, Ranks, lost_rank_as_unfinished

_PATIENCE = timedelta(hours=6)
"""Time that ranks wait for rank 0, which measures and writes alone.

A rank that ended is noticed long before: by its closed connections, or by torchrun.
"""

_ARRIVAL = timedelta(minutes=10)
"""Time that ranks wait until all have started."""

_GRACE = 5.0
"""Seconds that a silent rank waits so that the failing one can print first."""

_groups = count()


@contextmanager
def joined(device: str | None) -> Iterator[Ranks]:
    """Join the group that torchrun's environment (RANK, WORLD_SIZE, …) describes, and leave it.

    ``device`` is the configured one: ranks with their own GPUs use NCCL, all others gloo.  What any
    rank raises is raised as in ``first_error_only``; the group is lost then.
    """
    ranks = this_rank()
    if ranks.count == 1:
        yield ranks
        return
    with first_error_only():
        with lost_rank_as_unfinished():
            dist.init_process_group(
                _backend(device),
                # A later group of these processes must not find this one's addresses.
                store=PrefixStore(f"group {next(_groups)}", _store()),
                rank=ranks.rank,
                world_size=ranks.count,
                timeout=_PATIENCE,
            )
        yield ranks
        dist.destroy_process_group()


@contextmanager
def first_error_only() -> Iterator[None]:
    """Raise an error in the first rank that fails; the others end with its exit code, silently.

    So one message is seen: of a fault that all ranks find, and of a fault of one, which the others
    meet as a lost connection.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        ranks = this_rank()
        if ranks.count == 1 or _is_first_to_fail(ranks.rank):
            raise
        time.sleep(_GRACE)
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        raise SystemExit(code) from None


def own_device(name: str | None, ranks: Ranks) -> str | None:
    """Return the device of this rank; InputError if there are fewer GPUs than ranks."""
    if ranks.count == 1 or not _own_gpus(name):
        return name
    number, gpus = int(os.environ.get("LOCAL_RANK", ranks.rank)), torch.cuda.device_count()
    if number >= gpus:
        raise InputError(
            f"rank {ranks.rank}: {number + 1} or more ranks here and {gpus} GPUs: start as many "
            "(torchrun --nproc-per-node), or use --device cpu"
        )
    return f"cuda:{number}"


def this_rank() -> Ranks:
    """Return which process this is, by torchrun's environment; no other process is asked."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def _own_gpus(name: str | None) -> bool:
    return name in (None, "cuda") and torch.cuda.is_available()


def _backend(device: str | None) -> str:
    return "cpu:gloo,cuda:nccl" if _own_gpus(device) and dist.is_nccl_available() else "gloo"


@cache
def _store() -> Store:
    """Open the keys and values that all ranks of this start share, while this process lives."""
    with lost_rank_as_unfinished():
        shared = next(rendezvous("env://", timeout=_ARRIVAL))[0]
        return PrefixStore(f"logitstore {_this_start(shared, this_rank())}", shared)


def _this_start(shared: Store, ranks: Ranks) -> str:
    """Agree on a name of this start, which rank 0 makes and all its ranks get.

    ``torchrun --max-restarts`` keeps the store, and with it what the ranks before wrote: only an
    answer to a name that nobody had before is not theirs.
    """
    name = uuid4().hex
    if not ranks.first:
        shared.set(f"logitstore rank {ranks.rank}", name)
        start: str = shared.get(f"logitstore answer {name}").decode()
        shared.set(f"logitstore {start} heard by {ranks.rank}", "")
        return start
    expected, deadline = set(range(1, ranks.count)), time.monotonic() + _ARRIVAL.total_seconds()
    while expected:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(expected)} of {ranks.count} ranks did not arrive")
        for rank in sorted(expected):
            if shared.check([f"logitstore rank {rank}"]):
                sender = shared.get(f"logitstore rank {rank}").decode()
                shared.set(f"logitstore answer {sender}", name)
            if shared.check([f"logitstore {name} heard by {rank}"]):
                expected.remove(rank)
        time.sleep(0.01)
    return name


def _is_first_to_fail(rank: int) -> bool:
    try:
        return bool(_store().compare_set("failed", "", str(rank)) == str(rank).encode())
    except (RuntimeError, Unfinished):  # whoever keeps the store is gone, and cannot be asked
        return True
