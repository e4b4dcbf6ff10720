"""Open and check everything that a build needs: data, views, teachers and the target.

Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import StoreMeta
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.encoding import choose_encodings
from logitstore.precompute.building.load import load_teacher
from logitstore.precompute.building.prepared import Prepared
from logitstore.precompute.data.images import ImageDataset, check_labels
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.forward import Teacher, pick_device
from logitstore.precompute.networks.teachers import TeacherSource, find_teachers
from logitstore.precompute.views import Views, parse_views
from logitstore.precompute.views.canaries import canary_samples, make_view_card
from logitstore.precompute.views.items import ViewItems, stacked
from logitstore.precompute.views.mix import parse_mix
from logitstore.progress import Progress, Silent
from logitstore.storage import open_storage
from logitstore.writing.target import Target


def prepare(config: BuildConfig, progress: Progress | None = None) -> Prepared:
    """Open and check everything that a build needs: data, checkpoints, class counts, the target.

    Raises InputError, MismatchError, NotFound, UnknownName or NonFinite; writes nothing.
    """
    sources = find_teachers(
        config.teachers, config.snapshots, config.arch, trust_run=config.trust_run
    )
    if config.first_view and not config.snapshots:
        # Beside the snapshot that has the views before these, which has the checkpoint's name.
        sources = [replace(s, name=f"{s.name}-view{config.first_view}") for s in sources]
    device = pick_device(config.device)
    dataset = _numbered(open_dataset(config.data), sources)
    views = _views(config)
    items, probes = ViewItems(dataset, views), canary_samples(len(dataset))
    images = stacked(items.show(config.first_view, sample) for sample in probes).to(device)
    card = make_view_card(dataset, views, config.views, config.first_view)
    teachers: list[Teacher] = []
    for source in sources:
        teacher = load_teacher(config, source, dataset, images, card, progress or Silent())
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
    prepared = Prepared(config, dataset, views, target, tuple(teachers), device)
    prepared = choose_encodings(prepared, progress or Silent())
    for teacher in prepared.teachers:
        target.refuse(teacher.plan, fresh=config.fresh)
    return prepared


def _numbered(dataset: ImageDataset, sources: Sequence[TeacherSource]) -> ImageDataset:
    """Number the dataset's classes as in the teachers' runs, if these map classes."""
    first = sources[0]
    for other in sources:
        ours, theirs = (
            source.classes and (source.classes.count, source.classes.names, source.class_map)
            for source in (first, other)
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
