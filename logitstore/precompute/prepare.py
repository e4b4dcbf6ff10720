"""Open and check everything that a build needs; nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

from logitstore.encodings import encoding
from logitstore.errors import InputError, MismatchError, NonFinite
from logitstore.precompute.datasets import ImageDataset, check_labels, open_dataset
from logitstore.precompute.feed import feed, joined
from logitstore.precompute.images import parse_normalize
from logitstore.precompute.inference import forward, pick_device
from logitstore.precompute.models import build_model, portable_arch
from logitstore.precompute.teachers import (
    TeacherSource,
    find_teachers,
    load_into,
    load_weights,
    unwrapped,
)
from logitstore.precompute.views import Views, canary_samples, make_view_card, parse_view_spec
from logitstore.resume import check_target
from logitstore.schema import (
    EncodingCard,
    Normalize,
    Precision,
    SnapshotPlan,
    StoreMeta,
    TeacherCard,
    ViewCard,
)
from logitstore.shards import shard_rows
from logitstore.specs import file_sha256
from logitstore.storage import Storage, open_storage
from logitstore.writer import Shard

NUMERIC_PACKAGES = ("logitstore", "numcodecs", "numpy", "pillow", "torch", "torchvision", "zarr")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What ``logitstore build`` is asked for; None means the default that the field's text names.

    ``teachers`` are checkpoints, folders, globs or training runs; ``arch`` is
    one spec for all or one for each of them, and may be left out for runs of ours.  ``shard_rows``
    makes shards smaller than the format's default (a power of two), so that an interruption loses
    less of a slow teacher's work.
    """

    teachers: Sequence[str]
    data: str
    out: str
    arch: Sequence[str] = ()
    snapshots: Sequence[str] = ()
    normalize: str | None = None
    view_spec: str = "eval"
    size: int | None = None
    views: int = 1
    seed: int = 0
    encoding: str = "float16"
    batch_size: int = 256
    workers: int | None = None
    device: str | None = None
    precision: Precision = "fp32"
    weights_key: str | None = None
    shard_rows: int | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        encoding(self.encoding)
        rows = self.shard_rows
        for name, value in (("batch size", self.batch_size), ("views", self.views)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers must not be negative, not {self.workers}")
        if rows is not None and (rows < 1 or rows > 16_384 or rows & (rows - 1)):
            raise InputError(f"shard rows must be a power of two up to 16384, not {rows}")
        if self.views > 1:
            raise InputError(
                f"{self.views} views of {self.view_spec!r} would all be the same: it draws "
                "nothing at random; use 1 view"
            )


@dataclass(frozen=True)
class Teacher:
    model: nn.Module
    plan: SnapshotPlan
    normalize: Normalize | None


@dataclass(frozen=True)
class Prepared:
    """A build whose inputs are all checked; nothing is written yet."""

    config: BuildConfig
    dataset: ImageDataset
    views: Views
    storage: Storage
    meta: StoreMeta
    teachers: tuple[Teacher, ...]
    device: torch.device
    input_shape: tuple[int, int, int]

    def summary(self) -> dict[str, int | str]:
        """What the build would write: ``--dry-run``."""
        rows = len(self.dataset) * self.config.views
        per_row = encoding(self.config.encoding).bytes_per_row(self.meta.classes)
        return {
            "store": self.storage.url,
            "dataset": self.dataset.name,
            "snapshots": ", ".join(teacher.plan.name for teacher in self.teachers),
            "rows": rows * len(self.teachers),
            "classes": self.meta.classes,
            "encoding": self.config.encoding,
            "codes, uncompressed, bytes": rows * per_row * len(self.teachers),
        }


def prepare(config: BuildConfig) -> Prepared:
    """Open and check everything that a build needs: data, checkpoints, class counts, the target.

    Raises InputError, MismatchError, NotFound, UnknownName or NonFinite; writes nothing.
    """
    sources = find_teachers(config.teachers, config.snapshots, config.arch)
    device = pick_device(config.device)
    dataset = open_dataset(config.data)
    views = Views(parse_view_spec(config.view_spec), config.size, config.seed)
    storage = open_storage(config.out)
    probes = canary_samples(len(dataset))
    images = next(feed(dataset, views, [Shard(0, i, i + 1) for i in probes[:1]], workers=0))
    shape = (images.shape[1], images.shape[2], images.shape[3])
    card = make_view_card(dataset, views, config.views)
    teachers: list[Teacher] = []
    for source in sources:
        teacher = _load(config, source, dataset, card, shape, device)
        if teachers and teacher.plan.classes != teachers[0].plan.classes:
            raise MismatchError(
                f"{source.path} has {teacher.plan.classes} classes, {sources[0].path} has "
                f"{teachers[0].plan.classes}: one store holds teachers of one task; use two --out"
            )
        teachers.append(teacher)
    classes = teachers[0].plan.classes
    check_labels(dataset, classes)
    meta = StoreMeta(
        classes=classes, class_names=dataset.class_names, dataset=dataset.samples().card()
    )
    for teacher in teachers:
        check_target(storage, meta, teacher.plan, fresh=config.fresh)
    return Prepared(config, dataset, views, storage, meta, tuple(teachers), device, shape)


def _load(
    config: BuildConfig,
    source: TeacherSource,
    dataset: ImageDataset,
    card: ViewCard,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Teacher:
    """Load one teacher, run it on a few samples and describe the snapshot that it will fill."""
    arch = source.arch
    if arch is None:
        raise InputError(
            f"{source.path}: say which network this is with --arch (torchvision:NAME, "
            "path/to/file.py:factory, resnet56, …)"
        )
    normalize = parse_normalize(config.normalize or source.normalize, shape[0])
    state, key = load_weights(source.path, config.weights_key)
    guess = dataset.classes or int(dataset.labels.max(initial=0)) + 1
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and replaced at once
        model = _built_for(state, arch, guess, shape)
    load_into(model, state, str(source.path))
    model.eval().requires_grad_(False).to(device)
    model.to(memory_format=torch.channels_last)
    classes = _probe(config, model, normalize, source, dataset, card, device)
    portable, digest = portable_arch(arch)
    widest = max(
        np.dtype(kind).itemsize * width
        for kind, width in encoding(config.encoding).layout(classes).values()
    )
    plan = SnapshotPlan(
        name=source.name,
        views=config.views,
        samples=len(dataset),
        classes=classes,
        rows_per_shard=config.shard_rows or shard_rows(widest),
        teacher=TeacherCard(
            file=source.path.name,
            weights_sha256=file_sha256(source.path),
            weights_key=key,
            architecture=portable,
            architecture_sha256=digest,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            normalize=normalize,
            input_shape=shape,
            precision=config.precision,
            device=device.type,
            batch_size=config.batch_size,
        ),
        view=card,
        encoding=EncodingCard(name=config.encoding),
        packages={name: version(name) for name in NUMERIC_PACKAGES},
    )
    return Teacher(model, plan, normalize)


def _built_for(
    state: Mapping[str, Tensor], arch: str, guess: int, shape: tuple[int, int, int]
) -> nn.Module:
    """The network with as many classes as the checkpoint's classifier, whatever the dataset has.

    A wrong dataset is then reported as a wrong class count and not as a list of odd shapes.
    """
    model = build_model(arch, classes=guess, shape=shape)
    wanted = unwrapped(state, set(model.state_dict()))
    counts = {
        wanted[key].shape[0]
        for key, value in model.state_dict().items()
        if key in wanted
        and wanted[key].shape != value.shape
        and value.shape[:1] == (guess,)
        and value.shape[1:] == wanted[key].shape[1:]
    }
    return build_model(arch, classes=counts.pop(), shape=shape) if len(counts) == 1 else model


def _probe(
    config: BuildConfig,
    model: nn.Module,
    normalize: Normalize | None,
    source: TeacherSource,
    dataset: ImageDataset,
    card: ViewCard,
    device: torch.device,
) -> int:
    """Forward the canary samples: the class count, or why this teacher cannot be used."""
    views = Views(card.spec, card.size, card.seed)
    probes = sorted({canary.sample for canary in card.canaries})
    batches = [Shard(0, sample, sample + 1) for sample in probes]
    images = joined(feed(dataset, views, batches, workers=0))
    try:
        output = forward(model, images.to(device), normalize, config.precision)
    except Exception as error:  # whatever a network raises for images it is not made for
        raise InputError(
            f"{source.path}: the network does not run on images of shape "
            f"{tuple(images.shape[1:])}: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}; check --arch, --size "
            f"and --normalize"
        ) from error
    if output.ndim != 2 or len(output) != len(images):
        raise InputError(
            f"{source.path}: the network gives {tuple(output.shape)} for {len(images)} images, "
            "expected logits (N, classes)"
        )
    classes = output.shape[1]
    if dataset.classes is not None and classes != dataset.classes:
        raise MismatchError(
            f"{source.path}: the teacher has {classes} classes, the dataset {dataset.name} has "
            f"{dataset.classes}: use the teacher's own dataset, or one with its classes"
        )
    broken = np.flatnonzero(~np.isfinite(output.numpy()).all(axis=1))
    if len(broken):
        named = ", ".join(str(probes[i]) for i in broken[:5])
        raise NonFinite(
            f"{source.path}: NaN or infinite logits for {len(broken)} of {len(probes)} samples "
            f"tried (samples {named}): check the checkpoint, --normalize and --precision"
        )
    return classes
