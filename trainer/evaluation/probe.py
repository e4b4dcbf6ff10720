"""Measure by a linear probe how well a student's features tell the classes of another dataset.

Features are the inputs of the network's last Linear layer.  A logistic regression on them is
trained on one part of the dataset and measured on another; the network itself stays as it is.
Kornblith, Shlens, Le 2019, arXiv:1805.08974; Tian et al. 2020, arXiv:1910.10699, table 4.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from logitstore.errors import InputError
from logitstore.precompute.data.sources import open_dataset
from logitstore.trainer.data.bind import open_validation
from logitstore.trainer.data.source import Source
from logitstore.trainer.evaluation.weights import Trained, find_trained
from logitstore.trainer.measure.network import Labels, Network, labels_of

Features = NDArray[np.float32]

ITERATIONS = 2000
"""Iterations after which the regression ends without having found its optimum."""


def probe_features(
    run_or_checkpoint: str | Path,
    data: str,
    test: str,
    *,
    student: str | None = None,
    classes: int | None = None,
    normalize: str | None = None,
    view_spec: str | None = None,
    size: int | None = None,
    batch_size: int = 256,
    device: str | None = None,
    trust_run: bool = False,
) -> dict[str, float]:
    """Train a linear probe on ``data`` and measure it on ``test``, both of any classes.

    Returns ``top1`` on ``samples`` of the test data, ``train_top1`` on ``train_samples``,
    ``features`` (how many a sample has), and ``converged``, 1 if the regression found its optimum.
    It is scikit-learn's LogisticRegression (C = 1) on features standardised over ``data``; samples
    without a label are left out.  A run knows how images are prepared and its number of
    ``classes``; any other checkpoint needs ``student`` and ``classes``.  ``trust_run``: run the
    code that the run's own file names as its network, which is refused otherwise.

    InputError for a network whose output does not come from a Linear layer, and for data of one
    class; NotFound, UnknownName or MismatchError for what cannot be opened or is of other classes.
    """
    trained = find_trained(run_or_checkpoint, student, normalize, trust_run=trust_run)
    count = _classes(trained, classes)
    train = _open(trained, data, view_spec, size)
    if len(np.unique(train.dataset.labels[train.dataset.labels >= 0])) < 2:
        raise InputError(f"--data {data}: a probe needs labels of two classes at least")
    measured = open_validation(test, train, flag="--test")
    network = trained.network(replace(train, classes=count), device, batch_size)
    network.check(replace(measured, classes=count))
    head = _head(network, train, count, trained)
    return _figures(*_features(network, head, train), *_features(network, head, measured))


def _classes(trained: Trained, classes: int | None) -> int:
    """Return how many outputs the network has."""
    if trained.inputs is not None:
        return trained.inputs.classes
    if classes is None:
        raise InputError(
            f"{trained.path} is in no run that says how many classes its network has: give "
            "--classes N"
        )
    return classes


def _open(trained: Trained, data: str, view_spec: str | None, size: int | None) -> Source:
    """Open data in a numbering of their own, prepared as for the network."""
    dataset = open_dataset(data)
    views = trained.views(view_spec, size)
    return Source(dataset=dataset, views=views, classes=dataset.class_count)


def _head(network: Network, source: Source, classes: int, trained: Trained) -> nn.Linear:
    """Return the Linear layer that is called last, found by running the network on one sample."""
    called: list[tuple[nn.Linear, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        if isinstance(layer, nn.Linear):
            called.append((layer, inputs[0]))

    with register_module_forward_hook(note):
        network.logits(replace(source, subset=source.samples()[:1]))
    if not called or called[-1][0].out_features != classes or called[-1][1].ndim != 2:
        raise InputError(
            f"{trained.path}: the outputs of {trained.arch} do not come from a Linear layer, whose "
            "input would be the features: a probe needs a network that ends in one"
        )
    return called[-1][0]


def _features(network: Network, head: nn.Linear, source: Source) -> tuple[Features, Labels]:
    """Return features float32 (N, D) and labels (N,) of all labelled samples."""
    labels = labels_of(source)
    known = source.samples()[labels >= 0]
    batches: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        batches.append(inputs[0].float().cpu())

    with head.register_forward_pre_hook(keep):
        network.logits(replace(source, subset=known))
    features: Features = torch.cat(batches).numpy()
    return features, labels[labels >= 0]


def _figures(
    features: Features, labels: Labels, test_features: Features, test_labels: Labels
) -> dict[str, float]:
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        probe.fit(features.astype(np.float64), labels)
    converged = not any(entry.category is ConvergenceWarning for entry in caught)
    return {
        "top1": float((probe.predict(test_features) == test_labels).mean()),
        "train_top1": float((probe.predict(features) == labels).mean()),
        "features": float(features.shape[1]),
        "samples": float(len(test_labels)),
        "train_samples": float(len(labels)),
        "converged": float(converged),
    }
