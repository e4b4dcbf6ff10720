"""Builds: what is stored is what the teacher says, whoever is interrupted, refused or added."""

import os
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

import logitstore
from logitstore.errors import InputError, MismatchError, NonFinite, UnknownName
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.recompute import verify_teacher
from logitstore.precompute.building.run import build
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from logitstore.reading.verify import Report
from tests.support.stores import tree

DATA = "digits?samples=0:200"
ARCH = "mlp?hidden=16"


def teacher(path: Path, seed: int, classes: int = 10) -> Path:
    torch.manual_seed(seed)
    model = build_model(ARCH, classes=classes, shape=(1, 8, 8))
    torch.save(model.state_dict(), path)
    return path


def config(tmp_path: Path, **changes: object) -> BuildConfig:
    """Two teachers over 200 digits, in shards of 64 rows and batches of 30."""
    for seed, name in enumerate(("one", "two")):
        if not (tmp_path / f"{name}.pth").exists():
            teacher(tmp_path / f"{name}.pth", seed)
    values = {
        "teachers": [str(tmp_path / "one.pth"), str(tmp_path / "two.pth")],
        "arch": [ARCH],
        "data": DATA,
        "out": str(tmp_path / "s.zarr"),
        "normalize": "0.3/0.4",
        "shard_rows": 64,
        "batch_size": 30,
        "device": "cpu",
        **changes,
    }
    return BuildConfig(**values)


def live(path: Path, mean: float = 0.3, std: float = 0.4) -> np.ndarray:
    """What the teacher says, computed without any code of the build."""
    model = build_model(ARCH, classes=10, shape=(1, 8, 8)).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    dataset = open_dataset(DATA)
    pixels = np.stack([np.asarray(dataset.image(i)) for i in range(len(dataset))])
    with torch.no_grad():
        return model((torch.from_numpy(pixels).float()[:, None] / 255 - mean) / std).numpy()


def test_stored_logits_are_the_teachers_own(tmp_path: Path) -> None:
    built = build(config(tmp_path))
    store = logitstore.open_store(tmp_path / "s.zarr")
    labels = open_dataset(DATA).labels
    assert [entry.name for entry in built] == ["one", "two"]
    for entry in built:
        expected = live(tmp_path / f"{entry.name}.pth")
        snapshot = store.snapshots[entry.name]
        error = np.abs(snapshot.logits(np.arange(200)) - expected).max(axis=1)
        assert (error <= snapshot.encoding.bound(expected) + 1e-5).all()
        assert snapshot.meta.top1 == pytest.approx((expected.argmax(1) == labels).mean())
        assert snapshot.root == entry.root
        digest = sha256((tmp_path / f"{entry.name}.pth").read_bytes()).hexdigest()
        assert snapshot.meta.teacher is not None
        assert snapshot.meta.teacher.weights_sha256 == digest
    assert (store.labels == labels).all()


def test_nothing_in_a_store_tells_where_it_was_built(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        build(config(tmp_path / name))
    assert tree(tmp_path / "here/s.zarr") == tree(tmp_path / "there/s.zarr")
    everything = b"".join(p.read_bytes() for p in (tmp_path / "here/s.zarr").rglob("*.json"))
    assert str(tmp_path).encode() not in everything


def test_a_second_teacher_later_gives_the_same_snapshot_as_both_at_once(tmp_path: Path) -> None:
    build(config(tmp_path))
    for name in ("one", "two"):
        build(
            config(tmp_path, teachers=[str(tmp_path / f"{name}.pth")], out=str(tmp_path / "t.zarr"))
        )
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_teachers_at_different_progress_are_finished_in_one_pass(tmp_path: Path) -> None:
    build(config(tmp_path, out=str(tmp_path / "whole.zarr")))
    out = tmp_path / "s.zarr"
    for name, shard in (("one", 0), ("two", 2)):
        build(config(tmp_path))
        (out / f"snapshots/{name}/commit.json").unlink()
        (out / f".build/{name}").mkdir(parents=True)
        (out / f"snapshots/{name}/codes/c/0/{shard}/0").unlink()
    again = build(config(tmp_path))
    assert {entry.name: entry.rows_written for entry in again} == {"one": 0, "two": 200}
    assert tree(out) == tree(tmp_path / "whole.zarr")


KILLS = 2


def test_killed_builds_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """The real command, killed -9 at random moments after its first mark appears."""
    build(config(tmp_path, out=str(tmp_path / "whole.zarr")))
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\n"
        "from torch import nn\n"
        "from logitstore.precompute.networks.factory import build_model\n"
        "class Slow(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.net = build_model({ARCH!r}, classes=10, shape=(1, 8, 8))\n"
        "    def forward(self, x):\n"
        "        time.sleep(0.1)\n"
        "        return self.net(x)\n"
    )
    state = torch.load(tmp_path / "one.pth", weights_only=True)
    torch.save({f"net.{key}": value for key, value in state.items()}, tmp_path / "slow.pth")
    command = [sys.executable, "-m", "logitstore", "build", "--data", DATA, "--device", "cpu"]
    command += ["--teacher", str(tmp_path / "slow.pth"), "--arch", f"{slow}:Slow"]
    command += ["--normalize", "0.3/0.4", "--shard-rows", "16", "--batch-size", "16"]
    draw = random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "k.zarr")], stderr=subprocess.DEVNULL
        )
        before = len(list(tmp_path.glob("k.zarr/.build/slow/0-*.json")))
        while len(list(tmp_path.glob("k.zarr/.build/slow/0-*.json"))) == before:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(tmp_path.glob("k.zarr/.build/slow/0-*.json"))) >= KILLS
    for out in ("k.zarr", "straight.zarr"):
        same = {"teachers": [str(tmp_path / "slow.pth")], "arch": [f"{slow}:Slow"]}
        build(config(tmp_path, out=str(tmp_path / out), shard_rows=16, batch_size=16, **same))
    assert tree(tmp_path / "k.zarr") == tree(tmp_path / "straight.zarr")
    killed = logitstore.open_store(tmp_path / "k.zarr").snapshots["slow"]
    whole = logitstore.open_store(tmp_path / "whole.zarr").snapshots["one"]
    assert np.allclose(killed.logits(np.arange(200)), whole.logits(np.arange(200)), atol=1e-3)


def test_a_training_run_knows_its_own_architecture(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "snapshots").mkdir(parents=True)
    (run / "config.toml").write_text(f'student = "{ARCH}"\nnormalize = "0.3/0.4"\n')
    from safetensors.torch import save_file

    for epoch in (2, 10):
        torch.manual_seed(epoch)
        model = build_model(ARCH, classes=10, shape=(1, 8, 8))
        save_file(model.state_dict(), run / f"snapshots/epoch-{epoch:04d}.safetensors")
    built = build(config(tmp_path, teachers=[str(run)], arch=(), normalize=None))
    assert [entry.name for entry in built] == ["epoch-0002", "epoch-0010"]
    snapshot = logitstore.open_store(tmp_path / "s.zarr").snapshots["epoch-0002"]
    assert snapshot.meta.teacher is not None
    assert snapshot.meta.teacher.normalize is not None
    assert snapshot.meta.teacher.normalize.mean == (0.3,)


def test_views_of_many_teachers_are_made_once(tmp_path: Path) -> None:
    file = tmp_path / "counted.py"
    file.write_text(
        "import numpy as np\n"
        "reads = []\n"
        "class Counted:\n"
        "    targets = [i % 10 for i in range(200)]\n"
        "    def __len__(self): return 200\n"
        "    def __getitem__(self, i):\n"
        "        reads.append(i)\n"
        "        return np.full((8, 8), i, np.uint8), i % 10\n"
    )
    data = f"{file}:Counted"
    open_dataset(data)
    (module,) = (m for name, m in sys.modules.items() if name.startswith("_logitstore_counted"))
    module.reads.clear()
    build(config(tmp_path, data=data, workers=0))
    seen = {i: module.reads.count(i) for i in range(200)}
    # 16 canaries and 8 probes of the labels are read before; all others once for both teachers.
    assert sum(count > 1 for count in seen.values()) <= 24
    assert min(seen.values()) == 1


def test_a_snapshot_is_verified_through_its_teacher(tmp_path: Path) -> None:
    build(config(tmp_path))
    store = logitstore.open_store(tmp_path / "s.zarr")

    def recompute(name: str, path: str, data: str = DATA) -> Report:
        report = Report("s")
        verify_teacher(
            store,
            store.snapshots[name],
            report,
            teacher=str(tmp_path / path),
            data=data,
            arch=ARCH,
            sample=50,
            device="cpu",
        )
        return report

    report = recompute("one", "one.pth")
    assert (report.ok, report.rows_recomputed) == (True, 50)
    with pytest.raises(MismatchError, match="give that checkpoint"):
        recompute("one", "two.pth")
    with pytest.raises(MismatchError, match="labels and keys"):
        recompute("one", "one.pth", "digits?samples=1:201")


def test_recomputing_names_the_rows_that_a_wrong_normalisation_made(tmp_path: Path) -> None:
    build(config(tmp_path))
    store = logitstore.open_store(tmp_path / "s.zarr")
    snapshot = store.snapshots["one"]
    card = snapshot.meta.teacher
    assert card is not None
    wrong = card.model_copy(update={"normalize": None})
    snapshot.meta = snapshot.meta.model_copy(update={"teacher": wrong})
    report = Report("s")
    verify_teacher(
        store,
        snapshot,
        report,
        teacher=str(tmp_path / "one.pth"),
        data=DATA,
        arch=ARCH,
        sample=20,
        device="cpu",
    )
    assert len(report.breaches) == 20
    assert "one: view 0, sample " in report.breaches[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_teachers_are_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    config(tmp_path)
    state = torch.load(tmp_path / "one.pth", weights_only=True)
    state["3.bias"][0] = value
    torch.save(state, tmp_path / "one.pth")
    with pytest.raises(NonFinite, match=r"for 16 of 16 samples tried \(samples 0, 13"):
        build(config(tmp_path))
    assert not (tmp_path / "s.zarr").exists()


def test_nan_for_one_sample_names_it_and_leaves_nothing(tmp_path: Path) -> None:
    dataset = open_dataset(DATA)
    sums = np.array([np.asarray(dataset.image(i)).sum(dtype=int) for i in range(200)])
    darkest = int(sums.argmin())
    assert darkest % 13 != 0  # not one of the samples that are tried before the build
    limit = (sums[darkest] + np.sort(sums)[1]) / 2 / 255
    file = tmp_path / "cliff.py"
    file.write_text(
        "import torch\n"
        "from torch import nn\n"
        "from logitstore.precompute.networks.factory import build_model\n"
        "class Cliff(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.net = build_model({ARCH!r}, classes=10, shape=(1, 8, 8))\n"
        "    def forward(self, x):\n"
        f"        dark = x.sum((1, 2, 3)) < {limit}\n"
        "        return self.net(x).masked_fill(dark[:, None], float('nan'))\n"
    )
    config(tmp_path)
    state = torch.load(tmp_path / "one.pth", weights_only=True)
    torch.save({f"net.{key}": value for key, value in state.items()}, tmp_path / "cliff.pth")
    with pytest.raises(NonFinite, match=f"samples {darkest} "):
        build(
            config(
                tmp_path,
                teachers=[str(tmp_path / "cliff.pth")],
                arch=[f"{file}:Cliff"],
                normalize=None,
            )
        )
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"arch": ["mlp?hidden=17"]}, InputError, "mis-shaped: 1.weight"),
        ({"arch": ()}, InputError, "say which network this is"),
        ({"arch": ["cnn5"]}, InputError, "missing: features.0.weight"),
        ({"arch": [ARCH] * 3}, InputError, "3 --arch for 2 --teacher"),
        ({"normalize": "imagenet"}, InputError, "is for 3 channels, the images have 1"),
        ({"encoding": "float17"}, UnknownName, "did you mean 'float16'"),
        ({"batch_size": 0}, InputError, "batch_size must be at least 1"),
        ({"shard_rows": 100}, InputError, "power of two"),
        ({"views": 2}, InputError, "would all be the same"),
        ({"size": 5}, InputError, "mis-shaped"),
        ({"device": "cuda:77"}, InputError, "--device cuda:77: not usable here"),
        ({"view_spec": "evil"}, UnknownName, "did you mean 'eval'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(config(tmp_path, **changes))
    assert not (tmp_path / "s.zarr").exists()


def test_a_teacher_with_other_classes_than_the_dataset_is_refused(tmp_path: Path) -> None:
    teacher(tmp_path / "seven.pth", 0, classes=7)
    with pytest.raises(MismatchError, match=r"the teacher has 7 classes, the dataset .* has 10"):
        build(config(tmp_path, teachers=[str(tmp_path / "seven.pth")]))
    assert not (tmp_path / "s.zarr").exists()


def test_labels_beyond_the_teachers_classes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((20, 8, 8), np.uint8), y=np.arange(20))
    with pytest.raises(InputError, match="sample 10 has label 10, but there are 10 classes"):
        build(config(tmp_path, data=f"npz:{tmp_path}/d.npz"))


def test_a_dataset_may_lie_in_another_folder_the_next_time(tmp_path: Path) -> None:
    from PIL import Image

    for place in ("here", "there"):
        for index in range(12):
            folder = tmp_path / place / f"class{index % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), index).convert("RGB").save(folder / f"{index}.png")
    torch.manual_seed(0)
    model = build_model(ARCH, classes=10, shape=(3, 8, 8))
    for name, place in (("one", "here"), ("two", "there")):
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
        build(
            config(
                tmp_path,
                teachers=[str(tmp_path / f"{name}.pth")],
                data=f"imagefolder:{tmp_path / place}",
                normalize=None,
            )
        )
    assert list(logitstore.open_store(tmp_path / "s.zarr").snapshots) == ["one", "two"]


def test_another_teacher_under_the_same_name_is_refused(tmp_path: Path) -> None:
    build(config(tmp_path))
    before = tree(tmp_path / "s.zarr")
    teacher(tmp_path / "one.pth", 7)
    with pytest.raises(
        MismatchError, match=r"teacher.weights_sha256 is '\w+' there and '\w+' here"
    ):
        build(config(tmp_path))
    with pytest.raises(MismatchError, match=r"labels|dataset"):
        build(config(tmp_path, data="digits?samples=0:201", snapshots=["x", "y"]))
    assert tree(tmp_path / "s.zarr") == before


def test_the_caller_s_random_state_is_left_alone(tmp_path: Path) -> None:
    made = config(tmp_path)
    before = torch.random.get_rng_state()
    build(made)
    assert os.path.exists(tmp_path / "s.zarr")
    # Building a network draws its first weights, which the checkpoint then replaces.
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_images_under_the_same_labels_are_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    for place, images in (("a", pixels), ("b", np.roll(pixels, 1, axis=0))):
        np.savez(tmp_path / f"{place}.npz", x=images, y=np.arange(40) % 10)
    one = {"arch": [ARCH], "normalize": None}
    config(tmp_path)
    build(
        config(tmp_path, teachers=[str(tmp_path / "one.pth")], data=f"npz:{tmp_path}/a.npz", **one)
    )
    with pytest.raises(MismatchError, match="is another image than the one that snapshot 'one'"):
        build(
            config(
                tmp_path, teachers=[str(tmp_path / "two.pth")], data=f"npz:{tmp_path}/b.npz", **one
            )
        )


def test_an_image_that_cannot_be_read_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text(
        "import numpy as np\n"
        "class Late:\n"
        "    targets = [i % 10 for i in range(200)]\n"
        "    bad = None\n"
        "    def __len__(self): return 200\n"
        "    def __getitem__(self, i):\n"
        "        if i == self.bad: raise KeyError('gone')\n"
        "        return np.zeros((8, 8), np.uint8), i % 10\n"
        "class First(Late):\n"
        "    bad = 13\n"
        "class Middle(Late):\n"
        "    bad = 20\n"
    )
    for name, sample in (("First", 13), ("Middle", 20)):
        with pytest.raises(InputError, match=rf"sample {sample} cannot be read: KeyError: 'gone'"):
            build(config(tmp_path, data=f"{file}:{name}", workers=0))
        assert not (tmp_path / "s.zarr").exists()


def test_fresh_replaces_an_abandoned_store_of_another_dataset(tmp_path: Path) -> None:
    made = build(config(tmp_path, teachers=[str(tmp_path / "one.pth")]))
    (tmp_path / "s.zarr/snapshots/one/commit.json").unlink()
    (tmp_path / "s.zarr/.build/one").mkdir(parents=True)
    changed = {"teachers": [str(tmp_path / "one.pth")], "data": "digits?samples=0:150"}
    with pytest.raises(MismatchError, match=r"dataset.length"):
        build(config(tmp_path, **changed))
    (again,) = build(config(tmp_path, fresh=True, **changed))
    assert again.root != made[0].root
    assert len(logitstore.open_store(tmp_path / "s.zarr")) == 150
