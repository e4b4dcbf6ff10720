"""What FORMAT.md says is so: its example is a real store's, and its rules are the code's."""

import json
import re
from collections.abc import Iterator
from hashlib import blake2b
from math import ceil, isqrt, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitstore
from logitstore.errors import UnknownName
from logitstore.format.cards import (
    Canary,
    EncodingCard,
    Normalize,
    Samples,
    SnapshotPlan,
    StoreMeta,
    TeacherCard,
    ViewCard,
)
from logitstore.format.documents import canonical
from logitstore.storage import open_storage
from logitstore.writing.opening import open_writer
from logitstore.writing.target import Target

FOLDER = Path(logitstore.__file__).parent
TEXT = (FOLDER / "FORMAT.md").read_text()

LOGITS = np.array([[[20, 19, 4], [4, 20, 16], [7, 7, 7], [-1, -4, 0], [2.5, 1.5, 1.5]]], np.float32)
LABELS = np.array([0, 1, 2, -1, 1], np.int32)
VIEW = ViewCard(
    spec=({"name": "RandomHorizontalFlip", "p": 0.5},),
    size=None,
    seed=0,
    canaries=(Canary(view=0, sample=0, shape=(1, 8, 8), sha256="2c" * 32, thumbnail="07" * 64),),
)


def write_example(path: Path, *, spec: tuple[dict[str, Any], ...] = VIEW.spec) -> Path:
    """The store of FORMAT.md's example; its distances are squares, so that no bit is lost."""
    samples = Samples("five", LABELS, ["a.png", "b.png", "c.png", "d.png", "e.png"])
    meta = StoreMeta(classes=3, class_names=("cat", "dog", "frog"), dataset=samples.card())
    teacher = TeacherCard(
        file="resnet20.th",
        weights_sha256="5f" * 32,
        weights_key="state_dict",
        architecture="resnet20",
        parameters=272474,
        normalize=Normalize(mean=(0.5,), std=(0.25,)),
        input_shape=(1, 8, 8),
        precision="fp32",
        device="cpu",
        batch_size=64,
    )
    plan = SnapshotPlan(
        name="resnet20",
        views=1,
        samples=5,
        classes=3,
        rows_per_shard=4,
        teacher=teacher,
        view=VIEW.model_copy(update={"spec": spec}),
        encoding=EncodingCard(name="uint8", parameters={"levels": 5}),
        packages={"logitstore": "0.4.0", "torch": "2.9.0"},
    )
    writer = open_writer(Target.read(open_storage(path), meta, samples), plan)
    for shard in writer.missing():
        writer.write(shard, LOGITS[0, shard.start : shard.stop], LABELS[shard.start : shard.stop])
    writer.commit()
    return path


def examples() -> dict[str, Any]:
    """The JSON documents of the section "Example", by the key that stands before each."""
    section = TEXT.partition("\n## Example\n")[2]
    blocks = re.findall(r"`([^`]+)`:\n\n```json\n(.*?)```", section, re.DOTALL)
    return {key: json.loads(block) for key, block in blocks}


def test_the_example_is_what_the_writer_writes(tmp_path: Path) -> None:
    path = write_example(tmp_path / "s")
    documents = examples()
    assert len(documents) == 4
    for key, document in documents.items():
        assert json.loads((path / key).read_bytes()) == document, key


def test_the_example_s_rows_are_those_of_the_document(tmp_path: Path) -> None:
    snapshot = logitstore.open_store(write_example(tmp_path / "s")).snapshots["resnet20"]
    rows = snapshot.rows([0])
    assert f"`codes` {rows.arrays['codes'][0].tolist()}" in TEXT
    assert f"`scalars` {rows.arrays['scalars'][0].tolist()}" in TEXT
    assert rows.logits()[0].tolist() == [20, 19, 4]
    assert (snapshot.logits(range(5)) == LOGITS[0]).all()


def test_the_example_s_commit_lists_what_the_document_says(tmp_path: Path) -> None:
    path = write_example(tmp_path / "s")
    listed = json.loads((path / "snapshots/resnet20/commit.json").read_bytes())["objects"]
    arrays = [f"snapshots/resnet20/{name}" for name in ("codes", "scalars")]
    expected = ["zarr.json", "snapshots/zarr.json", "snapshots/resnet20/zarr.json"]
    expected += [f"{name}/{part}" for name in ("labels", "keys") for part in ("zarr.json", "c/0")]
    for name in arrays:
        expected += [f"{name}/{part}" for part in ("zarr.json", "c/0/0/0", "c/0/1/0")]
    assert set(listed) == set(expected)


def test_canonical_json_is_written_as_the_document_says() -> None:
    document = {"é": [1.0, 0.0001, 1e-05, 2.5e16, 10**20, -0.0, 1e15], "b": None, "Z": True}
    document["text"] = '"\\\x00\x08\x09\x0a\x0c\x0d\x1f\x7f\u2028/é'
    assert (
        canonical(document)
        == (
            '{"Z":true,"b":null,"text":"\\"\\\\\\u0000\\b\\t\\n\\f\\r\\u001f\x7f\u2028/é",'
            '"é":[1.0,0.0001,1e-05,2.5e+16,100000000000000000000,-0.0,1000000000000000.0]}\n'
        ).encode()
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))


def test_files_that_the_document_names_are_there() -> None:
    for name in re.findall(r"`(logitstore/[\w/]+\.\w+)`", TEXT):
        assert (FOLDER.parent / name).is_file(), name


def test_rows_are_read_whatever_their_views_are_made_of_but_views_are_not(tmp_path: Path) -> None:
    from logitstore.precompute.views import views_of

    path = write_example(tmp_path / "s", spec=({"name": "OfTheFuture", "strength": 2},))
    snapshot = logitstore.open_store(path).snapshots["resnet20"]
    assert (snapshot.logits(range(5)) == LOGITS[0]).all()
    assert snapshot.meta.view is not None
    with pytest.raises(UnknownName, match="OfTheFuture"):
        views_of(snapshot.meta.view)


def mixed(seed: int, view: int, sample: int, samples: int, alphas: dict[str, float]) -> Any:
    """(partner, weight, box) as the section "Mixing" defines them."""

    def digest(text: str) -> bytes:
        return blake2b(f"logitstore mix {seed} {view}{text}".encode()).digest()

    def draws() -> Iterator[float]:
        for block in range(100):
            for word in np.frombuffer(digest(f" draw {sample} {block}"), "<u8").tolist():
                yield ((word >> 12) + 0.5) * 2**-52

    def snap(value: float) -> float:
        return round(value * 2**16) / 2**16

    p = isqrt(samples - 1) + 1
    q = ceil(samples / p)
    partner = sample
    while True:
        a, b = divmod(partner, q)
        for turn in range(8):
            y = int.from_bytes(digest(f" {turn} {b}"), "little")
            a, b = b, (a + y) % (q if turn % 2 else p)
        partner = a * q + b
        if partner < samples:
            break
    if partner == sample:
        return partner, 1.0, None
    stream = draws()
    kind = sorted(alphas)[int(next(stream) * len(alphas))]
    while True:
        d, g = (next(stream) ** (1 / alphas[kind]) for _ in range(2))
        if 0 < d + g <= 1:
            break
    share = snap(d / (d + g))
    if kind == "mixup":
        return partner, share, None
    side, x, y = sqrt(1 - share), next(stream), next(stream)
    left, top = snap(max(x - side / 2, 0)), snap(max(y - side / 2, 0))
    right, bottom = snap(min(x + side / 2, 1)), snap(min(y + side / 2, 1))
    return partner, 1 - (right - left) * (bottom - top), (left, top, right, bottom)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0, "mixup": 0.3}])
def test_partners_weights_and_boxes_are_those_of_the_document(alphas: dict[str, float]) -> None:
    from logitstore.precompute.views.mix import Mix

    for samples in (1, 2, 10, 1000):
        mix = Mix(alphas, 5, samples)
        for sample in range(min(samples, 30)):
            for view in (0, 3):
                assert tuple(mix.plan(sample, view)) == mixed(5, view, sample, samples, alphas)
