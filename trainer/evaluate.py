"""Measure weights on a dataset: logits are gathered once, in eval mode, for all figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitstore.errors import InputError, MismatchError, NotFound
from logitstore.opening import chosen_views, open_store
from logitstore.precompute.datasets import ImageDataset, check_labels, open_dataset
from logitstore.precompute.feed import image_batches
from logitstore.precompute.images import parse_normalize, to_input
from logitstore.precompute.models import build_model
from logitstore.precompute.teachers import find_teachers, load_into, load_weights
from logitstore.precompute.views import Views, parse_views
from logitstore.schema import Normalize
from logitstore.stores import LogitStore
from trainer import metrics
from trainer.binding import bind
from trainer.classes import Classes, map_for, read_class_map, renumbered
from trainer.data import Source
from trainer.device import own_randomness, training_device
from trainer.run import CONFIG, INPUTS, MODEL, Inputs

Logits = NDArray[np.float32]


def evaluate(
    run_or_checkpoint: str | Path,
    data: str,
    *,
    student: str | None = None,
    normalize: str | None = None,
    view_spec: str | None = None,
    size: int | None = None,
    store: str | None = None,
    snapshot: str | None = None,
    token: str | None = None,
    match_by: str = "index",
    class_map: str | None = None,
    batch_size: int = 256,
    device: str | None = None,
) -> dict[str, float]:
    """``top1``, ``top5`` (if C > 5), ``nll`` in nats, ``ece`` and ``samples`` of some weights.

    A run, or a checkpoint inside one, knows its ``student``, ``normalize`` and image preparation;
    they may be given for any other checkpoint.  With a store of the same data also ``kd_error`` and
    ``agreement`` with the teacher, on the snapshot's view 0 (imported logits: by labels alone);
    everything else is measured without anything random.  ``match_by`` and ``class_map`` are as in
    ``TrainConfig``; a run's own map and class names hold for the data that it is measured on.

    >>> evaluate("runs/student", "digits?train=false")["top1"]    # doctest: +SKIP
    0.9715
    """
    weights, inputs = _weights(Path(run_or_checkpoint))
    found = find_teachers([str(weights)])[0]
    arch = student or found.arch
    if arch is None:
        raise InputError(
            f"{weights}: say which network this is with --student (resnet20, torchvision:NAME, "
            "path/to/file.py:factory, …)"
        )
    dataset = _numbered(open_dataset(data), weights, inputs, class_map, store)
    if view_spec is None and size is None and inputs is not None:
        views = Views(inputs.view_spec, inputs.size).evaluation()
    else:
        views = parse_views(view_spec or "eval", size).evaluation()
    classes = dataset.classes or int(dataset.labels.max(initial=0)) + 1
    source = Source(
        dataset=dataset,
        views=views,
        classes=classes if inputs is None else inputs.classes,
        view_count=1,
    )
    taught = None
    if store is not None:
        opened = open_store(store, token)
        _refuse_other_classes(weights, inputs, opened)
        taught, _ = bind(
            opened,
            chosen_views(opened, snapshot),
            dataset,
            unbound=views,
            match_by=match_by,
            class_map=read_class_map(class_map) if inputs is None else None,
        )
        # One pass serves both, unless the teacher saw what nobody should be measured on.
        source = (
            replace(source, dataset=taught.dataset, samples=taught.samples, classes=taught.classes)
            if taught.views.random
            else taught
        )
    elif match_by != "index":
        raise InputError("--match-by without a store: give --store STORE, or drop --match-by")
    check_labels(source.dataset, source.classes)
    place = training_device(device, "fp32")
    shape = first_shape(source)
    with own_randomness(0, place):  # initial weights are drawn and then replaced
        model = build_model(arch, classes=source.classes, shape=shape)
    load_into(model, load_weights(weights)[0], str(weights))
    model.to(place)
    scaling = parse_normalize(normalize or found.normalize, shape[0])
    probe(model, source, scaling, place)
    logits = gather_logits(model, source, scaling, place, batch_size=batch_size)
    measured = measure(logits, source.dataset.labels[source.there()])
    if taught is not None and taught.snapshot is not None:
        if taught is not source:
            logits = gather_logits(model, taught, scaling, place, batch_size=batch_size)
        error = metrics.kd_error(logits, taught.snapshot.logits(taught.there()))
        measured |= {"kd_error": error, "agreement": 1 - error}
    return measured


def measure(logits: Logits, labels: NDArray[np.int32]) -> dict[str, float]:
    """The figures of some logits (N, C) with their labels (N,)."""
    top5 = {"top5": metrics.accuracy(logits, labels, k=5)} if logits.shape[1] > 5 else {}
    return {
        "top1": metrics.accuracy(logits, labels),
        **top5,
        "nll": metrics.nll(logits, labels),
        "ece": metrics.ece(logits, labels),
        "samples": float((labels >= 0).sum()),
    }


def gather_logits(
    model: nn.Module,
    source: Source,
    normalize: Normalize | None,
    device: torch.device,
    *,
    batch_size: int,
    workers: int | None = None,
) -> Logits:
    """Logits float32 (N, C) of every sample there is, in the source's first view; eval, fp32."""
    view, there = source.first_view, source.there()
    items = (
        [(view, int(sample)) for sample in there[start : start + batch_size]]
        for start in range(0, len(there), batch_size)
    )
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = [
                model(to_input(images.to(device), normalize)).float().cpu()
                for images in image_batches(source.dataset, source.views, items, workers=workers)
            ]
    finally:
        model.train(was_training)
    gathered: Logits = torch.cat(parts).numpy()
    return gathered


def first_shape(source: Source) -> tuple[int, int, int]:
    """Shape (C, H, W) of a sample as the network gets it."""
    item = [(source.first_view, int(source.there()[0]))]
    images = next(image_batches(source.dataset, source.views, [item], workers=0))
    return images.shape[1], images.shape[2], images.shape[3]


def probe(
    model: nn.Module, source: Source, normalize: Normalize | None, device: torch.device
) -> None:
    """Run the network on one sample: InputError or MismatchError if it does not fit."""
    item = [(source.first_view, int(source.there()[0]))]
    images = next(image_batches(source.dataset, source.views, [item], workers=0))
    where = f"the student on {source.dataset.name}"
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            output = model(to_input(images.to(device), normalize))
    except Exception as error:  # whatever a network raises for images it is not made for
        raise InputError(
            f"{where}: it does not run on images of shape {tuple(images.shape[1:])}: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}; check --student, "
            f"--size and --normalize"
        ) from error
    finally:
        model.train(was_training)
    shape = tuple(getattr(output, "shape", ()))
    if shape != (1, source.classes):
        raise MismatchError(
            f"{where}: it gives {shape} for one image, expected (1, {source.classes}), one logit "
            "for each class: use a student with as many classes"
        )


def _numbered(
    dataset: ImageDataset,
    weights: Path,
    inputs: Inputs | None,
    class_map: str | None,
    store: str | None,
) -> ImageDataset:
    """The dataset with its classes numbered as the outputs of the run's network are."""
    if inputs is None:
        if class_map is not None and store is None:
            raise InputError(
                f"--class-map: {weights} is in no run that names its classes: drop --class-map, or "
                "give --store STORE"
            )
        return dataset
    classes = Classes(owner=str(weights), count=inputs.classes, names=inputs.class_names)
    own = map_for(dataset, inputs.class_map)
    return renumbered(dataset, classes, own if class_map is None else read_class_map(class_map))


def _refuse_other_classes(weights: Path, inputs: Inputs | None, store: LogitStore) -> None:
    """Logits of two numberings cannot be compared."""
    ours, theirs = None if inputs is None else inputs.class_names, store.meta.class_names
    if ours is not None and theirs is not None and ours != theirs:
        raise MismatchError(
            f"{store.url} and {weights} number their classes differently: give a store with the "
            "classes of the run's"
        )


def _weights(path: Path) -> tuple[Path, Inputs | None]:
    """The weights file, and the inputs of the run that it belongs to."""
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise NotFound(f"{path}: no training run is here (no {CONFIG})")
        if not (path / MODEL).is_file():
            raise NotFound(
                f"{path}: this run is not finished: finish it with the same command, or evaluate "
                "one of its snapshots/*.safetensors"
            )
        path = path / MODEL
    for run in (path.parent, path.parent.parent):
        if (run / CONFIG).is_file() and (run / INPUTS).is_file():
            return path, Inputs.parse(f"{run}/{INPUTS}", (run / INPUTS).read_bytes())
    return path, None
