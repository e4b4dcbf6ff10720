"""Several processes train one student: the same batches, weights, metrics, and one that writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from logitstore.errors import InputError
from logitstore.precompute.processes.ranks import ALONE, Ranks
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.requirements import refuse_ranks
from logitstore.trainer.data.samples import chosen_samples
from logitstore.trainer.run.predictions import encoded
from tests.support.ports import free_port
from tests.support.runs import Listener, history, run_logits

ROOT = Path(__file__).parents[3]
PLAIN = """
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        self.unused = nn.Linear(3, 3)

    def forward(self, images):
        return self.used(images)

def noisy():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(16, 10),
    )
"""

# Each rank trains all runs; any but the first tells what it writes in their folders.
TOGETHER = """
import json, os, signal, sys
import torch, torch.distributed
from logitstore.progress import Lines
from logitstore.trainer import TrainConfig, train
from logitstore.precompute.processes.launch import joined

configs, deaths = json.loads(sys.argv[1])
rank, attempt = os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
ALTERING = ("os.mkdir", "os.rename", "os.remove", "os.link")

def say(text):
    os.write(1, (text + "\\n").encode())  # at once: the ranks share a stream

def watch(event, about):
    altering = event in ALTERING or event == "open" and about[2] & (os.O_WRONLY | os.O_RDWR)
    if altering and rank != "0" and any(str(about[0]).startswith(c["out"]) for c in configs):
        say(f"rank {rank} wrote {about[0]}")

def dies_at(number, function):
    calls = []
    def called(*arguments, **given):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **given)
    return called

sys.addaudithook(watch)
for config in configs:
    fatal = deaths.get(config["out"], {}).get(attempt)
    if fatal and rank == str(fatal[0]):
        torch.distributed.all_reduce = dies_at(fatal[1], torch.distributed.all_reduce)
    given = {key: value.replace("{rank}", rank) if key == "val" and value else value
             for key, value in config.items()}
    result = train(TrainConfig(**given), progress=Lines())
    say(f"rank {rank} has {result.epochs} epochs of {result.run}")
with joined("cpu") as ranks:
    say(f"the smallest number is {ranks.smallest(9 - ranks.rank)}")
"""
RUNS: dict[str, dict[str, Any]] = {
    "ce": {"method": "ce", "val": "digits?train=false"},
    "parts": {"method": "ce", "micro_batch": 20, "optimizer": "adamw", "lr": None},
    "kd": {"method": "kd"},
    "past": {"method": "ps-kd"},
    "past in parts": {"method": "ps-kd", "micro_batch": 20, "history": 2},
    "clean past": {"method": "ps-kd", "past": "clean"},
}


class Together(NamedTuple):
    """What so many ranks left in a folder, and wrote to their streams."""

    count: int
    folder: Path
    output: str


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def launched(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *arguments], env=environment(), text=True, **streams) as agent:
        try:
            out, err = agent.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            agent.terminate()  # it ends its ranks; killed, it would leave them
            raise
    return subprocess.CompletedProcess(agent.args, agent.returncode, out, err)


def script(folder: Path) -> str:
    path = folder / "together.py"
    path.write_text(TOGETHER)
    return str(path)


def told(configs: list[TrainConfig], deaths: dict[str, Any] | None = None) -> str:
    return json.dumps([[asdict(config) for config in configs], deaths or {}])


@pytest.fixture(scope="module")
def base(
    bound_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrainConfig]:
    """Three epochs of three steps, the last batch smaller; without BatchNorm and dropout."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "net.py").write_text(PLAIN)
    data = "digits?train=true&samples=0:300"
    logits = np.random.default_rng(0).standard_normal((2, 300, 10)).astype(np.float32) * 3
    plain = TrainConfig(
        data=data,
        student=f"{folder}/net.py:Plain",
        epochs=3,
        batch_size=100,
        limit=290,
        lr=0.2,
        out=str(folder / "1"),
        device="cpu",
        checkpoint_seconds=1e-9,
    )
    taught = {"kd": {"store": str(bound_store(folder / "s", data, logits))}}
    return {
        name: replace(plain, **change, **taught.get(name, {}), out=f"{plain.out}/{name}")
        for name, change in RUNS.items()
    }


@pytest.fixture(scope="module")
def alone(base: dict[str, TrainConfig]) -> dict[str, TrainConfig]:
    """The runs, done by this process."""
    for config in base.values():
        train(config)
    return base


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(
    base: dict[str, TrainConfig],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Together:
    """The same runs by several ranks; these go on with one that one process began."""
    folder = tmp_path_factory.mktemp(f"by {request.param}")
    configs = [replace(run, out=str(folder / name)) for name, run in base.items()]
    with pytest.raises(KeyboardInterrupt):
        train(configs[3], progress=Listener(5, any_task=True))
    done = launched(request.param, script(folder), told(configs))
    assert done.returncode == 0, done.stderr
    return Together(request.param, folder, done.stdout + done.stderr)


def test_a_part_is_contiguous_and_sizes_differ_by_at_most_one() -> None:
    for samples in (1, 5, 128, 1001):
        for count in (1, 2, 3, 8):
            parts = [range(samples)[Ranks(rank, count).part(samples)] for rank in range(count)]
            assert [sample for part in parts for sample in part] == list(range(samples))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_alone_changes_nothing_and_waits_for_nobody() -> None:
    tensor = torch.arange(3.0)
    ALONE.add([tensor])
    ALONE.same([tensor])
    ALONE.agree({"anything": 1})
    ALONE.wait()
    assert ALONE.gathered(tensor, 3) is tensor
    assert torch.equal(tensor, torch.arange(3.0))
    assert ALONE.first


@pytest.mark.parametrize("count", [2, 3])
def test_the_ranks_parts_are_the_batches_of_one_process(count: int) -> None:
    order = BatchOrder(samples=np.arange(5, 295), seed=4, batch_size=100, view_count=2, epochs=2)
    whole = list(order)
    parts = [list(replace(order, ranks=Ranks(rank, count))) for rank in range(count)]
    for request, *mine in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([m.indices for m in mine]), request.indices)
        assert {m[:3] for m in mine} == {request[:3]}
        assert order.batch_samples(request.step) == len(request.indices)


def test_what_ranks_cannot_share_is_refused(base: dict[str, TrainConfig]) -> None:
    two, config = Ranks(1, 2), base["kd"]
    order = BatchOrder(samples=np.arange(201), seed=0, batch_size=100, view_count=1, epochs=1)
    with pytest.raises(InputError, match=r"last batch of an epoch has 1 of 201 images, too few"):
        refuse_ranks(config, order, two)
    refuse_ranks(config, order, ALONE)
    whole = replace(order, samples=np.arange(200))
    refuse_ranks(config, whole, two)
    with pytest.raises(InputError, match="'dist' couples the samples of a batch"):
        refuse_ranks(replace(config, method="dist"), whole, two)


def test_any_number_of_ranks_learns_the_same_weights(
    alone: dict[str, TrainConfig], together: Together
) -> None:
    for name, config in alone.items():
        ours = load_file(together.folder / name / "model.safetensors")
        theirs = load_file(Path(config.out) / "model.safetensors")
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], atol=1e-5, rtol=0, msg=f"{name} {key}")


def test_any_number_of_ranks_has_the_same_metrics(
    alone: dict[str, TrainConfig], together: Together
) -> None:
    for name, config in alone.items():
        ours, theirs = history(together.folder / name), history(config.out)
        assert len(ours) == len(theirs) == 3
        for mine, line in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(line, rel=1e-5)


def test_one_rank_writes_and_tells_and_all_have_the_result(together: Together) -> None:
    assert " wrote " not in together.output
    for name in RUNS:
        run = together.folder / name
        assert len(list(run.glob("events.out.tfevents.*"))) == 1
        for rank in range(together.count):
            assert together.output.count(f"rank {rank} has 3 epochs of {run}\n") == 1
    assert together.output.count("epoch 3/3: loss") == len(RUNS)
    smallest = f"the smallest number is {10 - together.count}\n"
    assert together.output.count(smallest) == together.count
    assert together.output.count("past/checkpoints/last.safetensors: going on at epoch 2") == 1


@pytest.mark.slow
def test_killed_ranks_go_on_to_the_same_bytes(base: dict[str, TrainConfig], tmp_path: Path) -> None:
    noisy = replace(
        base["past"],
        student=base["past"].student.replace("Plain", "noisy"),
        epochs=4,
        batch_size=101,  # parts differ in size, so that ranks draw differently
        val="digits?train=false",
    )
    whole, killed = (replace(noisy, out=str(tmp_path / name)) for name in ("whole", "killed"))
    clean = replace(noisy, past="clean", out=str(tmp_path / "clean"))
    # Of the first attempt rank 0 dies in its 14th sum, of the second rank 1 in its 19th.
    deaths = {killed.out: {"0": [0, 14], "1": [1, 19]}}
    done = launched(2, "--max-restarts=2", script(tmp_path), told([clean, whole, killed], deaths))
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert output.count(f"{killed.out}/checkpoints/last.safetensors: going on at epoch") == 2
    assert output.count("warning: BatchNorm normalises each of 2 ranks' parts") == 5
    for name in ("model", "best", "checkpoints/last"):
        first, second = (Path(run.out) / f"{name}.safetensors" for run in (whole, killed))
        assert first.read_bytes() == second.read_bytes()
    assert history(whole.out) == history(killed.out)
    # What all ranks saw in a clean pass is what the weights and statistics that are kept predict.
    kept = load_file(Path(clean.out) / "checkpoints/last.safetensors")["past"][0]
    logits, _ = run_logits(clean.out, clean.data)
    seen = chosen_samples(np.arange(300), clean.limit, clean.limit_seed)
    assert (kept.int() - encoded(torch.from_numpy(logits[seen])).int()).abs().max() <= 1


@pytest.mark.slow
def test_a_refused_input_ends_all_ranks_with_one_message(tmp_path: Path) -> None:
    given = "--data digits?train=true --student mlp --batch-size 1199 --epochs 1 --device cpu"
    done = launched(2, "-m", "logitstore", "train", *given.split(), "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "error: the last batch of an epoch has 1 of 1200 images, too few for 2" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_one_rank_alone_finds_is_heard(base: dict[str, TrainConfig], tmp_path: Path) -> None:
    for rank, samples in enumerate((50, 60)):
        images = np.zeros((samples, 8, 8), np.uint8)
        np.savez(tmp_path / f"val{rank}.npz", x=images, y=np.arange(samples) % 10)
    config = replace(base["ce"], val=f"npz:{tmp_path}/val{{rank}}.npz", out=str(tmp_path / "run"))
    done = launched(2, script(tmp_path), told([config]))
    assert done.returncode != 0
    assert done.stderr.count("MismatchError: ") == 1, done.stderr
    assert "MismatchError: rank 1 of 2 has setting val 'npz:" in done.stderr


@pytest.mark.slow
def test_without_torchrun_a_lost_rank_ends_the_others(
    base: dict[str, TrainConfig], tmp_path: Path
) -> None:
    config = replace(base["ce"], out=str(tmp_path / "run"))
    told_all = told([config], {config.out: {"0": [0, 9]}})
    port = str(free_port())
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, script(tmp_path), told_all],
            env={**environment(), **group, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=100)[0] for rank in ranks]
    assert ranks[0].returncode == -signal.SIGKILL, outputs[0]
    assert "Unfinished: another process of this run has ended (" in outputs[1]
    assert "run the same command again" in outputs[1]
