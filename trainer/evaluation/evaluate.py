"""Measure weights on a dataset, in eval mode: all figures come from one pass over the images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from logitstore.errors import InputError
from logitstore.precompute.data.classes import read_class_map
from logitstore.precompute.data.images import check_labels
from logitstore.reading.ensemble import Teacher, leaves
from logitstore.reading.opening import open_store
from logitstore.reading.store import LogitStore
from logitstore.trainer.config.checks import needs_store, refuse_stages
from logitstore.trainer.config.specs import split_share
from logitstore.trainer.data.align import refuse_other_samples
from logitstore.trainer.data.bind import bind, open_validation, refuse_other_names
from logitstore.trainer.data.requirements import refuse_lost_tail
from logitstore.trainer.data.source import Source
from logitstore.trainer.data.teaching import open_schedule
from logitstore.trainer.evaluation.weights import Trained, find_trained
from logitstore.trainer.measure.calibration import fit_temperature
from logitstore.trainer.measure.figures import compare, fitted_figures, measure
from logitstore.trainer.measure.network import labels_of


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
    trust_run: bool = False,
) -> dict[str, float]:
    """Return the figures of some weights on some data: those of ``measure``, and more on request.

    A run, or a checkpoint inside one, knows its ``student``, ``normalize`` and image preparation;
    they may be given for any other checkpoint.  ``val`` adds ``fitted_temperature``, a temperature
    fitted on these data, and ``nll_fitted``, ``ece10_fitted`` and ``ece15_fitted`` after it.  Of a
    run that held samples out, ``split:SHARE`` may stand for either data.
    A store of the same data adds ``kd_error``, ``agreement`` and ``kd_loss`` (T² · KL from the
    teacher at ``temperature``, None: 1) on the snapshot's view 0; imported logits are matched by
    labels alone.  ``snapshot`` may be an ensemble, but no schedule.  All else is measured on images
    without anything random.  ``match_by`` and ``class_map`` are as in ``TrainConfig``; a run's own
    class map and names hold for the data that it is measured on.  ``trust_run``: run the code that
    the run's own file names as its network or its data, which is refused otherwise.

    >>> evaluate("runs/student", "digits?train=false")["top1"]    # doctest: +SKIP
    0.9715
    """
    at = 1.0 if temperature is None else temperature
    if at <= 0:
        raise InputError(f"--temperature must be positive, not {at:g}")
    trained = find_trained(run_or_checkpoint, student, normalize, trust_run=trust_run)
    if store is None:
        _refuse_without_store(trained, match_by, class_map, temperature)
    source = trained.source(data, view_spec=view_spec, size=size, class_map=class_map)
    taught = None
    if store is not None:
        opened = open_store(store, token)
        refuse_stages(snapshot)
        teacher = open_schedule(opened, snapshot, temperature=at, token=token).first
        for leaf in leaves(teacher):
            refuse_lost_tail(leaf, at)
        taught = taught_source(
            trained, source, opened, teacher, match_by=match_by, class_map=class_map
        )
        # One pass serves both figures, unless the teacher saw random views.
        plain = replace(taught, views=source.views, first_view=0)
        source = plain if taught.views.random else taught
    check_labels(source.dataset, source.classes)
    network = trained.network(source, device, batch_size)
    logits = network.logits(source)
    measured = measure(logits, labels_of(source))
    if val is not None:
        chosen = _validation(trained, source, val)
        network.check(chosen)
        fitted = fit_temperature(network.logits(chosen), labels_of(chosen))
        measured |= fitted_figures(logits, labels_of(source), fitted)
    if taught is not None:
        ours = logits if taught is source else network.logits(taught)
        measured |= compare(ours, taught.teacher_logits(), at)
    return measured


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
    """Bind the same samples to a teacher's rows, in the store's order; raises what ``bind`` raises.

    ``class_map`` is for weights that are in no run that names its classes.
    """
    if trained.inputs is not None:
        refuse_other_names(store, trained.inputs.class_names, str(trained.path))
    refuse_other_samples(store, teacher)
    taught, _ = bind(
        store,
        teacher,
        source.dataset,
        unbound=source.views,
        allow_mismatch=allow_mismatch,
        match_by=match_by,
        class_map=read_class_map(class_map) if trained.inputs is None else None,
    )
    subset = taught.subset if source.subset is None else source.subset
    numbers = taught.class_map if trained.inputs is None else source.class_map
    return replace(taught, subset=subset, class_map=numbers)


def _validation(trained: Trained, source: Source, val: str) -> Source:
    if split_share(val) is None:
        return open_validation(val, source)
    return replace(trained.source(val), views=source.views.evaluation())


def _refuse_without_store(
    trained: Trained, match_by: str, class_map: str | None, temperature: float | None
) -> None:
    if match_by != "index":
        raise needs_store("match_by")
    if temperature is not None:
        raise needs_store("temperature")
    if class_map is not None and trained.inputs is None:
        raise InputError(
            f"--class-map: {trained.path} is in no run that names its classes: drop --class-map, "
            "or give --store STORE"
        )
