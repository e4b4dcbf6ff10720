"""Take one training step, and add up what an epoch's figures come from.

The sums stay on the device until the epoch ends: to ask for a number at each step would make the
device wait for the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from logitstore.errors import InputError, NonFinite
from logitstore.format.cards import Normalize
from logitstore.precompute.networks.pixels import to_input
from logitstore.precompute.processes.ranks import ALONE, Ranks
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.batches import Batch
from logitstore.trainer.data.source import Request
from logitstore.trainer.methods.base import Method, Mixed, Outputs, total
from logitstore.trainer.run.checkpoint import Learner
from logitstore.trainer.run.parts import batchnorm_momentum, split_batch
from logitstore.trainer.run.predictions import PastPredictions, encoded

CHECK_EVERY = 16
"""Steps between two looks at the losses, each of which waits for the device."""

_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TAIL = ("correct", "labelled", "differing")


class StepContext(NamedTuple):
    """What a loss may look at beside the batch.

    ``epochs`` of the run; the student's ``past`` predictions, which a step adds to if it shall
    ``remember_predictions``; ``taught`` bool (samples of the dataset,): where the teacher's terms
    count, None: everywhere.
    """

    epochs: int = 1
    past: PastPredictions | None = None
    remember_predictions: bool = False
    taught: Tensor | None = None


NO_CONTEXT = StepContext()


def make_learner(config: TrainConfig, model: torch.nn.Module, device: torch.device) -> Learner:
    """Put the model on its device, with its optimiser and, for fp16, its gradient scaler."""
    model.to(device).train()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{config.student}: this student has no weights to train")
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.base_lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.base_lr,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
        )
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    return Learner(model, optimizer, scaler, device)


def take_step(
    learner: Learner,
    method: Method,
    batch: Batch,
    *,
    lr: float,
    normalize: Normalize | None,
    precision: str,
    micro_batch: int | None = None,
    context: StepContext = NO_CONTEXT,
    ranks: Ranks = ALONE,
    whole: int | None = None,
) -> dict[str, Tensor]:
    """Learn from one batch; return sums over its samples: loss, terms, counts (float64, 0-d).

    The batch is this rank's part of one of ``whole`` samples (None: all of it); sums and gradient
    are those of the whole: of its mean loss.  At most ``micro_batch`` samples (None: all) go
    through the network at once.  Raises InputError if the network refuses so few samples,
    torch.OutOfMemoryError, and Unfinished where another rank has ended.
    """
    samples = whole or len(batch.labels)
    for group in learner.optimizer.param_groups:
        group["lr"] = lr
    learner.optimizer.zero_grad(set_to_none=True)
    ranks.same(list(learner.model.buffers()))
    parts = split_batch(batch, micro_batch)
    with batchnorm_momentum(learner.model, len(parts)):
        learnt = [
            _learn(learner, method, part, samples, normalize, precision, context) for part in parts
        ]
    if context.past is not None and context.remember_predictions:
        predicted = torch.cat([student for student, _ in learnt])
        _remember(context.past, batch.request, predicted, samples, ranks)
    names = list(learnt[0][1])
    each = [torch.stack([sums[name] for name in names]) for _, sums in learnt]
    values = torch.stack(each).sum(0)
    _add_up(learner, values, ranks)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    return dict(zip(names, values.unbind(), strict=True))


def _remember(
    past: PastPredictions, request: Request, student: Tensor, samples: int, ranks: Ranks
) -> None:
    """Keep the predictions of the whole batch; every rank keeps all of them."""
    codes = ranks.gathered(encoded(student), samples)
    indices = ranks.gathered(torch.from_numpy(request.indices), samples)
    past.put(indices.numpy(), codes, request.epoch)


def _add_up(learner: Learner, values: Tensor, ranks: Ranks) -> None:
    """Add up the ranks' gradients and sums; a parameter that has none in any rank keeps none.

    Zeros in its place would let weight decay and momentum change it.
    """
    if ranks.count == 1:
        return
    trained = [entry for entry in learner.model.parameters() if entry.requires_grad]
    lacking = [place for place, entry in enumerate(trained) if entry.grad is None]
    having = torch.ones(len(trained), device=learner.device)
    for place in lacking:
        having[place] = 0
        trained[place].grad = torch.zeros_like(trained[place])
    ranks.add([*(entry.grad for entry in trained if entry.grad is not None), having, values])
    for place in lacking:
        if having[place] == 0:
            trained[place].grad = None


def _learn(
    learner: Learner,
    method: Method,
    part: Batch,
    samples: int,
    normalize: Normalize | None,
    precision: str,
    context: StepContext,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add a part's gradients of the mean over ``samples``; return its logits and sums."""
    model, device = learner.model, learner.device
    images = to_input(part.images.to(device, non_blocking=True), normalize)
    labels = part.labels.to(device, non_blocking=True)
    mixed = part.mixed and Mixed(*(entry.to(device, non_blocking=True) for entry in part.mixed))
    teacher = None if part.teacher is None else part.teacher.tensor(device)
    narrow = torch.autocast(device.type, _NARROW[precision]) if precision in _NARROW else None
    try:
        with narrow or nullcontext():
            student = model(images)
        outputs = _outputs(part, student, labels, teacher, mixed, context)
        terms = method.terms(outputs, part.request.epoch)
        loss = total(terms)
        learner.scaler.scale(loss.sum() / samples).backward()  # type: ignore[no-untyped-call]
    except ValueError as error:  # BatchNorm refuses a single sample
        whole = len(labels) == samples
        raise InputError(
            f"the student cannot learn from {'a batch' if whole else f'{len(labels)}'} of "
            f"{samples} images{'' if whole else ' at once'} ({str(error).splitlines()[0]}): choose "
            f"another {'' if whole else '--micro-batch or '}--batch-size"
        ) from error
    return student.detach(), _sums(outputs, loss, terms)


def _outputs(
    part: Batch,
    student: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    mixed: Mixed | None,
    context: StepContext,
) -> Outputs:
    epoch, indices, device = part.request.epoch, part.request.indices, student.device
    past = None if context.past is None else context.past.probabilities(indices, epoch).to(device)
    taught = (
        None if context.taught is None else context.taught[torch.from_numpy(indices)].to(device)
    )
    return Outputs(student, labels, teacher, mixed, past, taught, context.epochs)


@torch.no_grad()
def _sums(outputs: Outputs, loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    guess = outputs.student.argmax(1)
    counts = {
        "correct": outputs.by_label(lambda labels: (guess == labels).double()).sum(),
        "labelled": outputs.by_label(lambda labels: (labels >= 0).double()).sum(),
    }
    if outputs.teacher is not None:
        counts["differing"] = (guess != outputs.teacher.argmax(1)).sum()
    summed = {"loss": loss, **{f"loss_{name}": term for name, term in terms.items()}}
    return {
        **{name: values.double().sum() for name, values in summed.items()},
        **{name: value.double() for name, value in counts.items()},
    }


def epoch_figures(names: list[str], sums: Tensor, samples: int) -> dict[str, float]:
    """Return an epoch's means from its sums; without labels there is no accuracy."""
    values = dict(zip(names, sums.tolist(), strict=True))
    figures = {name: value / samples for name, value in values.items() if name not in _TAIL}
    if values["labelled"]:
        figures["train_accuracy"] = values["correct"] / values["labelled"]
    if "differing" in values:
        figures["train_kd_error"] = values["differing"] / samples
    return figures


class LossWatch:
    """Finds the first step whose loss is not finite, looking only every few steps."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, int, Tensor]] = []

    def add(self, epoch: int, step: int, loss: Tensor) -> None:
        self._pending.append((epoch, step, loss))
        if len(self._pending) >= CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Raise NonFinite with the epoch and the step, both counted from 1."""
        pending, self._pending = self._pending, []
        if not pending or torch.stack([loss for *_, loss in pending]).isfinite().all():
            return
        epoch, step, loss = next(entry for entry in pending if not entry[2].isfinite())
        raise NonFinite(
            f"the loss became {loss.item()} in epoch {epoch + 1}, step {step + 1}: lower --lr, add "
            "--warmup-epochs, or use --precision bf16 or fp32; no later checkpoint was written"
        )


def check_weights(model: torch.nn.Module, epoch: int, step: int) -> None:
    """Raise NonFinite if a weight is not finite, so that no checkpoint ever holds such weights."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise NonFinite(
                f"weight {name} became NaN or infinite by epoch {epoch + 1}, step {step + 1}: "
                "lower --lr, add --warmup-epochs, or use --precision bf16 or fp32"
            )
