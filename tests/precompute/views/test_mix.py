"""Mixup and CutMix plans, the images made from them, and what a student learns from both labels."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from logitstore.errors import InputError
from logitstore.format.grid import Span
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.views import Views
from logitstore.precompute.views.items import ViewItems, image_batches
from logitstore.precompute.views.mix import Mix, MixPlan, blend, check_mix, parse_mix
from logitstore.trainer import TrainConfig
from logitstore.trainer.data.batches import Batch, batches
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.source import Source
from logitstore.trainer.methods.base import Mixed, Outputs
from logitstore.trainer.methods.table import make_method
from logitstore.trainer.run.learner import make_learner
from logitstore.trainer.run.step import TrainingStep

MIXUP, CUTMIX = {"mixup": 1.0}, {"cutmix": 1.0}
BOTH = {"mixup": 0.8, "cutmix": 1.0}


def mixed_plans(spec: dict[str, float], count: int) -> list[MixPlan]:
    """The plans of ``count`` samples in one view, less those of samples that stay unmixed."""
    mix = Mix(spec, 3, count)
    plans = [mix.plan(sample, 0) for sample in range(count)]
    return [plan for sample, plan in enumerate(plans) if plan.partner != sample]


def boxes(plans: list[MixPlan]) -> np.ndarray:
    return np.array([plan.box for plan in plans if plan.box is not None])


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 4097])
@pytest.mark.parametrize("view", [0, 1, 77])
def test_every_sample_is_a_partner_exactly_once_in_each_view(n: int, view: int) -> None:
    mix = Mix(MIXUP, 5, n)
    assert sorted(mix.plan(sample, view).partner for sample in range(n)) == list(range(n))


def test_a_plan_depends_on_nothing_but_seed_view_and_sample() -> None:
    before = torch.get_rng_state()
    mix = Mix(BOTH, 1, 500)
    forward = [mix.plan(sample, view) for view in range(3) for sample in range(500)]
    fresh = Mix(dict(reversed(BOTH.items())), 1, 500)
    backward = [
        fresh.plan(sample, view) for view in reversed(range(3)) for sample in reversed(range(500))
    ]
    assert forward == backward[::-1]
    assert torch.equal(before, torch.get_rng_state())
    other_seed = [Mix(BOTH, 2, 500).plan(sample, 0) for sample in range(500)]
    for others in (other_seed, forward[500:1000]):
        alike = sum(a.partner == b.partner for a, b in zip(forward[:500], others, strict=True))
        assert alike < 10  # 1 is expected


def test_plans_are_the_same_on_every_machine_and_version() -> None:
    assert Mix({"mixup": 0.2}, 0, 1000).plan(7, 3) == (567, 39922 / 2**16, None)
    box = (412 / 2**16, 0.0, 50668 / 2**16, 47267 / 2**16)
    assert Mix(CUTMIX, 1, 50_000).plan(49_999, 0) == (4729, 0.4469223655760288, box)
    large = Mix(BOTH, 2**40, 1_281_167)
    assert large.plan(123_456, 199) == (610143, 0.2308502197265625, None)
    assert large.plan(123_456, 191).box == (0.269775390625, 15449 / 2**16, 1.0, 1.0)


def test_every_partner_is_equally_likely() -> None:
    views, n = 2000, 10
    mix = Mix(MIXUP, 0, n)
    counts = np.zeros((n, n))
    for view in range(views):
        for sample in range(n):
            counts[sample, mix.plan(sample, view).partner] += 1
    expected = views / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_sample_that_is_its_own_partner_stays_unmixed() -> None:
    for spec in (MIXUP, CUTMIX):
        assert Mix(spec, 0, 1).plan(0, 9) == MixPlan(0, 1.0, None)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_weights_are_beta_distributed(alpha: float) -> None:
    weights = np.array([plan.weight for plan in mixed_plans({"mixup": alpha}, 20_000)])
    variance = 1 / (4 * (2 * alpha + 1))
    # The kurtosis of Beta(a, a) less 3 is -6 / (2a + 3).
    error_of_variance = variance * ((2 - 6 / (2 * alpha + 3)) / len(weights)) ** 0.5
    assert abs(weights.mean() - 0.5) < 3 * (variance / len(weights)) ** 0.5
    assert abs(weights.var() - variance) < 3 * error_of_variance
    assert (weights * 2**16 == (weights * 2**16).round()).all()


def test_an_alpha_of_almost_nothing_takes_one_of_the_two() -> None:
    weights = [plan.weight for plan in mixed_plans({"mixup": 1e-9}, 1000)]
    assert set(weights) == {0.0, 1.0}
    assert 400 < sum(weights) < 600


def test_boxes_are_clipped_squares_and_the_partner_weighs_their_area() -> None:
    plans = mixed_plans(CUTMIX, 5000)
    left, top, right, bottom = boxes(plans).T
    weights = np.array([plan.weight for plan in plans])
    assert len(left) == len(plans)
    assert ((left >= 0) & (left <= right) & (right <= 1)).all()
    assert ((top >= 0) & (top <= bottom) & (bottom <= 1)).all()
    assert ((right - left) * (bottom - top) == 1 - weights).all()
    inside = (left > 0) & (top > 0) & (right < 1) & (bottom < 1)
    assert inside.sum() > 500
    assert np.abs((right - left) - (bottom - top))[inside].max() <= 2**-15
    # With the share uniform, the side s has E[s²] = 1/2; a centre of its own on each axis clips s
    # to s - s²/4 on average: E[(s - s²/4)²] = 1/2 - 1/5 + 1/48.
    error = (1 - weights).std() / len(weights) ** 0.5
    assert abs((1 - weights).mean() - 77 / 240) < 3 * error
    assert abs((left + right).mean() - 1) < 3 * (left + right).std() / len(left) ** 0.5


def test_of_two_kinds_each_is_taken_half_of_the_time() -> None:
    plans = mixed_plans({"mixup": 0.5, "cutmix": 0.5}, 4000)
    assert abs(len(boxes(plans)) - 2000) < 4 * 1000**0.5


def test_a_box_is_the_same_region_at_any_size() -> None:
    for plan in mixed_plans(CUTMIX, 50):
        if plan.weight == 1:
            continue
        for height, width in ((250, 1000), (1000, 250)):
            black = torch.zeros((1, height, width), dtype=torch.uint8)
            pasted = blend(black, black + 255, plan)[0].bool()
            rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            found = np.array(edges) / [width, height, width, height]
            assert plan.box is not None
            assert (abs(found - plan.box) <= 0.5 / np.array([width, height] * 2)).all()
            assert pasted.sum() == (edges[2] - edges[0]) * (edges[3] - edges[1])


@pytest.mark.parametrize("weight", [0.0, 2**-16, 0.3 // 2**-16 * 2**-16, 0.5, 1 - 2**-16, 1.0])
def test_mixup_is_the_weighted_mean_of_every_pair_of_pixels(weight: float) -> None:
    own = torch.arange(256, dtype=torch.uint8).expand(1, 256, 256)
    partner = own.transpose(1, 2)
    exact = own.double() * weight + partner.double() * (1 - weight)
    mixed = blend(own, partner, MixPlan(1, weight, None))
    assert mixed.dtype == torch.uint8
    assert torch.equal(mixed.double(), (exact + 0.5).floor())


def test_cutmix_leaves_its_inputs_alone() -> None:
    own, partner = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(3, 8, 8, dtype=torch.uint8)
    mixed = blend(own, partner, MixPlan(1, 0.75, (0.25, 0.5, 0.75, 1.0)))
    assert mixed.sum() == 3 * 16
    assert mixed[:, 4:, 2:6].all()
    assert not own.any()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("mixup:0.2", {"mixup": 0.2}),
        ("cutmix:1", {"cutmix": 1.0}),
        ("mixup:0.8, cutmix:1.0", BOTH),
        ("cutmix:4,mixup:0.8", {"mixup": 0.8, "cutmix": 4.0}),
    ],
)
def test_a_spec_is_read_from_the_command_line(text: str, spec: dict[str, float]) -> None:
    assert parse_mix(text) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected KIND:ALPHA such as mixup:0.2"),
        ("mixup", "expected KIND:ALPHA"),
        ("mixup:0.2,", "expected KIND:ALPHA"),
        ("mixup:much", "expected KIND:ALPHA"),
        ("mixup:1,mixup:2", "mixup is given twice"),
        ("mixpu:1", "unknown kind 'mixpu': expected cutmix or mixup"),
        ("mixup:0", "alpha 0.0 of mixup must be above 0 and at most 4"),
        ("mixup:1,cutmix:4.5", "alpha 4.5 of cutmix must be"),
        ("cutmix:nan", "alpha nan of cutmix must be"),
        ("cutmix:inf", "alpha inf of cutmix must be"),
    ],
)
def test_a_spec_that_cannot_be_used_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_mix(text)


@pytest.mark.parametrize(
    "card", [{}, {"shuffle": 1.0}, {"mixup": -1.0}, {"mixup": float("nan")}, {"cutmix": 1e9}]
)
def test_a_card_is_not_trusted(card: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"^card: "):
        check_mix(card, "card")
    with pytest.raises(InputError):
        Mix(card, 0, 10)


def test_there_is_no_plan_for_a_sample_that_is_not_there() -> None:
    for sample in (-1, 10, 16):
        with pytest.raises(InputError, match=f"sample {sample} is not one of the 10"):
            Mix(MIXUP, 0, 10).plan(sample, 0)


def digits(count: int = 60) -> ImageDataset:
    return open_dataset(f"digits?train=true&samples=0:{count}")


def by_hand(dataset: ImageDataset, views: Views, sample: int, view: int) -> tuple[Tensor, MixPlan]:
    """What (sample, view) must look like, and why."""
    assert views.mix is not None
    plan = Mix(views.mix, views.seed, len(dataset)).plan(sample, view)
    own, partner = (views(dataset.item(i), sample=i, view=view) for i in (sample, plan.partner))
    return blend(own, partner, plan), plan


def test_a_mixed_view_costs_two_images_and_never_more() -> None:
    loaded: list[int] = []

    def load(index: int) -> Any:
        loaded.append(index)
        return np.full((4, 4), index, np.uint8)

    dataset = ImageDataset("counted", np.zeros(40, np.int32), load)
    items = ViewItems(dataset, Views((), seed=2, mix=MIXUP))
    mix = Mix(MIXUP, 2, 40)
    for sample in range(40):
        loaded.clear()
        items.show(1, sample)
        plan = mix.plan(sample, 1)
        assert loaded == ([sample] if plan.weight == 1 else [sample, plan.partner])
    plain = ViewItems(dataset, Views(()))
    loaded.clear()
    assert (plain.show(1, 7) == 7).all()
    assert loaded == [7]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_build_sees_each_sample_blended_with_its_partner(workers: int) -> None:
    dataset, views = digits(), Views((), size=12, seed=4, mix=BOTH)
    batches = [Span(5, 0, 40).pairs, Span(5, 40, 60).pairs]
    shown = torch.cat(list(image_batches(dataset, views, batches, workers=workers)))
    expected = torch.stack([by_hand(dataset, views, i, 5)[0] for i in range(60)])
    alone = torch.stack([views(dataset.item(i), sample=i, view=5) for i in range(60)])
    assert torch.equal(shown, expected)
    assert (shown != alone).flatten(1).any(1).sum() > 40


def test_each_image_keeps_its_own_view() -> None:
    spec = [{"name": "RandomHorizontalFlip", "p": 0.5}]
    dataset, views = digits(), Views(spec, seed=1, mix=CUTMIX)
    items = ViewItems(dataset, views)
    for sample in range(60):
        assert torch.equal(items.show(3, sample), by_hand(dataset, views, sample, 3)[0])


def test_images_of_two_shapes_are_refused_by_name() -> None:
    dataset = ImageDataset(
        "uneven", np.zeros(8, np.int32), lambda i: np.zeros((4, 4 + i), np.uint8)
    )
    sample = next(i for i in range(8) if Mix(MIXUP, 0, 8).plan(i, 0).partner != i)
    partner = Mix(MIXUP, 0, 8).plan(sample, 0).partner
    error = ViewItems(dataset, Views((), mix=MIXUP))[0, sample]
    assert isinstance(error, InputError)
    for part in (
        f"uneven: sample {sample} is mixed with sample {partner} (view 0)",
        f"shape (1, 4, {4 + sample}) and (1, 4, {4 + partner}) cannot be mixed: give --size",
    ):
        assert part in str(error)


def test_a_student_gets_the_mixed_images_with_both_labels() -> None:
    dataset, views = digits(), Views((), seed=6, mix=BOTH)
    source = Source(dataset=dataset, views=views, classes=10, view_count=2, first_view=3)
    order = BatchOrder(samples=np.arange(0, 60, 2), seed=0, batch_size=16, view_count=2, epochs=2)
    got = list(batches(source, order, workers=0))
    assert len(got) == 4
    for batch in got:
        assert batch.mixed is not None
        assert (batch.mixed.labels.dtype, batch.mixed.weight.dtype) == (torch.int64, torch.float32)
        for row, sample in enumerate(batch.request.indices):
            image, why = by_hand(dataset, views, int(sample), 3 + batch.request.epoch)
            assert torch.equal(batch.images[row], image)
            assert batch.labels[row] == dataset.labels[sample]
            assert batch.mixed.labels[row] == dataset.labels[why.partner]
            assert batch.mixed.weight[row] == torch.tensor(why.weight, dtype=torch.float32)
    plain = Source(dataset=dataset, views=Views(()), classes=10, view_count=2)
    assert all(batch.mixed is None for batch in batches(plain, order, workers=0))


# Logits 0 and log 3 are probabilities 1/4 and 3/4: losses log 4 and log 4/3.
LOGITS = torch.tensor([[0.0, log(3.0)]], dtype=torch.float64).expand(4, 2)
LABELS = torch.tensor([0, 0, -1, -1])
MIXED = Mixed(torch.tensor([1, -1, 1, -1]), torch.full((4,), 0.125))
EXPECTED = [0.125 * log(4) + 0.875 * log(4 / 3), 0.125 * log(4), 0.875 * log(4 / 3), 0.0]


def test_the_cross_entropy_of_a_mixed_sample_weighs_both_labels() -> None:
    terms = make_method("ce", {}).terms(Outputs(LOGITS, LABELS, None, MIXED), 0)
    np.testing.assert_allclose(terms["ce"], EXPECTED, rtol=1e-12)
    kd = make_method("kd", {"ce_weight": 0.5, "kd_weight": 2.0})
    terms = kd.terms(Outputs(LOGITS, LABELS, LOGITS, MIXED), 0)
    np.testing.assert_allclose(terms["ce"], 0.5 * np.array(EXPECTED), rtol=1e-12)
    assert not terms["kd"].any()


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(LOGITS[0].float())

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), 2)


def test_a_step_learns_from_and_counts_both_labels() -> None:
    order = BatchOrder(samples=np.arange(4), seed=0, batch_size=4, view_count=1, epochs=1)
    images = torch.zeros((4, 1, 2, 2), dtype=torch.uint8)
    batch = Batch(next(iter(order)), images, LABELS, None, MIXED)
    config = TrainConfig(data="digits", student="mlp", out="run", momentum=0, weight_decay=0)
    model = Constant()
    learner = make_learner(config, model, torch.device("cpu"))
    sums = TrainingStep(method=make_method("ce", {})).take(learner, batch, 1.0)
    assert sums["loss"].item() == pytest.approx(sum(EXPECTED), rel=1e-6)
    # The guess is class 1: right for 7/8 of samples 0 and 2; labelled are 1 + 1/8 + 7/8 + 0.
    assert sums["correct"].item() == 1.75
    assert sums["labelled"].item() == 2
    # d CE / d z0 = p0 - [label is 0]; weighed, sample by sample: 4/32, -3/32, 7/32, 0; mean 1/16.
    moved = model.logits.detach() - LOGITS[0].float()
    np.testing.assert_allclose(moved, [-1 / 16, 1 / 16], rtol=1e-5)
