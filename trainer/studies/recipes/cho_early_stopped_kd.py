"""Does a student end better if distillation stops early?  Cho and Hariharan say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CHO,
    CHO_SMALL,
    CIFAR10_PAPER,
    KD,
    cosine,
    drops,
)


def recipe() -> Recipe:
    return Recipe(
        title="Early-stopped distillation",
        paper=CHO,
        claim=(
            "A small student of a large teacher ends better if distillation stops early and plain "
            "cross-entropy finishes the training."
        ),
        notes=(
            "When to stop is not recovered: here at the first drop of the learning rate. Small "
            "scale: Fashion-MNIST, and a teacher of 26 times the weights that has learned its "
            "3,000 images by heart."
        ),
        scales={
            "small": scale(
                replace(
                    CHO_SMALL,
                    seeds=5,
                    optimise=drops(0.02, "6,12,16", 0.2),
                    epochs=20,
                    teacher_epochs=40,
                ),
                stop=6,
                teacher_optimise=cosine(0.02),
            ),
            "paper": scale(CIFAR10_PAPER, stop=60),
        },
        baseline="ce",
        source=(
            "ImageNet, top-1 error of a ResNet18 from a published summary [seed]; its "
            "CIFAR-10 figures have no numbers"
        ),
        published=(
            ("teacher", "KD", "early-stopped KD", "no teacher"),
            ("ResNet18", "30.57", "29.01", "30.24"),
            ("ResNet34", "30.79", "29.16", "30.24"),
            ("ResNet50", "30.95", "29.35", "30.24"),
        ),
    )


def scale(s: Settings, stop: int, teacher_optimise: str | None = None) -> Scale:
    return Scale(
        s,
        steps=(
            s.train_teacher(s.teacher, "teacher", optimise=teacher_optimise),
            s.build("$OUT/teacher"),
            f"{s.taught} --method ce --out $OUT/ce-$SEED",
            f"{s.taught} {KD} --out $OUT/kd-$SEED",
            f"{s.taught} {KD} --stop-kd-at {stop} --out $OUT/eskd-$SEED",
        ),
        rows={
            "the teacher": "teacher",
            "ce": "ce-$SEED",
            "kd to the end": "kd-$SEED",
            "kd stopped early": "eskd-$SEED",
        },
        effects=(
            Effect(
                "Stopping distillation early beats distilling to the end",
                "kd stopped early",
                over="kd to the end",
            ),
            Effect("Early-stopped distillation beats cross-entropy", "kd stopped early", over="ce"),
        ),
    )
