"""Measure finished runs on the report's data, once, for all that a page shows of them.

Logits are dropped as soon as a run is measured: thirty runs of a thousand classes would not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import LogitstoreError, MismatchError, NonFinite
from logitstore.progress import Progress
from logitstore.reading.opening import NO_TOKEN, open_store
from logitstore.storage import is_url
from logitstore.trainer.config.teacher_spec import servers_of
from logitstore.trainer.data.order import shuffled
from logitstore.trainer.data.source import Indices, Source
from logitstore.trainer.data.teaching import open_schedule
from logitstore.trainer.evaluation.evaluate import taught_source
from logitstore.trainer.evaluation.weights import Trained, find_trained
from logitstore.trainer.measure.figures import compare, measure
from logitstore.trainer.measure.network import Labels, Logits, labels_of
from logitstore.trainer.metrics import Reliability, reliability, risk_coverage
from logitstore.trainer.reporting import analysis
from logitstore.trainer.reporting.gather import ReportData, RunRecord
from logitstore.trainer.run.result import CONFIG

BINS = 15
"""Bins of a reliability diagram."""

_MOST_COMPARED = 10_000
"""Most training samples that are compared: enough for a correlation to two digits."""

_BATCH = 256
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class TeacherRequest:
    """The teacher whose rows to compare with; ``store`` None: that of each run's own store.

    A run's own ``store`` without a ``snapshot`` means the run's own teacher there.
    """

    store: str | None = None
    snapshot: str | None = None
    token: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of a student's logits from ``teacher``'s on the samples of ``data``.

    ``difference`` is ``analysis.correlation_difference``, ``mean`` its mean off the diagonal.
    """

    teacher: str
    data: str
    difference: NDArray[np.float64]
    mean: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A run's figures by weights (``last``, ``best``), and its last weights' answers.

    ``compared`` is a sentence where there is no teacher to compare with; ``points`` (P, 2) with
    their ``labels`` (P,) are None where too few samples can be mapped.
    """

    run: int
    figures: dict[str, dict[str, float]]
    reliability: Reliability
    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    class_accuracy: NDArray[np.float64]
    class_count: NDArray[np.int64]
    compared: Comparison | str
    points: NDArray[np.float64] | None
    point_labels: Labels


def find_all(
    runs: Sequence[RunRecord],
    data: ReportData,
    request: TeacherRequest,
    device: str | None,
    progress: Progress,
    *,
    trust_run: bool = False,
) -> list[Findings]:
    """Measure every finished run; MismatchError if their samples turn out not to be the same.

    InputError if a run's file names code, unless ``trust_run``.
    """
    finished = [run for run in runs if run.result is not None]
    progress.start(f"measuring on {data}, t-SNE", len(finished), "runs")
    findings: list[Findings] = []
    labels: Labels | None = None
    for run in finished:
        trained = find_trained(run.weights()["last"], trust_run=trust_run)
        source = trained.source(data.spec, untyped=None if data.typed else run.path / CONFIG)
        if labels is None:
            labels = labels_of(source)
        elif not np.array_equal(labels, labels_of(source)):
            raise MismatchError(
                f"{run.path} and {finished[0].path}: {data} does not give both the same samples: "
                "say with --data DATA on what all of them are compared"
            )
        findings.append(_find(run, trained, source, data, request, device))
        progress.advance(1)
    return findings


def _find(
    run: RunRecord,
    trained: Trained,
    source: Source,
    data: ReportData,
    request: TeacherRequest,
    device: str | None,
) -> Findings:
    taught = _taught(run, trained, source, data, request)
    network = trained.network(source, device, _BATCH)
    logits, labels = _finite(network.logits(source), run), labels_of(source)
    figures = {"last": _recorded(run, data, "last") | measure(logits, labels)}
    compared: Comparison | str
    if isinstance(taught, str):
        compared = taught
    else:
        ours, theirs = _finite(network.logits(taught.source), run), taught.source.teacher_logits()
        difference = analysis.correlation_difference(ours, theirs)
        compared = Comparison(
            teacher=taught.teacher,
            data=taught.data,
            difference=difference,
            mean=analysis.mean_difference(difference),
        )
        if taught.whole:
            figures["last"] |= compare(ours, theirs, 1.0)
    if "best" in run.weights():
        best = find_trained(run.weights()["best"], trust_run=trained.trust_run)
        figures["best"] = _recorded(run, data, "best") | _best(run, best, source, taught, device)
    coverage, risk = risk_coverage(logits, labels)
    accuracy, count = analysis.class_accuracy(logits, labels)
    chosen = analysis.embedded_samples(len(labels), _SEED)
    return Findings(
        run=run.number,
        figures=figures,
        reliability=reliability(logits, labels, BINS),
        coverage=coverage,
        risk=risk,
        class_accuracy=accuracy,
        class_count=count,
        compared=compared,
        points=analysis.embed(logits[chosen], _SEED),
        point_labels=labels[chosen],
    )


@dataclass(frozen=True, kw_only=True)
class _Taught:
    """Samples with a teacher's rows; ``whole``: they are the report's data, all of them."""

    source: Source
    teacher: str
    data: str
    whole: bool


def _best(
    run: RunRecord, best: Trained, source: Source, taught: _Taught | str, device: str | None
) -> dict[str, float]:
    network = best.network(source, device, _BATCH)
    figures = measure(_finite(network.logits(source), run), labels_of(source))
    if isinstance(taught, str) or not taught.whole:
        return figures
    return figures | compare(network.logits(taught.source), taught.source.teacher_logits(), 1.0)


def _recorded(run: RunRecord, data: ReportData, weights: str) -> dict[str, float]:
    """Return the figures that the run recorded, if they are of these data."""
    if run.result is None or run.config.test != data.spec:
        return {}
    return dict((run.result.test if weights == "last" else run.result.test_best) or {})


def _taught(
    run: RunRecord, trained: Trained, source: Source, data: ReportData, request: TeacherRequest
) -> _Taught | str:
    """Bind the report's samples, else the run's training samples, to a teacher; or say why not.

    A teacher that the caller names must fit; that of the run's own store need not.  A server that
    only the run's file names is not asked, or, if the file is trusted, gets no token.
    """
    own = run.config.store
    if request.store is not None and (request.snapshot is not None or request.store != own):
        return _bound(run, trained, source, str(data), request)
    if own is None:
        return "it was trained without a store (--store STORE says whose logits to compare with)"
    untyped = [server for server in servers_of(own, run.config.snapshot) if server != request.store]
    if untyped and not trained.trust_run:
        return (
            f"{run.path / CONFIG} names {untyped[0]}, a server that was not asked: give it with "
            "--store, or --trust-run to ask it without a token"
        )
    token = request.token if request.store == own and is_url(own) else NO_TOKEN
    recorded = TeacherRequest(store=own, snapshot=run.config.snapshot, token=token)
    try:
        try:
            return _bound(run, trained, source, str(data), recorded)
        except MismatchError:
            samples = trained.source(run.config.data, untyped=run.path / CONFIG)
            bound = _bound(run, trained, samples, run.config.data, recorded)
        return replace(bound, source=_part(bound.source), whole=False)
    except LogitstoreError as error:
        if request.store is not None:
            raise
        return f"its own store cannot be used ({error})"


def _bound(
    run: RunRecord, trained: Trained, source: Source, data: str, request: TeacherRequest
) -> _Taught:
    assert request.store is not None
    store = open_store(request.store, request.token)
    teaching = open_schedule(
        store,
        request.snapshot,
        temperature=run.config.method_object.ensemble_temperature,
        token=request.token,
    )
    teacher = teaching.teachers[-1]
    of_run = request.store == run.config.store
    bound = taught_source(
        trained,
        source,
        store,
        teacher,
        match_by=run.config.match_by if of_run else "index",
        allow_mismatch=of_run and run.config.allow_mismatch,
    )
    return _Taught(source=bound, teacher=teacher.name, data=data, whole=True)


def _part(source: Source) -> Source:
    samples: Indices = source.samples()
    chosen = samples[shuffled(len(samples), "compared", _SEED)[:_MOST_COMPARED]]
    return replace(source, subset=np.sort(chosen))


def _finite(logits: Logits, run: RunRecord) -> Logits:
    if not np.isfinite(logits).all():
        raise NonFinite(
            f"{run.path}: some logits are NaN or infinite: nothing can be drawn of this run; leave "
            "it out"
        )
    return logits
