"""Can a network learn from a trained copy of itself?  Yuan et al. say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CODE_WEIGHTS,
    FIVE_TIMES,
    YUAN,
    YUAN_PAPER,
    YUAN_SMALL,
)


def recipe() -> Recipe:
    return Recipe(
        title="Tf-KD_self: a trained copy of itself as teacher",
        paper=YUAN,
        claim="A network distilled from an earlier trained copy of itself ends better.",
        notes=f"{CODE_WEIGHTS} {FIVE_TIMES}",
        scales={
            "small": scale(
                replace(YUAN_SMALL, teacher=YUAN_SMALL.student), ce_weight=0.25, kd_weight=0.475
            ),
            "paper": scale(
                replace(
                    YUAN_PAPER,
                    teacher="$ROOT/networks.py:mobilenetv2",
                    student="$ROOT/networks.py:mobilenetv2",
                ),
                ce_weight=0.05,
                kd_weight=0.0095,
            ),
        },
        baseline="ce",
        source="CIFAR-100, top-1, read off its figures [fig]",
        published=(
            ("network", "alone", "Tf-KD_self"),
            ("MobileNetV2", "68.38", "70.96"),
            ("ShuffleNetV2", "70.34", "72.23"),
            ("ResNet18", "75.87", "77.10"),
            ("GoogLeNet", "78.72 (78.15 in its other table)", "80.17"),
            ("DenseNet121", "79.04", "80.26"),
            ("ResNeXt29", "81.03", "82.08"),
        ),
    )


def scale(s: Settings, ce_weight: float, kd_weight: float) -> Scale:
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            f"{s.taught} --method ce --out $OUT/ce-$SEED",
            f"{s.taught} --method tf-kd-self --temperature 20 --ce-weight {ce_weight} "
            f"--kd-weight {kd_weight} --out $OUT/self-$SEED",
        ),
        rows={"the trained copy": "teacher", "ce": "ce-$SEED", "Tf-KD_self": "self-$SEED"},
        effects=(Effect("Tf-KD_self beats cross-entropy", "Tf-KD_self", over="ce"),),
    )
