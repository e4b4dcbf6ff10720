"""The processes that train one student together: the ranks of a run.

Each takes its part of every batch, and sums go through one all-reduce; no model is wrapped.  Rank 0
alone writes, measures and reports.  A process on its own is a group of one, which waits for nobody.
How processes come together is in ``launch``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from logitstore.errors import MismatchError, Unfinished

_BUCKET_BYTES = 2**26
"""Bytes of small tensors that share one message."""


@dataclass(frozen=True)
class Ranks:
    """This process is number ``rank`` of ``count``.

    All but ``part`` and ``step_seed`` must be called by every rank, in the same order.  They raise
    Unfinished where another rank has ended.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Tell whether this is the rank that writes."""
        return self.rank == 0

    def part(self, samples: int) -> slice:
        """Return which of ``samples`` are this rank's: contiguous; sizes differ by at most one."""
        return slice(samples * self.rank // self.count, samples * (self.rank + 1) // self.count)

    def step_seed(self, seed: int, epoch: int, step: int) -> int:
        """Return the seed of this rank's draws in a step: no state of them needs to be saved."""
        text = f"step {seed} {epoch} {step} {self.rank}"
        return int.from_bytes(sha256(text.encode()).digest()[:8], "little")

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor, in place, its sum over the ranks: the same bits on all of them."""
        self._through(tensors, dist.all_reduce)

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor, in place, that of rank 0."""
        self._through(tensors, partial(dist.broadcast, src=0))

    def gathered(self, rows: Tensor, samples: int) -> Tensor:
        """Return the rows (samples, …) of all ranks; each gives those of its ``part``."""
        if self.count == 1:
            return rows
        whole = rows.new_zeros((samples, *rows.shape[1:]))
        whole[self.part(samples)] = rows
        self.add([whole])
        return whole

    def smallest(self, number: int) -> int:
        """Return the smallest of the ranks' numbers."""
        smallest = torch.tensor([number])
        self._through([smallest], partial(dist.all_reduce, op=dist.ReduceOp.MIN))
        return int(smallest)

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.add([torch.zeros(1)])

    def agree(self, values: Mapping[str, Any]) -> None:
        """Refuse values, as JSON holds them, that differ from rank 0's; MismatchError names one."""
        if self.count == 1:
            return
        text = json.dumps(values, sort_keys=True)
        here, first = json.loads(text), json.loads(self._of_first(text.encode()))
        for key in sorted(here.keys() | first.keys()):
            if here.get(key) != first.get(key):
                raise MismatchError(
                    f"rank {self.rank} of {self.count} has {key} {here.get(key)!r}, rank 0 "
                    f"{first.get(key)!r}: give all ranks the same arguments, files and run folder"
                )

    def _of_first(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)])
        self.same([length])
        sent = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            sent = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.same([sent])
        return sent.numpy().tobytes()

    def _through(self, tensors: Sequence[Tensor], collective: Callable[[Tensor], object]) -> None:
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            with lost_rank_as_unfinished():
                collective(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.detach().copy_(part.view(tensor.shape))


ALONE = Ranks()
"""A process on its own."""


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors by type and device; small ones share a message, large ones go alone."""
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = alike.setdefault((tensor.dtype, tensor.device), [])
        bucket.append(tensor)
        if sum(entry.nbytes for entry in bucket) >= _BUCKET_BYTES:
            yield alike.pop((tensor.dtype, tensor.device))
    yield from alike.values()


@contextmanager
def lost_rank_as_unfinished() -> Iterator[None]:
    """Raise Unfinished where torch finds that another rank has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Unfinished(
            f"another process of this run has ended ({str(error).strip().splitlines()[0]}): run "
            "the same command again"
        ) from error
