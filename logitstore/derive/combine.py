"""Combine a generalist's rows with its specialists': ``logitstore combine``.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 5.4.  Per row, k is the generalist's best
class and A the specialists that have k; the result is the q that minimises

    KL(p_generalist || q) + sum over m in A of KL(p_m || q as m sees it)

where a specialist sees one class for all that are not its own.  Without any in A, q is the
generalist's.  The paper finds q by gradient descent; here it is a fixed point in closed steps.
The logits written are log q, an ordinary snapshot on the generalist's samples and views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitstore.derive.specialists import Cluster, SpecialistPlan, refuse_topk
from logitstore.derive.transcode import chosen_for, write_from
from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import CombinedCard, SpecialistCard, ViewCard
from logitstore.format.choice import EncodingRequest
from logitstore.format.documents import check_name, first_difference
from logitstore.format.encodings.base import Logits
from logitstore.format.fidelity import log_softmax
from logitstore.progress import Progress
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore

Dustbin = Literal["share", "odds"]
Floats = NDArray[np.float64]

TOLERANCE, MOST_ROUNDS = 1e-10, 10_000
"""Largest relative change of a row that counts as none, and the rounds after which it ends."""

_TINY = np.finfo(np.float64).tiny
"""The smallest probability: its logarithm is finite."""


class Member(NamedTuple):
    """A specialist's prediction of some rows: its classes (K,), and log p (n, K + 1), rest last."""

    classes: NDArray[np.int64]
    log_p: Floats


def dustbin_shift(cluster: Cluster, dustbin: Dustbin) -> float:
    """Return what to add to a specialist's rest logit; half of its training data were special.

    ``share``: log(0.5 / f), the proportion by which the special samples, a share f of the data,
    were oversampled, as the paper words it.  ``odds``: log((1 - f) / f), by Bayes' rule exactly.
    """
    numerator = 0.5 if dustbin == "share" else 1 - cluster.share
    return float(np.log(numerator / cluster.share))


def least_kl(p: Floats, members: Sequence[Member]) -> Floats:
    """Return the q (n, C) with the least KL(p || q) + sum of KL(p_m || q as m sees it), p (n, C).

    Each round replaces q by the mean of p and of each p_m, whose rest is shared out as q does; the
    objective never rises.  It ends when no entry of a row moves by more than 1e-10 of itself: in
    the second round where one specialist is asked; where several that share classes contradict each
    other to the last digit, after 10,000 rounds.
    """
    q = np.maximum(p, _TINY)
    moving = np.arange(len(q))
    predictions = [(member.classes, np.exp(member.log_p)) for member in members]
    for _ in range(MOST_ROUNDS if members else 0):
        of_rows = [(classes, p_m[moving]) for classes, p_m in predictions]
        mean = _mean(p[moving], q[moving], of_rows)
        moved = np.abs(mean / q[moving] - 1).max(axis=1)
        q[moving] = mean
        moving = moving[moved > TOLERANCE]
        if len(moving) == 0:
            break
    return q


def _mean(p: Floats, q: Floats, members: Sequence[tuple[NDArray[np.int64], Floats]]) -> Floats:
    """Return the mean (n, C) of p and the members' predictions; q divides the mass of a rest."""
    total = p.copy()
    for classes, p_m in members:
        rest = np.ones(p.shape[1], np.bool_)
        rest[classes] = False
        total[:, classes] += p_m[:, :-1]
        total[:, rest] += p_m[:, -1:] * q[:, rest] / q[:, rest].sum(axis=1, keepdims=True)
    mean: Floats = np.maximum(total / (1 + len(members)), _TINY)
    return mean


def combined_rows(generalist: Logits, members: Sequence[Member]) -> Logits:
    """Return log q, float32 (n, C), of rows with the generalist's logits (n, C)."""
    log_q = log_softmax(generalist)
    best = generalist.argmax(axis=1)
    for k in np.unique(best):
        rows = np.flatnonzero(best == k)
        of_class = [Member(m.classes, m.log_p[rows]) for m in members if k in m.classes]
        if of_class:
            log_q[rows] = np.log(least_kl(np.exp(log_q[rows]), of_class))
    return log_q.astype(np.float32)


class Specialist(NamedTuple):
    """A specialist's stored logits."""

    store: LogitStore
    snapshot: Snapshot


def combine(
    store: LogitStore,
    generalist: Snapshot,
    plan: SpecialistPlan,
    specialists: Sequence[Specialist],
    out: str,
    name: str,
    request: EncodingRequest,
    *,
    dustbin: Dustbin = "share",
    fresh: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write the combined snapshot ``name`` to the store ``out``; return its root.

    Specialists are told apart by their stores' class names; each is of a cluster of the plan, which
    may have more.  Running it again resumes.  Raises InputError, and MismatchError if stores are
    not of the same samples in the same views, or ``out`` holds something else.
    """
    check_name("snapshot", name)
    _check_generalist(store, generalist, plan)
    pairs = _by_cluster(plan, specialists)
    for cluster, specialist in pairs:
        _check_specialist(store, generalist, plan, cluster, specialist)
    shifts = [dustbin_shift(cluster, dustbin) for cluster, _ in pairs]

    def answers(samples: NDArray[np.int64], view: int) -> Logits:
        members = []
        for (cluster, specialist), shift in zip(pairs, shifts, strict=True):
            logits = specialist.snapshot.logits(samples, view).astype(np.float64)
            logits[:, -1] += shift
            members.append(Member(np.array(cluster.classes), log_softmax(logits)))
        return combined_rows(generalist.logits(samples, view), members)

    card = CombinedCard(
        dustbin=dustbin,
        plan_sha256=plan.sha256,
        generalist=generalist.root,
        specialists=tuple(
            SpecialistCard(name=cluster.name, root=specialist.snapshot.root)
            for cluster, specialist in pairs
        ),
    )
    entry = chosen_for(store, generalist, request, answers)
    return write_from(
        store,
        generalist,
        out,
        answers,
        request,
        entry,
        {"name": name, "combined": card, "transcoded": None},
        task="combine",
        fresh=fresh,
        progress=progress,
    )


def _check_generalist(store: LogitStore, generalist: Snapshot, plan: SpecialistPlan) -> None:
    if generalist.meta.combined is not None:
        raise InputError(
            f"{generalist.url}: snapshot {generalist.name!r} is itself combined: give the "
            f"generalist that it was made from, root {generalist.meta.combined.generalist}"
        )
    refuse_topk(generalist)
    if (store.meta.classes, store.meta.class_names) != (plan.classes, plan.class_names):
        raise MismatchError(
            f"{store.url} has {store.meta.classes} classes, the plan is for {plan.classes} (or "
            "their names differ): give the generalist's store that the plan was made from, or one "
            "with its classes"
        )


def _by_cluster(
    plan: SpecialistPlan, specialists: Sequence[Specialist]
) -> list[tuple[Cluster, Specialist]]:
    """Return the specialists with their clusters, in the plan's order."""
    by_names = {plan.outputs(cluster): cluster for cluster in plan.specialists}
    by_name: dict[str, Specialist] = {}
    for specialist in specialists:
        store = specialist.store
        cluster = by_names.get(store.meta.class_names or ())
        if cluster is None:
            known = "; ".join(", ".join(names) for names in by_names)
            raise MismatchError(
                f"{store.url}: its classes {store.meta.class_names} are no specialist's "
                f"of the plan ({known}): give a store built from a run with --specialist"
            )
        if cluster.name in by_name:
            raise InputError(
                f"{by_name[cluster.name].store.url} and {store.url} are both of specialist "
                f"{cluster.name!r}: give one of them"
            )
        by_name[cluster.name] = specialist
    if not by_name:
        raise InputError("no specialist's store: give one for each specialist that is to answer")
    return [(c, by_name[c.name]) for c in plan.specialists if c.name in by_name]


def _check_specialist(
    store: LogitStore,
    generalist: Snapshot,
    plan: SpecialistPlan,
    cluster: Cluster,
    specialist: Specialist,
) -> None:
    """Refuse rows that are not of the generalist's samples and views, in this order."""
    theirs, snapshot = specialist
    what = f"{theirs.url} (specialist {cluster.name!r}) and {store.url}"
    refuse_topk(snapshot)
    ours = (generalist.meta.views, generalist.meta.samples)
    if (snapshot.meta.views, snapshot.meta.samples) != ours:
        raise MismatchError(
            f"{what}: {snapshot.meta.views} x {snapshot.meta.samples} rows there, {ours[0]} x "
            f"{ours[1]} here: build both from the same --data and --views"
        )
    known = np.where(store.labels < 0, np.int32(-1), plan.numbers(cluster)[store.labels])
    differs = (known != theirs.labels) & (known >= 0) & (theirs.labels >= 0)
    if store.keys is not None and theirs.keys is not None:
        differs |= store.keys != theirs.keys
    if differs.any():
        raise MismatchError(
            f"{what}: sample {differs.argmax()} is another one there than here: build both from "
            "the same --data"
        )
    _refuse_other_views(what, generalist.meta.view, snapshot.meta.view)


def _refuse_other_views(what: str, ours: ViewCard | None, theirs: ViewCard | None) -> None:
    if ours is None or theirs is None:
        if (ours is None) != (theirs is None):
            raise MismatchError(
                f"{what}: one was imported, and nothing tells what images it is of: build both, or "
                "import both"
            )
        return
    plain = {"canaries": ()}
    difference = first_difference(ours.model_copy(update=plain), theirs.model_copy(update=plain))
    if difference:
        field, value, other = difference
        raise MismatchError(
            f"{what}: the views' {field} is {other!r} there and {value!r} here: build both with "
            "one --view-spec, --size, --mix and --seed"
        )
    if len(ours.canaries) != len(theirs.canaries):
        raise MismatchError(
            f"{what}: {len(theirs.canaries)} fingerprints of views there and {len(ours.canaries)} "
            "here: build both with one --views"
        )
    for one, other in zip(ours.canaries, theirs.canaries, strict=True):
        if not one.resembles(other):
            raise MismatchError(
                f"{what}: sample {one.sample} is another image there than here: build both from "
                "the same --data"
            )
