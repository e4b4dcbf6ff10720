"""How processes become the ranks of one run, as ``torchrun`` starts them, and how they end.

What stops them is said by one: the first rank that fails.
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

# The others wait while rank 0 measures and writes.  A rank that ended is noticed long before: by
# its closed connections, or by torchrun, which then ends the others.
_PATIENCE = timedelta(hours=6)


_ARRIVAL = timedelta(minutes=10)


# A rank that has nothing to say leaves the one that has so many seconds; torchrun ends it sooner.
_GRACE = 5.0


_groups = count()


@contextmanager
def joined(device: str | None) -> Iterator[Ranks]:
    """The group that torchrun's environment (RANK, WORLD_SIZE, …) tells of, until the end.

    ``device`` is the one asked for: GPUs of their own talk through NCCL, anything else through
    gloo.  What any rank raises is raised as in ``first_error_only``; the group is lost then.
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
        if ranks.count == 1 or _speaks(ranks.rank):
            raise
        time.sleep(_GRACE)
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        raise SystemExit(code) from None


def own_device(name: str | None, ranks: Ranks) -> str | None:
    """The device that this rank should ask for; InputError if there are fewer GPUs than ranks."""
    if ranks.count == 1 or not _own_gpus(name):
        return name
    number, there = int(os.environ.get("LOCAL_RANK", ranks.rank)), torch.cuda.device_count()
    if number >= there:
        raise InputError(
            f"rank {ranks.rank}: {number + 1} or more ranks here and {there} GPUs: start as many "
            "(torchrun --nproc-per-node), or use --device cpu"
        )
    return f"cuda:{number}"


def this_rank() -> Ranks:
    """Which process this is, by torchrun's environment; no other process is asked."""
    told = os.environ
    if "RANK" not in told or "WORLD_SIZE" not in told:
        return ALONE
    return Ranks(int(told["RANK"]), int(told["WORLD_SIZE"]))


def _own_gpus(name: str | None) -> bool:
    return name in (None, "cuda") and torch.cuda.is_available()


def _backend(device: str | None) -> str:
    return "cpu:gloo,cuda:nccl" if _own_gpus(device) and dist.is_nccl_available() else "gloo"


@cache
def _store() -> Store:
    """The keys and values that all ranks of this start see, for as long as this process lives."""
    with lost_rank_as_unfinished():
        told = next(rendezvous("env://", timeout=_ARRIVAL))[0]
        return PrefixStore(f"logitstore {_this_start(told, this_rank())}", told)


def _this_start(told: Store, ranks: Ranks) -> str:
    """A name of this start that all its ranks know, given by rank 0.

    ``torchrun --max-restarts`` keeps the store, and with it what the ranks before wrote: only an
    answer to a name that nobody had before is not theirs.
    """
    name = uuid4().hex
    if not ranks.first:
        told.set(f"logitstore rank {ranks.rank}", name)
        start: str = told.get(f"logitstore answer {name}").decode()
        told.set(f"logitstore {start} heard by {ranks.rank}", "")
        return start
    expected, deadline = set(range(1, ranks.count)), time.monotonic() + _ARRIVAL.total_seconds()
    while expected:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(expected)} of {ranks.count} ranks did not arrive")
        for rank in sorted(expected):
            if told.check([f"logitstore rank {rank}"]):
                asked = told.get(f"logitstore rank {rank}").decode()
                told.set(f"logitstore answer {asked}", name)
            if told.check([f"logitstore {name} heard by {rank}"]):
                expected.remove(rank)
        time.sleep(0.01)
    return name


def _speaks(rank: int) -> bool:
    try:
        return bool(_store().compare_set("failed", "", str(rank)) == str(rank).encode())
    except (RuntimeError, Unfinished):  # whoever keeps the store is gone, and cannot be asked
        return True
