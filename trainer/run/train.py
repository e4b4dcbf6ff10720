"""Train a student, or go on in a run's folder where the same command stopped.

A resumed run is bit-identical to an undisturbed one on the same machine and package versions: a
step depends on the checkpoint and the order of the samples alone.  No method is known by name.
Several ranks take the same steps, each with its part of the batch; only the first one writes.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path

import torch

from logitstore.cache.cache import Cache
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.pixels import parse_normalize
from logitstore.precompute.processes.launch import joined, own_device
from logitstore.precompute.processes.ranks import Ranks
from logitstore.progress import Progress, Silent
from logitstore.specs import file_sha256
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.order import unseen_views
from logitstore.trainer.data.requirements import refuse_ranks
from logitstore.trainer.data.run_data import RunData, open_run_data
from logitstore.trainer.data.samples import taught_half
from logitstore.trainer.measure.network import Network, first_shape
from logitstore.trainer.methods.table import hyper_parameters, summary
from logitstore.trainer.run.device import budgeted_device, own_randomness, reproducible
from logitstore.trainer.run.epochs import Epochs
from logitstore.trainer.run.folder import RunFolder
from logitstore.trainer.run.learner import begin_with, initial_weights, make_learner
from logitstore.trainer.run.memory import micro_batch, oom_as_input_error
from logitstore.trainer.run.parts import has_batchnorm
from logitstore.trainer.run.predictions import PastPredictions
from logitstore.trainer.run.recompute import recomputed
from logitstore.trainer.run.result import Inputs, Result
from logitstore.trainer.run.step import StepContext, TrainingStep


def train(
    config: TrainConfig, *, token: str | None = None, progress: Progress | None = None
) -> Result:
    """Train a student, or go on where an interrupted run of the same configuration stopped.

    ``token`` is a server's bearer token.  Raises MismatchError or InputError before any work if
    something does not fit, NonFinite if the loss does not stay finite, Unfinished or
    PatienceExhausted if the same call should be made again.  Under torchrun all ranks return the
    result; an error is raised in one of them, and SystemExit in the others.

    >>> train(TrainConfig(data="digits?train=true", student="mlp", out="run"))   # doctest: +SKIP
    """
    with joined(config.device) as ranks:
        return _train(config, token, progress if progress and ranks.first else Silent(), ranks)


def _train(settings: TrainConfig, token: str | None, progress: Progress, ranks: Ranks) -> Result:
    config = settings.resolved()
    ranks.agree({f"setting {name}": value for name, value in asdict(config).items()})
    run = RunFolder(config.out)
    done = run.finished(config)
    if done is not None and config.expect_root is None and run.store() == config.store:
        progress.message(f"{run.path}: already finished, {done.epochs} epochs")
        return done
    name = own_device(config.device, ranks)
    device, budget = budgeted_device(name, config.precision, config.memory_limit)
    data = open_run_data(config, token)
    refuse_ranks(config, data.order, ranks)
    data = replace(data, order=replace(data.order, ranks=ranks))
    source, teaching = data.source, data.source.teaching
    shape = first_shape(source)
    normalize = parse_normalize(config.normalize, shape[0])
    with ExitStack() as stack:
        stack.enter_context(own_randomness(config.seed, device))
        stack.enter_context(reproducible(device))
        if budget is not None:
            stack.enter_context(budget.enforced())
        stack.enter_context(oom_as_input_error(config, config.micro_batch))
        model = build_model(config.student, classes=source.classes, shape=shape)
        weights = None if config.init is None else initial_weights(config.init)
        if weights is not None:
            data = replace(data, notes=(*data.notes, *begin_with(model, weights)))
        learner = make_learner(config, model, device)
        ranks.same([*model.parameters(), *model.buffers()])
        network = Network(model, normalize, device, batch_size=1)
        for images in (source, *data.eval_data.sources()):
            network.check(images)
        _announce(settings, config, data, model, progress, ranks)
        if ranks.first:
            stack.enter_context(run.lock())
        if config.recompute:
            stack.enter_context(recomputed(model))
        step = TrainingStep(
            method=config.method_object,
            normalize=normalize,
            precision=config.precision,
            context=_context(config, data),
            ranks=ranks,
        )
        tried = None if done else budget
        micro = micro_batch(
            config, run.inputs(), learner, source, data.order, step, tried, progress
        )
        inputs = _inputs(data, weights, shape, device, micro)
        ranks.agree(inputs.model_dump(mode="json"))
        if ranks.first:
            run.begin(config, inputs)
        ranks.wait()
        if done is not None:
            return done
        step = replace(step, micro_batch=micro)
        stack.enter_context(oom_as_input_error(config, micro))
        if teaching is not None:
            only_proven = config.expect_root is not None
            cache = Cache.default(config.cache)
            teaching = teaching.prepared(config.read, cache, progress, only_proven=only_proven)
            stack.enter_context(closing(teaching))
            progress.message(teaching.readers[0].note)
            proven = ranks.smallest(int(teaching.proven)) == 1
            if ranks.first:
                run.note_rows(proven=proven)
            data = replace(data, source=replace(source, teaching=teaching))
            taught = taught_half(source, data.order.samples, teaching.reader(0), config.teach)
            step = replace(step, context=step.context._replace(taught=taught))
        epochs = Epochs(
            config=config, run=run, data=data, step=step, progress=progress, budget=budget
        )
        return epochs.run_to_end(learner)


def _announce(
    settings: TrainConfig,
    config: TrainConfig,
    data: RunData,
    model: torch.nn.Module,
    progress: Progress,
    ranks: Ranks,
) -> None:
    """Print what a run is, and what a user may not expect of it."""
    if ranks.count > 1 and has_batchnorm(model):
        progress.message(
            f"warning: BatchNorm normalises each of {ranks.count} ranks' parts by its own "
            "statistics, and the first one's are kept: the student differs from one of one process"
        )
    if settings.val != config.val:
        progress.message(
            f"validation: {config.val} of the training samples, as the test data must choose "
            "nothing (--val for other ones)"
        )
    values = hyper_parameters(config.method_object).items()
    chosen = ", ".join(f"{name} {value}" for name, value in values if value is not None)
    why = ", as there is a store (--method ce learns from labels alone)"
    progress.message(
        f"method {config.method}{why if settings.method_by_store else ''}: "
        f"{summary(config.method)} {chosen}".rstrip()
    )
    if data.source.snapshot is not None and not config.method_object.needs_teacher:
        progress.message(
            f"{config.store}: method {config.method} does not learn from these logits; each epoch "
            "reports how often the student disagrees with them (train_kd_error)"
        )
    for note in [*data.notes, *unseen_views(data.source, config.epochs)]:
        progress.message(note)


def _context(config: TrainConfig, data: RunData) -> StepContext:
    needed = config.method_object.predictions_needed
    if needed is None:
        return StepContext(epochs=config.epochs)
    samples = data.order.all_samples()
    labels = data.source.dataset.labels[samples]
    epochs = min(needed.epochs, config.epochs)
    past = PastPredictions.begin(samples, labels, data.source.classes, epochs)
    remember = not needed.from_eval_pass
    return StepContext(epochs=config.epochs, past=past, remember_predictions=remember)


def _inputs(
    data: RunData,
    weights: Path | None,
    shape: tuple[int, int, int],
    device: torch.device,
    micro_batch: int | None,
) -> Inputs:
    source, eval_data = data.source, data.eval_data
    return Inputs(
        data=source.dataset.samples().card(),
        val=None if eval_data.val is None else eval_data.val.dataset.samples().card(),
        test=None if eval_data.test is None else eval_data.test.dataset.samples().card(),
        root=None if source.teaching is None else source.teaching.root,
        classes=source.classes,
        class_names=source.dataset.class_names,
        class_map=None if source.class_map is None else dict(source.class_map),
        init_sha256=None if weights is None else file_sha256(weights),
        input_shape=shape,
        view_spec=source.views.spec,
        size=source.views.size,
        device=device.type,
        micro_batch=micro_batch,
        notes=data.notes,
    )
