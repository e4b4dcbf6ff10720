"""Load the teachers of a build: a network with its weights, tried on a few images of the dataset.

What does not fit the dataset is refused here, before anything is written.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from logitstore.errors import InputError, MismatchError, NonFinite
from logitstore.format.cards import Normalize, SnapshotPlan, TeacherCard, ViewCard
from logitstore.format.encodings.base import LIMITS, unusable
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.networks.checkpoints import Weights, load_weights
from logitstore.precompute.networks.factory import Shape, build_model, portable_arch
from logitstore.precompute.networks.forward import Teacher, forward
from logitstore.precompute.networks.pixels import parse_normalize
from logitstore.precompute.networks.state_dicts import load_into, unwrapped
from logitstore.precompute.networks.teachers import TeacherSource
from logitstore.precompute.views.canaries import canary_samples
from logitstore.progress import Progress
from logitstore.specs import file_sha256
from logitstore.writing.plan import encoded_as, package_versions


def load_teacher(
    config: BuildConfig,
    source: TeacherSource,
    dataset: ImageDataset,
    images: Tensor,
    card: ViewCard,
    progress: Progress,
) -> Teacher:
    """Load one teacher, run it on a few samples and plan the snapshot that it will fill.

    ``images``, uint8 (n, C, H, W), are the first views of the canaries' samples, on the device.
    """
    shape = (images.shape[1], images.shape[2], images.shape[3])
    arch = source.architecture()
    normalize = parse_normalize(config.normalize or source.normalize, shape[0])
    weights = load_weights(source.path, config.weights_key)
    if note := weights.note(source.path):
        progress.message(note)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and replaced at once
        model = _built_for(weights, arch, dataset.class_count, shape, str(source.path))
    load_into(model, weights.state, str(source.path), weights.key)
    model.eval().requires_grad_(False).to(images.device)
    model.to(memory_format=torch.channels_last)
    classes = _try(config, model, normalize, source, dataset, images)
    portable, digest = portable_arch(arch)
    plan = SnapshotPlan(
        name=source.name,
        views=config.views,
        samples=len(dataset),
        classes=classes,
        teacher=TeacherCard(
            file=source.path.name,
            weights_sha256=file_sha256(source.path),
            weights_key=weights.key,
            architecture=portable,
            architecture_sha256=digest,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            normalize=normalize,
            input_shape=shape,
            precision=config.precision,
            device=images.device.type,
            batch_size=config.batch_size,
        ),
        view=card,
        temperatures=config.request.temperatures,
        packages=package_versions("pillow", "torch", "torchvision"),
        **encoded_as(config.request.unmeasured(classes), config.shard_rows, config.row_digests),
    )
    return Teacher(model, plan, normalize)


def _built_for(weights: Weights, arch: str, guess: int, shape: Shape, where: str) -> nn.Module:
    """Build the network with as many classes as the checkpoint's classifier has.

    The dataset's count is only a guess: a wrong dataset is then reported as a wrong class count and
    not as a list of odd shapes.
    """
    model = build_model(arch, classes=guess, shape=shape)
    state = unwrapped(weights.state, model.state_dict(), where, weights.key)
    counts = {
        state[key].shape[0]
        for key, value in model.state_dict().items()
        if key in state
        and state[key].shape != value.shape
        and value.shape[:1] == (guess,)
        and value.shape[1:] == state[key].shape[1:]
    }
    return build_model(arch, classes=counts.pop(), shape=shape) if len(counts) == 1 else model


def _try(
    config: BuildConfig,
    model: nn.Module,
    normalize: Normalize | None,
    source: TeacherSource,
    dataset: ImageDataset,
    images: Tensor,
) -> int:
    """Forward the canaries' images; return the class count, or refuse the teacher."""
    try:
        output = forward(model, images, normalize, config.precision)
    except Exception as error:  # whatever a network raises for images it is not made for
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{source.path}: the network does not run on images of shape "
            f"{tuple(images.shape[1:])}: {reason}; check --arch, --size and --normalize"
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
        samples = canary_samples(len(dataset))
        named = ", ".join(str(samples[row]) for row in broken[:5])
        raise NonFinite(
            f"{source.path}: NaN, infinite or too large logits for {len(broken)} of {len(images)} "
            f"samples tried (samples {named}); {LIMITS}: check the checkpoint, --normalize and "
            "--precision"
        )
    return classes
