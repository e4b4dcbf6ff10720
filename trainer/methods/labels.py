"""Define the methods that learn from labels, without a teacher's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from logitstore.trainer.methods.base import Method, Outputs, PredictionsNeeded, Weighted, hard
from logitstore.trainer.schedules import rising_share
from logitstore.values import Count, PartlyShare, Positive, Share, Weight

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Method):
    """``ce``: cross-entropy with the labels alone."""

    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        return {"ce": hard(batch)}


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Method):
    """``label-smoothing``: cross-entropy with ``epsilon`` of the mass spread over all classes."""

    epsilon: Share = 0.1
    """Share of the mass that is spread over all classes."""

    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        from logitstore.trainer import losses

        def smoothed(labels: Tensor) -> Tensor:
            return losses.label_smoothing(batch.student, labels, epsilon=self.epsilon)

        return {"ce": batch.by_label(smoothed)}


@dataclass(frozen=True, kw_only=True)
class TeacherFreeReg(Weighted):
    """``tf-kd-reg``: ce_weight · CE + kd_weight · distance from a teacher made by hand.

    The defaults are the paper's for ResNet18; ``code`` has the same weights in its own units
    (0.1 times its multiplier of 100).
    """

    ce_weight: Weight = 0.9
    kd_weight: Weight = 0.1
    temperature: Positive = 20.0
    """Temperature that softens the teacher made by hand."""
    correct: PartlyShare = 0.99
    """Probability that the teacher made by hand gives to the label."""
    variant: Literal["paper", "code"] = "paper"
    """The regulariser as the paper has it, or as its code does."""

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"kd_weight": 10.0} if values.get("variant") == "code" else {}

    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        from logitstore.trainer import losses

        def distance(labels: Tensor) -> Tensor:
            return losses.tf_kd_reg(
                batch.student,
                labels,
                correct=self.correct,
                temperature=self.temperature,
                variant=self.variant,
            )

        return {
            "ce": self.ce_weight * hard(batch),
            "kd": self.kd_weight * batch.by_label(distance),
        }


@dataclass(frozen=True, kw_only=True)
class ProgressiveSelf(Method):
    """``ps-kd``: the student's own predictions of the last ``history`` epochs soften its labels."""

    one_label: ClassVar[bool] = True

    alpha: Share = 0.8
    """Trust in the past predictions in the last epoch; it grows linearly from 0."""
    history: Count = 1
    """Number of past epochs whose predictions are averaged."""
    past: Literal["training", "clean"] = "training"
    """Which predictions count: those of the training steps, as in the released code, or those of a
    pass in eval mode after each epoch."""

    @property
    def predictions_needed(self) -> PredictionsNeeded | None:
        return PredictionsNeeded(self.history, self.past == "clean")

    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        from logitstore.trainer import losses

        assert batch.past is not None
        alpha = self.alpha * rising_share(epoch, epochs=batch.epochs)
        return {"ps_kd": losses.ps_kd(batch.student, batch.labels, batch.past, alpha=alpha)}
