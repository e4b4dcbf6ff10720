"""Open and check everything that a build needs: data, views, teachers and the target.

Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from torch import Tensor, nn

from logitstore.errors import InputError, MismatchError, NonFinite
from logitstore.format.cards import (
    EncodingCard,
    Normalize,
    SnapshotPlan,
    StoreMeta,
    TeacherCard,
    ViewCard,
)
from logitstore.format.choice import (
    AUTO,
    SAMPLE_ROWS,
    EncodingRequest,
    choose_encoding,
    sample_pairs,
)
from logitstore.format.encodings.base import LIMITS, unusable
from logitstore.format.encodings.table import encoding_of, spelled
from logitstore.format.grid import Span, shard_rows
from logitstore.precompute.building.batches import read_views
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.sample import sample_logits
from logitstore.precompute.data.images import ImageDataset, check_labels
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.checkpoints import load_into, load_weights, unwrapped
from logitstore.precompute.networks.factory import build_model, portable_arch
from logitstore.precompute.networks.forward import Teacher, forward, pick_device
from logitstore.precompute.networks.pixels import parse_normalize
from logitstore.precompute.networks.teachers import TeacherSource, find_teachers
from logitstore.precompute.views import Views, parse_views
from logitstore.precompute.views.canaries import canary_samples, make_view_card
from logitstore.precompute.views.items import joined
from logitstore.precompute.views.mix import parse_mix
from logitstore.progress import Progress, Silent
from logitstore.specs import file_sha256
from logitstore.storage import open_storage
from logitstore.writing.target import Target

NUMERIC_PACKAGES = ("logitstore", "numcodecs", "numpy", "pillow", "torch", "torchvision", "zarr")
"""Packages whose versions a plan names: a row's bytes may depend on them."""


@dataclass(frozen=True)
class Prepared:
    """A build whose inputs are all checked; nothing is written yet."""

    config: BuildConfig
    dataset: ImageDataset
    views: Views
    target: Target
    teachers: tuple[Teacher, ...]
    device: torch.device


def prepare(config: BuildConfig, progress: Progress | None = None) -> Prepared:
    """Open and check everything that a build needs: data, checkpoints, class counts, the target.

    Raises InputError, MismatchError, NotFound, UnknownName or NonFinite; writes nothing.
    """
    sources = find_teachers(config.teachers, config.snapshots, config.arch)
    if config.first_view and not config.snapshots:
        # Beside the snapshot that has the views before these, which has the checkpoint's name.
        sources = [replace(s, name=f"{s.name}-view{config.first_view}") for s in sources]
    device = pick_device(config.device)
    dataset = _numbered(open_dataset(config.data), sources)
    views = _views(config)
    probes = canary_samples(len(dataset))
    first = [Span(config.first_view, i, i + 1) for i in probes[:1]]
    images = next(read_views(dataset, views, first, workers=0))
    shape = (images.shape[1], images.shape[2], images.shape[3])
    card = make_view_card(dataset, views, config.views, config.first_view)
    teachers: list[Teacher] = []
    for source in sources:
        teacher = _load(config, source, dataset, views, card, shape, device)
        if teachers and teacher.plan.classes != teachers[0].plan.classes:
            raise MismatchError(
                f"{source.path} has {teacher.plan.classes} classes, {sources[0].path} has "
                f"{teachers[0].plan.classes}: one store holds teachers of one task; use two --out"
            )
        teachers.append(teacher)
    classes = teachers[0].plan.classes
    check_labels(dataset, classes)
    samples = dataset.samples()
    meta = StoreMeta(classes=classes, class_names=dataset.class_names, dataset=samples.card())
    target = Target.read(open_storage(config.out), meta, samples)
    teachers = _encoded(config, target, dataset, views, teachers, device, progress or Silent())
    for teacher in teachers:
        target.refuse(teacher.plan, fresh=config.fresh)
    return Prepared(config, dataset, views, target, tuple(teachers), device)


def _numbered(dataset: ImageDataset, sources: Sequence[TeacherSource]) -> ImageDataset:
    """Number the dataset's classes as in the teachers' runs, if these map classes."""
    first = sources[0]
    for other in sources:
        ours, theirs = (
            each.classes and (each.classes.count, each.classes.names, each.class_map)
            for each in (first, other)
        )
        if ours != theirs:
            raise MismatchError(
                f"{first.path} and {other.path} were trained with other class maps: one store "
                "holds teachers of one task; use two --out"
            )
    return first.numbered(dataset)


def _views(config: BuildConfig) -> Views:
    """Return the views of the configuration; InputError if they would all be the same."""
    mix = None if config.mix is None else parse_mix(config.mix)
    views = parse_views(config.view_spec, config.size, config.seed, mix)
    if (config.views > 1 or config.first_view) and not views.random:
        raise InputError(
            f"{config.first_view + config.views} views of {config.view_spec!r} would all be the "
            "same: it draws nothing at random; use --views 1, or a --view-spec such as cifar-train"
        )
    return views


def _load(
    config: BuildConfig,
    source: TeacherSource,
    dataset: ImageDataset,
    views: Views,
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
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and replaced at once
        model = _built_for(state, arch, dataset.class_count, shape)
    load_into(model, state, str(source.path))
    model.eval().requires_grad_(False).to(device)
    model.to(memory_format=torch.channels_last)
    classes = _probe(config, model, normalize, source, dataset, views, device)
    portable, digest = portable_arch(arch)
    entry = config.request.unmeasured(classes)
    plan = SnapshotPlan(
        name=source.name,
        views=config.views,
        samples=len(dataset),
        classes=classes,
        rows_per_shard=config.shard_rows or shard_rows(entry.widest),
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
        encoding=EncodingCard.of(entry),
        temperatures=config.request.temperatures,
        packages={name: version(name) for name in NUMERIC_PACKAGES},
    )
    return Teacher(model, plan, normalize)


def _encoded(
    config: BuildConfig,
    target: Target,
    dataset: ImageDataset,
    views: Views,
    teachers: list[Teacher],
    device: torch.device,
    progress: Progress,
) -> list[Teacher]:
    """Choose the teachers' encoding by their rows; none is run if no bound is set."""
    request = _continuing(config.request, target, teachers)
    if request.bound is None:
        return teachers
    pairs = sample_pairs(len(dataset), config.views, SAMPLE_ROWS)
    logits = sample_logits(
        teachers,
        dataset,
        views,
        [(config.first_view + view, sample) for view, sample in pairs],
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        precision=config.precision,
        progress=progress,
    )
    labels = dataset.labels[[sample for _, sample in pairs]]
    names = ", ".join(teacher.plan.name for teacher in teachers)
    try:
        entry = choose_encoding(request, logits, labels, names)
    except InputError as error:
        if request == config.request:
            raise
        raise InputError(
            f"{error}; but only views in {request.text}, like those before these, go on with them: "
            f"--encoding {request.text} without --max-kl takes it all the same"
        ) from None
    chosen = {
        "encoding": EncodingCard.of(entry),
        "rows_per_shard": config.shard_rows or shard_rows(entry.widest),
    }
    return [replace(each, plan=each.plan.model_copy(update=chosen)) for each in teachers]


def _continuing(
    request: EncodingRequest, target: Target, teachers: Sequence[Teacher]
) -> EncodingRequest:
    """Turn ``auto`` into the encoding of the views before these: only equal encodings join."""
    if request.text != AUTO:
        return request
    previous = [target.continued_by(teacher.plan) for teacher in teachers]
    texts = {
        spelled(encoding_of(meta.encoding, meta.classes)) for meta in previous if meta is not None
    }
    if len(texts) != 1:
        return request
    return replace(
        request, text=texts.pop(), max_kl=request.bound, at_temperature=request.temperature
    )


def _built_for(
    state: Mapping[str, Tensor], arch: str, guess: int, shape: tuple[int, int, int]
) -> nn.Module:
    """Build the network with as many classes as the checkpoint's classifier has.

    The dataset's count is only a guess: a wrong dataset is then reported as a wrong class count and
    not as a list of odd shapes.
    """
    model = build_model(arch, classes=guess, shape=shape)
    weights = unwrapped(state, set(model.state_dict()))
    counts = {
        weights[key].shape[0]
        for key, value in model.state_dict().items()
        if key in weights
        and weights[key].shape != value.shape
        and value.shape[:1] == (guess,)
        and value.shape[1:] == weights[key].shape[1:]
    }
    return build_model(arch, classes=counts.pop(), shape=shape) if len(counts) == 1 else model


def _probe(
    config: BuildConfig,
    model: nn.Module,
    normalize: Normalize | None,
    source: TeacherSource,
    dataset: ImageDataset,
    views: Views,
    device: torch.device,
) -> int:
    """Forward the canary samples; return the class count, or refuse the teacher."""
    probes = canary_samples(len(dataset))
    batches = [Span(config.first_view, sample, sample + 1) for sample in probes]
    images = joined(read_views(dataset, views, batches, workers=0))
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
    broken = unusable(output.numpy())
    if len(broken):
        named = ", ".join(str(probes[i]) for i in broken[:5])
        raise NonFinite(
            f"{source.path}: NaN, infinite or too large logits for {len(broken)} of {len(probes)} "
            f"samples tried (samples {named}); {LIMITS}: check the checkpoint, --normalize and "
            "--precision"
        )
    return classes
