"""Take one training step, and add up what an epoch's figures come from.

The sums stay on the device until the epoch ends: to ask for a number at each step would make the
device wait for the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitstore.errors import InputError
from logitstore.format.cards import Normalize
from logitstore.precompute.networks.pixels import to_input
from logitstore.precompute.processes.ranks import ALONE, Ranks
from logitstore.trainer.data.batches import Batch
from logitstore.trainer.data.source import Request
from logitstore.trainer.methods.base import Method, Mixed, Outputs, total
from logitstore.trainer.run.learner import Learner
from logitstore.trainer.run.parts import batchnorm_momentum, split_batch
from logitstore.trainer.run.predictions import PastPredictions, encoded

_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TAIL = ("correct", "labelled", "differing")


class StepContext(NamedTuple):
    """All that a loss may look at beside the batch.

    ``epochs`` of the run; the student's ``past`` predictions, which a step adds to if it shall
    ``remember_predictions``; ``taught`` bool (samples of the dataset,): where the teacher's terms
    count, None: everywhere.
    """

    epochs: int = 1
    past: PastPredictions | None = None
    remember_predictions: bool = False
    taught: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """All that a step depends on beside the learner, the batch and the learning rate.

    At most ``micro_batch`` samples (None: all) go through the network at once.
    """

    method: Method
    normalize: Normalize | None = None
    precision: str = "fp32"
    micro_batch: int | None = None
    context: StepContext = field(default_factory=StepContext)
    ranks: Ranks = ALONE

    def take(
        self, learner: Learner, batch: Batch, lr: float, whole: int | None = None
    ) -> dict[str, Tensor]:
        """Learn from one batch; return sums over its samples: loss, terms, counts (float64, 0-d).

        The batch is this rank's part of one of ``whole`` samples (None: all of it); sums and
        gradient are those of the whole: of its mean loss.  Raises InputError if the network refuses
        so few samples, torch.OutOfMemoryError, and Unfinished where another rank has ended.
        """
        samples, context = whole or len(batch.labels), self.context
        for group in learner.optimizer.param_groups:
            group["lr"] = lr
        learner.optimizer.zero_grad(set_to_none=True)
        self.ranks.same(list(learner.model.buffers()))
        parts = split_batch(batch, self.micro_batch)
        with batchnorm_momentum(learner.model, len(parts)):
            results = [self._learn(learner, part, samples) for part in parts]
        if context.past is not None and context.remember_predictions:
            predictions = torch.cat([logits for logits, _ in results])
            _remember(context.past, batch.request, predictions, samples, self.ranks)
        names = list(results[0][1])
        values = torch.stack([torch.stack(list(sums.values())) for _, sums in results]).sum(0)
        _add_up(learner, values, self.ranks)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        return dict(zip(names, values.unbind(), strict=True))

    def _learn(
        self, learner: Learner, part: Batch, samples: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add a part's gradients of the mean over ``samples``; return its logits and sums."""
        device, narrow = learner.device, _NARROW.get(self.precision)
        images = to_input(part.images.to(device, non_blocking=True), self.normalize)
        beside = _beside(part, device, self.context)  # a later copy would wait for the network
        try:
            with nullcontext() if narrow is None else torch.autocast(device.type, narrow):
                logits = learner.model(images)
            outputs = Outputs(logits, *beside)
            terms = self.method.terms(outputs, part.request.epoch)
            loss = total(terms)
            learner.scaler.scale(loss.sum() / samples).backward()  # type: ignore[no-untyped-call]
        except ValueError as error:  # BatchNorm refuses a single sample
            count = len(part.labels)
            whole = count == samples
            raise InputError(
                f"the student cannot learn from {'a batch' if whole else f'{count}'} of {samples} "
                f"images{'' if whole else ' at once'} ({str(error).splitlines()[0]}): choose "
                f"another {'' if whole else '--micro-batch or '}--batch-size"
            ) from error
        return logits.detach(), _sums(outputs, loss, terms)


def _beside(part: Batch, device: torch.device, context: StepContext) -> tuple[Any, ...]:
    """Return the fields of ``Outputs`` after the student's logits, on its device."""
    epoch, _, _, indices = part.request
    past, taught = context.past, context.taught
    return (
        part.labels.to(device, non_blocking=True),
        None if part.teacher is None else part.teacher.tensor(device),
        part.mixed and Mixed(*(entry.to(device, non_blocking=True) for entry in part.mixed)),
        None if past is None else past.probabilities(indices, epoch).to(device),
        None if taught is None else taught[torch.from_numpy(indices)].to(device),
        context.epochs,
    )


def _remember(
    past: PastPredictions, request: Request, logits: Tensor, samples: int, ranks: Ranks
) -> None:
    """Keep the predictions of the whole batch; every rank keeps all of them."""
    codes = ranks.gathered(encoded(logits), samples)
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


@torch.no_grad()
def _sums(outputs: Outputs, loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    guess = outputs.student.argmax(1)
    sums = {"loss": loss.double().sum()}
    sums |= {f"loss_{name}": term.double().sum() for name, term in terms.items()}
    sums["correct"] = outputs.by_label(lambda labels: (guess == labels).double()).sum()
    sums["labelled"] = outputs.by_label(lambda labels: (labels >= 0).double()).sum()
    if outputs.teacher is not None:
        sums["differing"] = (guess != outputs.teacher.argmax(1)).sum()
    return {name: value.double() for name, value in sums.items()}


def epoch_figures(names: list[str], sums: Tensor, samples: int) -> dict[str, float]:
    """Return an epoch's means from its sums; without labels there is no accuracy."""
    values = dict(zip(names, sums.tolist(), strict=True))
    figures = {name: value / samples for name, value in values.items() if name not in _TAIL}
    if values["labelled"]:
        figures["train_accuracy"] = values["correct"] / values["labelled"]
    if "differing" in values:
        figures["train_kd_error"] = values["differing"] / samples
    return figures
