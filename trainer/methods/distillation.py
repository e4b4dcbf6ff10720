"""Define the methods that learn from a teacher's rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from logitstore.errors import InputError
from logitstore.trainer.methods.base import Outputs, Weighted, hard
from logitstore.trainer.schedules import distils, rising_share
from logitstore.values import Positive, Weight, WholeNumber

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Taught(Weighted):
    """Base: ce_weight · CE + kd_weight · what ``soft`` measures against the teacher's logits."""

    needs_teacher: ClassVar[bool] = True

    standardize: bool = False
    """Standardise the logits of both sides first. kd, dkd and its parts then have another
    temperature and kd_weight by default."""
    stop_kd_at: WholeNumber | None = None
    """After so many epochs learn from labels alone, with weight 1."""

    @abstractmethod
    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the distance from the teacher: (N, C), (N, C), (N,) -> (N,) nats."""

    def warm_up(self, epoch: int) -> float:
        """Return what multiplies the teacher's term in this epoch."""
        return 1.0

    @property
    def needs_tail(self) -> str | None:
        if self.standardize:
            return "standardises logits by the mean and deviation of all classes"
        return super().needs_tail

    def refuse_run(self, epochs: int) -> None:
        if self.stop_kd_at is not None and self.stop_kd_at >= epochs:
            raise InputError(
                f"--stop-kd-at {self.stop_kd_at} never comes in a run of {epochs} epochs: lower "
                "it, drop it, or raise --epochs"
            )

    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        if not distils(epoch, stop=self.stop_kd_at):
            return {"ce": hard(batch)}
        from logitstore.trainer import losses

        assert batch.teacher is not None
        sides = (batch.student, batch.teacher)
        if self.standardize:
            sides = (losses.standardize(batch.student), losses.standardize(batch.teacher))
        soft = self.soft(*sides, batch.labels)
        if batch.taught is not None:
            soft = soft * batch.taught
        return {
            "ce": self.ce_weight * hard(batch),
            "kd": self.kd_weight * self.warm_up(epoch) * soft,
        }


@dataclass(frozen=True, kw_only=True)
class Softened(Taught):
    """Base: the teacher is softened by one ``temperature``.

    Standardised logits have other defaults (Sun et al. 2024).
    """

    temperature: Positive = 4.0
    """Temperature that softens the teacher."""

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"temperature": 2.0, "kd_weight": 9.0} if values.get("standardize") else {}

    @property
    def teacher_temperature(self) -> float | None:
        return None if self.standardize else self.temperature


@dataclass(frozen=True, kw_only=True)
class Distillation(Softened):
    """``kd``: ce_weight · CE + kd_weight · T² · KL."""

    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9

    @property
    def needs_tail(self) -> str | None:
        return super().needs_tail if self.teacher_temperature is None else None

    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from logitstore.trainer import losses

        return losses.kd(student, teacher, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class TeacherFreeSelf(Distillation):
    """``tf-kd-self``: ``kd`` from a trained copy of the student itself.

    The defaults are MobileNetV2's on 100 classes, whose 0.95 the released code divides by C.
    """

    temperature: Positive = 20.0
    ce_weight: Weight = 0.05
    kd_weight: Weight = 0.0095


@dataclass(frozen=True, kw_only=True)
class Decoupled(Softened):
    """Base of ``dkd`` and its parts, which set the label's class apart from the others."""

    one_label: ClassVar[bool] = True

    kd_warmup: WholeNumber = 20
    """Epochs in which the teacher's term rises linearly to its weight."""

    def warm_up(self, epoch: int) -> float:
        return rising_share(epoch, epochs=self.kd_warmup)

    def remarks(self, epochs: int) -> list[str]:
        if self.kd_warmup <= epochs:
            return []
        return [
            f"kd_warmup {self.kd_warmup} is longer than the run's {epochs} epochs: the teacher's "
            f"term ends at {self.warm_up(epochs - 1):.0%} of its weight"
        ]


@dataclass(frozen=True, kw_only=True)
class DecoupledKD(Decoupled):
    """``dkd``: ce_weight · CE + kd_weight · warm-up · T² · (alpha · TCKD + beta · NCKD)."""

    alpha: Weight = 1.0
    """Weight of TCKD, the label's class against all others."""
    beta: Weight = 8.0
    """Weight of NCKD, the other classes among themselves."""

    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from logitstore.trainer import losses

        return losses.dkd(
            student,
            teacher,
            labels,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
        )


@dataclass(frozen=True, kw_only=True)
class TargetClassKD(Decoupled):
    """``tckd``: ce_weight · CE + kd_weight · warm-up · T² · TCKD."""

    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from logitstore.trainer import losses

        return losses.tckd(student, teacher, labels, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class NonTargetClassKD(Decoupled):
    """``nckd``: ce_weight · CE + kd_weight · warm-up · T² · NCKD."""

    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from logitstore.trainer import losses

        return losses.nckd(student, teacher, labels, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class Relations(Softened):
    """``dist``: ce_weight · CE + kd_weight · (beta · rows' + gamma · columns' distance) · T²."""

    per_batch: ClassVar[bool] = True

    beta: Weight = 1.0
    """Weight of the distance between rows (samples)."""
    gamma: Weight = 1.0
    """Weight of the distance between columns (classes)."""
    kd_weight: Weight = 2.0

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {}  # standardised logits were published with KD and DKD

    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from logitstore.trainer import losses

        return losses.dist(
            student, teacher, temperature=self.temperature, beta=self.beta, gamma=self.gamma
        )


@dataclass(frozen=True, kw_only=True)
class NormalizedKD(Taught):
    """``nkd``: ce_weight · CE + kd_weight · NKD; the defaults are ImageNet's."""

    one_label: ClassVar[bool] = True

    temperature: Positive = 1.0
    """Temperature of the classes beside the label."""
    gamma: Positive = 1.5
    """Weight of the classes beside the label."""

    @property
    def teacher_temperature(self) -> float | None:
        # The label's probability is taken at temperature 1, the others' at the one given.
        return 1.0 if self.temperature == 1 and not self.standardize else None

    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from logitstore.trainer import losses

        return losses.nkd(student, teacher, labels, gamma=self.gamma, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class TransformedTeacher(Taught):
    """``ttm``: ce_weight · CE + kd_weight · KL from the teacher at temperature 1/gamma."""

    gamma: Positive = 0.1
    """Power of the teacher's probabilities: 1/gamma is their temperature."""
    kd_weight: Weight = 45.0

    @property
    def teacher_temperature(self) -> float | None:
        return None if self.standardize else 1 / self.gamma

    @property
    def needs_tail(self) -> str | None:
        return super().needs_tail if self.teacher_temperature is None else None

    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from logitstore.trainer import losses

        return losses.ttm(student, teacher, gamma=self.gamma)


@dataclass(frozen=True, kw_only=True)
class WeightedTransformedTeacher(TransformedTeacher):
    """``wttm``: ``ttm`` with a larger weight where the teacher is smoother.

    The weight, up to C^(1 - gamma), is why its ``kd_weight`` is smaller.
    """

    gamma: Positive = 0.2
    kd_weight: Weight = 4.0

    @property
    def teacher_temperature(self) -> float | None:
        # The weight is taken from the teacher at temperature 1, the distribution at 1/gamma.
        return 1.0 if self.gamma == 1 and not self.standardize else None

    def soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from logitstore.trainer import losses

        return losses.wttm(student, teacher, gamma=self.gamma)
