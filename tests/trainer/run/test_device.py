"""The budget of a device: what the allocator gets, and that runs stay inside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from logitstore.errors import InputError
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.run.device import Budget, budgeted_device, memory_in_use
from tests.support.students import (
    CPU,
    in_parts,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return in_parts(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to limit")
def test_a_limit_without_a_gpu_is_refused_before_any_work(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="and this run is on the CPU: drop it, or train in parts"):
        train(replace(config, device=None, memory_limit="2GiB"))
    assert not Path(config.out).exists()


def test_the_allocator_gets_what_the_context_leaves() -> None:
    budget = Budget(CPU, "2GiB", 3 * 2**30)
    # 80 GiB, of which others hold 3, this process's allocator 1 and its context half a GiB.
    share = budget.fraction(80 * 2**30 - 4 * 2**30 - 2**29, 80 * 2**30, 2**30)
    assert budget.context == 2**29
    assert share * 80 * 2**30 == 2**31 - 2**29
    assert Budget(CPU, "96GiB", 0).fraction(79 * 2**30, 80 * 2**30, 0) == 1.0
    with pytest.raises(InputError, match=r"--memory-limit 1MiB: .* 2,097,152 bytes .*: raise the"):
        Budget(CPU, "1MiB", 0).fraction(2**30 - 2**21, 2**30, 0)


def test_what_others_hold_is_asked_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory_in_use() == {}
    for told, understood in [
        ("GPU-1f, 3\nGPU-2e, 20480\n", {"GPU-1f": 3 * 2**20, "GPU-2e": 20 * 2**30}),
        ("GPU-1f, [N/A]\n", {}),
        ("NVIDIA-SMI has failed\n", {}),
        ("", {}),
    ]:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{told}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        assert memory_in_use() == understood
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert memory_in_use() == {}


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_cuda
def test_the_cap_holds_and_is_lifted_afterwards() -> None:
    device, budget = budgeted_device("cuda", "fp32", "2GiB")
    assert budget is not None
    before = torch.cuda.get_per_process_memory_fraction(device)
    with budget.enforced():
        assert 0 < budget.context < 2**31
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**31 - budget.context + 2**21, dtype=torch.uint8, device=device)
        torch.empty(2**30, dtype=torch.uint8, device=device)
    torch.cuda.empty_cache()
    torch.empty(2**31, dtype=torch.uint8, device=device)
    assert torch.cuda.get_per_process_memory_fraction(device) == before


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_stays_inside_its_budget(config: TrainConfig, precision: Any) -> None:
    free = replace(
        config,
        device="cuda",
        student="resnet20",
        size=64,
        batch_size=200,
        precision=precision,
        micro_batch=None,
        normalize=None,
    )
    unlimited = train(free)
    assert unlimited.peak_reserved is not None
    budgeted = budgeted_device("cuda", "fp32", "64GiB")[1]
    assert budgeted is not None
    budgeted.tighten()
    limit = budgeted.context + unlimited.peak_reserved // 3
    limited = replace(free, memory_limit=str(limit), out=config.out + "limited")
    result = train(limited)
    assert result.micro_batch is not None
    assert result.micro_batch < 200
    assert result.peak_reserved is not None
    assert result.context_memory is not None
    assert result.peak_memory <= result.peak_reserved <= limit - result.context_memory
