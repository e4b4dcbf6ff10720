"""Datasets and views: what a spec opens, what it refuses, and that images arrive bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from logitstore.errors import InputError, MismatchError, NotFound, UnknownName
from logitstore.format.grid import Span
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.pixels import parse_normalize, to_input
from logitstore.precompute.views import Views, parse_views, views_of
from logitstore.precompute.views.canaries import check_canaries, make_view_card
from logitstore.precompute.views.items import default_workers, image_batches

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 9, 7, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3


@pytest.fixture
def npz(tmp_path: Path) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, x=IMAGES, y=LABELS, gray=IMAGES[..., 0], floats=IMAGES / 255, wrong=LABELS - 5)
    return f"npz:{path}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, image in enumerate(IMAGES):
        place = tmp_path / "tree" / f"class{LABELS[index]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:02d}.png")
    return tmp_path / "tree"


def test_arrays_come_through_as_they_are(npz: str) -> None:
    dataset = open_dataset(npz)
    (views,) = image_batches(dataset, Views(()), [Span(0, 0, 12).pairs], workers=0)
    assert (views.numpy() == IMAGES.transpose(0, 3, 1, 2)).all()
    assert (dataset.labels == LABELS).all()
    assert dataset.classes is None
    gray = open_dataset(f"{npz}?x=gray")
    assert (Views(())(gray.load(3), sample=3, view=0).numpy()[0] == IMAGES[3, ..., 0]).all()


def test_the_short_way_for_arrays_gives_what_pil_gives(npz: str) -> None:
    dataset = open_dataset(npz)
    for index in range(12):
        direct = Views(())(dataset.load(index), sample=index, view=0)
        through_pil = Views(())(dataset.image(index), sample=index, view=0)
        assert torch.equal(direct, through_pil)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_neither_order_nor_bytes(folder: Path, workers: int) -> None:
    dataset = open_dataset(f"imagefolder:{folder}")
    batches = [Span(0, 0, 5).pairs, Span(0, 5, 12).pairs]
    alone = list(image_batches(dataset, Views((), size=6), batches, workers=0))
    shared = list(image_batches(dataset, Views((), size=6), batches, workers=workers))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_an_image_folder_has_sorted_classes_and_relative_keys(folder: Path) -> None:
    dataset = open_dataset(f"imagefolder:{folder}")
    assert dataset.class_names == ("class0", "class1", "class2")
    assert dataset.keys is not None
    assert dataset.keys[0] == "class0/00.png"
    assert dataset.name == "imagefolder:tree"
    assert (np.asarray(dataset.image(0)) == IMAGES[0]).all()


def test_digits_are_split_once_and_for_all() -> None:
    train, test = open_dataset("digits"), open_dataset("digits?train=false")
    assert (len(train), len(test)) == (1200, 597)
    assert train.name == "digits?train=true"
    together = {np.asarray(d.image(i)).tobytes() for d in (train, test) for i in range(len(d))}
    assert len(together) > 1790  # of 1,797; a few digits of the collection are equal


def test_a_slice_keeps_labels_keys_and_images_together(folder: Path) -> None:
    whole = open_dataset(f"imagefolder:{folder}")
    part = open_dataset(f"imagefolder:{folder}?samples=5:9")
    assert (part.labels == whole.labels[5:9]).all()
    assert part.keys == whole.keys[5:9] if whole.keys else False
    assert (np.asarray(part.image(2)) == np.asarray(whole.image(7))).all()
    assert part.name == "imagefolder:tree?samples=5:9"


def test_a_factory_in_a_file_may_return_any_map_style_dataset(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from PIL import Image\n"
        "class Pairs:\n"
        "    classes = ['a', 'b']\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return Image.new('RGB', (8, 8), (i, 0, 0)), i % 2\n"
    )
    dataset = open_dataset(f"{file}:Pairs")
    assert (dataset.labels == [0, 1, 0, 1]).all()
    assert dataset.class_names == ("a", "b")
    assert dataset.name == "mine.py:Pairs"


def test_targets_that_disagree_with_the_items_are_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "class Flipped:\n"
        "    targets = [0] * 6\n"
        "    def __len__(self): return 6\n"
        "    def __getitem__(self, i): return np.zeros((4, 4), np.uint8), 1\n"
    )
    assert (open_dataset(f"{file}:Flipped").labels == 1).all()


def test_the_digest_covers_labels_and_keys() -> None:
    card = open_dataset("digits").samples().card()
    other = open_dataset("digits?train=false").samples().card()
    assert card.sha256 != other.sha256
    assert card.length == 1200


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("npz:nowhere.npz", NotFound, "no such file"),
        ("imagefolder:nowhere", NotFound, "no such folder"),
        ("nzp:x", UnknownName, "did you mean 'npz'"),
        ("torchvision:FasionMNIST", UnknownName, "did you mean 'FashionMNIST'"),
        ("torchvision:MNIST?root=/nowhere", InputError, "cannot open it"),
        ("digits?train=maybe", InputError, "expected digits"),
        ("digits?trian=true", InputError, "unknown option 'trian'"),
        ("digits?train", InputError, "key=value"),
        ("digits?samples=2000:", InputError, "no samples are left of 1200"),
        ("no.such.module:factory", InputError, "cannot be imported"),
        ("json:factory", InputError, "no callable 'factory'"),
    ],
)
def test_specs_that_open_nothing_say_why(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_dataset(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("x=nope", "no array 'nope'; it has floats, gray, wrong, x, y"),
        ("x=floats", "expected uint8"),
        ("y=wrong", "sample 0 has label -5"),
        ("classes=2", "sample 2 has label 2, but there are 2 classes"),
    ],
)
def test_arrays_that_are_no_dataset_say_why(npz: str, options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(f"{npz}?{options}")


def test_pickled_arrays_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{}], object), y=LABELS)
    with pytest.raises(InputError, match="plain arrays"):
        open_dataset(f"npz:{tmp_path}/evil.npz")


def test_a_broken_image_is_named(folder: Path) -> None:
    (folder / "class1/01.png").write_bytes(b"not an image")
    dataset = open_dataset(f"imagefolder:{folder}")
    with pytest.raises(InputError, match="sample 4 cannot be read"):
        list(image_batches(dataset, Views(()), [Span(0, 0, 12).pairs], workers=1))


def test_images_of_different_shapes_ask_for_a_size(folder: Path) -> None:
    Image.new("RGB", (20, 30)).save(folder / "class1/01.png")
    dataset = open_dataset(f"imagefolder:{folder}")
    with pytest.raises(InputError, match="give --size"):
        list(image_batches(dataset, Views(()), [Span(0, 0, 12).pairs], workers=0))
    (views,) = image_batches(dataset, Views((), size=5), [Span(0, 0, 12).pairs], workers=0)
    assert views.shape == (12, 3, 5, 5)


def test_items_that_are_no_images_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import numpy as np\ndef make(): return [(np.zeros((3, 4, 4)), 0)] * 2\n")
    dataset = open_dataset(f"{file}:make")
    with pytest.raises(InputError, match="before any conversion to float"):
        list(image_batches(dataset, Views(()), [Span(0, 0, 2).pairs], workers=0))


def test_a_view_spec_is_a_checked_list_of_allowed_transforms(tmp_path: Path) -> None:
    file = tmp_path / "crop.json"
    file.write_text(json.dumps([{"name": "CenterCrop", "size": 5}]))
    view = parse_views(str(file), None)(IMAGES[0], sample=0, view=0)
    assert (view.numpy() == IMAGES[0, 2:7, 1:6].transpose(2, 0, 1)).all()
    with pytest.raises(UnknownName, match="did you mean 'size'"):
        Views([{"name": "Resize", "sise": 5}])
    with pytest.raises(UnknownName, match="did you mean 'eval'"):
        parse_views("evla", None)


def test_canaries_pass_warn_and_refuse(npz: str, tmp_path: Path) -> None:
    dataset = open_dataset(npz)
    card = make_view_card(dataset, Views(()), 1)
    assert views_of(card).spec == ()
    assert check_canaries(card, dataset, Views(())) == []

    def opened(images: np.ndarray) -> object:
        np.savez(tmp_path / "other.npz", x=images, y=LABELS)
        return open_dataset(f"npz:{tmp_path}/other.npz")

    near = np.clip(IMAGES.astype(int) + 1, 0, 255).astype(np.uint8)
    (warning,) = check_canaries(card, opened(near), Views(()))
    assert "another image decoder" in warning
    with pytest.raises(MismatchError, match=r"another one or comes in another order"):
        check_canaries(card, opened(IMAGES[::-1]), Views(()))
    with pytest.raises(MismatchError, match=r"is \(3, 8, 7\) here and was \(3, 9, 7\)"):
        check_canaries(card, opened(IMAGES[:, :8]), Views(()))


def test_normalisation_is_that_of_the_formula() -> None:
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    found = to_input(images, parse_normalize("0.1,0.2,0.3/0.5,0.4,0.2", 3))
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.2])
    expected = ((IMAGES / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.abs(found.numpy() - expected).max() < 1e-5
    assert torch.equal(to_input(images, None) * 255, images.float())
    with pytest.raises(InputError, match="is for 3 channels, the images have 1"):
        parse_normalize("imagenet", 1)
    with pytest.raises(InputError, match="expected imagenet"):
        parse_normalize("imagenette", 3)


def test_sixteen_bit_images_are_refused_and_not_clipped(tmp_path: Path) -> None:
    place = tmp_path / "tree/a"
    place.mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(place / "deep.png")
    dataset = open_dataset(f"imagefolder:{tmp_path}/tree")
    with pytest.raises(InputError, match="more than 8 bits a channel"):
        dataset.image(0)


def test_paths_are_taken_as_typed(tmp_path: Path) -> None:
    place = tmp_path / "c++ and 100%"
    place.mkdir()
    np.savez(place / "d.npz", x=IMAGES, y=LABELS, names=np.array(["a", None], object))
    assert len(open_dataset(f"npz:{place}/d.npz?x=x&y=y")) == 12  # names is not even opened


def test_a_torchvision_dataset_that_is_one_array_needs_no_reading_processes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = b"".join(number.to_bytes(4, "big") for number in (0x803, 3, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = b"".join(number.to_bytes(4, "big") for number in (0x801, 3))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes([7, 2, 1]))
    digits = open_dataset(f"torchvision:MNIST?root={tmp_path}&train=false&samples=1:3")
    assert default_workers(digits) == 0
    assert np.array_equal(np.asarray(digits.image(1)), images[2])
    assert default_workers(replace(digits, in_memory=False)) > 0
