"""A view is the same bits for teacher and student, wherever and in whatever order it is made."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitstore.errors import InputError, MismatchError, UnknownName
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.views import Views, draw_seed, parse_views, views_of
from logitstore.precompute.views.canaries import check_canaries, make_view_card
from logitstore.precompute.views.items import image_batches
from logitstore.precompute.views.presets import PRESETS, evaluation_spec
from logitstore.precompute.views.transforms import ALLOWED

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
RANDOM_PRESETS = [name for name in PRESETS if Views(PRESETS[name].spec, 32).random]
EVERY_KIND: list[dict[str, Any]] = [
    {"name": "RandomRotation", "degrees": 20, "fill": 7},
    {"name": "RandomAffine", "degrees": [-5, 5], "translate": [0.1, 0.2], "shear": 3},
    {"name": "RandomPerspective", "distortion_scale": 0.4, "p": 0.7},
    {"name": "RandomVerticalFlip", "p": 0.3},
    {"name": "RandomGrayscale", "p": 0.4},
    {"name": "RandomInvert", "p": 0.3},
    {"name": "RandomPosterize", "bits": 4, "p": 0.5},
    {"name": "RandomSolarize", "threshold": 128, "p": 0.5},
    {"name": "RandomAutocontrast"},
    {"name": "RandomEqualize"},
    {"name": "RandomAdjustSharpness", "sharpness_factor": 2},
    {"name": "RandAugment", "num_ops": 2, "magnitude": 9},
    {"name": "TrivialAugmentWide"},
    {"name": "AutoAugment", "policy": "svhn"},
    {"name": "RandomErasing", "value": [1, 2, 3]},
]


def dataset_of(pixels: Sequence[Any], name: str = "npz:pixels.npz") -> ImageDataset:
    return ImageDataset(name, np.zeros(len(pixels), np.int32), pixels.__getitem__, in_memory=True)


def alone(views: Views, sample: int, view: int) -> torch.Tensor:
    return views(PIXELS[sample], sample=sample, view=view)


def global_states() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@given(
    preset=st.sampled_from(RANDOM_PRESETS),
    items=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 2**20)), min_size=1, max_size=6),
    seed=st.integers(0, 2**40),
    elsewhere=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_draw_depends_on_seed_view_and_sample_and_on_nothing_else(
    preset: str, items: list[tuple[int, int]], seed: int, elsewhere: int
) -> None:
    first = [alone(parse_views(preset, 32, seed), sample, view) for sample, view in items]
    other = parse_views(preset, 32, seed)
    torch.manual_seed(elsewhere)
    random.seed(elsewhere)
    before = global_states()
    again = [alone(other, sample, view) for sample, view in reversed(items)][::-1]
    assert global_states() == before
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_every_allowed_random_transform_is_reproducible_and_leaves_the_generators_alone() -> None:
    named = {step["name"] for name in PRESETS for step in PRESETS[name].spec}
    named |= {step["name"] for step in EVERY_KIND}
    assert named | {"Pad", "Grayscale", "Resize"} == set(ALLOWED)
    for step in EVERY_KIND:
        views = Views([step], seed=3)
        before = global_states()
        shown = [alone(views, sample, view) for sample in range(8) for view in range(4)]
        assert global_states() == before
        again = [alone(Views([step], seed=3), s, v) for s in range(8) for v in range(4)]
        assert all(torch.equal(a, b) for a, b in zip(shown, again, strict=True)), step
        plain = [alone(Views(()), s, v) for s in range(8) for v in range(4)]
        assert not all(torch.equal(a, b) for a, b in zip(shown, plain, strict=True)), step


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # more than cores
@pytest.mark.parametrize("mix", [None, {"mixup": 1.0, "cutmix": 1.0}])
def test_views_are_the_same_with_any_number_of_workers_in_any_order(
    mix: dict[str, float] | None,
) -> None:
    dataset, views = dataset_of(PIXELS), Views(PRESETS["cifar-strong"].spec, 32, 5, mix)
    items = [(view, sample) for view in (0, 3) for sample in range(24)]
    orders = {workers: random.Random(workers).sample(items, len(items)) for workers in (0, 1, 2, 4)}
    found = {}
    for workers, order in orders.items():
        batched = [order[start : start + 7] for start in range(0, len(order), 7)]
        shown = torch.cat(list(image_batches(dataset, views, batched, workers=workers)))
        found[workers] = dict(zip(order, shown, strict=True))
    for workers in (1, 2, 4):
        assert all(torch.equal(found[0][item], found[workers][item]) for item in items)
    assert len({image.numpy().tobytes() for image in found[0].values()}) == len(items)


@pytest.mark.parametrize("side", [16, 48, 96])
def test_networks_of_other_input_sizes_see_the_same_region(side: int) -> None:
    """Pixels that say where they come from: red is x, green is y, erased is blue 0."""
    ramp = np.linspace(10, 250, 64).astype(np.uint8)
    where = np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 200, np.uint8)], axis=2)
    spec = [step for step in PRESETS["cifar-strong"].spec if step["name"] != "ColorJitter"]
    for sample in range(12):
        small, large = (
            Views(spec, size)(where, sample=sample, view=1).float() for size in (32, side)
        )
        shrunk, reference = (
            torch.nn.functional.adaptive_avg_pool2d(image, 8) for image in (large, small)
        )
        assert (shrunk - reference).abs().max() < 40  # an edge of the erased box, half a cell off
        assert (shrunk - reference).abs().mean() < 4


def test_views_of_other_numbers_samples_and_seeds_differ() -> None:
    views = parse_views("cifar-strong", None)
    pictures = [views(PIXELS[0], sample=s, view=v) for s in range(5) for v in range(5)]
    pictures.append(parse_views("cifar-strong", None, seed=1)(PIXELS[0], sample=0, view=0))
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(pictures)
    assert draw_seed(0, 0, 0) == 6815519736362661208
    assert draw_seed(1, 23, 456) == 6650304819751458157


def test_grey_images_go_through_every_preset_that_fits_them() -> None:
    for name in ("cifar-train", "cifar-strong", "cifar-autoaugment"):
        shown = parse_views(name, None)(PIXELS[0, :, :, 0], sample=0, view=0)
        assert shown.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{"name": "CenterCrop", "size": 5}, {"name": "GaussianBlur"}], "position 1.*GaussianBlur"),
        ([{"name": "RandomErasing", "scael": [0, 1]}], "did you mean 'scale'"),
        ([{"name": "RandomHorizontalFlip", "p": 1.5}], "p = 1.5: .*less than or equal to 1"),
        ([{"name": "RandomHorizontalFlip", "p": True}], "p = True"),
        ([{"name": "RandomCrop", "size": 10**9}], "size = 1000000000"),
        ([{"name": "RandomCrop"}], "position 0.*size"),
        ([{"name": "Pad", "padding": -3}], "padding = -3"),
        ([{"name": "RandomResizedCrop", "size": 224}], "kept apart from the spec.*--size"),
        ([{"name": "RandomResizedCrop", "scale": [1, 0.5]}], "the smaller value comes first"),
        ([{"name": "RandomResizedCrop"}], "needs a size"),
        ([{"name": "MixUp"}], "mixes samples and their labels.*--mix"),
        ([{"name": "AutoAugment", "policy": "mnist"}], "policy = 'mnist'"),
        ([{"size": 5}], "position 0"),
    ],
)
def test_a_transform_that_is_not_allowed_is_named_with_its_place(
    steps: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises((InputError, UnknownName), match=says):
        Views(steps)


def test_a_step_that_cannot_be_done_to_an_image_is_named(tmp_path: Path) -> None:
    views = parse_views("cifar-train", None)
    with pytest.raises(InputError, match=r"RandomCrop at position 0 cannot be done .* 8x8"):
        views(PIXELS[0, :8, :8], sample=0, view=0)
    (tmp_path / "v.json").write_text(json.dumps(["RandomCrop"]))
    with pytest.raises(InputError, match="expected a list such as"):
        parse_views(f"{tmp_path}/v.json", None)


def test_measuring_uses_the_same_preparation_without_what_is_random() -> None:
    crop = {"name": "RandomCrop", "size": 28}
    spec = ({"name": "Resize", "size": 30}, crop, {"name": "RandomErasing"})
    assert evaluation_spec(spec) == (spec[0], {"name": "CenterCrop", "size": 28})
    twin = parse_views("cifar-train", None).evaluation()
    assert not twin.random
    assert torch.equal(alone(twin, 3, 9), torch.from_numpy(PIXELS[3].transpose(2, 0, 1).copy()))
    assert parse_views("imagenet-train", None).evaluation().spec == PRESETS["imagenet-eval"].spec


class Nervous(list[Any]):
    """A dataset with a random transform of its own inside: every reading is another image."""

    def __init__(self) -> None:
        super().__init__(PIXELS)
        self.readings = 0

    def __getitem__(self, index: Any) -> Any:
        self.readings += 1
        return np.roll(PIXELS[index], self.readings, axis=1)


def test_a_dataset_that_augments_by_itself_is_refused_by_build_and_training() -> None:
    with pytest.raises(InputError, match="another image each time it is read"):
        make_view_card(dataset_of(Nervous()), Views(()), 1)
    card = make_view_card(dataset_of(PIXELS), Views(()), 1)
    with pytest.raises(InputError, match="another image each time it is read"):
        check_canaries(card, dataset_of(Nervous()), Views(()))


def test_a_refused_image_says_whether_decoder_library_or_dataset_differ() -> None:
    views = parse_views("cifar-train", None, seed=2)
    card = make_view_card(dataset_of(PIXELS), views, 3, first_view=4)
    assert {canary.view for canary in card.canaries} == {4, 5, 6}
    assert check_canaries(card, dataset_of(PIXELS), views_of(card)) == []

    darker = np.maximum(PIXELS, 9) - 9
    with pytest.raises(MismatchError, match=r"another image decoder .*\(pillow 1\.0 there"):
        check_canaries(card, dataset_of(darker), views_of(card), packages={"pillow": "1.0"})
    other, old = parse_views("cifar-train", None, seed=3), {"torchvision": "0.1"}
    with pytest.raises(
        MismatchError, match=r"a library .*\(torchvision 0\.1 there.*or the dataset"
    ):
        check_canaries(card, dataset_of(PIXELS), other, packages=old)
    with pytest.raises(MismatchError, match=r"sample 0, view 4 .*the dataset is another one"):
        check_canaries(card, dataset_of(PIXELS[::-1]), views_of(card))
    some = check_canaries(card, dataset_of(PIXELS), views_of(card), samples=np.array([1000]))
    assert some == [
        "none of the checked views is of a sample that is here: matched by key and label"
    ]
