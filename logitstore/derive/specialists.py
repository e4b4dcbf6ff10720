"""Find the classes that a generalist confuses, and plan specialists for them: one JSON file.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 5.2: K-means on the columns of the covariance
matrix of the generalist's predictions.  Only stored logits are looked at; nothing is trained here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from logitstore.errors import Damaged, InputError, NotFound, UnknownName
from logitstore.format.documents import Document, Name, Sha256
from logitstore.format.encodings.topk import TopK
from logitstore.progress import Progress, Silent
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore
from logitstore.storage import open_storage
from logitstore.storage.durable import refuse_place

REST = "(rest)"
"""Name of a specialist's last output: all classes that are not its own."""

N_INIT = 10
"""Starts of K-means; the best one counts."""

_DECIMALS = 14
"""Covariances of probabilities in float64 are right to so many decimals."""


class Cluster(Document):
    """A specialist's classes, ascending; ``share`` is that of their samples among the labelled."""

    name: Name
    classes: Annotated[tuple[int, ...], Field(min_length=2)]
    share: Annotated[float, Field(gt=0, lt=1)]


class SpecialistPlan(Document):
    """The specialists for one generalist, ``snapshot`` with root ``generalist``.

    ``clusters``, ``seed`` and ``n_init`` are K-means'.  A specialist's outputs are its classes in
    this order and then one for all others.
    """

    format_version: Literal[1] = 1
    snapshot: str
    generalist: Sha256
    classes: int
    class_names: tuple[str, ...] | None
    clusters: int
    seed: int
    n_init: int
    specialists: Annotated[tuple[Cluster, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        names = [cluster.name for cluster in self.specialists]
        sets = [cluster.classes for cluster in self.specialists]
        if len(set(names)) < len(names) or len(set(sets)) < len(sets):
            raise ValueError("two specialists have one name, or the same classes")
        for name, classes in zip(names, sets, strict=True):
            inside = min(classes) >= 0 and max(classes) < self.classes
            if not inside or list(classes) != sorted(set(classes)):
                raise ValueError(
                    f"the classes of {name!r} must rise and lie in 0..{self.classes - 1}"
                )
            if len(classes) == self.classes:
                raise ValueError(f"{name!r} has all classes: nothing is left for the rest")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class_names for {self.classes} classes")
        if self.class_names is not None and REST in self.class_names:
            raise ValueError(f"a class is named {REST!r}, as the specialists' last output is")
        return self

    @property
    def sha256(self) -> str:
        """Digest of the plan as canonical JSON, however its file is laid out."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def cluster(self, name: str) -> Cluster:
        """Return the specialist of that name; UnknownName lists the others."""
        by_name = {cluster.name: cluster for cluster in self.specialists}
        if name not in by_name:
            raise UnknownName.among("specialist", name, by_name)
        return by_name[name]

    def names_of(self, classes: Sequence[int]) -> list[str]:
        """Return the names of classes, or their numbers where they have none."""
        return [self.class_names[i] if self.class_names else str(i) for i in classes]

    def outputs(self, cluster: Cluster) -> tuple[str, ...]:
        """Return the names of a specialist's outputs: its classes, then the rest."""
        return (*self.names_of(cluster.classes), REST)

    def numbers(self, cluster: Cluster) -> NDArray[np.int32]:
        """Return the specialist's output for each class, int32 (C,)."""
        numbers = np.full(self.classes, len(cluster.classes), np.int32)
        numbers[list(cluster.classes)] = np.arange(len(cluster.classes))
        return numbers


def plan_specialists(
    store: LogitStore,
    snapshot: Snapshot,
    *,
    clusters: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[SpecialistPlan, list[str]]:
    """Cluster the classes that the generalist ``snapshot`` confuses; and notes on what is left out.

    A class without a labelled sample, or alone in its cluster, gets no specialist.  InputError if
    ``clusters`` is not in 2..C, or none of two classes or more is left.
    """
    counts = np.bincount(store.labels[store.labels >= 0], minlength=snapshot.meta.classes)
    labelled = np.flatnonzero(counts)
    _refuse(store, snapshot, clusters, len(labelled))
    covariance = prediction_covariance(snapshot, progress)[:, labelled].T
    of_class = _k_means(covariance, clusters, seed, snapshot)
    groups = sorted(labelled[of_class == number].tolist() for number in range(clusters))
    confused = [group for group in groups if len(group) > 1]
    if not confused:
        raise InputError(
            f"{snapshot.name}: each of the {len(labelled)} classes is a cluster of its own: fewer "
            "--clusters"
        )
    plan = SpecialistPlan(
        snapshot=snapshot.name,
        generalist=snapshot.root,
        classes=snapshot.meta.classes,
        class_names=store.meta.class_names,
        clusters=clusters,
        seed=seed,
        n_init=N_INIT,
        specialists=tuple(
            Cluster(
                name=f"s{number}",
                classes=tuple(group),
                share=float(counts[group].sum() / counts.sum()),
            )
            for number, group in enumerate(confused, 1)
        ),
    )
    notes = []
    if len(labelled) < len(counts):
        notes.append(
            f"{len(counts) - len(labelled)} classes have no labelled sample: in no cluster"
        )
    if len(confused) < len(groups):
        alone = plan.names_of([group[0] for group in groups if len(group) == 1])
        notes.append(f"alone in a cluster, without a specialist: {', '.join(alone)}")
    return plan, notes


def _refuse(store: LogitStore, snapshot: Snapshot, clusters: int, classes: int) -> None:
    if classes == 0:
        raise InputError(
            f"{store.url}: no sample has a label, and specialists learn from labels: build the "
            "store from labelled data"
        )
    if not 2 <= clusters <= classes:
        raise InputError(
            f"--clusters {clusters}: expected 2..{classes}, the number of classes with labelled "
            "samples (one cluster would be the generalist again)"
        )
    refuse_topk(snapshot)
    if store.meta.class_names is not None and REST in store.meta.class_names:
        raise InputError(
            f"{store.url}: a class is named {REST!r}: this is a specialist's store, give the "
            "generalist's"
        )


def refuse_topk(snapshot: Snapshot) -> None:
    """Refuse a snapshot that has lost what its teacher predicts for most classes."""
    if snapshot.meta.encoding.name == TopK.name:
        raise InputError(
            f"{snapshot.url}: snapshot {snapshot.name!r} is kept as topk, and what it says of the "
            "other classes is lost: give one in another encoding"
        )


def prediction_covariance(
    snapshot: Snapshot, progress: Progress | None = None
) -> NDArray[np.float64]:
    """Return the covariance (C, C) of softmax(logits), T=1, over all rows, in float64."""
    progress = progress or Silent()
    classes, rows = snapshot.meta.classes, snapshot.meta.views * snapshot.meta.samples
    total, products = np.zeros(classes), np.zeros((classes, classes))
    progress.start("covariance", rows, "rows")
    for shard in snapshot.grid.shards():
        indices = np.arange(shard.start, shard.stop)
        logits = snapshot.logits(indices, shard.view).astype(np.float64)
        predicted = np.exp(logits - logits.max(axis=1, keepdims=True))
        predicted /= predicted.sum(axis=1, keepdims=True)
        total += predicted.sum(axis=0)
        products += predicted.T @ predicted
        progress.advance(shard.rows)
    mean = total / rows
    covariance: NDArray[np.float64] = products / rows - np.outer(mean, mean)
    return covariance


def _k_means(
    columns: NDArray[np.float64], clusters: int, seed: int, snapshot: Snapshot
) -> NDArray[np.int32]:
    from sklearn.cluster import KMeans

    # Columns that are equal but for rounding tell nothing apart; where a product's last bit differs
    # depends on the processor.
    distinct = len(np.unique(columns.round(_DECIMALS), axis=0))
    if distinct < clusters:
        raise InputError(
            f"{snapshot.name}: its predictions tell only {distinct} groups of classes apart: use "
            f"--clusters {max(2, distinct)} or fewer, or another snapshot"
        )
    k_means = KMeans(clusters, n_init=N_INIT, random_state=seed)
    of_class: NDArray[np.int32] = k_means.fit_predict(columns)
    return of_class


def write_plan(plan: SpecialistPlan, path: str | Path) -> None:
    """Write a plan; InputError if another file is there."""
    text = json.dumps(plan.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    place = Path(path)
    refuse_place(place)
    storage = open_storage(place.parent)
    if not storage.create(place.name, text.encode()) and storage.get(place.name) != text.encode():
        raise InputError(f"{path}: another file is there: use another --out, or remove it")


def read_plan(path: str | Path) -> SpecialistPlan:
    """Read a plan; NotFound, or InputError that names the first bad field."""
    try:
        return SpecialistPlan.parse(str(path), Path(path).read_bytes())
    except FileNotFoundError:
        raise NotFound(
            f"{path}: there is no such plan; `logitstore specialists plan` makes one"
        ) from None
    except Damaged as error:
        raise InputError(f"{error}: expected a plan of `logitstore specialists plan`") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
