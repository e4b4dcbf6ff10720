"""Measure weights on a dataset: logits are gathered once, in eval mode, for all figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitstore.ensemble import Teacher, leaves
from logitstore.errors import InputError
from logitstore.opening import open_store
from logitstore.precompute.classes import read_class_map
from logitstore.precompute.datasets import check_labels
from logitstore.precompute.feed import image_batches
from logitstore.precompute.images import parse_normalize, to_input
from logitstore.schema import Normalize
from logitstore.stores import LogitStore
from trainer import metrics
from trainer.binding import bind, open_validation
from trainer.calibration import fit_temperature, fitted_figures
from trainer.data import Source
from trainer.device import training_device
from trainer.holdout import split_share
from trainer.runs_on import check_runs, first_shape
from trainer.suited import refuse_lost_tail
from trainer.teaching import open_teacher
from trainer.trained import Trained, find_trained

Logits = NDArray[np.float32]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Network:
    """Weights on a device, ready to be shown images."""

    model: nn.Module
    normalize: Normalize | None
    device: torch.device
    batch_size: int

    def logits(self, source: Source) -> Logits:
        """Logits float32 (N, C) of every sample there is."""
        place, size = self.device, self.batch_size
        return gather_logits(self.model, source, self.normalize, place, batch_size=size)


def evaluate(
    run_or_checkpoint: str | Path,
    data: str,
    *,
    val: str | None = None,
    student: str | None = None,
    normalize: str | None = None,
    view_spec: str | None = None,
    size: int | None = None,
    store: str | None = None,
    snapshot: str | None = None,
    temperature: float | None = None,
    token: str | None = None,
    match_by: str = "index",
    class_map: str | None = None,
    batch_size: int = 256,
    device: str | None = None,
) -> dict[str, float]:
    """The figures of some weights on some data: those of ``measure``, and more if more is given.

    A run, or a checkpoint inside one, knows its ``student``, ``normalize`` and image preparation;
    they may be given for any other checkpoint.  With ``val`` also ``nll_fitted``, ``ece10_fitted``
    and ``ece15_fitted`` after one temperature fitted there, ``fitted_temperature``.  The val
    split:SHARE of a run that held samples out may be given as either data.
    With a store of the same data also ``kd_error``, ``agreement`` and ``kd_loss`` (T² · KL from the
    teacher at ``temperature``, None: 1), on the snapshot's view 0 (imported logits: by labels
    alone); ``snapshot`` may be an ensemble, but no schedule.  Everything else is measured without
    anything random.  ``match_by`` and ``class_map`` are as in ``TrainConfig``; a run's own map and
    class names hold for the data that it is measured on.

    >>> evaluate("runs/student", "digits?train=false")["top1"]    # doctest: +SKIP
    0.9715
    """
    at = 1.0 if temperature is None else temperature
    if at <= 0:
        raise InputError(f"--temperature must be positive, not {at:g}")
    trained = find_trained(run_or_checkpoint, student, normalize)
    if store is None:
        _refuse_without_store(trained, match_by, class_map, temperature)
    source = trained.source(data, view_spec=view_spec, size=size, class_map=class_map)
    taught = None
    if store is not None:
        opened = open_store(store, token)
        teacher = open_teacher(opened, snapshot, temperature=at, token=token)
        for leaf in leaves(teacher):
            refuse_lost_tail(leaf, at)
        taught = taught_source(
            trained, source, opened, teacher, match_by=match_by, class_map=class_map
        )
        # One pass serves both, unless the teacher saw what nobody should be measured on.
        plain = replace(taught, views=source.views, first_view=0)
        source = plain if taught.views.random else taught
    check_labels(source.dataset, source.classes)
    network = load_network(trained, source, device, batch_size)
    logits = network.logits(source)
    measured = measure(logits, labels_of(source))
    if val is not None:
        chosen = _validation(trained, source, val)
        check_runs(network.model, chosen, network.normalize, network.device)
        fitted = fit_temperature(network.logits(chosen), labels_of(chosen))
        measured |= fitted_figures(logits, labels_of(source), fitted)
    if taught is not None and taught.snapshot is not None:
        ours = logits if taught is source else network.logits(taught)
        theirs = taught.snapshot.logits(taught.there())
        measured |= compare(ours, theirs, at)
    return measured


def logits_of(
    run_or_checkpoint: str | Path,
    data: str,
    *,
    student: str | None = None,
    normalize: str | None = None,
    view_spec: str | None = None,
    size: int | None = None,
    class_map: str | None = None,
    batch_size: int = 256,
    device: str | None = None,
) -> tuple[Logits, Labels]:
    """Logits float32 (N, C) and labels int32 (N,), -1 where unknown: what ``evaluate`` measures.

    The arguments are those of ``evaluate``; samples come in the order of the data.
    """
    trained = find_trained(run_or_checkpoint, student, normalize)
    _refuse_without_store(trained, "index", class_map, None)
    source = trained.source(data, view_spec=view_spec, size=size, class_map=class_map)
    check_labels(source.dataset, source.classes)
    network = load_network(trained, source, device, batch_size)
    return network.logits(source), labels_of(source)


def load_network(trained: Trained, source: Source, device: str | None, batch_size: int) -> Network:
    """Weights ready for a source; InputError or MismatchError if they do not fit it."""
    place = training_device(device, "fp32")
    shape = first_shape(source)
    model = trained.load(source.classes, shape, place)
    network = Network(model, parse_normalize(trained.normalize, shape[0]), place, batch_size)
    check_runs(model, source, network.normalize, place)
    return network


def measure(logits: Logits, labels: Labels) -> dict[str, float]:
    """The figures of some logits (N, C) with their labels (N,); shares are in [0, 1], nats.

    ``top1``, ``top5`` (if C > 5), ``nll``, ``ece10``, ``ece15``, ``aurc``, ``eaurc``, ``samples``.
    """
    top5 = {"top5": metrics.accuracy(logits, labels, k=5)} if logits.shape[1] > 5 else {}
    return {
        "top1": metrics.accuracy(logits, labels),
        **top5,
        "nll": metrics.nll(logits, labels),
        "ece10": metrics.ece(logits, labels, bins=10),
        "ece15": metrics.ece(logits, labels, bins=15),
        "aurc": metrics.aurc(logits, labels),
        "eaurc": metrics.eaurc(logits, labels),
        "samples": float((labels >= 0).sum()),
    }


def compare(student: Logits, teacher: Logits, temperature: float) -> dict[str, float]:
    """How far a student's logits (N, C) are from its teacher's, KL at a temperature."""
    error = metrics.kd_error(student, teacher)
    loss = metrics.kd_loss(student, teacher, temperature)
    return {"kd_error": error, "agreement": 1 - error, "kd_loss": loss}


def labels_of(source: Source) -> Labels:
    """Labels int32 (N,), -1 where unknown, in the order of ``gather_logits``."""
    labels: Labels = source.dataset.labels[source.there()]
    return labels


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


def taught_source(
    trained: Trained,
    source: Source,
    store: LogitStore,
    teacher: Teacher,
    *,
    match_by: str = "index",
    class_map: str | None = None,
    allow_mismatch: bool = False,
) -> Source:
    """The same samples in the store's order, with the teacher's rows; raises what ``bind`` raises.

    ``class_map`` is for weights that are in no run that names its classes.
    """
    trained.refuse_other_classes(store)
    taught, _ = bind(
        store,
        teacher,
        source.dataset,
        unbound=source.views,
        allow_mismatch=allow_mismatch,
        match_by=match_by,
        class_map=read_class_map(class_map) if trained.inputs is None else None,
    )
    samples = taught.samples if source.samples is None else source.samples
    numbers = taught.class_map if trained.inputs is None else source.class_map
    return replace(taught, samples=samples, class_map=numbers)


def _validation(trained: Trained, source: Source, val: str) -> Source:
    if split_share(val) is None:
        return open_validation(val, source)
    return replace(trained.source(val), views=source.views.evaluation())


def _refuse_without_store(
    trained: Trained, match_by: str, class_map: str | None, temperature: float | None
) -> None:
    flag = "--match-by" if match_by != "index" else "--temperature"
    if match_by != "index" or temperature is not None:
        raise InputError(f"{flag} without a store: give --store STORE, or drop {flag}")
    if class_map is not None and trained.inputs is None:
        raise InputError(
            f"--class-map: {trained.path} is in no run that names its classes: drop --class-map, "
            "or give --store STORE"
        )
